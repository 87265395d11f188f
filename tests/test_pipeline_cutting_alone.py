"""`compress inspect --data`: what each group's cut would cost, before any training."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import gbn
from pipeline.cli import main
from pipeline.cutting_alone import without

sys.path.insert(0, str(Path(__file__).parent))

from tiny_job import ARCH_SOURCE, make_images, write_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_job(tmp_path_factory.mktemp("alone"))


def inspected(job: dict[str, Path], *extra: str) -> list[str]:
    return [
        "inspect", str(job["model"]), "--arch", f"{job['arch']}:Tiny", "--input-size", "1,8,8",
        *extra,
    ]  # fmt: skip


def with_data(job: dict[str, Path], *extra: str) -> list[str]:
    return inspected(job, "--data", str(job["data"]), "--mean", "0.5", "--std", "0.5", *extra)


def test_accuracies_are_those_of_the_network_with_that_group_cut(
    job: dict[str, Path], tmp_path: Path
) -> None:
    picture = tmp_path / "alone.svg"
    result = CliRunner().invoke(main, with_data(job, "--json", "--plot", str(picture)))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["cut_alone"]
    assert found["metric"] == "top1" and found["samples"] == 160
    assert [row["name"] for row in found["groups"]] == ["stem", "inner"]
    assert sum(row["share_of_scores"] for row in found["groups"]) == pytest.approx(1)
    assert "<svg" in picture.read_text()

    scope: dict[str, type[nn.Module]] = {}
    exec(ARCH_SOURCE, scope)
    model = scope["Tiny"]()
    model.load_state_dict(torch.load(job["model"]))
    x, y = make_images(512, 0)
    x_test, y_test = make_images(160, 1)
    images, test = ((torch.from_numpy(v)[:, None].float() / 255 - 0.5) / 0.5 for v in (x, x_test))

    def top1(network: nn.Module) -> float:
        with torch.no_grad():
            return float(
                (network.eval()(test).argmax(1) == torch.from_numpy(y_test)).float().mean()
            )

    assert found["as_given"] == pytest.approx(top1(model))
    # the cut with all training images' scores differs little; its worst is about as bad
    groups = gbn.trace(model.eval(), images[:1])
    with gbn.Gates(model, groups) as gates:
        for part, labels in zip(images.split(16), torch.from_numpy(y).split(16), strict=True):
            nn.functional.cross_entropy(model(part), labels).backward()
            gates.accumulate()
        scores = gates.scores()
    for row, group in zip(found["groups"], [g for g in groups.groups if g.atoms], strict=True):
        for share, value in row["accuracy"].items():
            alive = without(groups, group, scores, float(share))
            small = gbn.prune(model, gbn.PrunePlan.of(groups, alive))
            assert value == pytest.approx(top1(small), abs=0.35)


def test_the_lowest_of_one_group_go_and_no_width_becomes_empty() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 4, 1))
    groups = gbn.trace(model, torch.zeros(1, 3, 8, 8))
    wide, thin, *_ = groups.groups
    scores = gbn.Scores(np.arange(groups.num_atoms, dtype=float), "test")
    alive = without(groups, wide, scores, 0.25)
    assert alive is not None
    assert np.flatnonzero(~alive).tolist() == sorted(wide.atoms)[:2]
    assert without(groups, thin, scores, 0.5) is None


def test_the_table_tells_both(job: dict[str, Path]) -> None:
    result = CliRunner().invoke(main, with_data(job, "--max-eval-images", "64"))
    assert result.exit_code == 0, result.output
    assert "top1 on 64 images: " in result.output
    assert "75% cut" in result.output


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (("--mean", "0.5"), "--mean has no effect without --data"),
        (("--plot", "x.svg"), "--plot has no effect without --data"),
        (("--data", "nothing.npz"), "--data nothing.npz: no such file"),
        (("--data", "{data}", "--plot", "x.gif"), "'x.gif' must end in .svg, .png, .pdf"),
        (("--data", "{data}", "--plot", "no/x.svg"), "the folder of 'no/x.svg' does not exist"),
        (("--data", "{data}", "--max-eval-images", "0"), "--max-eval-images: 0 is below 1"),
        (("--data", "{data}", "--input-size", "1,8,8"), "leave --data out"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(
    job: dict[str, Path], extra: tuple[str, ...], told: str
) -> None:
    given = [part.format(data=job["data"]) for part in extra]
    result = CliRunner().invoke(main, inspected(job, *given))
    assert result.exit_code == 2
    assert told in result.stderr and len(result.stderr.strip().splitlines()) == 1
