"""`compress verify` and `bench`: files that are no models, open sizes, options without effect."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from cli_calls import refused, run
from tiny_onnx import write_chain, write_quarters


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


def network(path: Path, nodes: list[onnx.NodeProto], io: tuple[list, list], **tensors) -> Path:
    """A file of these nodes; io: (name, type, shape) of inputs and outputs; tensors: weights."""
    inputs, outputs = ([helper.make_tensor_value_info(*i) for i in side] for side in io)
    weights = [numpy_helper.from_array(np.asarray(v), n) for n, v in tensors.items()]
    graph = helper.make_graph(nodes, "net", inputs, outputs, initializer=weights)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def table(path: Path, rows: int, broken: int | None = None) -> Path:
    """Looks up rows of ones; row `broken` is 5."""
    values = np.ones((rows, 3), np.float32)
    if broken is not None:
        values[broken] = 5
    io = ([("i", TensorProto.INT64, ["n", 4])], [("y", TensorProto.FLOAT, ["n", 4, 3])])
    return network(path, [helper.make_node("Gather", ["w", "i"], ["y"])], io, w=values)


@pytest.mark.parametrize("rows", [2, 3, 10, 17, 200, 256])
def test_parity_looks_up_the_last_row_of_a_table(tmp_path: Path, rows: int) -> None:
    good = table(tmp_path / "good.onnx", rows)
    for broken, code in ((None, 0), (rows - 1, 11)):
        other = table(tmp_path / "other.onnx", rows, broken)
        asked = ("verify", other, "--baseline", good, "--parity-tolerance", "1e-6")
        assert run(*asked).exit_code == code


def test_small_columns_are_not_hidden_by_large_ones(tmp_path: Path) -> None:
    """Boxes up to hundreds beside scores: with the scores gone nothing is left to deploy."""
    files = {}
    for name, score in (("good", 1.0), ("blind", 0.0)):
        scale = np.array([640, 640, 100, score], np.float32)
        io = ([("x", TensorProto.FLOAT, ["n", 4])], [("y", TensorProto.FLOAT, ["n", 4])])
        path = tmp_path / f"{name}.onnx"
        files[name] = network(path, [helper.make_node("Mul", ["x", "s"], ["y"])], io, s=scale)
    against = ("--baseline", files["good"], "--parity-tolerance", "1e-2")
    assert run("verify", files["good"], *against).exit_code == 0
    assert run("verify", files["blind"], *against).exit_code == 11


def test_few_real_images_are_compared_as_well(tmp_path: Path) -> None:
    """They alone are bright enough for the clip to bite."""
    data = tmp_path / "data.npz"
    images = np.full((3, 8, 8), 50.0, np.float32)
    np.savez(data, x_val=images, y_val=np.arange(3), x_train=images, y_train=np.arange(3))
    files = []
    for top in (1e6, 6.0):
        io = ([("x", TensorProto.FLOAT, ["n", 1, 8, 8])], [("y", TensorProto.FLOAT, ["n", 64])])
        nodes = [
            helper.make_node("Clip", ["x", "", "top"], ["c"]),
            helper.make_node("Flatten", ["c"], ["y"]),
        ]
        path = tmp_path / f"{top:g}.onnx"
        files.append(network(path, nodes, io, top=np.array(top, np.float32)))
    asked = ("verify", files[1], "--baseline", files[0], "--parity-tolerance", "1e-3")
    assert run(*asked).exit_code == 0
    assert run(*asked, "--data", data).exit_code == 11


def test_files_that_state_other_normalisations_are_not_given_the_same_images(
    tmp_path: Path,
) -> None:
    data = write_quarters(tmp_path / "data.npz")
    files = {}
    for name, mean in (("cand", 5.0), ("base", 0.5)):
        said = {"preprocessing": {"mean": [mean], "std": [1.0]}}
        text = {"gbn_compress": json.dumps(said)}
        files[name] = write_chain(tmp_path / f"{name}.onnx", metadata=text)
    asked = ("verify", files["cand"], "--baseline", files["base"], "--data", data)
    line = refused(*asked, "--max-accuracy-drop", "1")
    assert "mean (5.0,)" in line and "mean (0.5,)" in line


def test_a_baseline_of_other_inputs_is_refused_whatever_the_limit(tmp_path: Path) -> None:
    chain = write_chain(tmp_path / "chain.onnx")
    other = copy_network(tmp_path / "other.onnx", 16)
    asked = ("verify", chain, "--baseline", other)
    assert "cannot be compared" in refused(*asked, "--max-latency", "50ms")
    assert run(*asked, "--max-size", "5MB").exit_code == 0


def test_parity_is_taken_at_the_batch_that_is_stated(tmp_path: Path) -> None:
    """A network that is wrong from the third image on."""
    io = ([("x", TensorProto.FLOAT, ["n", 4])], [("y", TensorProto.FLOAT, ["n", 4])])
    good = network(tmp_path / "a.onnx", [helper.make_node("Identity", ["x"], ["y"])], io)
    nodes = [
        helper.make_node("Slice", ["x", "zero", "two"], ["first"]),
        helper.make_node("Slice", ["x", "two", "many"], ["rest"]),
        helper.make_node("Neg", ["rest"], ["wrong"]),
        helper.make_node("Concat", ["first", "wrong"], ["y"], axis=0),
    ]
    ends = {"zero": np.array([0]), "two": np.array([2]), "many": np.array([999])}
    bad = network(tmp_path / "b.onnx", nodes, io, **ends)
    asked = ("verify", bad, "--baseline", good, "--parity-tolerance", "1e-6")
    assert run(*asked).exit_code == 11
    assert run(*asked, "--batch-size", "2").exit_code == 0
    assert "--batch-size has no effect" in refused(
        "verify", good, "--max-size", "5MB", "--batch-size", "8"
    )


def test_limits_with_units_are_exact() -> None:
    """2.01 * 10**6 is 2009999.9999999998 as a float."""
    from pipeline.deploy import units

    assert units.num_bytes("2.01MB", "--max-size") == 2_010_000
    assert units.fraction("50.13%", "--min-accuracy") == 5013 / 10000
    assert units.milliseconds("800us", "--max-latency") == 0.8


def test_bench_warns_of_files_that_take_different_inputs(tmp_path: Path) -> None:
    files = [write_chain(tmp_path / f"{n}.onnx", size=n) for n in (8, 16)]
    result = run("bench", *files, "--max-seconds", "0.5")
    assert result.exit_code == 0
    assert "take different inputs" in " ".join(result.stderr.split())


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout")
def test_reports_go_to_devices_and_to_standard_output(tmp_path: Path) -> None:
    small = write_chain(tmp_path / "small.onnx")
    code = "import sys; from pipeline.cli import main; main(sys.argv[1:])"
    asked = ("verify", str(small), "--max-size", "5MB", "--markdown", "/dev/stdout")
    done = subprocess.run(
        [sys.executable, "-c", code, *asked, "--json", os.devnull, "--junit", os.devnull],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| size |" in done.stdout
    assert "for --json alone" in refused(*asked[:4], "--junit", "-")
