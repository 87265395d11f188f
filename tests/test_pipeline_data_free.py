"""Runs without data, from the command line to their report."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from pipeline import data_free, synthetic
from pipeline.cli import main
from pipeline.console import RunConsole
from pipeline.data_free import Amounts, amounts
from pipeline.mixed_data import mixtures

sys.path.insert(0, str(Path(__file__).parent))

from tiny_job import make_images, write_job

NETWORKS = """
import torch
from torch import nn


def body(norm):
    layers = []
    for before, after in ((1, 8), (8, 12)):
        layers += [nn.Conv2d(before, after, 3, padding=1)]
        layers += [nn.BatchNorm2d(after)] if norm else []
        layers += [nn.ReLU()]
    return layers


def plain():
    return nn.Sequential(*body(False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


def softened():
    return nn.Sequential(
        *body(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4), nn.Softmax(1)
    )


def dense():
    return nn.Sequential(*body(True), nn.Conv2d(12, 3, 1))


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*body(True))
        self.first, self.second = nn.Conv2d(12, 2, 1), nn.Conv2d(12, 3, 3)

    def forward(self, image):
        x = self.body(image)
        return {"first": self.first(x), "second": self.second(x)}


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, image):
        return self.net(image).detach()
"""


pytestmark = pytest.mark.usefixtures("few_images")


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_job(tmp_path_factory.mktemp("job"))


def compress(*args: str) -> Result:
    return CliRunner().invoke(main, [*args])


def job_args(job: dict[str, Path], out: Path, *extra: str) -> list[str]:
    return [
        "--target-flops", "0.6", str(job["model"]), "--arch", f"{job['arch']}:Tiny",
        "--input-size", "1,8,8", "--epochs", "4", "--out", str(out), *extra,
    ]  # fmt: skip


def run_network(name: str, tmp_path: Path) -> tuple[dict[str, Any], Result]:
    """The report of `--target-flops 0.6` on one of NETWORKS with random weights."""
    source = tmp_path / "networks.py"
    source.write_text(NETWORKS)
    scope: dict[str, Any] = {}
    exec(NETWORKS, scope)
    torch.manual_seed(0)
    model = scope[name]()
    model(make_batch())  # norms remember something
    torch.save(model.state_dict(), tmp_path / "model.pt")
    result = compress(
        "--target-flops", "0.6", str(tmp_path / "model.pt"), "--arch", f"{source}:{name}",
        "--input-size", "1,8,8", "--epochs", "60", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    return report, result


def make_batch() -> torch.Tensor:
    return torch.from_numpy(make_images(32, 0)[0])[:, None].float() / 127 - 1


def output_of(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {session.get_inputs()[0].name: images})[0]
    return answer


def test_fidelity_is_the_agreement_of_the_two_files_on_mixtures_of_the_held_out_images(
    job: dict[str, Path], tmp_path: Path
) -> None:
    result = compress(*job_args(job, tmp_path / "out", "--json"))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    batches = torch.load(tmp_path / "out/stages/01-images.pt")["payload"]["batches"]
    assert report["data_free"]["made_from"] == "statistics of batch norms"
    assert (report["data_free"]["images"], report["data_free"]["held_out"]) == (64, 32)
    assert [len(batch) for batch in batches] == [32, 32, 32]
    images = mixtures(batches[-1].float(), 4, seed=0).numpy()
    before = output_of(tmp_path / "out/stages/baseline.onnx", images).argmax(1)
    after = output_of(tmp_path / "out/model.onnx", images).argmax(1)
    assert report["fidelity"] == {
        "metric": "top1 agreement", "samples": 128, "value": float((before == after).mean()),
    }  # fmt: skip
    assert report["accuracy"] is None
    assert "no --data" in result.stderr
    assert report["verdict"]["accuracy"] == "skipped: no data was given"
    assert report["flops"]["kept"] <= 0.6


def test_recovery_on_made_images_keeps_most_of_the_real_accuracy(
    job: dict[str, Path], tmp_path: Path
) -> None:
    args = job_args(job, tmp_path / "out", "-q")
    args[args.index("--epochs") + 1] = "30"
    assert compress(*args).exit_code == 0
    x, y = make_images(160, 1)
    images = ((x[:, None] / 255 - 0.5) / 0.5).astype(np.float32)
    before, after = (
        float((output_of(tmp_path / "out" / file, images).argmax(1) == y).mean())
        for file in ("stages/baseline.onnx", "model.onnx")
    )
    assert before > 0.9
    assert after > before - 0.1


def test_the_summary_says_in_plain_words_that_data_would_give_more(
    job: dict[str, Path], tmp_path: Path
) -> None:
    result = compress(*job_args(job, tmp_path / "out"))
    words = " ".join(result.stdout.split())
    assert "No data was given: scores and recovery used 64 images" in words
    assert "With --data more is recovered, and accuracy is measured" in words
    assert "images:" in words
    assert "No data was given" in (tmp_path / "out/report.html").read_text()


def stop_at(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Ctrl-C as soon as the run says `line`."""
    original = RunConsole.say

    def say(self: RunConsole, text: str) -> None:
        if text.startswith(line):
            raise KeyboardInterrupt
        original(self, text)

    monkeypatch.setattr(RunConsole, "say", say)


def test_resume_makes_no_image_again_and_ends_as_if_never_stopped(
    job: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compress(*job_args(job, tmp_path / "whole", "-q")).exit_code == 0
    args = job_args(job, tmp_path / "out", "--resume")
    with monkeypatch.context() as patch:
        stop_at(patch, "tick 1")
        assert compress(*args).exit_code == 130
    stored = tmp_path / "out/stages/01-images.pt"
    before = stored.read_bytes()
    monkeypatch.setattr(data_free, "make_images", None)  # would fail if it were called
    assert compress(*args).exit_code == 0
    assert stored.read_bytes() == before
    for same in ("plan.json", "weights.safetensors"):
        assert (tmp_path / "out" / same).read_bytes() == (tmp_path / "whole" / same).read_bytes()


def test_a_run_stopped_between_batches_of_images_makes_only_the_rest(
    job: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = job_args(job, tmp_path / "out", "--resume", "-q")
    seeds: list[int] = []
    original = data_free.make_images

    def counted(model: Any, request: Any, advance: Any) -> torch.Tensor:
        if len(seeds) == 1:
            seeds.append(-1)
            raise KeyboardInterrupt
        seeds.append(request.seed)
        return original(model, request, advance)

    monkeypatch.setattr(data_free, "make_images", counted)
    assert compress(*args).exit_code == 130
    assert compress(*args).exit_code == 0
    assert seeds == [0, -1, 1, 2]


def test_a_network_without_batch_norms_learns_from_noise_and_the_report_says_so(
    tmp_path: Path,
) -> None:
    report, result = run_network("plain", tmp_path)
    assert result.exit_code == 0, result.output
    assert report["data_free"]["made_from"] == "noise with the spectrum of photographs"
    assert report["data_free"]["steps"] == 0
    assert "made from noise with the spectrum of photographs" in " ".join(result.stdout.split())
    assert report["fidelity"]["metric"] == "top1 agreement"
    assert [stage["name"] for stage in report["stages"]][:3] == ["baseline", "images", "tick 1"]


@pytest.mark.parametrize("name", ["dense", "TwoOutputs"])
def test_outputs_that_are_no_class_scores_are_held_to_the_relative_error(
    name: str, tmp_path: Path
) -> None:
    report, result = run_network(name, tmp_path)
    assert result.exit_code == 0, result.output
    assert report["data_free"]["made_from"] == "statistics of batch norms"
    assert report["fidelity"]["metric"] == "relative error"
    images = torch.load(tmp_path / "out/stages/01-images.pt")["payload"]["batches"][-1]
    worst = 0.0
    sessions = [
        onnxruntime.InferenceSession(tmp_path / "out" / file, providers=["CPUExecutionProvider"])
        for file in ("stages/baseline.onnx", "model.onnx")
    ]
    compared_on = mixtures(images.float(), 4, seed=0).numpy()
    feed = {sessions[0].get_inputs()[0].name: compared_on}
    for before, after in zip(*(session.run(None, feed) for session in sessions), strict=True):
        worst = max(worst, float(np.linalg.norm(after - before) / np.linalg.norm(before)))
    assert report["fidelity"]["value"] == pytest.approx(worst, rel=1e-3)
    assert 0 < worst < 1


def test_a_network_that_passes_no_gradient_is_cut_by_its_weights_and_says_so(
    tmp_path: Path,
) -> None:
    report, result = run_network("Detached", tmp_path)
    assert result.exit_code == 0, result.output
    assert "no images can be made for this network: its outputs have no gradient" in result.stderr
    assert "nothing was recovered" in " ".join(result.stdout.split())
    assert report["data_free"]["reason"] == "its outputs have no gradient"
    assert report["fidelity"] is None
    assert report["flops"]["kept"] <= 0.6
    names = [stage["name"] for stage in report["stages"]]
    assert names == ["baseline", "tick 1", "export", "verify"]


def test_images_that_diverge_end_in_a_cut_by_weights(
    job: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "_LR", 1e30)
    result = compress(*job_args(job, tmp_path / "out", "--json"))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["data_free"]["reason"].startswith("the images diverged in step")
    assert "no images can be made for this network: the images diverged" in result.stderr


def test_a_network_that_ends_in_a_softmax_learns_as_one_that_does_not(tmp_path: Path) -> None:
    report, result = run_network("softened", tmp_path)
    assert result.exit_code == 0, result.output
    assert report["fidelity"]["metric"] == "top1 agreement"
    assert report["data_free"]["images"] == 64


def test_a_network_with_two_inputs_is_refused_in_a_line_as_with_data(tmp_path: Path) -> None:
    weight = np.ones((4, 1, 3, 3), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["x"]), helper.make_node("Conv", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 1, 8, 8]) for n in "ab"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 6, 6])],
        initializer=[numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "two.onnx")
    result = compress("--target-flops", "0.6", str(tmp_path / "two.onnx"))
    assert result.exit_code == 2
    assert "has 2 inputs (a, b): one is supported" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["two.onnx"]


def test_nothing_to_remove_needs_no_images(job: dict[str, Path], tmp_path: Path) -> None:
    args = job_args(job, tmp_path / "out", "--json")
    args[args.index("0.6")] = "1.0"
    result = compress(*args)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["data_free"], report["fidelity"], report["flops"]["kept"]) == (None, None, 1.0)
    assert not list((tmp_path / "out/stages").glob("*images*"))


def test_no_distill_without_labels_is_refused(job: dict[str, Path], tmp_path: Path) -> None:
    result = compress(*job_args(job, tmp_path / "out", "--no-distill"))
    assert result.exit_code == 2
    assert "--no-distill learns from labels alone" in result.stderr


def test_large_networks_get_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    small, middle, large = (amounts(macs, "cpu", 128) for macs in (41e6, 1e8, 4e9))
    assert (small.batch_size, small.batches, small.held_out) == (128, 8, 1)
    # a budget of 2.2e12 MACs: 550 images by 40 steps
    assert (middle.batch_size, middle.batches) == (68, 8)
    assert large == Amounts(batch_size=32, batches=3, steps=40)
    assert amounts(4e9, "cuda", 128).batches > 3
