"""No code of a model file runs unless the user says so."""

import functools
import io
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.importers import ModelSource, load_model
from pipeline.importers.dry_run import dry_run

SIZE = (3, 8, 8)


class Calls:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.args


def load(path: Path, *, trust: bool = False) -> nn.Module:
    source = ModelSource(path=path, input_size=SIZE, trust_pickle=trust)
    return load_model(source).module


@pytest.mark.parametrize("new_format", [True, False])
def test_evil_checkpoint_does_not_run(tmp_path: Path, new_format: bool) -> None:
    marker = tmp_path / "marker"
    evil = {"model": nn.Conv2d(3, 4, 3), "x": Calls(os.system, f"touch {marker}")}
    torch.save(evil, tmp_path / "m.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(UsageError, match=r"(posix|nt)\.system.*--trust-pickle"):
        load(tmp_path / "m.pt")
    assert not marker.exists()


def test_evil_plain_pickle_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "m.pt").write_bytes(pickle.dumps(Calls(os.system, f"touch {marker}")))
    with pytest.raises(UsageError, match=r"(posix|nt)\.system"):
        load(tmp_path / "m.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("evil", "name"),
    [
        (Calls(torch.load, "other.pt"), "torch.serialization.load"),
        (Calls(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        (functools.partial(torch.hub.load, "a/b"), "torch.hub.load"),
        (Calls(eval, "1"), "builtins.eval|__builtin__.eval"),
        (Calls(getattr, nn.Linear, "forward"), "getattr"),
        (torch.nn.init.ones_, "torch.nn.init.ones_"),
        (torch.fx.symbolic_trace(nn.ReLU()), "torch.fx"),
    ],
    ids=["load", "hub", "partial", "eval", "getattr", "init", "graph-module"],
)
def test_globals_that_could_run_code_are_refused(tmp_path: Path, evil: object, name: str) -> None:
    torch.save({"model": nn.Conv2d(3, 4, 3), "x": evil}, tmp_path / "m.pt")
    with pytest.raises(UsageError, match=name):
        load(tmp_path / "m.pt")


@pytest.mark.parametrize("called", [Calls(nn.Linear, 2, 2), Calls(nn.functional.relu, 1)])
def test_layer_classes_and_functions_may_be_named_but_not_called(
    tmp_path: Path, called: object
) -> None:
    torch.save({"model": nn.Conv2d(3, 4, 3), "x": called}, tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"torch\.nn\.(modules\.linear\.Linear|functional\.relu)"):
        load(tmp_path / "m.pt")


def test_a_detour_through_an_admitted_module_is_refused(tmp_path: Path) -> None:
    torch.save({"model": nn.Conv2d(3, 4, 3)}, tmp_path / "m.pt")
    evil = b"\x80\x02ctorch.nn.functional\ntorch.hub.load\nX\x01\x00\x00\x00a\x85R."
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as source,
        zipfile.ZipFile(tmp_path / "evil.pt", "w") as target,
    ):
        for name in source.namelist():
            target.writestr(name, evil if name.endswith("data.pkl") else source.read(name))
    with pytest.raises(UsageError, match=r"torch\.nn\.functional\.torch\.hub\.load"):
        load(tmp_path / "evil.pt")


def test_dry_run_tells_naming_from_calling_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    content = pickle.dumps([Calls(os.system, f"touch {marker}"), nn.Linear, nn.ReLU()], protocol=2)
    use = dry_run(io.BytesIO(content))
    assert use.called - {"collections.OrderedDict", "__builtin__.set"} == {f"{os.name}.system"}
    assert use.created == use.state_set == {"torch.nn.modules.activation.ReLU"}
    assert "torch.nn.modules.linear.Linear" in use.named
    assert not marker.exists()


def test_users_own_class_is_refused_by_name_and_loads_when_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ownnet.py").write_text(
        "from torch import nn\nclass Own(nn.Conv2d):\n    pass\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import ownnet  # type: ignore[import-not-found]

    torch.save(ownnet.Own(3, 4, 3), tmp_path / "m.pt")
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "ownnet")
    with pytest.raises(UsageError, match=r"asks to run ownnet\.Own.*--arch.*--trust-pickle"):
        load(tmp_path / "m.pt")
    before = list(sys.path)
    assert type(load(tmp_path / "m.pt", trust=True)).__name__ == "Own"
    assert sys.path == before
    sys.modules.pop("ownnet")
    (tmp_path / "ownnet.py").unlink()
    with pytest.raises(UsageError, match=r"a class of the model is not found.*ownnet"):
        load(tmp_path / "m.pt", trust=True)
