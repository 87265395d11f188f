"""Whole models: parity with onnxruntime, the way back to ONNX, and the main job on a file."""

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import exporters
import gbn
from benchmarks.tables import SHARED
from pipeline.config import ModelConfig, RunConfig, TargetConfig
from pipeline.errors import UsageError
from pipeline.exporting import export_request
from pipeline.importers import ModelSource, load_model
from pipeline.importers.onnx_in import import_onnx
from pipeline.target import Target

sys.path.insert(0, str(Path(__file__).parent))

from onnx_files import Net, write_net

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("light_*.onnx"))
FILES = [*LIGHT, *sorted((SHARED / "models/onnx").glob("*.onnx"))]


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
    path = write_net(tmp_path / "net.onnx", opset)
    module = import_onnx(path).module
    assert type(module.get_submodule("stem.1")) is nn.BatchNorm2d
    assert not module.training
    session = exporters.open_session(path)
    batches = [torch.randn(n, 3, 8, 8) for n in (1, 3)]
    assert exporters.check_parity(module, session, batches, 1e-5).ok
    assert exporters.check_parity(copy.deepcopy(module), session, batches, 1e-5).ok


def test_the_export_gives_the_interface_back(tmp_path: Path) -> None:
    path = write_net(tmp_path / "net.onnx", 20)
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
    module = import_onnx(write_net(tmp_path / "net.onnx")).module
    x = torch.randn(2, 3, 8, 8)
    groups = gbn.trace(module, x)
    assert groups.num_atoms == gbn.trace(Net().eval(), x).num_atoms
    plan = gbn.plan(groups, gbn.magnitude_scores(module, groups), flops=0.5)
    assert gbn.prove(module, plan, gbn.prune(module, plan), x).ok


def test_it_trains(tmp_path: Path) -> None:
    module = import_onnx(write_net(tmp_path / "net.onnx")).module.train()
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


def test_a_torchscript_file_comes_in_the_same_way(tmp_path: Path) -> None:
    net = Net().eval()
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


class Halves(nn.Module):
    """Half of the channels take another way, as in networks that shuffle; a chunk is two slices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.own = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).relu().chunk(2, dim=1)
        return self.head(torch.cat([first, self.own(second).relu()], dim=1))


@pytest.mark.parametrize("free", [True, False], ids=["free batch", "fixed batch"])
def test_slices_into_equal_parts_stay_equal_parts_when_channels_go(
    free: bool, tmp_path: Path, prune_and_prove: Any
) -> None:
    torch.manual_seed(0)
    path, x = tmp_path / "halves.onnx", torch.randn(1, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Halves().eval(), (x,), str(path), dynamo=False, opset_version=17,
            input_names=["x"], dynamic_axes={"x": {0: "n"}} if free else {},
        )  # fmt: skip
    assert [n.op_type for n in onnx.load(path).graph.node].count("Slice") == 2
    done = prune_and_prove(import_onnx(path).module, x)
    assert [group.frozen for group in done.groups.groups] == [False, False, True]
    taken = exporters.open_session(path).run({"x": x.numpy()})[0]
    assert np.abs(import_onnx(path).module(x).detach().numpy() - taken).max() <= 1e-5
