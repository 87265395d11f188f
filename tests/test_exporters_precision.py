"""Half precision and 8 bits, on y = A B x whose sensitive layer is known."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.errors import ExportError
from exporters.precision import Int8Request, to_fp16, to_int8
from exporters.session import open_session

SCORES = np.random.default_rng(0).random((64, 4)).astype(np.float32)
LABELS = SCORES.argmax(1)


def write_products(path: Path, *, batch: int | str = "batch", scale: float = 1.0) -> Path:
    """x (N, 5) -> its first four values, by the product "first", then "second" leaves them."""
    first = scale * np.eye(5, 4, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
            helper.make_node("MatMul", ["h", "b"], ["y"], name="second"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        initializer=[
            numpy_helper.from_array(first, "a"),
            numpy_helper.from_array(np.eye(4, dtype=np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    entry = model.metadata_props.add()
    entry.key, entry.value = "origin", "test"
    onnx.save(model, path)
    return path


def inputs(outlier: float) -> dict[str, np.ndarray]:
    """Four scores, and a fifth value that nothing needs but that sets the range of x."""
    fifth = outlier * np.linspace(-1, 1, len(SCORES), dtype=np.float32)[:, None]
    return {"x": np.concatenate([SCORES, fifth], axis=1)}


def request(outlier: float, least: float | None) -> Int8Request:
    def accuracy(path: Path) -> float:
        return float((open_session(path).run(inputs(outlier))[0].argmax(1) == LABELS).mean())

    return Int8Request(
        calibration=lambda: [inputs(outlier)], accuracy=accuracy, least_accuracy=least
    )


def ops_of(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_half_precision_keeps_fp32_at_its_borders(tmp_path: Path) -> None:
    source = write_products(tmp_path / "a.onnx")
    to_fp16(source, tmp_path / "b.onnx")
    model = onnx.load(tmp_path / "b.onnx")
    assert {t.data_type for t in model.graph.initializer} == {TensorProto.FLOAT16}
    ports = [*model.graph.input, *model.graph.output]
    assert [(p.name, p.type.tensor_type.elem_type) for p in ports] == [
        ("x", TensorProto.FLOAT),
        ("y", TensorProto.FLOAT),
    ]
    assert {p.key: p.value for p in model.metadata_props} == {"origin": "test"}
    found = open_session(tmp_path / "b.onnx").run(inputs(1.0))[0]
    # half precision has eleven bits
    np.testing.assert_allclose(found, SCORES, rtol=2**-10)


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = write_products(tmp_path / "a.onnx", scale=1e5)
    with pytest.raises(ExportError, match=r"weight 'a' reaches 1e\+05, half precision ends at"):
        to_fp16(source, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_int8_quantises_all_layers_where_that_is_accurate_enough(tmp_path: Path) -> None:
    source = write_products(tmp_path / "a.onnx")
    result = to_int8(source, tmp_path / "b.onnx", request(1.0, least=0.9))
    assert result.float_layers == ()
    assert result.num_layers == 2
    assert set(result.tried) == {"minmax", "percentile", "entropy"}
    assert result.accuracy == max(result.tried.values()) >= 0.9
    weights = {t.name: t for t in onnx.load(tmp_path / "b.onnx").graph.initializer}
    kinds = [t.data_type for t in weights.values() if list(t.dims) in ([5, 4], [4, 4])]
    assert kinds == [TensorProto.INT8, TensorProto.INT8]
    # one scale for each column of a weight
    assert [4] in [list(t.dims) for t in weights.values() if t.data_type == TensorProto.FLOAT]
    assert {p.key for p in onnx.load(tmp_path / "b.onnx").metadata_props} == {"origin"}


def test_the_sensitive_layer_alone_stays_in_float(tmp_path: Path) -> None:
    """An outlier of 1000 leaves steps of 8 for the scores within 0..1 that enter "first"."""
    source = write_products(tmp_path / "a.onnx")
    everything = to_int8(source, tmp_path / "all.onnx", request(1000.0, least=None))
    assert everything.accuracy < 0.6
    assert everything.float_layers == ()
    result = to_int8(source, tmp_path / "b.onnx", request(1000.0, least=0.95))
    assert result.float_layers == ("first",)
    assert result.accuracy >= 0.95
    assert ops_of(tmp_path / "b.onnx").count("MatMul") == 2
    assert "QuantizeLinear" in ops_of(tmp_path / "b.onnx")


def test_what_no_choice_reaches_gives_the_most_accurate_file(tmp_path: Path) -> None:
    result = to_int8(
        write_products(tmp_path / "a.onnx"), tmp_path / "b.onnx", request(1000.0, least=1.01)
    )
    assert result.accuracy < 1.01
    assert result.float_layers == ("first",)


def test_int8_needs_inputs_and_layers(tmp_path: Path) -> None:
    source = write_products(tmp_path / "a.onnx")
    nothing = Int8Request(calibration=list, accuracy=lambda _: 1.0)
    with pytest.raises(ExportError, match="needs real inputs to calibrate"):
        to_int8(source, tmp_path / "b.onnx", nothing)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="r")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "relu.onnx")
    with pytest.raises(ExportError, match="has no named Conv, Gemm, MatMul to quantise"):
        to_int8(tmp_path / "relu.onnx", tmp_path / "b.onnx", nothing)
