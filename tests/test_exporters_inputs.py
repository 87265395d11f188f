"""Inputs that are made up for a graph."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporters.errors import ExportError
from exporters.inputs import fixed_batch, random_inputs
from exporters.session import Session, open_session

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def session(*inputs: tuple[str, int, list[int | str]]) -> Session:
    """Each input is given back as an output."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in inputs],
        "net",
        [helper.make_tensor_value_info(name, kind, dims) for name, kind, dims in inputs],
        [helper.make_tensor_value_info(f"{name}_out", kind, dims) for name, kind, dims in inputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return open_session(model.SerializeToString())


def test_floats_are_normal_and_whole_numbers_zero() -> None:
    made = random_inputs(session(("x", FLOAT, ["n", 3, 40, 40]), ("i", INT, ["n", 2])), 2)
    assert made["x"].shape == (2, 3, 40, 40)
    assert made["x"].dtype == np.float32
    assert abs(made["x"].std() - 1) < 0.05
    np.testing.assert_array_equal(made["i"], np.zeros((2, 2), np.int64))


def test_the_same_seed_makes_the_same_values() -> None:
    one = session(("x", FLOAT, ["n", 4]))
    np.testing.assert_array_equal(
        random_inputs(one, 3, seed=5)["x"], random_inputs(one, 3, seed=5)["x"]
    )
    assert not np.array_equal(random_inputs(one, 3, seed=5)["x"], random_inputs(one, 3)["x"])


def test_open_sizes_must_be_stated_and_must_fit() -> None:
    one = session(("x", FLOAT, ["n", 3, "h", "w"]))
    with pytest.raises(ExportError, match="input 'x' leaves h, w open: state its size with --inp"):
        random_inputs(one, 1)
    assert random_inputs(one, 2, {"x": (3, 8, 6)})["x"].shape == (2, 3, 8, 6)
    for wrong in ((3, 8), (1, 8, 6), (3, 8, 6, 1)):
        with pytest.raises(ExportError, match="does not fit it"):
            random_inputs(one, 2, {"x": wrong})
    with pytest.raises(ExportError, match="sizes are stated for z; the inputs are x"):
        random_inputs(one, 2, {"z": (3, 8, 6)})


def test_a_fixed_batch_is_found_and_another_refused() -> None:
    assert fixed_batch(session(("x", FLOAT, [4, 3]))) == 4
    assert fixed_batch(session(("x", FLOAT, ["n", 3]))) is None
    with pytest.raises(ExportError, match="input 'x' has a fixed batch of 4, not 2"):
        random_inputs(session(("x", FLOAT, [4, 3])), 2)


def test_scalars_stay_scalars() -> None:
    assert random_inputs(session(("s", FLOAT, [])), 2)["s"].shape == ()


def test_types_without_values_are_refused() -> None:
    with pytest.raises(ExportError, match=r"input 'x' is tensor\(string\)"):
        random_inputs(session(("x", TensorProto.STRING, ["n", 3])), 1)
