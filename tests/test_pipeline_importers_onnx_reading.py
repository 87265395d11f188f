"""Files that are wrong: each refused in one line, with bounded memory."""

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.importers.onnx_in import import_onnx

WEIGHT = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")


def _model(
    nodes: list[onnx.NodeProto] | None = None,
    initializers: list[TensorProto] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    nodes = nodes or [helper.make_node("Conv", ["x", "w"], ["y"], name="c")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [WEIGHT] if initializers is None else initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _huge() -> onnx.ModelProto:
    announced = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[50000, 50000], raw_data=b""
    )
    return _model(initializers=[announced])


def _external(location: str, length: int = 432) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3, 3, 3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return _model(initializers=[tensor])


def _without_outputs() -> onnx.ModelProto:
    model = _model()
    del model.graph.output[:]
    return model


def _node(*args: object, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(*args, **attributes)


CYCLE = [_node("Add", ["x", "b"], ["a"], name="one"), _node("Add", ["a", "x"], ["b"], name="two"),
         _node("Relu", ["b"], ["y"])]  # fmt: skip
TWICE = [_node("Relu", ["x"], ["y"]), _node("Relu", ["x"], ["y"])]
FOREIGN = [_node("Magic", ["x"], ["y"], domain="org.example")]
FUSED = [_node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft")]
QUANTISED = [
    _node("QuantizeLinear", ["x", "s"], ["q"]),
    _node("DequantizeLinear", ["q", "s"], ["y"]),
]
UNSUPPORTED = [_node("DFT", ["x"], ["f"], name="first"), _node("DFT", ["f"], ["g"], name="second"),
               _node("STFT", ["g", "g"], ["y"], name="third")]  # fmt: skip
BOMB = [_node("Tile", ["x", "r"], ["y"], name="bomb")]

WRONG: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "cycle": (lambda: _model(CYCLE), "'one' is part of a cycle"),
    "made twice": (lambda: _model(TWICE), "makes 'y', which is made elsewhere as well"),
    "missing weight": (lambda: _model(initializers=[]), "reads 'w', which nothing makes"),
    "same name": (lambda: _model(initializers=[WEIGHT, WEIGHT]), "two initializers are called 'w'"),
    "ten gigabytes": (_huge, r"announces 10000000000 bytes \[50000, 50000\], the file has 0"),
    "outside": (lambda: _external("../secret.bin"), "lies outside of the model's folder"),
    "absolute": (lambda: _external("/etc/passwd"), "lies outside of the model's folder"),
    "no data": (lambda: _external("none.bin"), "'none.bin' is missing beside the model"),
    "other length": (lambda: _external("short.bin", 10**12), "announces 432 bytes"),
    "short data": (lambda: _external("short.bin"), "ends at byte 432 of 'short.bin', which has 3"),
    "domain": (lambda: _model(FOREIGN), r"outside of the ONNX standard \(1 org.example.Magic\)"),
    "fused": (lambda: _model(FUSED), r"one runtime \(1 com.microsoft.FusedConv\)"),
    "quantised": (
        lambda: _model(QUANTISED, [numpy_helper.from_array(np.float32(1), "s")]),
        "give the float model that it was made from",
    ),
    "wrong shape": (
        lambda: _model(initializers=[numpy_helper.from_array(np.ones((4, 5, 3, 3), "f4"), "w")]),
        "Conv node 'c': its input has 3 channels, its weight is for 5",
    ),
    "no outputs": (_without_outputs, "has no outputs: there is nothing to compute"),
    "old": (lambda: _model(opset=6), "is of opset 6: 7 to"),
    "bomb": (
        lambda: _model(BOMB, [numpy_helper.from_array(np.array([1, 9999, 9999, 99]), "r")]),
        "Tile node 'bomb': would make a tensor",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    (tmp_path / "short.bin").write_bytes(b"abc")
    path = tmp_path / "model.onnx"
    path.write_bytes(make().SerializeToString())
    tracemalloc.start()
    with pytest.raises(UsageError, match=message) as caught:
        import_onnx(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_what_is_not_supported_is_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_model(UNSUPPORTED).SerializeToString())
    with pytest.raises(
        UsageError, match=r"opset 18: 2 DFT-17 \(first, second\); 1 STFT-17 \(third"
    ):
        import_onnx(path)


def test_a_truncated_file_ends_with_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_model().SerializeToString()[:300])
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    (tmp_path / "w.bin").write_bytes(weight.tobytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(_external("w.bin").SerializeToString())
    module = import_onnx(path).module
    assert np.array_equal(module.get_parameter("c.weight").detach().numpy(), weight)


def test_an_op_of_a_runtime_that_the_file_defines_is_read(tmp_path: Path) -> None:
    nodes = [
        _node("Conv", ["x", "w"], ["a"], name="c"),
        _node("QuickGelu", ["a"], ["b"], domain="com.microsoft"),
        _node("QuickGelu", ["b"], ["y"], domain="com.microsoft"),
    ]
    model = _model(nodes)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    body = [_node("Sigmoid", ["i"], ["s"]), _node("Mul", ["i", "s"], ["o"])]
    model.functions.append(
        helper.make_function(
            "com.microsoft", "QuickGelu", ["i"], ["o"], body, [helper.make_opsetid("", 18)]
        )
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    module, x = import_onnx(path).module, torch.randn(2, 3, 8, 8)
    plain = nn.functional.conv2d(x, module.get_parameter("c.weight"))
    expected = nn.functional.silu(nn.functional.silu(plain))
    torch.testing.assert_close(module(x), expected)


def test_unsorted_nodes_are_sorted(tmp_path: Path) -> None:
    nodes = [_node("Relu", ["a"], ["y"]), _node("Conv", ["x", "w"], ["a"], name="c")]
    path = tmp_path / "model.onnx"
    path.write_bytes(_model(nodes).SerializeToString())
    assert [name for name, _ in import_onnx(path).module.named_children()] == ["c"]


def test_mutated_files_end_in_a_network_or_a_refusal(tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = _model().SerializeToString()
    path = tmp_path / "model.onnx"
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            import_onnx(path)
        except UsageError as error:
            assert str(error).startswith(str(path))
