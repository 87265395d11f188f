import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.cleanup import FOLD_LIMIT_BYTES, clean
from exporters.errors import ExportError
from exporters.session import open_session


def value(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def make(
    nodes: list[onnx.NodeProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
    domains: dict[str, int] | None = None,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(
        nodes, "net", [value("x", ["batch", 4])], outputs, initializer=tensors
    )
    imports = [helper.make_opsetid(d, v) for d, v in {"": 18, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    return open_session(model.SerializeToString(), threads=1).run({"x": x})


X = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)


def untidy() -> onnx.ModelProto:
    """y = relu(x) + (1 + 2), behind identities, beside a dead branch and a computed shape."""
    nodes = [
        helper.make_node("Identity", ["x"], ["x1"]),
        helper.make_node("Relu", ["x1"], ["r"], name="relu"),
        helper.make_node("Identity", ["r"], ["r1"]),
        helper.make_node("Add", ["one", "two"], ["three"]),
        helper.make_node("Add", ["r1", "three"], ["sum"]),
        helper.make_node("Exp", ["r1"], ["dead"]),
        helper.make_node("Shape", ["r1"], ["width"], start=1),
        helper.make_node("Concat", ["minus_one", "width"], ["target"], axis=0),
        helper.make_node("Reshape", ["sum", "target"], ["y0"]),
        helper.make_node("Identity", ["y0"], ["y"]),
    ]
    weights = {
        "one": np.float32([1]),
        "two": np.float32([2]),
        "minus_one": np.int64([-1]),
    }
    return make(nodes, [value("y", ["batch", 4])], weights)


def test_constants_identities_and_dead_nodes_go_and_the_values_stay() -> None:
    model = untidy()
    cleaned = clean(model)
    assert sorted(ops(cleaned)) == ["Add", "Relu", "Reshape"]
    np.testing.assert_array_equal(run(cleaned, X)[0], np.maximum(X, 0) + 3)
    assert len(model.graph.node) == 10
    assert cleaned.ByteSize() < model.ByteSize()
    assert len(cleaned.graph.value_info) == 0


def test_a_cast_to_the_type_that_is_there_goes_and_others_stay() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.INT32),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
    ]
    cleaned = clean(make(nodes, [value("y", ["batch", 4])]))
    assert [node.output[0] for node in cleaned.graph.node] == ["b", "y"]
    np.testing.assert_array_equal(run(cleaned, 1.5 * X)[0], np.trunc(1.5 * X))


def test_cleaning_twice_changes_nothing_more() -> None:
    once = clean(untidy())
    assert clean(once).SerializeToString() == once.SerializeToString()


def test_names_dims_docs_metadata_and_domains_are_kept() -> None:
    model = untidy()
    model.graph.node.append(
        helper.make_node("Gelu", ["x"], ["z"], name="gelu", domain="com.microsoft")
    )
    model.graph.output.append(value("z", ["batch", 4]))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.input[0].doc_string = "RGB"
    model.doc_string, model.graph.doc_string, model.domain = "net of mine", "graph", "org.mine"
    model.model_version = 3
    helper.set_model_props(model, {"author": "me"})
    cleaned = clean(model)
    assert list(cleaned.graph.input) == list(model.graph.input)
    assert list(cleaned.graph.output) == list(model.graph.output)
    assert list(cleaned.metadata_props) == list(model.metadata_props)
    assert list(cleaned.opset_import) == list(model.opset_import)
    for field in ("doc_string", "domain", "model_version", "ir_version"):
        assert getattr(cleaned, field) == getattr(model, field)
    assert cleaned.graph.doc_string == "graph"
    assert [n.domain for n in cleaned.graph.node if n.op_type == "Gelu"] == ["com.microsoft"]


def test_an_identity_between_two_outputs_keeps_both_names() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Identity", ["y"], ["z"]),
    ]
    cleaned = clean(make(nodes, [value("y", ["batch", 4]), value("z", ["batch", 4])]))
    assert [v.name for v in cleaned.graph.output] == ["y", "z"]
    for found in run(cleaned, X):
        np.testing.assert_array_equal(found, np.maximum(X, 0))


def test_an_identity_whose_source_has_other_readers_gives_them_the_outputs_name() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Identity", ["r"], ["y"]),
        helper.make_node("Neg", ["r"], ["z"]),
    ]
    cleaned = clean(make(nodes, [value("y", ["batch", 4]), value("z", ["batch", 4])]))
    assert ops(cleaned) == ["Relu", "Neg"]
    y, z = run(cleaned, X)
    np.testing.assert_array_equal(y, np.maximum(X, 0))
    np.testing.assert_array_equal(z, -np.maximum(X, 0))


def test_an_identity_read_by_a_nested_graph_is_removed_there_too() -> None:
    branch = helper.make_graph(
        [helper.make_node("Neg", ["i"], ["b"])], "then", [], [value("b", ["batch", 4])]
    )
    other = helper.make_graph(
        [helper.make_node("Abs", ["i"], ["c"])], "else", [], [value("c", ["batch", 4])]
    )
    nodes = [
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("ReduceSum", ["i"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch, else_branch=other),
    ]
    cleaned = clean(make(nodes, [value("y", ["batch", 4])], {"zero": np.float32(0)}))
    assert "Identity" not in ops(cleaned)
    np.testing.assert_array_equal(run(cleaned, X)[0], np.abs(X))


def test_a_constant_that_would_bloat_the_file_stays_computed() -> None:
    size = FOLD_LIMIT_BYTES // 4 + 4
    nodes = [
        helper.make_node("Expand", ["one", "size"], ["ones"]),
        helper.make_node("Gather", ["ones", "rows"], ["few"]),
        helper.make_node("Add", ["x", "few"], ["y"]),
        helper.make_node("Reshape", ["ones", "four"], ["large"]),
        helper.make_node("MatMul", ["x", "large"], ["m"]),
    ]
    weights = {
        "one": np.float32([1]),
        "size": np.int64([size]),
        "rows": np.int64([0, 1, 2, 3]),
        "four": np.int64([4, -1]),
    }
    outputs = [value("y", ["batch", 4]), value("m", ["batch", size // 4])]
    cleaned = clean(make(nodes, outputs, weights))
    assert sorted(ops(cleaned)) == ["Add", "Expand", "MatMul", "Reshape"]
    assert cleaned.ByteSize() < 2000
    np.testing.assert_array_equal(run(cleaned, X)[0], X + 1)


def test_a_weight_shared_by_identities_stays_one_weight() -> None:
    nodes = [
        helper.make_node("Identity", ["w"], ["w1"]),
        helper.make_node("Identity", ["w"], ["w2"]),
        helper.make_node("Add", ["x", "w1"], ["a"]),
        helper.make_node("Mul", ["a", "w2"], ["y"]),
    ]
    weight = np.float32([1, 2, 3, 4])
    cleaned = clean(make(nodes, [value("y", ["batch", 4])], {"w": weight}))
    assert ops(cleaned) == ["Add", "Mul"]
    assert len(cleaned.graph.initializer) == 1
    np.testing.assert_array_equal(run(cleaned, X)[0], (X + weight) * weight)


def test_random_numbers_are_not_frozen_into_constants() -> None:
    nodes = [
        helper.make_node("RandomNormal", [], ["noise"], shape=[4]),
        helper.make_node("Add", ["x", "noise"], ["y"]),
    ]
    assert ops(clean(make(nodes, [value("y", ["batch", 4])]))) == ["RandomNormal", "Add"]


def test_a_half_as_float_factor_of_a_size_is_not_rounded_away() -> None:
    """int(4 * 0.5): graphsurgeon's own shape folding makes the factor an integer 0."""
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Cast", ["rows"], ["rows_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["rows_float", "half"], ["half_rows"]),
        helper.make_node("Cast", ["half_rows"], ["y"], to=TensorProto.INT64),
    ]
    output = [value("y", [1], TensorProto.INT64)]
    cleaned = clean(make(nodes, output, {"half": np.float32([0.5])}))
    assert run(cleaned, X)[0].tolist() == [1]


def test_a_graph_that_is_not_valid_is_refused() -> None:
    nodes = [helper.make_node("Relu", ["x", "x"], ["y"])]
    with pytest.raises(ExportError, match=r"cannot be cleaned|not valid ONNX"):
        clean(make(nodes, [value("y", ["batch", 4])]))
