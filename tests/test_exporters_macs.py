from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from exporters.errors import ExportError
from exporters.macs import count_macs
from exporters.to_onnx import ExportRequest, export_onnx

Dims = list[int | str]


def make(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Dims],
    weights: dict[str, tuple[int, ...]] | None = None,
) -> onnx.ModelProto:
    """A model whose last node's first output is its output; weights are zeros."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        initializer=[
            numpy_helper.from_array(np.zeros(shape, np.float32), name)
            for name, shape in (weights or {}).items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def conv_macs(weight: tuple[int, ...], op: str = "Conv", **attributes: object) -> int:
    node = helper.make_node(op, ["x", "w"], ["y"], name="n", **attributes)
    return count_macs(make([node], {"x": ["batch", 4, 8, 8]}, {"w": weight})).num_macs


def test_convolutions() -> None:
    # out 6 x 8 x 8, each of 4 x 3 x 3 products
    assert conv_macs((6, 4, 3, 3), pads=[1, 1, 1, 1]) == 6 * 8 * 8 * 4 * 9
    # without padding 6 x 6; stride 2 with padding 4 x 4
    assert conv_macs((6, 4, 3, 3)) == 6 * 6 * 6 * 4 * 9
    assert conv_macs((6, 4, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]) == 6 * 4 * 4 * 4 * 9
    # two groups see 2 channels each, depthwise ones 1
    assert conv_macs((6, 2, 3, 3), pads=[1, 1, 1, 1], group=2) == 6 * 64 * 2 * 9
    assert conv_macs((4, 1, 3, 3), pads=[1, 1, 1, 1], group=4) == 4 * 64 * 9
    # dilation 2 covers 5 x 5, leaving 4 x 4
    assert conv_macs((6, 4, 3, 3), dilations=[2, 2]) == 6 * 16 * 4 * 9


def test_transposed_convolution_counts_each_input_element() -> None:
    # 4 x 8 x 8 inputs, each into 5 channels x 2 x 2
    assert conv_macs((4, 5, 2, 2), "ConvTranspose", strides=[2, 2]) == 4 * 64 * 5 * 4
    assert conv_macs((4, 3, 2, 2), "ConvTranspose", strides=[2, 2], group=2) == 4 * 64 * 3 * 4


def test_linear_layers_and_batched_matrix_products() -> None:
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    model = make([gemm], {"x": ["batch", 7]}, {"w": (5, 7), "b": (5,)})
    assert count_macs(model).num_macs == 35
    assert count_macs(model, {"x": (3, 7)}).num_macs == 105
    turned = helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)
    assert count_macs(make([turned], {"x": [3, 7]}, {"w": (3, 5)})).num_macs == 7 * 3 * 5
    matmul = helper.make_node("MatMul", ["a", "b"], ["y"])
    inputs: dict[str, Dims] = {"a": ["batch", 4, 6, 3], "b": ["batch", 4, 3, 5]}
    assert count_macs(make([matmul], inputs)).num_macs == 4 * 6 * 3 * 5
    broadcast: dict[str, Dims] = {"a": [2, 6, 3], "b": [3]}
    assert count_macs(make([matmul], broadcast)).num_macs == 2 * 6 * 3


@pytest.mark.parametrize(
    ("equation", "a", "b", "macs"),
    [
        ("ik,kj->ij", [3, 4], [4, 5], 60),
        ("bhid, bhjd -> bhij", [2, 4, 6, 8], [2, 4, 5, 8], 2 * 4 * 6 * 5 * 8),
        ("...ik,...kj->...ij", [7, 2, 3, 4], [2, 4, 5], 7 * 2 * 60),
    ],
)
def test_einsum_counts_each_combination_of_indices(
    equation: str, a: Dims, b: Dims, macs: int
) -> None:
    node = helper.make_node("Einsum", ["a", "b"], ["y"], equation=equation)
    assert count_macs(make([node], {"a": a, "b": b})).num_macs == macs


def test_attention_counts_both_products() -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    inputs: dict[str, Dims] = {"q": ["n", 4, 6, 8], "k": ["n", 4, 5, 8], "v": ["n", 4, 5, 3]}
    model = make([node], inputs)
    model.opset_import[0].version = 23
    assert count_macs(model).num_macs == 4 * 6 * 5 * (8 + 3)


def test_a_file_is_counted_with_its_params_bytes_nodes_and_what_was_left_out(
    tmp_path: Path,
) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10)
    )
    path = tmp_path / "m.onnx"
    file = export_onnx(net, ExportRequest(example_inputs=(torch.rand(2, 3, 8, 8),), path=path))
    cost = count_macs(path)
    assert cost.num_macs == 4 * 64 * 27 + 2560
    assert [(op, macs) for _, op, macs in cost.per_node] == [("Conv", 4 * 64 * 27), ("Gemm", 2560)]
    assert cost.num_params == sum(p.numel() for p in net.parameters())
    assert cost.size_bytes == file.size_bytes
    assert cost.batch == 1
    assert cost.uncounted == {"Relu": 1, "Reshape": 1}


def test_a_shape_computed_from_the_batch_is_followed() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    model = make(nodes, {"x": ["N", 2, 6]}, {"w": (12, 5)})
    model.graph.initializer.append(numpy_helper.from_array(np.int64([-1]), "rest"))
    assert count_macs(model).num_macs == 60


def test_a_size_computed_by_arithmetic_in_the_graph_is_followed() -> None:
    """12 channels are halved by Div, which shape inference alone does not evaluate."""
    nodes = [
        helper.make_node("Shape", ["x"], ["width"], start=1, end=2),
        helper.make_node("Div", ["width", "two"], ["half"]),
        helper.make_node("Concat", ["minus_one", "half"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"]),
    ]
    model = make(nodes, {"x": ["N", 12]}, {"w": (6, 5)})
    for name, number in (("two", 2), ("minus_one", -1)):
        model.graph.initializer.append(numpy_helper.from_array(np.int64([number]), name))
    assert count_macs(model).num_macs == 2 * 6 * 5


def test_an_open_size_must_be_stated_and_then_counts() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="n")
    model = make([node], {"x": ["batch", 3, "height", 8]}, {"w": (2, 3, 1, 1)})
    with pytest.raises(ExportError, match="input 'x' leaves dimension 2 open"):
        count_macs(model)
    assert count_macs(model, {"x": (1, 3, 4, 8)}).num_macs == 2 * 32 * 3
    with pytest.raises(ExportError, match=r"does not take \[1, 4, 4, 8\]"):
        count_macs(model, {"x": (1, 4, 4, 8)})
    with pytest.raises(ExportError, match="no input 'image'"):
        count_macs(model, {"image": (1, 3, 4, 8)})


def test_an_unknown_shape_names_the_node() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["indices"]),
        helper.make_node("Cast", ["indices"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["w", "floats"], ["y"], name="late"),
    ]
    with pytest.raises(ExportError, match=r"node 'late' \(MatMul\): the shape of '\w+' is unknown"):
        count_macs(make(nodes, {"x": [2, 3]}, {"w": (5, 2)}))


def test_products_inside_control_flow_are_refused() -> None:
    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", "w"], [name], name=f"product_{name}")
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [output])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["flag"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["flag"], ["y"], name="gate", then_branch=branch("a"), else_branch=branch("b")
        ),
    ]
    with pytest.raises(ExportError, match=r"node 'gate' \(If\) holds a MatMul \('product_"):
        count_macs(make(nodes, {"x": [2, 3]}, {"w": (3, 2)}))
