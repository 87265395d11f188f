"""Ops against the onnx package's own expected data, gradients against finite differences."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.onnx_node_tests import node_cases, run_case
from pipeline.importers.onnx_in import import_proto

# onnxruntime, which is what must be met, gives what is given here: both count the places of the
# result as whole numbers, the expected data as scale times size.
UNLIKE_ONNXRUNTIME = {
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}


def test_the_onnx_package_expects_the_same_of_every_op_that_is_supported() -> None:
    outcomes: Counter[str] = Counter()
    wrong = []
    for case in node_cases():
        outcome = run_case(case.model, case.data_sets[0], case.rtol)
        outcomes[outcome.kind] += 1
        if outcome.kind == "wrong" and case.name not in UNLIKE_ONNXRUNTIME:
            wrong.append(f"{case.name}: {outcome.detail}")
    assert not wrong
    assert outcomes["passed"] >= 1400


def _single(op: str, weights: dict[str, np.ndarray], shape: list[int], **attributes: object):  # type: ignore[no-untyped-def]
    node = helper.make_node(op, ["x", *weights], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return import_proto(model, Path()).module


_RNG = np.random.default_rng(0)
_KERNEL = _RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
_NORM = {name: _RNG.uniform(0.5, 1.5, 3).astype(np.float32) for name in "gbmv"}
GRADIENTS = {
    "Conv": ("Conv", {"w": _KERNEL}, [3, 5, 5], {"pads": [1, 0, 2, 1]}),
    "Conv same": ("Conv", {"w": _KERNEL}, [3, 5, 5], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "ConvTranspose": ("ConvTranspose", {"w": _KERNEL}, [4, 4, 4], {"pads": [1, 0, 0, 1]}),
    "BatchNormalization": ("BatchNormalization", _NORM, [3, 4, 4], {}),
    "AveragePool": ("AveragePool", {}, [2, 5, 5],
                    {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0], "strides": [2, 2]}),
    "HardSwish": ("HardSwish", {}, [7], {}),
    "Tanh": ("Tanh", {}, [7], {}),
    "Elu": ("Elu", {}, [7], {"alpha": 0.7}),
    "Mish": ("Mish", {}, [7], {}),
    "PRelu": ("PRelu", {"s": _RNG.uniform(0.1, 0.5, (3, 1, 1)).astype("f4")}, [3, 2, 2], {}),
    "Softmax": ("Softmax", {}, [3, 4], {"axis": 1}),
    "Gemm": ("Gemm", {"w": _KERNEL.reshape(4, 27), "b": _KERNEL[:, 0, 0, 0]}, [27],
             {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "MatMul": ("MatMul", {"w": _KERNEL[:, :, 0, 0]}, [2, 4], {}),
    "InstanceNormalization": ("InstanceNormalization", {n: _NORM[n] for n in "gb"}, [3, 4, 4], {}),
    "LayerNormalization": ("LayerNormalization", {n: _NORM[n] for n in "gb"}, [4, 3], {}),
    "GlobalAveragePool": ("GlobalAveragePool", {}, [3, 3, 3], {}),
    "LpPool": ("LpPool", {}, [2, 4, 4], {"kernel_shape": [2, 2]}),
    "Pad": ("Pad", {"p": np.array([0, 0, 1, 0, 0, 0, 0, 2])}, [2, 4, 4], {"mode": "reflect"}),
    "ReduceLogSumExp": ("ReduceLogSumExp", {"a": np.array([2])}, [3, 4], {}),
    "DepthToSpace": ("DepthToSpace", {}, [8, 2, 2], {"blocksize": 2, "mode": "CRD"}),
    "Transpose": ("Transpose", {}, [2, 3, 4], {"perm": [0, 3, 1, 2]}),
    "LRN": ("LRN", {}, [5, 2, 2], {"size": 3}),
    "Resize": ("Resize", {"r": np.zeros(0, "f4"), "s": np.array([1, 1, 1.7, 0.6], "f4")}, [2, 5, 5],
               {"mode": "cubic", "coordinate_transformation_mode": "asymmetric"}),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    op, weights, shape, attributes = GRADIENTS[name]
    module = _single(op, weights, shape, **attributes).double()
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,), eps=1e-6, atol=1e-5)
    module(x).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_weights_stay_modules_with_names_and_constants_do_not_learn() -> None:
    norm = _single(
        "BatchNormalization", _NORM, [3, 4, 4], name="/stage/stage.0/norm/BatchNormalization"
    )
    assert isinstance(norm.get_submodule("stage.0.norm"), torch.nn.BatchNorm2d)
    scaled = _single("Mul", {"half": np.float32(0.5)}, [3])
    assert not list(scaled.parameters())
    assert torch.equal(scaled(torch.ones(2, 3)), torch.full((2, 3), 0.5))


@pytest.mark.parametrize("opset", [9, 13])
def test_softmax_before_13_takes_all_dimensions_from_its_axis_on(opset: int) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    y = import_proto(model, Path()).module(torch.randn(2, 3, 4))
    summed = y.sum((1, 2)) if opset < 13 else y.sum(1)
    assert torch.allclose(summed, torch.ones_like(summed))


def test_a_grid_that_is_written_down_serves_any_batch() -> None:
    grid = _RNG.uniform(-1, 1, (1, 5, 4, 2)).astype("f4")
    graph = helper.make_graph(
        [helper.make_node("GridSample", ["x", "grid"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 5, 4])],
        [numpy_helper.from_array(grid, "grid")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = torch.randn(2, 3, 6, 6)
    expected = [session.run(None, {"x": row.numpy()})[0] for row in x.split(1)]
    found = import_proto(model, Path()).module(x).detach().numpy()
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)
