"""Norms put back into a network from a file whose exporter folded them, and folded again."""

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import nn

import gbn
from pipeline.cli import main
from pipeline.config_file import build_config
from pipeline.console import RunConsole
from pipeline.data import Batch
from pipeline.errors import UsageError
from pipeline.folded_norms import can_insert, fold_norms, insert_norms, without_norms
from pipeline.importers.onnx_in import import_onnx

sys.path.insert(0, str(Path(__file__).parent))

from tiny_job import ARCH_SOURCE, make_images, write_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny job, its network as an ONNX file without norms."""
    folder = tmp_path_factory.mktemp("job")
    files = write_job(folder)
    scope: dict[str, type[nn.Module]] = {}
    exec(ARCH_SOURCE, scope)
    model = scope["Tiny"]()
    model.load_state_dict(torch.load(files["model"], weights_only=True))
    files["onnx"] = folder / "folded.onnx"
    _export(model.eval(), files["onnx"])
    assert not _ops(files["onnx"]) & {"BatchNormalization"}
    return files


def _export(model: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(1, 1, 8, 8),), str(path), dynamo=False, opset_version=18,
            input_names=["pixels"], output_names=["scores"],
            dynamic_axes={"pixels": {0: "images"}, "scores": {0: "images"}},
        )  # fmt: skip


def _ops(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def _batches(count: int = 3) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(16, 1, 8, 8, generator=generator), torch.zeros(16, dtype=torch.long)


def test_inserted_norms_change_nothing_and_have_the_statistics_of_the_images(
    job: dict[str, Path],
) -> None:
    network = import_onnx(job["onnx"]).module
    made, count = insert_norms(network, _batches())
    assert count == 3
    images = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        expected, found = network(images), made(images)
        seen = torch.cat([x for x, _ in _batches()])
        stem = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        rows = stem(seen).double().numpy()
        filters = next(m for m in made.modules() if isinstance(m, nn.Conv2d)).weight
        lengths = filters.detach().flatten(1)
    assert np.abs(found - expected).max() <= 1e-5 * expected.abs().max()
    norm = next(m for m in made.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_mean is not None and norm.running_var is not None
    scale = lengths.norm(dim=1).numpy() / stem.weight.detach().flatten(1).norm(dim=1).numpy()
    np.testing.assert_allclose(norm.running_mean, rows.mean((0, 2, 3)) * scale, 1e-5, 1e-6)
    np.testing.assert_allclose(norm.running_var, rows.var((0, 2, 3)) * scale**2, 1e-5)
    # the usual length is sqrt(2); a power of two brings a filter to between 1 and 2
    assert (lengths.norm(dim=1) >= 1).all()
    assert (lengths.norm(dim=1) <= 2).all()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


def test_folding_takes_changed_norms_out_and_keeps_what_they_do(job: dict[str, Path]) -> None:
    network = import_onnx(job["onnx"]).module
    made, _ = insert_norms(network, _batches())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                width = (module.num_features,)
                module.weight.mul_(torch.rand(width, generator=generator) + 0.5)
                module.bias.add_(torch.rand(width, generator=generator))
                module.running_mean.add_(torch.rand(width, generator=generator))
                module.running_var.mul_(torch.rand(width, generator=generator) + 0.5)
    folded = fold_norms(made)
    images = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        expected, found, before = made(images), folded(images), network(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found - before).abs().max() > 0.01 * before.abs().max()
    assert folded.state_dict().keys() == network.state_dict().keys()


def test_gates_sit_on_inserted_norms_and_the_plan_fits_the_file_without_them(
    job: dict[str, Path],
) -> None:
    network = import_onnx(job["onnx"]).module
    made, _ = insert_norms(network, _batches())
    images = torch.randn(4, 1, 8, 8)
    groups = gbn.trace(made, images)
    assert all(site.is_norm for site in groups.gates)
    assert len(groups.gates) == 3
    plan = gbn.plan(groups, gbn.magnitude_scores(made, groups), flops=0.6)
    expected = fold_norms(gbn.prune(made, plan))
    plain = without_norms(plan, made)
    small = gbn.prune(network, plain)
    with torch.no_grad():
        assert (small(images) - expected(images)).abs().max() <= 1e-5
    assert gbn.prove(network, plain, small, images).ok


def test_dead_channels_stay_dead() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).relu().mean((2, 3))

    net = torch.fx.symbolic_trace(Net().eval())
    with torch.no_grad():
        net.conv.weight[1] = 0
    images = torch.randn(4, 1, 8, 8)
    made, count = insert_norms(net, _batches())
    with torch.no_grad():
        assert torch.allclose(made(images), net(images), atol=1e-6)
    assert count == 1


def test_weights_that_two_layers_share_get_no_norm() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, stride=2)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).relu()).mean((2, 3))

    assert not can_insert(torch.fx.symbolic_trace(Net().eval()))


def test_only_convolutions_that_may_have_lost_a_norm_get_one() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lost = nn.Conv2d(1, 4, 3)
            self.has = nn.Conv2d(4, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.bare = nn.Conv2d(4, 4, 1, bias=False)
            self.squeeze = nn.Conv2d(4, 4, 1)
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bare(self.norm(self.has(self.lost(x).relu())).relu())
            x = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
            return self.last(x)

    net = torch.fx.symbolic_trace(Net().eval())
    made, count = insert_norms(net, _batches())
    assert count == 1
    new = dict(made.named_modules()).keys() - dict(net.named_modules()).keys()
    assert new == {"lost_norm"}
    assert not can_insert(Net())
    with pytest.raises(UsageError, match="networks from ONNX or TorchScript files"):
        insert_norms(Net(), _batches())


def _run(job: dict[str, Path], out: Path, *extra: str) -> Result:
    arguments = [
        "--target-flops", "0.5", str(job["onnx"]), "--data", str(job["data"]), "--mean", "0.5",
        "--std", "0.5", "--batch-size", "64", "--epochs", "2", "--out", str(out), *extra,
    ]  # fmt: skip
    return CliRunner().invoke(main, arguments)


def _accuracy(path: Path) -> float:
    x, y = make_images(160, 1)
    images = (x[:, None].astype(np.float32) / 255 - 0.5) / 0.5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return float((session.run(None, {"pixels": images})[0].argmax(1) == y).mean())


@pytest.mark.parametrize("insert", [True, False], ids=["norms", "no norms"])
def test_a_folded_file_is_compressed_on_data(
    job: dict[str, Path], insert: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = _run(job, out, "--insert-bn" if insert else "--no-insert-bn")
    assert result.exit_code == 0, result.output
    assert ("inserted 3 batch norms" in " ".join(result.output.split())) is insert
    report = json.loads((out / "report.json").read_text())
    assert report["flops"]["kept"] <= 0.5
    notes = " ".join(report["stages"][0]["notes"])
    assert ("inserted 3 batch norms" in notes) is insert
    assert report["accuracy"]["after"] == _accuracy(out / "model.onnx") > 0.85
    assert report["accuracy"]["before"] == _accuracy(job["onnx"])
    assert "BatchNormalization" not in _ops(out / "model.onnx")
    fresh = import_onnx(job["onnx"]).module
    small = gbn.apply_plan(fresh, gbn.PrunePlan.load(out / "plan.json"))
    small.load_state_dict(load_file(out / "weights.safetensors"))
    images = torch.randn(4, 1, 8, 8)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(None, {"pixels": images.numpy()})[0]
    with torch.no_grad():
        assert np.abs(small(images).numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


def test_inserting_needs_data_and_something_to_insert_after(
    job: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--insert-bn needs data"):
        build_config({"model": str(job["onnx"]), "target_flops": "0.5", "insert_bn": True})
    arguments = [
        "--target-flops", "0.5", str(job["model"]), "--arch", f"{job['arch']}:Tiny", "--insert-bn",
        "--input-size", "1,8,8", "--data", str(job["data"]), "--mean", "0.5", "--std", "0.5",
        "--epochs", "0", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "nothing to insert" in " ".join(result.output.split())


def test_an_interrupted_run_on_a_file_resumes_to_the_same_weights(
    job: dict[str, Path], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert _run(job, whole, "--insert-bn").exit_code == 0
    show = RunConsole.progress

    def interrupted(self: RunConsole, label: str, **more: int) -> object:
        if label == "finetune 1":
            raise KeyboardInterrupt
        return show(self, label, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunConsole, "progress", interrupted)
        assert _run(job, broken, "--insert-bn").exit_code == 130
    result = _run(job, broken, "--insert-bn", "--resume")
    assert result.exit_code == 0, result.output
    assert "resumed after" in result.output
    for same in ("plan.json", "weights.safetensors"):
        assert (broken / same).read_bytes() == (whole / same).read_bytes()
