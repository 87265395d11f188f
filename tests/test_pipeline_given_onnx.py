"""The user's ONNX file beside what was read of it: sizes, differences, what is refused at once."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import exporters
from exporters.file_parity import relative_difference, slice_difference
from pipeline.cli import main
from pipeline.console import RunConsole
from pipeline.errors import UsageError
from pipeline.given_onnx import beside_given, differs_from_given
from pipeline.importers import LoadedModel, ModelSource, load_model
from pipeline.importers.onnx_in import import_onnx

sys.path.insert(0, str(Path(__file__).parent))

from onnx_files import write_net, write_nodes

pytestmark = pytest.mark.usefixtures("few_images")
QUIET = RunConsole(verbosity=-1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedModel, Path]:
    """A given file, the network that was read of it, and that exported."""
    folder = tmp_path_factory.mktemp("given")
    given, written = write_net(folder / "net.onnx"), folder / "again.onnx"
    loaded = load_model(ModelSource(path=given))
    request = exporters.ExportRequest(
        example_inputs=(torch.zeros(2, 3, 8, 8),), path=written,
        input_names=("pixels",), output_names=("scores",),
    )  # fmt: skip
    exporters.export_onnx(loaded.module, request)
    return given, loaded, written


def beside(given: Path, loaded: LoadedModel, written: Path) -> tuple[LoadedModel, int]:
    cost = exporters.count_macs(written)
    found, cost = beside_given(given, loaded, written, cost, QUIET)
    return found, cost.size_bytes


def test_the_size_before_is_that_of_the_given_file(pair: tuple[Path, LoadedModel, Path]) -> None:
    given, loaded, _ = pair
    found, size = beside(*pair)
    assert size == given.stat().st_size
    assert found.warnings == loaded.warnings  # the same network, no larger: nothing to tell


def test_another_network_than_the_file_is_refused(
    pair: tuple[Path, LoadedModel, Path], tmp_path: Path
) -> None:
    given, loaded, written = pair
    proto = onnx.load(given)
    head = next(t for t in proto.graph.initializer if list(t.dims) == [5, 16])
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * 1.01, head.name))
    other = tmp_path / "other.onnx"
    onnx.save(proto, other)
    with pytest.raises(UsageError, match=r"at batch 1, what was read of it.* values .*e-0[23] of"):
        beside(other, loaded, written)


def test_files_that_store_their_weights_smaller_are_told_so(
    pair: tuple[Path, LoadedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, loaded, written = pair
    monkeypatch.setattr("pipeline.given_onnx._MORE_BYTES", 0)
    cost = replace(exporters.count_macs(written), size_bytes=3 * given.stat().st_size)
    found, cost = beside_given(given, loaded, written, cost, QUIET)
    assert "takes 3.00 times the given file's bytes" in found.warnings[-1]
    assert cost.size_bytes == given.stat().st_size


def test_what_cannot_be_compared_is_told_once(
    pair: tuple[Path, LoadedModel, Path], tmp_path: Path
) -> None:
    given, loaded, written = pair
    proto = onnx.load(given)
    row = next(t for t in proto.graph.initializer if list(t.dims) == [5])
    row.CopyFrom(numpy_helper.from_array(np.full(5, np.nan, np.float32), row.name))
    nan = tmp_path / "nan.onnx"
    onnx.save(proto, nan)
    found, _ = beside(nan, loaded, written)
    (told,) = found.warnings[len(loaded.warnings) :]
    assert told.startswith("at batch 1, 3 the given file gives NaN or infinity")
    broken = tmp_path / "broken.onnx"
    proto.graph.node[-1].op_type = "Unheard"
    onnx.save(proto, broken)
    found, _ = beside(broken, loaded, written)
    assert "onnxruntime does not load the given file" in found.warnings[-1]


def labelled(path: Path, sign: float, *, with_scores: bool) -> Path:
    """Labels of an image's places, and the class scores beside them if asked."""
    weights = np.random.default_rng(0).standard_normal((5, 3, 1, 1)).astype("f4")
    named = [numpy_helper.from_array(sign * weights, "w")]
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["c"]),
        helper.make_node("ArgMax", ["c"], ["labels"], axis=1),
        helper.make_node("Abs", ["c"], ["scores"]),
    ]
    outputs = [helper.make_tensor_value_info("labels", TensorProto.INT64, None)]
    if with_scores:
        outputs.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, None))
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["images", 3, 8, 8])
    graph = helper.make_graph(nodes, "g", [pixels], outputs, named)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def test_labels_are_compared_and_refused_where_nothing_else_could_tell(tmp_path: Path) -> None:
    given = labelled(tmp_path / "a.onnx", 1.0, with_scores=False)
    loaded = load_model(ModelSource(path=given))
    beside(given, loaded, given)
    other = labelled(tmp_path / "b.onnx", -1.0, with_scores=False)
    with pytest.raises(UsageError, match=r"other whole numbers at [0-9.]+% of the places"):
        beside(given, loaded, other)
    both = [labelled(tmp_path / f"{s}.onnx", s, with_scores=True) for s in (1.0, -1.0)]
    found, _ = beside(both[0], load_model(ModelSource(path=both[0])), both[1])
    assert "of an output's whole numbers are others than the given file's" in found.warnings[-1]


def test_small_channels_are_judged_by_their_own_scale() -> None:
    boxes = np.full((1, 4, 5), 1280.0, np.float32)
    scores = np.full((1, 2, 5), 0.5, np.float32)
    scores[0, 1] = 0.4
    right = np.concatenate([boxes, scores], axis=1)
    wrong = right.copy()
    wrong[0, 4], wrong[0, 5] = 0.4, 0.5
    assert relative_difference(right, wrong)[0] < 1e-4
    assert slice_difference(right, wrong) == pytest.approx(0.1 / 128, rel=1e-3)
    columns = right.transpose(0, 2, 1)
    assert slice_difference(columns, wrong.transpose(0, 2, 1)) == pytest.approx(0.1 / 128, rel=1e-3)
    assert slice_difference(right, right) == 0.0


def test_a_file_that_is_right_at_the_input_size_alone_does_not_stand_for_the_given_one(
    tmp_path: Path,
) -> None:
    def file(name: str, rounded: bool) -> Path:
        weights = [
            numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w"),
            numpy_helper.from_array(np.int64(2), "second"),
            numpy_helper.from_array(np.float32(1 / 16), "a"),
        ]
        nodes = [
            helper.make_node("Conv", ["pixels", "w"], ["c"]),
            helper.make_node("Shape", ["pixels"], ["s"]),
            helper.make_node("Gather", ["s", "second"], ["h"]),
            helper.make_node("Cast", ["h"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["f", "a"], ["g"]),
            helper.make_node("Floor" if rounded else "Identity", ["g"], ["d"]),
            helper.make_node("Div", ["c", "d"], ["y"]),
        ]
        ports = [
            helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, "high", "wide"]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ]
        graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
        opset = [helper.make_opsetid("", 18)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / name)
        return tmp_path / name

    given = file("given.onnx", rounded=True)
    loaded = load_model(ModelSource(path=given, input_size=(3, 32, 32)))
    assert differs_from_given(given, loaded, given) is None
    reason = differs_from_given(given, loaded, file("other.onnx", rounded=False))
    assert reason == "at [1, 3, 33, 33] the exported file gives other values than the given one"


@pytest.mark.parametrize("limit", [1, 50], ids=["one image", "many images"])
def test_a_branch_that_hangs_on_the_batch_is_refused(tmp_path: Path, limit: int) -> None:
    """Batches of 2 and 3 take the same branch; the file gives other values at others."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Mul", ["c", factor], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, factor in (("then", "two"), ("else", "three"))
    }

    def number(name: str, value: int, dtype: type = np.float32) -> onnx.NodeProto:
        tensor = numpy_helper.from_array(np.array(value, dtype))
        return helper.make_node("Constant", [], [name], value=tensor)

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        *(number("two", 2), number("three", 3), number("first", 0, np.int64)),
        number("limit", limit, np.int64),
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["batch"]),
        helper.make_node("Greater", ["batch", "limit"], ["many"]),
        helper.make_node("If", ["many"], ["y"], name="pick", **branches),
    ]
    path = write_nodes(tmp_path / "net.onnx", nodes, ["n", 3, 8, 8], ["y"])
    with pytest.raises(UsageError, match=r"If node 'pick': its condition depends on the batch"):
        import_onnx(path)
    fixed = write_nodes(tmp_path / "fixed.onnx", nodes, [2, 3, 8, 8], ["y"])
    module, x = import_onnx(fixed).module, torch.randn(2, 3, 8, 8)
    assert exporters.check_parity(module, exporters.open_session(fixed), [x]).ok


def test_batches_of_none_and_outputs_that_are_inputs_are_refused(tmp_path: Path) -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    empty = write_nodes(tmp_path / "empty.onnx", [conv], [0, 3, 8, 8], ["y"])
    with pytest.raises(UsageError, match="its batch is fixed to 0"):
        load_model(ModelSource(path=empty))
    handed_on = write_nodes(tmp_path / "on.onnx", [conv], ["n", 3, 8, 8], ["y", "x"])
    with pytest.raises(UsageError, match="output 'x' is the input as it is"):
        load_model(ModelSource(path=handed_on))


def test_the_largest_values_are_exported_and_ties_go_to_the_first(tmp_path: Path) -> None:
    k = numpy_helper.from_array(np.array([2]))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Constant", [], ["two"], value=k),
        helper.make_node("TopK", ["c", "two"], ["y", "places"], axis=1),
        helper.make_node("Cast", ["places"], ["where"], to=TensorProto.FLOAT),
    ]
    path = write_nodes(tmp_path / "top.onnx", nodes, ["n", 3, 8, 8], ["y", "where"])
    module, x = import_onnx(path).module, torch.randn(2, 3, 8, 8)
    values, places = module(x)  # all four filters are alike
    assert torch.equal(values[:, 0], values[:, 1])
    assert (places[:, 0] == 0).all() and (places[:, 1] == 1).all()
    written = tmp_path / "again.onnx"
    exporters.export_onnx(
        module, exporters.ExportRequest(example_inputs=(torch.zeros(2, 3, 8, 8),), path=written)
    )
    for file in (path, written):
        found = exporters.open_session(file).run_batch(x.numpy())
        assert np.array_equal(found[1], places.numpy())


def test_inspect_shows_what_is_no_image_network(tmp_path: Path) -> None:
    add = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Conv", ["other", "w"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["y"]),
    ]
    path = write_nodes(tmp_path / "two.onnx", add, ["n", 3, 8, 8], ["y"])
    proto = onnx.load(path)
    proto.graph.input.append(
        helper.make_tensor_value_info("other", TensorProto.FLOAT, ["n", 3, 8, 8])
    )
    onnx.save(proto, path)
    plain = CliRunner().invoke(main, ["inspect", str(path)])
    assert plain.exit_code == 2
    assert "an --input-size NAME:SHAPE for each" in " ".join(plain.stderr.split())
    sizes = ["--input-size", "x:3,8,8", "--input-size", "other:3,8,8"]
    shown = CliRunner().invoke(main, ["inspect", *sizes, str(path)])
    assert shown.exit_code == 0, shown.output
    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    row = write_nodes(tmp_path / "row.onnx", [conv], ["n", 3, "length"], ["y"])
    shown = CliRunner().invoke(main, ["inspect", "--input-size", "3,32", str(row)])
    assert shown.exit_code == 0 and "is a model output" in " ".join(shown.output.split())


def test_an_op_that_torch_cannot_export_is_named(tmp_path: Path) -> None:
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sort(dim=1, stable=True).values

    request = exporters.ExportRequest(
        example_inputs=(torch.zeros(2, 3, 8, 8),), path=tmp_path / "m.onnx"
    )
    with pytest.raises(exporters.ExportError, match=r"No ONNX function found for .*aten\.sort"):
        exporters.export_onnx(Sorted().eval(), request)


def test_numbers_to_normalise_by_are_refused_where_images_are_taken_as_they_are(
    tmp_path: Path,
) -> None:
    path, data = write_net(tmp_path / "net.onnx"), tmp_path / "data.npz"
    images = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
    labels = np.arange(40) % 5
    np.savez(data, x_train=images, y_train=labels, x_val=images, y_val=labels)
    result = _compress(path, tmp_path / "out", "--data", data, "--mean", "0,0,0", "--std", "1,1,1")
    assert result.exit_code == 2
    assert "--mean and --std have no effect on" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_an_opset_that_can_be_written_is_kept(tmp_path: Path) -> None:
    newest = exporters.newest_opset()
    assert newest >= 23
    proto = onnx.load(write_net(tmp_path / "net.onnx", opset=18))
    proto.opset_import[0].version = newest
    onnx.save(proto, tmp_path / "net.onnx")
    result = _compress(tmp_path / "net.onnx", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert onnx.load(tmp_path / "out/model.onnx").opset_import[0].version == newest
    assert "cannot be written" not in result.output


def test_where_the_exporter_cannot_the_file_gets_the_opset_that_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    export = exporters.export_onnx

    def only_18(model: nn.Module, request: exporters.ExportRequest) -> exporters.OnnxFile:
        asked.append(request.opset)
        if request.opset != 18:
            raise exporters.OpsetError("not for this model", possible=18)
        return export(model, request)

    monkeypatch.setattr("exporters.export_onnx", only_18)
    proto = onnx.load(write_net(tmp_path / "net.onnx", opset=18))
    proto.opset_import[0].version = 21
    onnx.save(proto, tmp_path / "net.onnx")
    result = _compress(tmp_path / "net.onnx", tmp_path / "out")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "the file is of opset 21, which cannot be written: exported as 18" in said
    assert asked[0] == 21 and set(asked[1:]) == {18}
    refused = _compress(tmp_path / "net.onnx", tmp_path / "other", "--opset", "22")
    assert refused.exit_code == 2 and "not for this model" in refused.output


def _compress(path: Path, out: Path, *extra: object) -> Result:
    words = ["--target-flops", "0.6", "--epochs", "1", "--out", out, path, *extra]
    return CliRunner().invoke(main, [str(word) for word in words])
