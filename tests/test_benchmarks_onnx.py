"""The benchmark of the ONNX importer: what it keeps, what it sums up, what it makes of files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.onnx_files import with_random_weights
from benchmarks.onnx_in import measure
from benchmarks.onnx_page import page, verdict


def test_a_piece_is_measured_once_and_what_is_left_is_named(tmp_path: Path) -> None:
    calls: list[str] = []

    def piece(name: str) -> list[str]:
        calls.append(name)
        return [name]

    pieces = {name: lambda name=name: piece(name) for name in ("a", "b")}
    assert list(measure(pieces, tmp_path, seconds=-1)) == ["a", "b"]
    assert calls == []
    assert list(measure({"a": pieces["a"]}, tmp_path, seconds=60)) == []
    assert list(measure(pieces, tmp_path, seconds=60)) == []
    assert calls == ["a", "b"]
    assert (tmp_path / "b.json").read_text() == '["b"]'


def test_the_verdict_counts_rows_and_takes_the_worst_of_each_figure() -> None:
    rows = [
        ["one", "1.0e-06", "2.0e-07", "0.990", "yes"],
        ["two", "3.0e-07", "5.0e-05", "1.010", "**no**"],
        ["three", "2.0e-06", "", "", "yes"],
        ["four", "", "", "", "torch does not export it: because"],
    ]
    assert verdict(rows, 1) == (
        "2 of 4 are within (at most 2.0e-06, 5.0e-05 and 1.010x); 1: torch does not export it; "
        "1 are not."
    )


def test_a_page_says_what_was_not_measured() -> None:
    fuzz = {"ends": {"refused": 7, "a network": 3}, "slowest_s": 1.5, "peak_bytes": 2e6}
    text = page({"fuzz-0": fuzz, "fuzz-1": fuzz}, "abc", "the command")
    assert "`the command`; all figures are of code whose hash" in text
    assert "20 mutations: 6 a network, 14 refused; slowest 1.5 s, peak memory 2 MB." in text
    assert text.lower().count("not measured on this code") == 5
    assert "0 of the 140 combinations" in text


def test_weights_made_at_the_start_become_stored_ones_of_the_same_shape(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["s"], ["w"]),
            helper.make_node("Conv", ["x", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([4, 3, 3, 3]), "s")],
    )
    source = tmp_path / "light.onnx"
    onnx.save(helper.make_model(graph), source)
    made = onnx.load(with_random_weights(source, tmp_path / "made.onnx"))
    assert [node.op_type for node in made.graph.node] == ["Conv"]
    (weight,) = made.graph.initializer
    values = numpy_helper.to_array(weight)
    assert (weight.name, values.shape) == ("w", (4, 3, 3, 3))
    assert values.std() == pytest.approx((2 / 27) ** 0.5, rel=0.2)
