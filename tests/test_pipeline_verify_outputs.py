"""Where `compress verify` and `bench` write, and graphs whose inputs or outputs are no floats."""

import json
import os
import shutil
import stat
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from cli_calls import refused, run
from tiny_onnx import write_chain

POSIX = pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_chain(tmp_path / "small.onnx")


@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown"])
def test_no_report_takes_the_place_of_a_model(small: Path, tmp_path: Path, option: str) -> None:
    before = small.read_bytes()
    weights = tmp_path / "weights.data"
    np.arange(64, dtype=np.float32).tofile(weights)
    for target in (small, weights):
        line = refused("verify", small, "--max-size", "5MB", option, target)
        assert line.endswith("is there and is no text: name another file")
    assert small.read_bytes() == before
    assert weights.stat().st_size == 256


def test_bench_writes_over_no_model_either(small: Path) -> None:
    assert "is no text" in refused("bench", small, "--json", small)
    assert onnx.load(small).graph.node


def test_an_earlier_report_is_replaced(small: Path, tmp_path: Path) -> None:
    for _ in range(2):
        asked = ("--json", tmp_path / "a.json", "--markdown", tmp_path / "a.md")
        assert run("verify", small, "--max-size", "5MB", *asked).exit_code == 0
    assert json.loads((tmp_path / "a.json").read_text())["exit_code"] == 0


def test_two_reports_need_two_files(small: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    again = tmp_path / "sub" / ".." / "out"
    asked = ("verify", small, "--max-size", "5MB", "--json", tmp_path / "out", "--junit", again)
    assert "--json and --junit name the same file" in refused(*asked)
    assert not (tmp_path / "out").exists()


@POSIX
def test_a_link_stays_and_what_it_leads_to_is_written(small: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "target.json")
    assert run("verify", small, "--max-size", "5MB", "--json", link).exit_code == 0
    assert link.is_symlink()
    assert json.loads((tmp_path / "target.json").read_text())["exit_code"] == 0


@POSIX
def test_a_pipe_is_written_to_and_not_replaced(small: Path, tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert run("verify", small, "--max-size", "5MB", "--json", pipe).exit_code == 0
    reader.join(10)
    assert json.loads(read[0])["exit_code"] == 0
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def _saved(path: Path, nodes: list[onnx.NodeProto], kinds: tuple[int, int],
           table: np.ndarray | None = None) -> Path:  # fmt: skip
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", kinds[0], ["N", 5])],
        [helper.make_tensor_value_info("y", kinds[1], None)],
        [] if table is None else [numpy_helper.from_array(table, "table")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("rows", "code"), [(1, 0), (2, 11), (16, 11), (40, 11)])
def test_indices_reach_as_many_rows_as_there_are(tmp_path: Path, rows: int, code: int) -> None:
    """All rows but the first are broken, and one more so than is: zeros alone would not tell."""
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    whole = np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)
    broken = whole.copy()
    broken[1:] = 7
    kinds = (TensorProto.INT64, TensorProto.FLOAT)
    files = [
        _saved(tmp_path / f"{name}.onnx", nodes, kinds, table)
        for name, table in (("whole", whole), ("broken", broken))
    ]
    asked = ("verify", files[1], "--baseline", files[0], "--parity-tolerance", "1e-3")
    assert run(*asked).exit_code == code


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.BOOL, TensorProto.INT8])
def test_a_file_of_whole_numbers_equals_itself(tmp_path: Path, kind: int) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    file = _saved(tmp_path / "cast.onnx", nodes, (kind, TensorProto.FLOAT))
    copy = shutil.copy(file, tmp_path / "copy.onnx")
    result = run("verify", file, "--baseline", copy, "--parity-tolerance", "1e-3")
    assert result.exit_code == 0, result.output


def test_text_outputs_have_no_parity(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)]
    file = _saved(tmp_path / "text.onnx", nodes, (TensorProto.FLOAT, TensorProto.STRING))
    asked = ("verify", file, "--baseline", file, "--parity-tolerance", "1e-3")
    assert "an output is text" in refused(*asked)


def test_a_batch_beyond_all_memory_and_a_seed_below_0_are_refused(small: Path) -> None:
    assert "above 1,048,576" in refused("bench", small, "--batch-size", 10**19)
    wide = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "w"])
    same = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "w"])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", [wide], [same])
    opset = [helper.make_opsetid("", 18)]
    path = small.with_name("wide.onnx")
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    asked = ("bench", path, "--batch-size", 2**20, "--input-size", 2**20)
    assert "too little memory" in refused(*asked)
    assert "--seed: -1 is below 0" in refused("bench", small, "--seed", "-1")
