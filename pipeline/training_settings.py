"""What training is told: its settings, where it stands, and the part of a phase under way.

Plain data; `pipeline.training` acts on it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gbn
from gbn.groups import Mask
from gbn.ticktock import Phase
from pipeline.checkup import Checkup
from pipeline.objectives import Objective
from pipeline.stream_distance import StreamDistance
from pipeline.tasks import TaskObjective


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """`peak_lr` of SGD; `objective`: what the network is scored by and trained for.

    decay_all: weight decay for biases and norms too, which it only shrinks. stream_weight: of the
    distance to the original's streams in the loss (`StreamDistance`). score_augmented: scores are
    taken on images as training sees them, not as they are. checkup: what the network is measured
    by between phases, if anything. accumulate: parts of a batch that are computed one after
    another, to spare memory.
    """

    peak_lr: float
    objective: Objective = field(default_factory=TaskObjective)
    decay_all: bool = False
    stream_weight: float = 0.0
    score_augmented: bool = False
    seed: int = 0
    checkup: Checkup | None = None
    accumulate: int = 1


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where in a phase to start, and how to keep where it is (`save(step, optimizer state)`).

    plan: from the original to the network; None: the original's streams do not teach it, and no
    other process helps. alive: the atoms that it leaves.
    """

    step: int = 0
    optimizer: dict[str, Any] | None = None
    plan: gbn.PrunePlan | None = None
    alive: Mask | None = None
    save: Callable[[int, dict[str, Any]], None]


@dataclass(kw_only=True)
class Pass:
    """A part of a phase, between two saves: gates and streams, if any, are for one pass alone.

    start: batch of the stream at which the phase begins; first: its step at which the pass does.
    state: of the optimizer, before and then after it.
    """

    phase: Phase
    gates: gbn.Gates | None
    streams: StreamDistance | None
    label: str
    start: int
    first: int
    state: dict[str, Any] | None
