"""Parity and accuracy, on y = 2 x for x (N, 3)."""

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from exporters.accuracy import top1
from exporters.errors import ExportError
from exporters.parity import check_parity
from exporters.session import Session, open_session


def doubling(batch: int | str = "batch", op: str = "MatMul") -> Session:
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        initializer=[numpy_helper.from_array(2 * np.eye(3, dtype=np.float32), "w")],
    )
    imports = [helper.make_opsetid("", 18)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return open_session(model.SerializeToString(), threads=1)


BATCHES = [torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[4.0, 5.0, 0.0], [0.5, 0.0, -1.0]])]


def test_equal_networks_have_parity() -> None:
    parity = check_parity(lambda x: 2 * x, doubling(), BATCHES)
    assert (parity.max_abs_diff, parity.output_scale, parity.batches) == (0.0, 10.0, 2)
    assert parity.ok
    assert check_parity(lambda x: {"logits": [2 * x]}, doubling(batch=2), BATCHES).ok


def test_the_difference_is_relative_to_the_scale_of_the_output() -> None:
    # 0.06 off on outputs up to 6.06 in the first batch, up to 10.06 in the second.
    parity = check_parity(lambda x: 2 * x + 0.06, doubling(), BATCHES, tolerance=0.009)
    assert parity.max_abs_diff == pytest.approx(0.06 / 6.06, rel=1e-4)
    assert not parity.ok
    assert check_parity(lambda x: 2 * x + 0.06, doubling(), BATCHES, tolerance=0.01).ok


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_an_output_that_is_not_finite_has_no_parity(broken: float) -> None:
    parity = check_parity(lambda x: x * broken, doubling(), BATCHES)
    assert parity.max_abs_diff == math.inf
    assert not parity.ok
    assert not check_parity(lambda x: 2 * x, doubling(), [torch.full((1, 3), broken)]).ok


def test_outputs_that_are_all_zero_prove_nothing() -> None:
    parity = check_parity(lambda x: 2 * x, doubling(), [torch.zeros(2, 3)])
    assert (parity.max_abs_diff, parity.ok) == (0.0, False)


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        (lambda x: x[:, :2], r"gives \[\(1, 2\)\], the ONNX file \[\(1, 3\)\]"),
        (lambda x: (x, x), r"gives \[\(1, 3\), \(1, 3\)\], the ONNX file"),
        (lambda _: "text", "gives a str, not tensors"),
        (nn.Linear(3, 3), "in training mode"),
    ],
)
def test_networks_that_cannot_be_compared_are_refused(
    reference: Callable[[Tensor], object], text: str
) -> None:
    with pytest.raises(ExportError, match=text):
        check_parity(reference, doubling(), BATCHES)


def test_parity_and_accuracy_need_batches() -> None:
    with pytest.raises(ExportError, match="no batches"):
        check_parity(lambda x: x, doubling(), [])
    with pytest.raises(ExportError, match="no samples"):
        top1(doubling(), [])


@pytest.mark.parametrize("batch", ["batch", 2])
def test_top1_counts_the_samples_whose_best_score_is_at_the_label(batch: int | str) -> None:
    batches = [
        (torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), torch.tensor([0, 1, 0])),
        (torch.tensor([[0, 3.0, 2]]), torch.tensor([1])),
        (torch.tensor([[math.nan, 0.0, 0.0]]), torch.tensor([0])),
    ]
    accuracy = top1(doubling(batch), batches)
    assert (accuracy.metric, accuracy.samples, accuracy.value) == ("top1", 5, 3 / 5)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (torch.tensor([0, 3]), "labels run from 0 to 3, the model has classes 0 to 2"),
        (torch.tensor([-1, 0]), "labels run from -1 to 0"),
        (torch.tensor([0]), "needs 2 integer labels"),
        (torch.tensor([0.0, 1.0]), r"needs 2 integer labels, got float32"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor, text: str) -> None:
    with pytest.raises(ExportError, match=text):
        top1(doubling(), [(torch.rand(2, 3), labels)])


def test_an_output_that_is_not_class_scores_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["map"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 2, 2])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["n", 3, 2, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = open_session(model.SerializeToString())
    with pytest.raises(ExportError, match=r"\(N, classes\), 'map' is \(1, 3, 2, 2\)"):
        top1(session, [(torch.rand(1, 3, 2, 2), torch.tensor([0]))])
