"""ONNX files small enough for tests, made without an exporter."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_chain(
    path: Path,
    *,
    depth: int = 1,
    width: int = 8,
    batch: int | str = "batch",
    size: int = 8,
    metadata: dict[str, str] | None = None,
    output_name: str = "scores",
) -> Path:
    """A classifier of images (N, 1, size, size): its score for class k is 2 x the mean of the
    k-th quarter of the rows, after `depth` convolutions that multiply `width` channels to no
    effect."""
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    previous = "image"
    for i in range(depth):
        inputs = 1 if i == 0 else width
        tensors.append(
            numpy_helper.from_array(
                rng.normal(0, 0.1, (width, inputs, 3, 3)).astype(np.float32), f"w{i}"
            )
        )
        nodes.append(helper.make_node("Conv", [previous, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        previous = f"c{i}"
    tensors.append(numpy_helper.from_array(np.zeros((1,), np.float32), "nothing"))
    pick = np.zeros((size * size, 4), np.float32)
    for k in range(4):
        rows = slice(k * size // 4 * size, (k + 1) * size // 4 * size)
        pick[rows, k] = 2 / (size * size // 4)
    tensors.append(numpy_helper.from_array(pick, "pick"))
    nodes += [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "pick"], ["sums"]),
        helper.make_node("ReduceMean", [previous], ["chain"], keepdims=0),
        helper.make_node("Mul", ["chain", "nothing"], ["zero"]),
        helper.make_node("Add", ["sums", "zero"], [output_name]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, size, size])],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, [batch, 4])],
        initializer=tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for key, value in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def write_quarters(path: Path, wrong: int = 0, count: int = 40) -> Path:
    """Images (N, 8, 8) whose bright quarter of rows is the class, `wrong` labels of them false."""
    labels = np.arange(count) % 4
    images = np.zeros((count, 8, 8), np.float32)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] = 3.0
    labels = labels.copy()
    labels[:wrong] = (labels[:wrong] + 1) % 4
    np.savez(path, x_test=images, y_test=labels.astype(np.int64))
    return path
