import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.errors import CompressError, UsageError
from pipeline.rundir import DiskFullError, check_out, open_run, write_atomic

MINE = "a" * 64
OTHER = "b" * 64


def _writer(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    return write


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_checking_an_output_directory_creates_nothing(tmp_path: Path) -> None:
    check_out(tmp_path / "deep" / "run", MINE, False)
    assert _names(tmp_path) == set()


def test_opening_creates_the_directory_its_marker_and_the_stages_folder(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with open_run(out, MINE, False):
        assert (out / "stages").is_dir()
        assert json.loads((out / "run.json").read_text())["fingerprint"] == MINE


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    with open_run(tmp_path, MINE, False):
        assert (tmp_path / "run.json").is_file()


def test_a_directory_killed_before_its_marker_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".tmp-1-run.json").touch()
    with open_run(tmp_path, MINE, False):
        assert ".tmp-1-run.json" not in _names(tmp_path)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(UsageError, match="exists and is not a directory"):
        check_out(tmp_path / "run", MINE, False)


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"file' is not a directory"):
        check_out(tmp_path / "file" / "run", MINE, False)


def test_an_unwritable_parent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    with pytest.raises(UsageError, match=f"'{tmp_path}' is not writable"):
        check_out(tmp_path / "run", MINE, False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_foreign_directory_is_refused_and_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match=r"not a run's directory \(it holds 'thesis.tex'\)"):
        open_run(tmp_path, MINE, resume)
    assert _names(tmp_path) == {"thesis.tex"}


@pytest.mark.parametrize("resume", [False, True])
def test_the_directory_of_another_run_is_refused(tmp_path: Path, resume: bool) -> None:
    open_run(tmp_path, OTHER, False).close()
    with pytest.raises(UsageError, match="another model, other settings or"):
        open_run(tmp_path, MINE, resume)


def test_an_existing_run_needs_resume(tmp_path: Path) -> None:
    open_run(tmp_path, MINE, False).close()
    with pytest.raises(UsageError, match="add --resume to go on with it, or choose another --out"):
        open_run(tmp_path, MINE, False)
    open_run(tmp_path, MINE, True).close()


def test_a_marker_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match="cannot read"):
        check_out(tmp_path, MINE, True)


def test_two_runs_cannot_hold_one_directory_at_once(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, MINE, False),
        pytest.raises(UsageError, match="another run is writing"),
    ):
        open_run(tmp_path, MINE, True)
    open_run(tmp_path, MINE, True).close()


def test_a_run_that_came_between_check_and_create_is_refused(tmp_path: Path) -> None:
    late = check_out(tmp_path / "run", MINE, False)
    open_run(tmp_path / "run", OTHER, False).close()
    with pytest.raises(UsageError, match="another model, other settings or"):
        late.create()
    open_run(tmp_path / "run", OTHER, True).close()


def test_resuming_removes_temporary_files_of_a_killed_run(tmp_path: Path) -> None:
    open_run(tmp_path, MINE, False).close()
    for folder in (tmp_path, tmp_path / "stages"):
        (folder / ".tmp-7-model.onnx").write_text("half")
    with open_run(tmp_path, MINE, True):
        assert not list(tmp_path.rglob(".tmp-*"))


def test_an_atomic_write_replaces_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, _writer("old"))
    write_atomic(path, _writer("new"))
    assert path.read_text() == "new"
    assert _names(tmp_path) == {"a.json"}


def test_an_atomic_write_keeps_the_suffix_and_usual_permissions(tmp_path: Path) -> None:
    seen: list[str] = []

    def writer(temp: Path) -> None:
        seen.append(temp.suffix)
        temp.write_text("x")

    write_atomic(tmp_path / "a.onnx", writer)
    (tmp_path / "plain").write_text("x")
    assert seen == [".onnx"]
    assert (tmp_path / "a.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_keeps_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(temp: Path) -> None:
        temp.write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert _names(tmp_path) == {"a.json"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_and_harms_nothing(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")

    def fail(temp: Path) -> None:
        temp.write_text("half")
        raise error

    with pytest.raises(DiskFullError, match=f"disk full while writing '{path}'") as caught:
        write_atomic(path, fail)
    assert caught.value.exit_code == 2
    assert path.read_text() == "old"
    assert _names(tmp_path) == {"model.onnx"}


def test_a_full_disk_under_torch_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = Path.open

    def full(path: Path, mode: str = "r", *args: int) -> object:
        return real_open(Path("/dev/full") if mode == "wb" else path, mode, *args)

    with open_run(tmp_path, MINE, False) as run:
        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(DiskFullError, match=r"01-tick\.pt"):
            run.save_stage("tick", {"w": torch.zeros(10_000)})
        assert not run.is_done("tick")


def test_a_saved_stage_comes_back(tmp_path: Path) -> None:
    with open_run(tmp_path, MINE, False) as run:
        assert not run.is_done("tick")
        run.save_stage("tick", {"w": torch.arange(3), "info": {"seconds": 1.5, "names": ["a"]}})
    with open_run(tmp_path, MINE, True) as run:
        assert run.is_done("tick")
        payload = run.load_stage("tick")
    assert payload["w"].tolist() == [0, 1, 2]
    assert payload["info"] == {"seconds": 1.5, "names": ["a"]}


def test_stages_are_numbered_in_order_and_replaced_in_place(tmp_path: Path) -> None:
    with open_run(tmp_path, MINE, False) as run:
        for name in ("trace", "tick-1", "tick", "trace"):
            run.save_stage(name, {"n": 1})
    assert _names(tmp_path / "stages") == {"01-trace.pt", "02-tick-1.pt", "03-tick.pt"}


def test_a_payload_that_would_need_code_to_load_is_not_saved(tmp_path: Path) -> None:
    with open_run(tmp_path, MINE, False) as run:
        with pytest.raises(Exception, match=r"[Ww]eights"):
            run.save_stage("tick", {"module": torch.nn.Linear(1, 1)})
        assert _names(tmp_path / "stages") == set()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_stage_is_said_and_not_done(tmp_path: Path, damage: str) -> None:
    said: list[str] = []
    with open_run(tmp_path, MINE, False, say=said.append) as run:
        path = run.save_stage("tick", {"w": torch.ones(1000)})
        content = bytearray(path.read_bytes())
        at = content.index(torch.ones(4).numpy().tobytes())
        content[at] ^= 1
        broken = {"cut": content[:900], "flip": content, "empty": b"", "text": b"hello"}
        path.write_bytes(broken[damage])
        assert not run.is_done("tick")
    assert len(said) == 1
    assert "stage 'tick' is done again" in said[0]
    assert "01-tick.pt' is damaged" in said[0]


def test_a_stage_of_another_run_is_not_done(tmp_path: Path) -> None:
    said: list[str] = []
    with open_run(tmp_path / "other", OTHER, False) as other:
        foreign = other.save_stage("tick", {"n": 1}).read_bytes()
    with open_run(tmp_path / "mine", MINE, False, say=said.append) as run:
        (tmp_path / "mine" / "stages" / "01-tick.pt").write_bytes(foreign)
        assert not run.is_done("tick")
    assert "belongs to another run" in said[0]


def test_loading_an_unfinished_stage_is_refused(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, MINE, False) as run,
        pytest.raises(CompressError, match="stage 'tick' is not finished"),
    ):
        run.load_stage("tick")
