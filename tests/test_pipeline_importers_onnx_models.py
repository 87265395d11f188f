"""Whole models: parity with onnxruntime, the way back to ONNX, and the main job on a file."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import exporters
import gbn
from benchmarks.tables import SHARED
from pipeline.cli import main
from pipeline.config import ModelConfig, RunConfig, TargetConfig
from pipeline.errors import UsageError
from pipeline.exporting import export_request
from pipeline.importers import ModelSource, load_model
from pipeline.importers.onnx_in import import_onnx
from pipeline.target import Target

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("light_*.onnx"))
FILES = [*LIGHT, *sorted((SHARED / "models/onnx").glob("*.onnx"))]


class _Net(nn.Module):
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


def _write(path: Path, opset: int = 13, **options: Any) -> Path:
    torch.manual_seed(0)
    net = _Net().eval()
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_of_others_give_what_onnxruntime_gives(path: Path) -> None:
    imported = import_onnx(path)
    session = exporters.open_session(path)
    rng = np.random.default_rng(0)
    given = {
        port.name: rng.standard_normal(
            [d if isinstance(d, int) else 2 for d in port.dims or ()]
        ).astype(np.float32)
        for port in imported.interface.inputs
    }
    expected = session.run(given)
    with torch.no_grad():
        found = imported.module(*(torch.from_numpy(value) for value in given.values()))
    for ours, theirs in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours.numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 20])
def test_a_network_comes_back_as_it_was_written(opset: int, tmp_path: Path) -> None:
    path = _write(tmp_path / "net.onnx", opset)
    module = import_onnx(path).module
    assert type(module.get_submodule("stem.1")) is nn.BatchNorm2d
    assert not module.training
    session = exporters.open_session(path)
    batches = [torch.randn(n, 3, 8, 8) for n in (1, 3)]
    assert exporters.check_parity(module, session, batches, 1e-5).ok
    assert exporters.check_parity(copy.deepcopy(module), session, batches, 1e-5).ok


def test_the_export_gives_the_interface_back(tmp_path: Path) -> None:
    path = _write(tmp_path / "net.onnx", 20)
    loaded = load_model(ModelSource(path=path))
    assert loaded.input_size == (3, 8, 8)
    half = Target.parse("0.5", "--target-flops")
    config = RunConfig(
        model=ModelConfig(path=path), target=TargetConfig(flops=half), out=tmp_path / "out"
    )
    written = exporters.export_onnx(
        loaded.module, export_request(config, loaded, tmp_path / "back.onnx", {"more": "text"})
    )
    assert (written.input_names, written.output_names) == (("pixels",), ("scores",))
    assert (written.opset, written.dynamic_batch) == (20, True)
    assert written.size_bytes <= 1.05 * path.stat().st_size
    proto = onnx.load(written.path)
    assert proto.doc_string == "knows five things"
    assert {p.key: p.value for p in proto.metadata_props} == {"owner": "somebody", "more": "text"}
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "images"
    batches = [torch.randn(n, 3, 8, 8) for n in (1, 3)]
    original = exporters.open_session(path)
    expected = [torch.from_numpy(original.run_batch(b.numpy())[0]) for b in batches]
    for batch, outputs in zip(batches, expected, strict=True):
        again = exporters.open_session(written.path).run_batch(batch.numpy())[0]
        assert np.abs(again - outputs.numpy()).max() <= 1e-5 * float(outputs.abs().max())


def test_all_channels_that_torch_lets_go_can_go(tmp_path: Path) -> None:
    module = import_onnx(_write(tmp_path / "net.onnx")).module
    x = torch.randn(2, 3, 8, 8)
    groups = gbn.trace(module, x)
    assert groups.num_atoms == gbn.trace(_Net().eval(), x).num_atoms
    plan = gbn.plan(groups, gbn.magnitude_scores(module, groups), flops=0.5)
    assert gbn.prove(module, plan, gbn.prune(module, plan), x).ok


def test_it_trains(tmp_path: Path) -> None:
    module = import_onnx(_write(tmp_path / "net.onnx")).module.train()
    before = module.get_buffer("stem.1.running_mean").clone()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 5
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert not torch.equal(before, module.get_buffer("stem.1.running_mean"))


@pytest.mark.parametrize("fixed", [False, True], ids=["free batch", "fixed batch"])
def test_the_main_job_takes_a_file(fixed: bool, tmp_path: Path) -> None:
    path = _write(tmp_path / "net.onnx", **({"dynamic_axes": {}} if fixed else {}))
    arguments = ["--target-flops", "0.6", "--out", str(tmp_path / "out"), str(path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    proto = onnx.load(tmp_path / "out/model.onnx")
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_value == 1 if fixed else batch.dim_param == "images"
    assert "opset 13, which cannot be written: exported as 18" in " ".join(result.output.split())


def test_a_torchscript_file_comes_in_the_same_way(tmp_path: Path) -> None:
    net = _Net().eval()
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, torch.zeros(1, 3, 8, 8)).save(path)
    loaded = load_model(ModelSource(path=path, input_size=(3, 8, 8)))
    x = torch.randn(3, 3, 8, 8)
    assert torch.allclose(loaded.module(x), net(x), atol=1e-6)
    assert type(loaded.module.get_submodule("norm")) is nn.BatchNorm2d
    with pytest.raises(UsageError, match="does not say its input size: --input-size"):
        load_model(ModelSource(path=path))


def test_a_torchscript_op_that_has_no_translation_is_named_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    path = tmp_path / "odd.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Odd(), torch.zeros(1, 3, 8, 8)).save(path)
    with pytest.raises(UsageError, match="bessel_j0") as raised:
        load_model(ModelSource(path=path, input_size=(3, 8, 8)))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr().out == ""


def _compress(path: Path, out: Path, *extra: str) -> Result:
    arguments = ["--target-flops", "0.6", "--out", str(out), str(path), *extra]
    return CliRunner().invoke(main, arguments)


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_open_sizes_must_be_stated_and_stay_open(tmp_path: Path) -> None:
    axes = {"pixels": {0: "images", 2: "high", 3: "wide"}}
    path = _write(tmp_path / "net.onnx", dynamic_axes=axes)
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
    assert "h, w: cannot stay free" in " ".join(loaded.warnings)
    assert "MatMul node" in " ".join(loaded.warnings)
    assert loaded.interface is not None and loaded.interface.open_sizes == {}


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


def _halved(path: Path) -> Path:
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(proto, path)
    return path


def test_half_precision_weights_are_widened_and_said_so(tmp_path: Path) -> None:
    imported = import_onnx(_halved(_write(tmp_path / "net.onnx")))
    assert {p.dtype for p in imported.module.parameters()} == {torch.float32}
    assert "float16 tensors to float32" in imported.notes[0]
    assert imported.module(torch.zeros(2, 3, 8, 8, dtype=torch.float16)).shape == (2, 5)


def test_a_half_precision_file_comes_back_with_half_precision_ports(tmp_path: Path) -> None:
    path = _halved(_write(tmp_path / "net.onnx"))
    result = _compress(path, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "computes in float32" in " ".join(result.output.split())
    proto = onnx.load(tmp_path / "out/model.onnx")
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["parity"]["tolerance"] == 1e-4 + 2**-11
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float16)
    session = exporters.open_session(tmp_path / "out/model.onnx")
    assert session.run({"pixels": x})[0].dtype == np.float16


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
    imported = import_onnx(tmp_path / "net.onnx")
    assert imported.notes == (
        "Loop node 'again': written out, 3 runs of its body one after another",
    )
    assert torch.equal(imported.module(torch.ones(2, 4)), torch.full((2, 4), 8.0))


def _saved(path: Path, nodes: list[Any], dims: list[int | str], outputs: list[str]) -> Path:
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
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset), path)
    return path


def test_what_is_no_image_network_is_told_so_before_anything_is_written(tmp_path: Path) -> None:
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    flat = _saved(tmp_path / "flat.onnx", [conv], ["n", 3, 32], ["y"])
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
        _saved(path, [conv, constant, again], ["n", 3, 8, 8], ["z", "k"]), tmp_path / "out"
    )
    assert result.exit_code == 2
    assert "output 'k' is (3,) for a batch of 2" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
