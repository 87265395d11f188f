"""`compress verify` and `bench`: files that are no models, open sizes, options without effect."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from pipeline.cli import main

sys.path.insert(0, str(Path(__file__).parent))
from tiny_onnx import write_chain


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def refused(*args: object) -> str:
    """The one line with which a command is refused."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    return str(line)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.onnx: is empty (0 bytes); save or download the model again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "bad.onnx: is a Git LFS pointer, not the model; run git lfs pull",
        ),
        (b"\x18\x00\x00\x00ORTM", "bad.onnx: is in onnxruntime's own format"),
        (b"hello", "bad.onnx: not a readable ONNX file"),
    ],
)
def test_what_a_failed_download_leaves_is_named(
    tmp_path: Path, content: bytes, message: str
) -> None:
    good, bad = write_chain(tmp_path / "good.onnx"), tmp_path / "bad.onnx"
    bad.write_bytes(content)
    assert message in refused("verify", bad, "--max-size", "5MB")
    assert message in refused("verify", good, "--baseline", bad, "--min-speedup", "1.3")
    assert message in refused("bench", good, bad)


def copy_network(path: Path, height: int | str) -> Path:
    """Images (N, 3, height, 8) -> themselves."""
    shape = ["n", 3, height, 8]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def test_an_open_size_is_compared_with_a_fixed_one_where_it_is_stated(tmp_path: Path) -> None:
    fixed = copy_network(tmp_path / "fixed.onnx", 16)
    free = copy_network(tmp_path / "free.onnx", "h")
    for candidate, baseline in ((fixed, free), (free, fixed)):
        asked = ("verify", candidate, "--baseline", baseline, "--parity-tolerance", "1e-6")
        line = refused(*asked)
        assert "(N, 3, 16, 8)" in line and "(N, 3, ?, 8)" in line
        assert "can be stated with --input-size" in line
        assert run(*asked, "--input-size", "3,16,8").exit_code == 0
        assert "cannot be compared" in refused(*asked, "--input-size", "3,24,8")


def test_options_without_effect_are_refused(tmp_path: Path) -> None:
    small = write_chain(tmp_path / "small.onnx")
    asked = ("verify", small, "--max-size", "5MB")
    assert "--input-size has no effect" in refused(*asked, "--input-size", "1,8,8")
    assert "--mean and --std have no effect" in refused(*asked, "--mean", "0.5", "--std", "1")


def test_the_size_counts_external_values_wherever_the_graph_has_them(tmp_path: Path) -> None:
    """A weight, and the value of a Constant node inside two branches: 4000 + 2 x 8000 bytes."""
    weight = numpy_helper.from_array(np.ones(1000, np.float32), "w")
    inner = numpy_helper.from_array(np.ones(2000, np.float32), "inner")
    branch = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=inner),
            helper.make_node("ReduceSum", ["c"], ["sum"], keepdims=0),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("If", ["yes"], ["s"], then_branch=branch, else_branch=branch),
            helper.make_node("Add", ["x", "w"], ["a"]),
            helper.make_node("Add", ["a", "s"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1000])],
        initializer=[weight, numpy_helper.from_array(np.array(True), "yes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "model.onnx"
    onnx.save(
        model, path, save_as_external_data=True, size_threshold=1024,
        convert_attribute=True, all_tensors_to_one_file=False,
    )  # fmt: skip
    beside = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert beside > 20_000
    assert run("verify", path, "--max-size", f"{beside}B").exit_code == 0
    missed = run("verify", path, "--max-size", f"{beside - 1}B")
    assert missed.exit_code == 10
    assert f"{beside:,} bytes" in missed.stdout
