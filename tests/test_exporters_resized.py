"""One graph at other widths: right in every size, refused where a size is not explained."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import exporters
from exporters.resized import Resizable, WidthTable


class Net(nn.Module):
    """A width in a convolution, twice in a concatenation, and times 16 in a flattened image."""

    def __init__(self, first: int, second: int):
        super().__init__()
        self.one = nn.Conv2d(3, first, 3, 2, 1)
        self.two = nn.Conv2d(first, second, 1)
        self.depthwise = nn.Conv2d(second, second, 3, padding=1, groups=second)
        self.last = nn.Linear((first + second) * 16, 5)

    def forward(self, x):
        x = self.one(x).relu()
        y = self.depthwise(self.two(x).relu()).relu()
        return self.last(torch.cat([x, y], 1).flatten(1))


def exported(net: nn.Module, folder, name: str) -> onnx.ModelProto:
    path = folder / name
    request = exporters.ExportRequest(example_inputs=(torch.zeros(2, 3, 8, 8),), path=path)
    exporters.export_onnx(net, request)
    return exporters.load_onnx(path)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resized")
    models = [exported(Net(12, 20), folder, "a.onnx"), exported(Net(9, 14), folder, "b.onnx")]
    widths = np.array([[12, 20, 32], [9, 14, 23]])  # the third is the concatenation
    return Resizable.learn(models, widths)


@pytest.mark.parametrize(("first", "second"), [(12, 20), (7, 5), (16, 24)])
def test_the_graph_has_the_macs_of_a_network_built_at_these_widths(learnt, first, second):
    content = learnt.at(np.array([first, second, first + second]))
    found = exporters.count_macs(onnx.load_from_string(content))
    # 4x4 positions: 27 products an output, then 1x1, depthwise 9, and the linear layer
    by_hand = 16 * (27 * first + first * second + 9 * second) + 5 * 16 * (first + second)
    assert found.num_macs == by_hand
    outputs = exporters.open_session(content).run_batch(np.zeros((3, 3, 8, 8), np.float32))
    assert outputs[0].shape == (3, 5)


def test_at_its_own_widths_it_computes_what_it_was_learnt_from(tmp_path):
    torch.manual_seed(0)
    net = Net(12, 20)
    whole, other = exported(net, tmp_path, "a.onnx"), exported(Net(9, 14), tmp_path, "b.onnx")
    table = np.array([[12, 20, 32], [9, 14, 23]])
    content = Resizable.learn([whole, other], table).at(np.array([12, 20, 32]))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = net(x).numpy()
    found = exporters.open_session(content).run_batch(x.numpy())[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_graphs_in_other_precisions_are_resized_as_well(tmp_path, kind):
    inputs = {"x": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    models = []
    for name, net in (("a", Net(12, 20)), ("b", Net(9, 14))):
        exported(net, tmp_path, f"{name}.onnx")
        source, target = tmp_path / f"{name}.onnx", tmp_path / f"{name}-{kind}.onnx"
        if kind == "int8":
            exporters.like_int8(source, target, inputs, symmetric=False)
        else:
            exporters.to_fp16(source, target)
        models.append(exporters.load_onnx(target))
    content = Resizable.learn(models, np.array([[12, 20, 32], [9, 14, 23]])).at(
        np.array([7, 16, 23])
    )
    weights = {tuple(t.dims) for t in onnx.load_from_string(content).graph.initializer}
    assert {(7, 3, 3, 3), (16, 7, 1, 1), (16, 1, 3, 3)} <= weights
    assert exporters.open_session(content).run_batch(inputs["x"])[0].shape == (2, 5)


def test_graphs_of_other_nodes_are_refused(tmp_path):
    models = [
        exported(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), tmp_path, "a.onnx"),
        exported(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sigmoid()), tmp_path, "b.onnx"),
    ]
    with pytest.raises(exporters.ExportError, match="exports to other nodes"):
        Resizable.learn(models, np.array([[8], [6]]))


def test_a_size_that_no_width_explains_is_refused(tmp_path):
    models = [exported(nn.Conv2d(3, n, 1), tmp_path, f"{n}.onnx") for n in (8, 6)]
    with pytest.raises(exporters.ExportError, match=r"sizes \[8, 6\] of .* follow no width"):
        Resizable.learn(models, np.array([[8], [7]]))


def test_the_signature_tells_graphs_apart_but_not_weights(tmp_path):
    def signature(scale: float, kernel: int) -> str:
        nets = [nn.Conv2d(3, n, kernel) for n in (8, 6)]
        for net in nets:
            nn.init.constant_(net.weight, scale)
        models = [exported(net, tmp_path, "x.onnx") for net in nets]
        return Resizable.learn(models, np.array([[8], [6]])).signature

    assert signature(1.0, 1) == signature(2.0, 1)
    assert signature(1.0, 1) != signature(1.0, 3)


def test_the_smallest_factor_explains_a_size():
    table = WidthTable(np.array([[4, 8], [3, 5]]))
    assert table.find([8, 5]) == (1, 1)
    assert table.find([36, 27]) == (0, 9)
    assert table.find([8, 7]) is None
