"""Corners of ONNX in which onnxruntime and a plain reading differ; the expected values are its."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

import exporters
from pipeline.config import RunConfig
from pipeline.config_sections import ModelConfig, TargetConfig
from pipeline.console import RunConsole
from pipeline.errors import UsageError
from pipeline.exporting import export_baseline
from pipeline.importers import ModelSource, load_model
from pipeline.importers.onnx_in import import_proto

node = helper.make_node
RNG = np.random.default_rng(0)


def model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Any],
    shape: list[Any],
    opset: int = 18,
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opsets = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(f.domain, 1) for f in functions),
    ]
    made = helper.make_model(graph, opset_imports=opsets, functions=functions)
    made.ir_version = 9
    return made


def apart(proto: onnx.ModelProto, *shape: int) -> float:
    """Largest difference between onnxruntime and what is read."""
    images = RNG.standard_normal(shape).astype("f4")
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (expected,) = session.run(None, {"x": images})
    found = import_proto(proto, Path()).module(torch.from_numpy(images)).detach().numpy()
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def resize(mode: str, transform: str, nearest: str, scales: list[float], opset: int = 13) -> Any:
    kind = {} if opset == 10 else {"coordinate_transformation_mode": transform}
    kind |= {"nearest_mode": nearest} if opset > 10 and mode == "nearest" else {}
    names = ["x", "s"] if opset == 10 else ["x", "", "s"]
    return node("Resize", names, ["y"], mode=mode, **kind), {"s": np.array(scales, "f4")}


@pytest.mark.parametrize("nearest", ["floor", "ceil", "round_prefer_floor"])
@pytest.mark.parametrize("transform", ["asymmetric", "half_pixel"])
@pytest.mark.parametrize("scale", [1 / 3, 0.3, 0.6, 0.7, 0.9, 1.1, 1.7, 2.0])
def test_nearest_places_are_computed_in_float32_as_runtimes_do(
    scale: float, transform: str, nearest: str
) -> None:
    for size in (4, 9, 12, 20):
        made, weights = resize("nearest", transform, nearest, [1, 1, scale, scale])
        assert apart(model([made], weights, ["n", 2, size, size]), 2, 2, size, size) == 0


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 2.0])
def test_the_first_resize_takes_the_next_place_where_it_shrinks(scale: float) -> None:
    made, weights = resize("nearest", "", "", [1, 1, scale, scale], opset=10)
    assert apart(model([made], weights, ["n", 2, 8, 8], opset=10), 2, 2, 8, 8) == 0


def test_a_scale_that_changes_no_size_changes_nothing() -> None:
    made, weights = resize("linear", "half_pixel", "", [1, 1, 1.1, 1.1])
    assert apart(model([made], weights, ["n", 2, 4, 4]), 2, 2, 4, 4) == 0


def test_a_bias_is_absorbed_in_the_graph_that_adds_it_alone() -> None:
    def branch(name: str, last: onnx.NodeProto) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("y0", TensorProto.FLOAT, None)
        return helper.make_graph([last], name, [], [out])

    choice = node(
        "If", ["c"], ["y"],
        then_branch=branch("t", node("Add", ["m", "b"], ["y0"])),
        else_branch=branch("e", node("Mul", ["x", "two"], ["y0"])),
    )  # fmt: skip
    weights = {"W": RNG.standard_normal((4, 4)).astype("f4"), "b": np.arange(4, dtype="f4")}
    for chosen in (True, False):
        named = weights | {"two": np.float32(2), "c": np.bool_(chosen)}
        proto = model([node("MatMul", ["x", "W"], ["m"]), choice], named, ["n", 4])
        assert apart(proto, 3, 4) < 1e-6


def leaky(opset: int) -> onnx.FunctionProto:
    steps = [
        node("Constant", [], ["s"], value_float=0.2),
        node("Mul", ["a", "s"], ["t"]),
        node("Max", ["a", "t"], ["b"]),
    ]
    return helper.make_function(
        "my", "LeakyRelu", ["a"], ["b"], steps, [helper.make_opsetid("", opset)]
    )


def test_a_files_own_function_is_never_the_standard_op_of_its_name() -> None:
    calls = [node("LeakyRelu", ["x"], ["y"], domain="my")]
    same = model(calls, {}, ["n", 4], functions=(leaky(18),))
    assert apart(same, 3, 4) < 1e-6
    other = model(calls, {}, ["n", 4], functions=(leaky(17),))
    with pytest.raises(UsageError, match="LeakyRelu are of another opset than the file"):
        import_proto(other, Path())


@pytest.mark.parametrize(
    ("kind", "power"), [(TensorProto.FLOAT, np.int64(2)), (TensorProto.INT64, np.float32(1.5))]
)
def test_a_power_of_a_size_has_the_type_of_its_base(kind: int, power: Any) -> None:
    steps = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "one"], ["n"]),
        node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["f", "third"], ["g"]),
        node("Cast", ["g"], ["base"], to=kind),
        node("Pow", ["base", "p"], ["q"]),
        node("Cast", ["q"], ["r"], to=TensorProto.FLOAT),
        node("Mul", ["x", "r"], ["y"]),
    ]
    weights = {"one": np.int64(1), "third": np.float32(1.3), "p": power}
    assert apart(model(steps, weights, ["n", 4]), 3, 4) < 1e-5


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 3), (1, 2), (3, 2)])
def test_transposed_padding_is_never_below_zero(padding: str, kernel: int, stride: int) -> None:
    weights = {"w": RNG.standard_normal((2, 3, kernel, kernel)).astype("f4")}
    made = node("ConvTranspose", ["x", "w"], ["y"], auto_pad=padding, strides=[stride, stride])
    assert apart(model([made], weights, ["n", 2, 4, 4]), 2, 2, 4, 4) < 1e-5


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pools_without_padding_may_round_up_as_well(op: str) -> None:
    made = node(op, ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], auto_pad="VALID",
                ceil_mode=1)  # fmt: skip
    assert apart(model([made], {}, ["n", 2, 5, 5], opset=19), 2, 2, 5, 5) < 1e-6


@pytest.mark.parametrize(("start", "end"), [(-100, -200), (-100, 3), (5, -200), (-2, -5)])
def test_slices_that_run_backwards_start_at_the_front_at_least(start: int, end: int) -> None:
    weights = {"a": [start], "b": [end], "c": [1], "d": [-1]}
    made = node("Slice", ["x", "a", "b", "c", "d"], ["y"])
    proto = model([made], {k: np.array(v) for k, v in weights.items()}, ["n", 6])
    images = RNG.standard_normal((2, 6)).astype("f4")
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (expected,) = session.run(None, {"x": images})
    found = import_proto(proto, Path()).module(torch.from_numpy(images)).numpy()
    assert np.array_equal(found, expected)


FREE = {
    "resized to a size": [
        node("Conv", ["x", "w"], ["c"], strides=[8, 8], pads=[1, 1, 1, 1]),
        node("Slice", ["s", "two", "four", "zero"], ["hw"]),
        node("Shape", ["c"], ["t"]),
        node("Slice", ["t", "zero", "two", "zero"], ["nc"]),
        node("Concat", ["nc", "hw"], ["size"], axis=0),
        node("Resize", ["c", "", "", "size"], ["y"], mode="linear"),
    ],
    "from one place": [
        node("GlobalAveragePool", ["c"], ["p"]),
        node("Slice", ["s", "two", "four", "zero"], ["hw"]),
        node("Shape", ["p"], ["t"]),
        node("Slice", ["t", "zero", "two", "zero"], ["nc"]),
        node("Concat", ["nc", "hw"], ["size"], axis=0),
        node("Resize", ["p", "", "", "size"], ["y"], mode="linear"),
    ],
    "rounded down": [
        node("Floor", ["sixteenth"], ["f"]),
        node("Div", ["c", "f"], ["y"]),
    ],
    "cast": [
        node("Cast", ["sixteenth"], ["i"], to=TensorProto.INT64),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Div", ["c", "f"], ["y"]),
    ],
    "compared": [
        node("Greater", ["height", "k"], ["b"]),
        node("Where", ["b", "half", "one"], ["f"]),
        node("Mul", ["c", "f"], ["y"]),
    ],
}


@pytest.mark.parametrize("name", FREE)
def test_what_is_computed_from_free_sizes_is_exported_for_all_of_them(
    name: str, tmp_path: Path
) -> None:
    steps = [] if name.startswith("resized") else [node("Conv", ["x", "w"], ["c"])]
    steps += [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "second"], ["height"]),
        node("Cast", ["height"], ["float"], to=TensorProto.FLOAT),
        node("Mul", ["float", "a"], ["sixteenth"]),
    ]
    weights = {
        "w": RNG.standard_normal((8, 3, 3, 3)).astype("f4"),
        "two": np.array([2]), "four": np.array([4]), "zero": np.array([0]),
        "second": np.int64(2), "a": np.float32(1 / 16), "k": np.int64(48),
        "half": np.float32(0.5), "one": np.float32(1),
    }  # fmt: skip
    given, written = tmp_path / "given.onnx", tmp_path / "written.onnx"
    onnx.save(model([*steps, *FREE[name]], weights, ["n", 3, "h", "wide"]), given)
    loaded = load_model(ModelSource(path=given, input_size=(3, 64, 64)))
    config = RunConfig(
        model=ModelConfig(path=given), target=TargetConfig(flops="0.6"), out=tmp_path / "out"
    )
    kept = export_baseline(config, loaded, written, RunConsole(verbosity=-1))
    assert kept.interface is not None and kept.interface.open_sizes == {2: "h", 3: "wide"}
    for sizes in ((64, 64), (60, 72), (31, 65)):
        images = RNG.standard_normal((2, 3, *sizes)).astype("f4")
        expected, found = (
            exporters.open_session(file).run_batch(images)[0] for file in (given, written)
        )
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


class Shrunk(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.conv, self.factor = nn.Conv2d(3, 4, 1), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.conv(x), scale_factor=self.factor, mode="nearest")


def test_a_torchscript_file_is_compared_with_what_was_read_of_it(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.pt", tmp_path / "broken.pt"
    torch.jit.script(Shrunk(2.0).eval()).save(whole)
    # torch multiplies by the reciprocal where ONNX divides: some places are others
    torch.jit.script(Shrunk(0.6).eval()).save(broken)
    images = torch.randn(2, 3, 20, 20)
    read = load_model(ModelSource(path=whole, input_size=(3, 20, 20))).module
    assert torch.allclose(read(images), torch.jit.load(whole)(images), atol=1e-6)
    with pytest.raises(UsageError, match="gives other values than the script itself at batch 1"):
        load_model(ModelSource(path=broken, input_size=(3, 20, 20)))
