"""Agreement and relative error of two ONNX files, against counts by hand."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporters.errors import ExportError
from exporters.fidelity import agreement, relative_error
from exporters.session import Session, open_session


def linear(weight: list[list[float]], copies: int = 1) -> Session:
    """x (N, rows) times `weight`, given out `copies` times, the second one tripled."""
    matrix = np.array(weight, dtype=np.float32)
    names = [f"y{i}" for i in range(copies)]
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(copies)]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", len(weight)])],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", matrix.shape[1]])
            for n in names
        ],
        initializer=[
            numpy_helper.from_array(matrix * (1 if i == 0 else 3), f"w{i}") for i in range(copies)
        ],
    )
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    return open_session(model.SerializeToString(), threads=1)


SAME = linear([[1, 0], [0, 1]])
SWAPPED_SECOND = linear([[1, 0], [0, 0.25]])
# top classes under SAME: 0, 1, 1 and 1; under SWAPPED_SECOND 0, 0, 1 and 0
IMAGES = [torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[1.0, 5.0], [3.0, 4.0]])]


def test_agreement_is_the_share_of_equal_first_classes() -> None:
    found = agreement(SAME, SWAPPED_SECOND, IMAGES)
    assert (found.metric, found.samples, found.value) == ("top1 agreement", 4, 0.5)
    assert agreement(SAME, SAME, IMAGES).value == 1.0


def test_scores_that_are_no_numbers_agree_with_nothing() -> None:
    images = [torch.tensor([[math.nan, 1.0], [2.0, 1.0]])]
    assert agreement(SAME, SAME, images).value == 0.5


def test_relative_error_is_the_difference_over_the_original_by_their_lengths() -> None:
    # outputs differ by 0.75 of the second value alone: 0.75 * sqrt(1 + 4 + 25 + 16) of
    # sqrt(4 + 1 + 1 + 4 + 1 + 25 + 9 + 16)
    found = relative_error(SAME, SWAPPED_SECOND, IMAGES)
    assert (found.metric, found.samples) == ("relative error", 4)
    assert found.value == pytest.approx(0.75 * math.sqrt(46) / math.sqrt(61))


def test_relative_error_is_that_of_the_worst_output() -> None:
    before, after = linear([[1.0, 0.0]], copies=2), linear([[1.0, 0.5]], copies=2)
    third_off = linear([[1.0, 0.0]], copies=2)
    assert relative_error(before, third_off, [torch.ones(2, 1)]).value == 0.0
    assert relative_error(before, after, [torch.ones(2, 1)]).value == pytest.approx(0.5)


def test_outputs_of_nothing_but_zeros_have_no_relative_error_but_zero_or_infinity() -> None:
    nothing, something = linear([[0.0, 0.0]]), linear([[1.0, 0.0]])
    assert relative_error(nothing, nothing, [torch.ones(2, 1)]).value == 0.0
    assert relative_error(nothing, something, [torch.ones(2, 1)]).value == math.inf


def test_files_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ExportError, match="cannot be compared"):
        agreement(SAME, linear([[1, 0, 0], [0, 1, 0]]), IMAGES)
    with pytest.raises(ExportError, match="agreement needs one output"):
        agreement(linear([[1, 0], [0, 1]], 2), linear([[1, 0], [0, 1]], 2), IMAGES)
    for measure in (agreement, relative_error):
        with pytest.raises(ExportError, match="no samples"):
            measure(SAME, SAME, [])
