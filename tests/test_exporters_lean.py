"""Leaner quantised files compute the same, bit by bit, under the same names where names matter."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import exporters
from exporters.lean import lean


@pytest.fixture(scope="module")
def quantised(tmp_path_factory) -> onnx.ModelProto:
    folder = tmp_path_factory.mktemp("lean")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 4),
    ).eval()
    request = exporters.ExportRequest(
        example_inputs=(torch.zeros(2, 3, 8, 8),), path=folder / "a.onnx", input_names=("image",)
    )
    exporters.export_onnx(net, request)
    inputs = {"image": np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)}
    exporters.like_int8(folder / "a.onnx", folder / "b.onnx", inputs, symmetric=False)
    return exporters.load_onnx(folder / "b.onnx")


def test_outputs_are_the_same_bit_by_bit_and_the_file_is_smaller(quantised):
    x = np.random.default_rng(1).normal(size=(5, 3, 8, 8)).astype(np.float32)
    found = lean(quantised)
    before, after = (
        exporters.open_session(model.SerializeToString()).run_batch(x)[0]
        for model in (quantised, found)
    )
    np.testing.assert_array_equal(before, after)
    assert found.ByteSize() < 0.85 * quantised.ByteSize()


def test_names_of_ports_layers_and_weights_stay(quantised):
    found = lean(quantised)

    def layers(model):
        return [(n.op_type, n.name) for n in model.graph.node if "uantize" not in n.op_type]

    def weights(model):
        return {t.name for t in model.graph.initializer if t.name.endswith("weight_quantized")}

    assert layers(found) == layers(quantised)
    assert weights(found) == weights(quantised) and len(weights(found)) == 3
    assert [v.name for v in found.graph.input] == ["image"]
    assert [v.name for v in found.graph.output] == [v.name for v in quantised.graph.output]


def test_again_it_changes_nothing(quantised):
    once = lean(quantised)
    assert lean(once).SerializeToString() == once.SerializeToString()


def test_a_port_named_as_the_quantiser_names_tensors_keeps_its_name():
    nodes = [helper.make_node("Mul", ["x_scale", "c"], ["y_scale"])]
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x_scale", "y_scale")
    ]
    constant = numpy_helper.from_array(np.ones(2, np.float32), "c")
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    found = lean(model).graph
    assert (found.input[0].name, found.output[0].name) == ("x_scale", "y_scale")
