"""Several processes of one run make the plan and the network that one process makes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import gbn
from pipeline.errors import CompressError
from pipeline.ranks import Ranks, plan_hash

sys.path.insert(0, str(Path(__file__).parent))

from tiny_job import ARCH_SOURCE, arguments, write_job

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
QUICK = ("--epochs", "2", "--device", "cpu", "--channel-multiple", "1")


def started(job: dict[str, Path], out: Path, *extra: str) -> "subprocess.Popen[str]":
    command = [*TORCHRUN, "-m", "pipeline.cli", *arguments(job, out, *QUICK, *extra)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_job(tmp_path_factory.mktemp("ranks"))


def test_two_processes_make_the_plan_and_nearly_the_weights_of_one(
    job: dict[str, Path], tmp_path: Path
) -> None:
    process = started(job, tmp_path / "two")
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert told.count("all met: flops") == told.count("asked: keep at most") == 1  # one speaks
    alone = [sys.executable, "-m", "pipeline.cli", *arguments(job, tmp_path / "one", *QUICK)]
    subprocess.run(alone, check=True, capture_output=True, timeout=300)
    one, two = (gbn.PrunePlan.load(tmp_path / name / "plan.json") for name in ("one", "two"))
    assert plan_hash(one) == plan_hash(two)
    states = [
        safetensors.torch.load_file(tmp_path / name / "weights.safetensors")
        for name in ("one", "two")
    ]
    for name, value in states[0].items():
        # batch norms see half of a batch: noise
        assert (states[1][name] - value).float().norm() < 0.2 * value.float().norm() + 0.05, name


def test_a_process_that_fails_ends_all(job: dict[str, Path], tmp_path: Path) -> None:
    arch = tmp_path / "arch.py"
    place = "def forward(self, image):\n"
    fails = " " * 8 + "if self.stem.training and os.environ['RANK'] == '1': sys.exit(3)\n"
    arch.write_text("import os, sys\n" + ARCH_SOURCE.replace(place, place + fails))
    process = started(job | {"arch": arch}, tmp_path / "out")
    told, _ = process.communicate(timeout=300)
    assert process.returncode != 0, told
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_without_data_several_processes_are_refused_in_a_line(
    job: dict[str, Path], tmp_path: Path
) -> None:
    given = arguments(job, tmp_path / "out", "--device", "cpu")
    at = given.index("--data")
    given = given[:at] + given[at + 2 :]
    for name in ("--mean", "--std", "--batch-size"):
        at = given.index(name)
        given = given[:at] + given[at + 2 :]
    done = subprocess.run(
        [*TORCHRUN, "-m", "pipeline.cli", *given],
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    assert "several processes learn from data: give --data, or run without torchrun" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on_with_resume(job: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = started(job, out, "--epochs", "40")
    until = time.monotonic() + 200
    # Not "*": an unfinished stage's name begins with a dot, which pathlib's star matches.
    while not (whole := [*out.glob("stages/[0-9]*-compress.pt")]) and time.monotonic() < until:
        time.sleep(0.05)
    assert whole
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert not (out / "report.json").exists()
    process = started(job, out, "--epochs", "40", "--resume")
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "resumed after" in told


def test_a_batch_is_shared_out_without_rest_or_repetition() -> None:
    images, targets = torch.arange(7.0)[:, None], torch.arange(7)
    parts = [Ranks(rank, 3).share(images, targets) for rank in range(3)]
    assert sorted(torch.cat([p[1] for p in parts]).tolist()) == [*range(7)]
    assert [p[2] for p in parts] == pytest.approx([3 / 7, 2 / 7, 2 / 7])
    assert [*Ranks(1, 3).own(range(7))] == [1, 4]
    with pytest.raises(CompressError, match="run without torchrun"):
        Ranks(0, 2).share(images, {"boxes": targets})


def test_alone_nothing_is_exchanged() -> None:
    ranks = Ranks()
    values = [torch.ones(2)]
    ranks.add_up(values)
    assert values[0].tolist() == [1, 1]
    assert ranks.add_up_gradients([nn.Parameter(torch.ones(1))], 0.5) == 0.5
    assert ranks.share(values[0], values[0])[2] == 1.0
    ranks.leave()


def test_the_hash_of_a_plan_tells_plans_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    groups = gbn.trace(model, torch.zeros(1, 3, 8, 8))
    scores = gbn.magnitude_scores(model, groups)
    plans = [gbn.plan(groups, scores, flops=share) for share in (0.5, 0.5, 0.8)]
    assert plan_hash(plans[0]) == plan_hash(plans[1]) != plan_hash(plans[2])
