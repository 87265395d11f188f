"""`python docs/pictures.py`: the pictures of "How it works", drawn from what the library does.

Leaves docs/pictures/*.svg: the schedule of a budget, the groups of a small residual network, and
the scores of its channels with the cut. Nothing is drawn that was not computed here.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor, nn

import gbn
from gbn.ticktock import schedule

FOLDER = Path(__file__).resolve().parent / "pictures"
BLUE, GREY, ORANGE = "#3b82d6", "#8c959f", "#d97706"
KINDS = {"tick": (ORANGE, "tick: score and cut"), "tock": (BLUE, "tock: recover"),
         "finetune": (GREY, "fine-tune")}  # fmt: skip


class Residual(nn.Module):
    """One block: the stem and the block's last convolution are added, so they share channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.inner_bn = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.outer, self.outer_bn = nn.Conv2d(24, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 4)."""
        x = F.relu(self.stem_bn(self.stem(image)))
        x = F.relu(x + self.outer_bn(self.outer(F.relu(self.inner_bn(self.inner(x))))))
        return self.head(x.mean((2, 3)))


def draw_schedule() -> None:
    """FLOPs kept over the training budget, for a budget of 3900 batches and a target of 40 %."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    ax = figure.subplots()
    at, kept, named = 0, 1.0, set()
    for phase in schedule(budget=3900, target=0.4):
        colour, label = KINDS[phase.kind]
        ax.axvspan(at, at + phase.batches, color=colour, alpha=0.35, linewidth=0,
                   label=None if phase.kind in named else label)  # fmt: skip
        named.add(phase.kind)
        ax.plot([at, at + phase.batches], [100 * kept, 100 * kept], color="#444444")
        at += phase.batches
        if phase.kind == "tick":
            then = 0.4 + phase.keep * 0.6
            ax.plot([at, at], [100 * kept, 100 * then], color="#444444")
            kept = then
    ax.set(xlabel="batches of the budget", ylabel="FLOPs kept, %", ylim=(30, 105))
    ax.legend(loc="upper right")
    save(figure, "schedule")


def scored() -> tuple[gbn.ChannelGroups, gbn.Scores, np.ndarray]:
    """Groups, gate scores on noise, and which atoms stay where half of the MACs may."""
    torch.manual_seed(0)
    model = Residual()
    images, labels = torch.randn(64, 3, 16, 16), torch.randint(0, 4, (64,))
    groups = gbn.trace(model, images[:1])
    with gbn.Gates(model, groups) as gates:
        F.cross_entropy(model(images), labels).backward()
        gates.accumulate()
        scores = gates.scores()
    return groups, scores, gbn.choose(groups, scores, flops=0.5)


def draw_groups(groups: gbn.ChannelGroups, plan: gbn.PrunePlan) -> None:
    """Widths of the groups before and after, with the layers in each."""
    after = {g.name: g.size_after for g in plan.groups}
    figure = Figure(figsize=(7, 2.2), layout="constrained")
    ax = figure.subplots()
    for row, group in enumerate(groups.groups):
        ax.barh(row - 0.2, group.size, 0.36, color=GREY, label=None if row else "before")
        ax.barh(row + 0.2, after[group.name], 0.36, color=BLUE, label=None if row else "after")
    names = [" + ".join(g.layers) + (" (frozen)" if g.frozen else "") for g in groups.groups]
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel("channels")
    ax.legend()
    save(figure, "groups")


def draw_scores(groups: gbn.ChannelGroups, scores: gbn.Scores, alive: np.ndarray) -> None:
    """Each channel's score, by group; those that go are hollow."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    ax = figure.subplots()
    for number, group in enumerate(g for g in groups.groups if not g.frozen):
        atoms = np.array(group.atoms)
        values, stays = scores.values[atoms], alive[atoms]
        place = number + np.linspace(-0.3, 0.3, len(atoms))
        ax.scatter(place[stays], values[stays], color=BLUE, label=None if number else "stays")
        ax.scatter(place[~stays], values[~stays], facecolors="none", edgecolors=ORANGE,
                   label=None if number else "goes")  # fmt: skip
    names = [" + ".join(g.layers) for g in groups.groups if not g.frozen]
    ax.set_xticks(range(len(names)), names)
    ax.set(ylabel="score", yscale="log")
    ax.legend()
    save(figure, "scores")


def save(figure: Figure, name: str) -> None:
    """As SVG, the same bytes each time."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    draw_schedule()
    groups, scores, alive = scored()
    draw_groups(groups, gbn.PrunePlan.of(groups, alive))
    draw_scores(groups, scores, alive)
