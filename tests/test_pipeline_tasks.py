"""Networks that are no classifiers are scored, recovered and judged by a loss of the user's own."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from torch import nn

from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.tasks import Judge, Metric, Task, load_task, relative_squared_error

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "tasks.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the documented example, with its trained network."""
    folder = tmp_path_factory.mktemp("example")
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert code is not None
    (folder / "shapes.py").write_text(code.group(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        import shapes

        shapes.train()
    return folder


def documented_command() -> list[str]:
    pattern = re.compile(r"^compress (--target.*?shapes\.pt)$", re.MULTILINE | re.DOTALL)
    command = pattern.search(DOCUMENT.read_text())
    assert command is not None
    return shlex.split(command.group(1).replace("\\\n", " "))


def compress(folder: Path, *args: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(main, [*args])


@pytest.fixture(scope="module")
def done(example: Path) -> Result:
    return compress(example, *documented_command(), "--json", "-q")


def mean_iou(file: Path) -> float:
    """By numpy, image by image, on the outputs of the file."""
    import shapes

    images, masks = shapes.rectangles(64, 1).tensors
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0] > 0
    wanted = masks.numpy() > 0
    each = [(f & w).sum() / (f | w).sum() for f, w in zip(found, wanted, strict=True)]
    return float(np.mean(each))


def test_the_documented_segmentation_keeps_its_iou_at_half_the_macs(
    done: Result, example: Path
) -> None:
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["flops"]["kept"] <= 0.5
    accuracy = report["accuracy"]
    assert (accuracy["metric"], accuracy["samples"]) == ("mean IoU", 64)
    assert accuracy["before"] > 0.8
    assert accuracy["after"] > accuracy["before"] - 0.1
    out = example / "shapes-compressed"
    for key, file in (("before", "stages/baseline.onnx"), ("after", "model.onnx")):
        assert accuracy[key] == pytest.approx(mean_iou(out / file), abs=1e-4)
    assert report["verdict"]["accuracy"] == "met"
    assert report["target"]["max_metric_drop"] == 0.1
    assert "mean IoU (n=64)" in (out / "report.html").read_text()


REGRESSION = """
from types import SimpleNamespace
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.sum, self.map = nn.Linear(16, 1), nn.Conv2d(16, 1, 1)

    def forward(self, x):
        x = torch.relu(self.two(torch.relu(self.norm(self.one(x)))))
        return {"sum": self.sum(x.mean((2, 3))), "map": self.map(x)}


class Pairs(torch.utils.data.Dataset):
    def __init__(self, n, seed):
        self.images = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        x = self.images[i]
        return x, {"sum": x.mean()[None], "map": (2 * x,)}


def loaders():
    return DataLoader(Pairs(64, 0), batch_size=16), DataLoader(Pairs(20, 1), batch_size=8)


def loss(out, want):
    pairs = ((out["sum"], want["sum"]), (out["map"], want["map"][0]))
    return sum((a - b).square().mean() for a, b in pairs)


def error(out, want):
    return float((out["map"] - want["map"][0]).abs().mean())


class Task:
    loss = staticmethod(loss)
    metric = staticmethod(error)
    metric_name = "mean absolute error"
    higher_is_better = False


def _with(**changed):
    parts = dict(loss=loss, metric=error, metric_name="e", higher_is_better=False)
    return SimpleNamespace(**(parts | changed))


def none(): return None
def nameless(): return SimpleNamespace(loss=loss, metric=error, higher_is_better=True)
def undirected(): return _with(higher_is_better="yes")
def vector(): return _with(loss=lambda out, want: out["map"])
def constant(): return _with(loss=lambda out, want: torch.tensor(1.0))
def infinite(): return _with(loss=lambda out, want: loss(out, want) / 0)
def failing(): return _with(loss=lambda out, want: out["mask"])
def words(): return _with(metric=lambda out, want: "good")
def crooked(): return _with(metric=lambda out, want: out["map"])
def raising(): raise FileNotFoundError("no class weights")
"""


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regression")
    (folder / "two.py").write_text(REGRESSION)
    scope: dict[str, type[nn.Module]] = {}
    exec(REGRESSION, scope)
    torch.manual_seed(0)
    torch.save(scope["Two"]().state_dict(), folder / "two.pt")
    return folder


def job(*extra: str, task: str = "Task") -> list[str]:
    return [
        "--target-flops", "0.6", "--arch", "two.py:Two", "--input-size", "1,8,8", "--epochs", "0",
        "--data", "two.py:loaders", "--task", f"two.py:{task}", *extra, "two.pt", "-q",
    ]  # fmt: skip


def test_structured_outputs_and_targets_go_through_and_lower_may_be_better(
    regression: Path,
) -> None:
    result = compress(regression, *job("--out", "first", "--json"))
    assert result.exit_code == 0, result.output
    accuracy = json.loads(result.stdout)["accuracy"]
    assert accuracy["metric"] == "mean absolute error"
    assert (accuracy["samples"], accuracy["higher_is_better"]) == (20, False)
    assert accuracy["before"] > 1  # an untrained network's distance to 2x, in x's units


@pytest.mark.parametrize("limit", ["under", "over"])
def test_the_accuracy_gate_is_in_the_metrics_units_and_direction(
    regression: Path, limit: str
) -> None:
    """Errors that grow are a loss: a gate just under what is lost fails, just over it holds."""
    assert compress(regression, *job("--out", f"known-{limit}")).exit_code == 0
    known = json.loads((regression / f"known-{limit}" / "report.json").read_text())["accuracy"]
    lost = known["after"] - known["before"]
    drop = max(lost, 0) + (1e-3 if limit == "over" else -1e-3)
    if drop < 0:
        pytest.skip("this cut happened to lower the error: no gate is under it")
    gate = ("--max-accuracy-drop", f"{drop:.6f}", "--out", limit)
    assert compress(regression, *job(*gate)).exit_code == (0 if limit == "over" else 12)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("absent", "has no 'absent'"),
        ("none", "its NoneType has no 'loss'"),
        ("nameless", "has no 'metric_name'"),
        ("undirected", "higher_is_better is 'yes'; it must be a bool"),
        ("vector", "loss gives 'torch.float32 (16, 1, 8, 8)'; it must give one"),
        ("constant", "depends on no output"),
        ("infinite", "must be finite"),
        ("failing", "loss fails: KeyError: 'mask'"),
        ("words", "the metric e gives"),
        ("crooked", "the metric e gives float32 of shape (8, 1, 8, 8) for 8 samples"),
        ("raising", "fails: FileNotFoundError: no class weights"),
    ],
)
def test_bad_factories_end_in_one_line_with_code_2(regression: Path, task: str, words: str) -> None:
    result = compress(regression, *job("--out", "bad", task=task))
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
    assert words in line
    assert "Traceback" not in result.output
    assert not (regression / "bad").exists()


def test_a_task_needs_data_and_a_network_without_classes_needs_a_task(regression: Path) -> None:
    free = job("--out", "free")
    del free[free.index("--data") : free.index("--data") + 2]
    result = compress(regression, *free)
    assert (result.exit_code, "--task has no effect without --data" in result.stderr) == (2, True)
    taskless = job("--out", "free")
    del taskless[taskless.index("--task") : taskless.index("--task") + 2]
    result = compress(regression, *taskless)
    assert result.exit_code == 2
    assert "labels" in result.stderr


def test_the_default_distillation_weighs_each_tensor_by_its_own_scale() -> None:
    taught = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[100.0]])}
    outputs = {"a": torch.tensor([3.0, 3.0]), "b": torch.tensor([[90.0]])}
    # a: (0 + 1) / (9 + 16); b: 100 / 10000; their mean
    assert float(relative_squared_error(outputs, taught)) == pytest.approx((1 / 25 + 0.01) / 2)


def test_a_task_may_bring_its_own_distillation(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from types import SimpleNamespace\n"
        "def make():\n"
        "    return SimpleNamespace(loss=lambda o, t: o.sum(), metric=lambda o, t: 0.0,\n"
        "        metric_name='m', higher_is_better=True,\n"
        "        distillation=lambda o, t: (o - t).abs().sum())\n"
    )
    task = load_task(f"{tmp_path}/own.py:make")
    assert float(task.distillation(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0]))) == 4.0


def test_a_file_with_other_outputs_than_the_network_is_refused() -> None:
    metric = Metric(name="error", function=F.l1_loss, higher_is_better=False)
    own = Task(loss=F.mse_loss, distillation=F.mse_loss, metric=metric)
    judge = Judge.make(own, nn.Linear(2, 1), [(torch.zeros(3, 2), torch.ones(3, 1))])
    with pytest.raises(UsageError, match="returns 1 values, its ONNX file 2 outputs"):
        judge.judge([np.zeros((3, 1)), np.zeros((3, 1))], torch.ones(3, 1))
