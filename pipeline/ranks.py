"""The processes of one run that torchrun started: the first decides and writes, all compute.

Enters: what torchrun says in the environment. Leaves: `Ranks`. The first process, the leader, does
the whole job; where it scores or trains it first sends the `Work` to the others, which have loaded
the same model and data, and each takes its share of each batch. So there is one plan, one file, and
one state, the leader's. Alone, a process is its own leader and nothing is sent.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

import gbn
from gbn.groups import Mask
from gbn.norms import tracked_norms
from gbn.ticktock import Phase
from pipeline.errors import CompressError, UsageError

WorkKind = Literal["score", "train"]
_TIMEOUT = timedelta(hours=4)  # the leader may prove, measure and refit meanwhile


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the followers are to do with the leader.

    alive: atoms that the network still has. state: its parameters and buffers, on the CPU. plan:
    hash of the plan that leads to it.
    """

    kind: WorkKind
    alive: Mask
    plan: str
    state: dict[str, Tensor]
    phase: Phase
    start: int
    label: str = ""
    step: int = 0
    optimizer: dict[str, Any] | None = None


def is_first() -> bool:
    """Whether this process leads those that torchrun started, before they have joined."""
    return _world_size() == 1 or os.environ.get("RANK") == "0"


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Ranks:
    """`size` processes, of which this is number `rank`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> "Ranks":
        """The processes that torchrun started with this one; alone without torchrun.

        Raises UsageError where they cannot find each other.
        """
        size = _world_size()
        if size == 1:
            return cls()
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(cls.local())
        try:
            dist.init_process_group(backend, timeout=_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            text = str(error).splitlines()[0]
            raise UsageError(
                f"torchrun's {size} processes do not find each other: {text}"
            ) from error
        return cls(dist.get_rank(), size)

    @staticmethod
    def local() -> int:
        """Number of this process on its machine, which is that of its GPU."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    @property
    def leads(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def leave(self) -> None:
        """Nothing is computed together any more; the leader says so to all."""
        if self.size > 1:
            if self.leads:
                self._exchange(None)
            dist.destroy_process_group()

    def send(self, work: Work) -> None:
        """The leader says what is to be done now; nothing happens elsewhere."""
        if self.size > 1 and self.leads:
            self._exchange(work)

    def receive(self) -> Work | None:
        """What the leader sends next; None: that was all."""
        work = self._exchange(None)
        assert work is None or isinstance(work, Work)
        return work

    def _exchange(self, value: object) -> object:
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def share(self, images: Tensor, targets: Any) -> tuple[Tensor, Any, float]:
        """This process's images of a batch, their targets, and which part of the batch they are."""
        if self.size == 1:
            return images, targets, 1.0
        if not isinstance(targets, Tensor) or len(targets) != len(images):
            raise CompressError(
                "several processes split batches, but the targets are not one tensor with a row "
                f"for each of {len(images)} images: run without torchrun"
            )
        own = slice(self.rank, None, self.size)
        return images[own], targets[own], len(images[own]) / len(images)

    def own(self, units: Iterable[Any]) -> Iterable[Any]:
        """Every so-manieth of what is to be done, so that each is done by one process."""
        return (unit for number, unit in enumerate(units) if number % self.size == self.rank)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """In place, the sums over all processes."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def add_up_gradients(self, parameters: Iterable[nn.Parameter], value: float) -> float:
        """Gradients of all processes' shares, in place; the sum of their losses `value`."""
        if self.size == 1:
            return value
        learning = [p for p in parameters if p.requires_grad]
        for parameter in learning:
            if parameter.grad is None:  # not reached on this process
                parameter.grad = torch.zeros_like(parameter)
        total = torch.full((1,), value, dtype=torch.float32, device=learning[0].device)
        with torch.no_grad():
            self.add_up([p.grad for p in learning if p.grad is not None] + [total])
        return float(total)

    def average_statistics(self, model: nn.Module) -> None:
        """Batch norms' running statistics become the mean over all processes."""
        if self.size == 1:
            return
        held = [
            statistic
            for norm in tracked_norms(model).values()
            for statistic in (norm.running_mean, norm.running_var)
            if statistic is not None
        ]
        with torch.no_grad():
            self.add_up(held)
            for statistic in held:
                statistic.div_(self.size)


def plan_hash(plan: gbn.PrunePlan) -> str:
    """The same for the same plan, in whatever process."""
    return hashlib.sha256(repr(sorted(plan.to_dict().items())).encode()).hexdigest()
