"""The main job on ONNX files: what comes back, what stays free, what is refused."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import exporters
from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.importers import ModelSource, load_model
from pipeline.importers.onnx_in import import_onnx

sys.path.insert(0, str(Path(__file__).parent))

from onnx_files import halved, write_net, write_nodes

pytestmark = pytest.mark.usefixtures("few_images")


def _compress(path: Path, out: Path, *extra: str) -> Result:
    arguments = ["--target-flops", "0.6", "--epochs", "1", "--out", str(out), str(path), *extra]
    return CliRunner().invoke(main, arguments)


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_open_sizes_must_be_stated_and_stay_open(tmp_path: Path) -> None:
    axes = {"pixels": {0: "images", 2: "high", 3: "wide"}}
    path = write_net(tmp_path / "net.onnx", dynamic_axes=axes)
    with pytest.raises(UsageError, match=r"leaves sizes open: .* --input-size"):
        load_model(ModelSource(path=path))
    with pytest.raises(UsageError, match="does not fit input 'pixels'"):
        load_model(ModelSource(path=path, input_size=(1, 8, 8)))
    result = _compress(path, tmp_path / "out", "--input-size", "3,8,8")
    assert result.exit_code == 0, result.output
    assert "high, wide of 'pixels' stay free" in " ".join(result.output.split())
    proto = onnx.load(tmp_path / "out/model.onnx")
    assert _dims(proto.graph.input[0]) == ["images", 3, "high", "wide"]
    x = torch.randn(2, 3, 12, 20)
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    found = exporters.open_session(tmp_path / "out/model.onnx").run_batch(x.numpy())[0]
    assert np.abs(found - program(x).detach().numpy()).max() <= 1e-4 * np.abs(found).max()


def test_the_normalisation_that_compress_wrote_is_taken_from_its_file(tmp_path: Path) -> None:
    path = write_net(tmp_path / "net.onnx")
    proto = onnx.load(path)
    written = {"preprocessing": {"mean": [0.5, 0.25, 0.125], "std": [1, 2, 4]}}
    onnx.helper.set_model_props(proto, {"gbn_compress": json.dumps(written)})
    onnx.save(proto, path)
    loaded = load_model(ModelSource(path=path))
    assert (loaded.mean, loaded.std) == ((0.5, 0.25, 0.125), (1.0, 2.0, 4.0))
    assert loaded.preprocessing_origin == "file's metadata"
    settings = tmp_path / "compress.toml"
    told = CliRunner().invoke(main, ["init", "--output", str(settings), str(path)])
    assert told.exit_code == 0, told.output
    assert "mean = [0.5, 0.25, 0.125]" in settings.read_text()
    onnx.helper.set_model_props(proto, {"gbn_compress": "{"})
    onnx.save(proto, path)
    with pytest.raises(UsageError, match="metadata 'gbn_compress' cannot be read"):
        load_model(ModelSource(path=path))


def test_sizes_that_the_network_needs_are_fixed_and_said_so(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    matrix = onnx.numpy_helper.from_array(np.ones((4 * 36, 2), np.float32), "m")
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"]),
        onnx.helper.make_node("Flatten", ["c"], ["f"]),
        onnx.helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
        for name, dims in (("x", ["n", 3, "h", "w"]), ("y", ["n", 2]))
    ]
    graph = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], [weight, matrix])
    opset = [onnx.helper.make_opsetid("", 18)]
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset), path)
    loaded = load_model(ModelSource(path=path, input_size=(3, 8, 8)))
    assert "h, w of 'x': cannot stay free" in " ".join(loaded.warnings)
    assert "MatMul node" in " ".join(loaded.warnings)
    assert loaded.interface is not None and loaded.interface.open_sizes == {}


def test_channels_that_weights_fix_are_fixed_and_said_so_and_sizes_stay_free(
    tmp_path: Path,
) -> None:
    axes = {"pixels": {0: "images", 1: "planes", 2: "high", 3: "wide"}}
    path = write_net(tmp_path / "net.onnx", dynamic_axes=axes)
    result = _compress(path, tmp_path / "out", "--input-size", "3,8,8")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "planes of 'pixels': cannot stay free, fixed to the input size (Conv node" in said
    assert "its input has a free number of channels, its weight is for 3" in said
    proto = onnx.load(tmp_path / "out/model.onnx")
    assert _dims(proto.graph.input[0]) == ["images", 3, "high", "wide"]


def test_channels_that_nothing_fixes_stay_free(tmp_path: Path) -> None:
    class Grey(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x.mean(1, keepdim=True)).relu())

    torch.manual_seed(0)
    path = tmp_path / "grey.onnx"
    axes = {"x": {0: "n", 1: "planes", 2: "h", 3: "w"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Grey().eval(), (torch.zeros(1, 3, 8, 8),), str(path), dynamo=False,
            opset_version=17, input_names=["x"], output_names=["y"], dynamic_axes=axes,
        )  # fmt: skip
    result = _compress(path, tmp_path / "out", "--input-size", "3,8,8")
    assert result.exit_code == 0, result.output
    assert "planes, h, w of 'x' stay free" in " ".join(result.output.split())
    assert _dims(onnx.load(tmp_path / "out/model.onnx").graph.input[0]) == ["n", "planes", "h", "w"]
    x = np.random.default_rng(0).standard_normal((2, 5, 12, 8)).astype(np.float32)
    loaded = load_model(ModelSource(path=path, input_size=(3, 8, 8)))
    back = exporters.open_session(tmp_path / "out/stages/baseline.onnx").run_batch(x)[0]
    given = exporters.open_session(path).run_batch(x)[0]
    assert np.abs(back - given).max() <= 1e-5 * np.abs(given).max()
    assert loaded.module(torch.from_numpy(x)).shape == given.shape


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("by", ["scale", "size"])
def test_enlarging_a_free_image_stays_free(by: str, mode: str, tmp_path: Path) -> None:
    class Ladder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 8, 3, padding=1, stride=2)
            self.head = nn.Conv2d(11, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.down(x).relu()
            wanted = {"size": x.shape[2:]} if by == "size" else {"scale_factor": 2.0}
            y = nn.functional.interpolate(y, mode=mode, **wanted)
            return self.head(torch.cat([x, y], 1))

    path = tmp_path / "ladder.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Ladder().eval(), (torch.zeros(1, 3, 16, 16),), str(path), dynamo=False,
            opset_version=17, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}},
        )  # fmt: skip
    loaded = load_model(ModelSource(path=path, input_size=(3, 16, 16)))
    assert loaded.interface is not None and loaded.interface.open_sizes == {2: "h", 3: "w"}
    batch = torch.randn(2, 3, 24, 36)
    assert exporters.check_parity(loaded.module, exporters.open_session(path), [batch], 1e-5).ok
    result = _compress(path, tmp_path / "out", "--input-size", "3,16,16")
    assert result.exit_code == 0, result.output
    proto = onnx.load(tmp_path / "out/model.onnx")
    assert _dims(proto.graph.input[0]) == ["n", 3, "h", "w"]


def test_half_precision_weights_are_widened_and_said_so(tmp_path: Path) -> None:
    imported = import_onnx(halved(write_net(tmp_path / "net.onnx")))
    assert {p.dtype for p in imported.module.parameters()} == {torch.float32}
    assert "float16 tensors to float32" in imported.notes[0]
    assert imported.module(torch.zeros(2, 3, 8, 8, dtype=torch.float16)).shape == (2, 5)


def _float_types(proto: onnx.ModelProto) -> tuple[set[int], set[int]]:
    """Of the ports, and of the weights."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    ports = {v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)}
    return ports, {t.data_type for t in proto.graph.initializer if t.data_type in floats}


def test_a_half_precision_file_comes_back_in_half_precision(tmp_path: Path) -> None:
    path = halved(write_net(tmp_path / "net.onnx"))
    half = {onnx.TensorProto.FLOAT16}
    result = _compress(path, tmp_path / "out")
    assert result.exit_code == 0, result.output
    proto = onnx.load(tmp_path / "out/model.onnx")
    assert _float_types(proto) == (half, half)
    assert "Cast" not in {node.op_type for node in proto.graph.node}
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["precision"]["before"], report["precision"]["kind"]) == ("fp16", "fp16")
    # Before the cut it is the file that was given, so it is no larger than that.
    before = tmp_path / "out/stages/baseline.onnx"
    assert _float_types(onnx.load(before)) == (half, half)
    weights = sum(len(t.raw_data) for t in onnx.load(path).graph.initializer)
    assert sum(len(t.raw_data) for t in onnx.load(before).graph.initializer) <= weights
    assert report["size_bytes"]["before"] == path.stat().st_size
    assert report["parity"]["max_abs_diff"] <= report["parity"]["tolerance"] == 1e-2 + 2**-11
    notes = " ".join(report["stages"][0]["notes"])
    assert "all float16 in the exported file" in notes
    assert "the file is of opset 13, which cannot be written: exported as 18" in notes
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float16)
    session = exporters.open_session(tmp_path / "out/model.onnx")
    assert session.run({"pixels": x})[0].dtype == np.float16


def test_a_half_precision_file_comes_back_wide_where_that_is_asked(tmp_path: Path) -> None:
    path = halved(write_net(tmp_path / "net.onnx"))
    result = _compress(path, tmp_path / "out", "--precision", "fp32")
    assert result.exit_code == 0, result.output
    ports, weights = _float_types(onnx.load(tmp_path / "out/model.onnx"))
    assert (ports, weights) == ({onnx.TensorProto.FLOAT16}, {onnx.TensorProto.FLOAT})
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["precision"]["before"], report["precision"]["kind"]) == ("fp16", "fp32")
    assert report["parity"]["tolerance"] == 1e-4 + 2**-11


def test_weights_that_are_only_stored_in_half_precision_come_back_wide(tmp_path: Path) -> None:
    wide, path = write_net(tmp_path / "net.onnx"), tmp_path / "stored.onnx"
    proto = onnx.load(wide)
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=1))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, path)
    loaded = load_model(ModelSource(path=path))
    assert loaded.interface is not None and not loaded.interface.in_half
    assert "float16 tensors to float32" in " ".join(loaded.warnings)


def test_loops_that_are_written_out_are_said_so(tmp_path: Path) -> None:
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Identity", ["more"], ["still"]),
            onnx.helper.make_node("Add", ["now", "now"], ["next"]),
        ],
        "body",
        [
            onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("more", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("now", onnx.TensorProto.FLOAT, ["n", 4]),
        ],
        [
            onnx.helper.make_tensor_value_info("still", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, ["n", 4]),
        ],
    )
    constants = [
        onnx.numpy_helper.from_array(np.array(3), "trips"),
        onnx.numpy_helper.from_array(np.array(True), "yes"),
    ]
    node = onnx.helper.make_node("Loop", ["trips", "yes", "x"], ["y"], name="again", body=body)
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4])
        for name in ("x", "y")
    ]
    graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:], constants)
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset), tmp_path / "net.onnx")
    path = tmp_path / "net.onnx"
    imported = import_onnx(path)
    assert imported.notes == (
        "Loop node 'again': written out, 3 runs of its body one after another",
    )
    assert torch.equal(imported.module(torch.ones(2, 4)), torch.full((2, 4), 8.0))
    often = onnx.load(path)
    often.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(10**9), "trips"))
    onnx.save(often, path)
    with pytest.raises(UsageError, match="'again': runs its body 1000000000 times: too often"):
        import_onnx(path)
    often.graph.node[0].input[0] = ""
    onnx.save(often, path)
    with pytest.raises(UsageError, match="'again': runs its body over 5000 times: too often"):
        import_onnx(path)


def test_what_is_no_image_network_is_told_so_before_anything_is_written(tmp_path: Path) -> None:
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    flat = write_nodes(tmp_path / "flat.onnx", [conv], ["n", 3, 32], ["y"])
    result = _compress(flat, tmp_path / "out")
    assert result.exit_code == 2
    assert "input 'x' is ['n', 3, 32]; the main job takes images" in " ".join(result.output.split())
    again = onnx.helper.make_node("Conv", ["y", "v"], ["z"])
    constant = onnx.helper.make_node(
        "Constant", [], ["v"],
        value=onnx.numpy_helper.from_array(np.ones((2, 4, 3, 3), np.float32)),
    )  # fmt: skip
    path = tmp_path / "row.onnx"
    result = _compress(
        write_nodes(path, [conv, constant, again], ["n", 3, 8, 8], ["z", "k"]), tmp_path / "out"
    )
    assert result.exit_code == 2
    assert "output 'k' is (3,) for a batch of 2" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fixed", [False, True], ids=["free batch", "fixed batch"])
def test_the_main_job_takes_a_file(fixed: bool, tmp_path: Path) -> None:
    path = write_net(tmp_path / "net.onnx", **({"dynamic_axes": {}} if fixed else {}))
    result = _compress(path, tmp_path / "out")
    assert result.exit_code == 0, result.output
    proto = onnx.load(tmp_path / "out/model.onnx")
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_value == 1 if fixed else batch.dim_param == "images"
    assert "opset 13, which cannot be written: exported as 18" in " ".join(result.output.split())
