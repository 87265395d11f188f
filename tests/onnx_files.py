"""ONNX files small enough for tests: a network with its norms and labels, and single nodes."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Norms, a grouped convolution, a channel shuffle by view, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.wide = nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.wide(self.stem(x))).relu()
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))


def write_net(path: Path, opset: int = 13, **options: Any) -> Path:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for norm in (net.stem[1], net.norm):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.weight.uniform_(0.5, 1.5)
    options = {"dynamic_axes": {"pixels": {0: "images"}}} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(1, 3, 8, 8),), str(path), dynamo=False, opset_version=opset,
            input_names=["pixels"], output_names=["scores"], do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE, **options,
        )  # fmt: skip
    proto = onnx.load(path)
    proto.doc_string = "knows five things"
    onnx.helper.set_model_props(proto, {"owner": "somebody"})
    onnx.save(proto, path)
    return path


def halved(path: Path) -> Path:
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(proto, path)
    return path


def write_nodes(path: Path, nodes: list[Any], dims: list[int | str], outputs: list[str]) -> Path:
    """A model of `nodes` on the input "x", with a filter "w" of (4, 3, 3, ...) and a row "k"."""
    filters = np.ones((4, 3, *[3] * (len(dims) - 2)), np.float32)
    constants = [
        onnx.numpy_helper.from_array(filters, "w"),
        onnx.numpy_helper.from_array(np.ones(3, np.float32), "k"),
    ]
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", dims), *((name, None) for name in outputs))
    ]
    graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path
