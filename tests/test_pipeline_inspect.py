"""`compress inspect` on the tiny job: what it lists, and what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main

sys.path.insert(0, str(Path(__file__).parent))

from tiny_job import write_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_job(tmp_path_factory.mktemp("inspect"))


def inspect(job: dict[str, Path], *extra: str) -> Result:
    args = ["inspect", "--arch", f"{job['arch']}:Tiny", "--input-size", "1,8,8", *extra]
    return CliRunner().invoke(main, [*args, str(job["model"])])


def test_groups_are_those_of_the_network(job: dict[str, Path]) -> None:
    result = inspect(job, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    groups = {group["name"]: group for group in found["groups"]}
    assert {name: group["size"] for name, group in groups.items()} == {
        "stem": 16, "inner": 24, "head": 4,
    }  # fmt: skip
    assert groups["stem"]["layers"] == ["stem", "outer"]
    assert groups["head"]["frozen"]
    assert "model output" in groups["head"]["reason"]


def test_costs_are_counted_by_hand(job: dict[str, Path]) -> None:
    found = json.loads(inspect(job, "--json").stdout)
    stem, inner, outer, head = 64 * 9 * 16, 64 * 9 * 16 * 24, 64 * 9 * 16 * 24, 16 * 4
    assert found["num_macs"] == stem + inner + outer + head
    shares = {group["name"]: group["macs_share"] for group in found["groups"]}
    assert shares["inner"] == pytest.approx((inner + outer) / found["num_macs"])
    assert shares["head"] == 0.0  # it can never shrink
    # at least a tenth of each width stays: 2 of 16 and 3 of 24, in multiples of 2: 2 and 4
    least = 64 * 9 * 2 + 2 * 64 * 9 * 2 * 4 + 2 * 4
    assert found["smallest_flops_kept"] == pytest.approx(least / found["num_macs"])


def test_equal_cut_keeps_the_same_share_of_each_width(job: dict[str, Path]) -> None:
    found = json.loads(inspect(job, "--json", "--target-flops", "0.5").stdout)
    kept = {g["name"]: g["equal_cut_keeps"] / g["size"] for g in found["groups"]}
    assert 0.4 < found["equal_cut"] <= 0.5
    assert kept["head"] == 1.0
    assert kept["stem"] == pytest.approx(kept["inner"], abs=1 / 16)


def test_frozen_module_is_shown_with_its_pattern(job: dict[str, Path]) -> None:
    found = json.loads(inspect(job, "--json", "--freeze", "inner").stdout)
    inner = next(group for group in found["groups"] if group["name"] == "inner")
    assert inner["frozen"]
    assert "--freeze inner" in inner["reason"]


def test_table_names_each_group_and_the_smallest_cost(job: dict[str, Path]) -> None:
    result = inspect(job)
    assert result.exit_code == 0, result.output
    assert "smallest reachable: " in result.output
    for name in ("stem", "inner", "head", "is a model output"):
        assert name in result.output


def test_missing_file_is_refused_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "none.pt")])
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


TWO_INPUTS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, image, extra):
        return {"logits": self.head(self.a(image).relu().mean((2, 3)) * self.b(extra))}

def inputs():
    return torch.randn(1, 3, 8, 8), torch.randn(1, 5)

def nothing():
    return None

def numbers():
    return 1, 2
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import safetensors.torch

    folder = tmp_path_factory.mktemp("two")
    (folder / "two.py").write_text(TWO_INPUTS)
    space: dict[str, Any] = {}
    exec(TWO_INPUTS, space)
    safetensors.torch.save_file(space["Two"]().state_dict(), folder / "two.safetensors")
    return folder


def inspect_two(two: Path, *sizes: str) -> Result:
    args = ["inspect", "--arch", f"{two / 'two.py'}:Two", "--json", str(two / "two.safetensors")]
    for size in sizes:
        args += ["--input-size", size]
    return CliRunner().invoke(main, args)


def test_inputs_without_a_tensor_are_told_in_one_line(two: Path) -> None:
    result = inspect_two(two, f"{two / 'two.py'}:numbers")
    assert result.exit_code == 2
    assert "the model does not run on the example inputs" in result.stderr


@pytest.mark.parametrize(
    "sizes",
    [("3,8,8", "5"), ("extra:5", "image:3,8,8"), ("two.py:inputs",)],
    ids=["positional", "named", "callable"],
)
def test_inputs_of_any_structure(two: Path, sizes: tuple[str, ...]) -> None:
    given = [f"{two}/{size}" if size.startswith("two.py") else size for size in sizes]
    result = inspect_two(two, *given)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["num_macs"] == 36 * 27 * 8 + 5 * 8 + 8 * 4
    assert found["groups"][0]["layers"] == ["a", "b"] and not found["groups"][0]["frozen"]


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        (("3,8,8", "extra:5"), "name all inputs or none"),
        (("a:5", "a:6"), "named twice"),
        (("3,0,8", "5"), "whole numbers above 0"),
        (("3x8x8",), "is not C,H,W"),
        (("3,8,8", "x.py:f"), "stands alone"),
        (("two.py:nothing",), "returned NoneType"),
        (("3,8,8", "6"), "does not run on the example inputs"),
    ],
)
def test_inputs_that_cannot_be_are_refused_in_one_line(
    two: Path, sizes: tuple[str, ...], told: str
) -> None:
    given = [f"{two}/{size}" if size.startswith("two.py") else size for size in sizes]
    result = inspect_two(two, *given)
    assert result.exit_code == 2
    assert told in result.output and "Traceback" not in result.output
