"""The search for a plan: what goes first, and when it is enough.

Atoms are removed in the order of score given up per unit of cost saved, with savings renewed as
widths shrink (a channel of a layer whose neighbours are already thin saves less), or in the order
of their scores alone. It stops when the target is met, at most 2 % of the original cost below it;
then the 200 dearest of what was removed come back where they still fit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from gbn.cost import CostModel, Saving, positions_lost
from gbn.errors import UnreachableTarget
from gbn.groups import LEAST_WIDTH, ChannelGroups, Mask
from gbn.scores import Scores, Values

_STEP = 0.004  # share of the original cost that is removed between renewals of the savings
_SLACK = 0.02  # a plan falls at most this share of the original cost below its target
_TRIED_AGAIN = 200  # bundles, of those removed, that are tried at the end

RANKS = ("score per cost", "score")


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Constraints on a plan.

    `multiple`: widths are cut to multiples of this (1: any width). `auto` takes the largest of
    `fastest`, its half, its quarter ... that is at most an eighth of the width: fine enough to
    choose by score, coarse enough for vector units; `fastest` is a power of two. `min_channels` and
    `min_share`: what each width keeps at least; two channels in any case. `rank`: by what the next
    to go is chosen, "score per cost" or the plain "score" (You et al. 2019): one threshold over all
    channels, whatever they cost.
    """

    multiple: int | str = 1
    fastest: int = 8
    min_channels: int = 1
    min_share: float = 0.1
    rank: str = "score per cost"

    def multiple_of(self, width: int) -> int:
        """The multiple for a width of `width` channels."""
        if isinstance(self.multiple, int):
            return self.multiple
        multiple = self.fastest
        while multiple > 1 and multiple * 8 > width:
            multiple //= 2
        return multiple

    def __post_init__(self) -> None:
        if self.multiple != "auto" and (isinstance(self.multiple, str) or self.multiple < 1):
            raise ValueError(f"multiple is {self.multiple!r}; give 'auto' or an int from 1")
        if self.fastest < 1 or self.fastest & (self.fastest - 1):
            raise ValueError(f"fastest is {self.fastest}; give a power of two")
        if self.min_channels < 1:
            raise ValueError(f"min_channels is {self.min_channels}; give an int from 1")
        if not 0 <= self.min_share <= 1:
            raise ValueError(f"min_share is {self.min_share}; give a share from 0 to 1")
        if self.rank not in RANKS:
            raise ValueError(f"rank is {self.rank!r}; give one of {', '.join(RANKS)}")


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A cost and the most that may remain of it.

    unit: for messages. spent_for: what scores are given up for, where that is something else:
    channels then go in the order of score per time, say, until the MACs are few enough.
    """

    cost: CostModel
    at_most: int
    unit: str
    spent_for: Saving | None = None


class Search:
    """Atoms still alive, and the bundles that may go next."""

    def __init__(
        self,
        groups: ChannelGroups,
        scores: Scores,
        settings: PlanSettings,
        alive: Mask | None = None,
    ) -> None:
        self.groups = groups
        everything = np.ones(groups.num_atoms, dtype=np.bool_)
        self.alive: Mask = everything if alive is None else alive.copy()
        found = list(_bundles(groups, scores.values, settings, self.alive))
        self._bundles = [atoms for _, atoms in found]
        self._kinds = [kind for kind, _ in found]
        self._open = np.ones(len(self._bundles), dtype=np.bool_)
        self._members = np.concatenate([*self._bundles, np.zeros(0, np.int64)])
        self._starts = np.cumsum([0, *(len(b) for b in self._bundles)])[:-1]
        self._scores = self._per_bundle(scores.values)
        self._sizes = np.array([len(b) for b in self._bundles], dtype=np.float64)
        self._plain = settings.rank == "score"
        owner = np.repeat(np.arange(len(self._bundles)), [len(b) for b in self._bundles])
        member = csr_matrix(
            (np.ones(len(owner)), (self._members, owner)),
            shape=(groups.num_atoms, len(self._bundles)),
        )
        # (num_dims, num_bundles): positions of each dim that go with each bundle, at the start
        self._lost = (positions_lost(groups, self.alive) @ member).tocsc()
        sizes = np.array([dim.size for dim in groups.dims], dtype=np.int64)
        least = np.maximum(settings.min_channels, np.ceil(settings.min_share * sizes - 1e-9))
        narrowest = np.ones(len(sizes), dtype=np.int64)
        narrowest[list(groups.own_widths)] = LEAST_WIDTH
        self._least = np.minimum(sizes, np.maximum(least, narrowest))
        self._counts = groups.counts(self.alive).astype(np.float64)
        self._removed: dict[int, float] = {}  # bundles: score given up per share of the whole cost

    def _per_bundle(self, per_atom: Values) -> Values:
        if not len(self._members):
            return np.zeros(0)
        return np.add.reduceat(per_atom[self._members], self._starts)

    def reduce(self, limit: Limit) -> None:
        """Remove bundles until the cost is at or under its limit."""
        cost = limit.cost
        whole = cost.total(np.ones_like(self.alive))
        now = cost.total(self.alive)
        while now > limit.at_most:
            step = max(min(_STEP * whole, (now - limit.at_most) / 2), 1.0)
            if not self._remove(limit, step, room=now - limit.at_most + _SLACK * whole):
                least = smallest_from(self, cost)
                raise UnreachableTarget(
                    f"the target of {limit.at_most:,} {limit.unit} cannot be reached: the smallest "
                    f"reachable is {least:,} ({least / whole:.1%} of {whole:,}); frozen groups "
                    "keep all, widths what min_channels, min_share and multiple ask for"
                )
            now = cost.total(self.alive)

    def _remove(self, limit: Limit, step: float, room: float) -> bool:
        """Remove the cheapest bundles worth about `step`; False if nothing may go."""
        self._counts = self.groups.counts(self.alive).astype(np.float64)
        saving = self._per_bundle(limit.cost.saving(self.alive))
        useful = np.flatnonzero(self._open & (saving > 0))
        whole = limit.cost.total(np.ones_like(self.alive))
        # a threshold compares channels: a bundle of several stands at their mean
        worth = self._sizes if self._plain else saving
        if limit.spent_for is not None and not self._plain:
            worth = self._per_bundle(limit.spent_for.saving(self.alive))
        prices = self._scores / np.maximum(worth, 1e-30)
        order = useful[np.argsort(prices[useful], kind="stable")]
        saved = 0.0
        for index in order:
            if saving[index] <= room - saved and self._take(int(index)):
                self._removed[int(index)] = float(self._scores[index] * whole / saving[index])
                saved += saving[index]
                if saved >= step:
                    break
        if saved > 0:
            return True
        # what is left is too coarse: overshoot as little as can be
        coarse = useful[np.argsort(saving[useful], kind="stable")]
        for index in coarse:
            if self._open[index] and self._take(int(index)):
                self._removed[int(index)] = float(self._scores[index] * whole / saving[index])
                return True
        return False

    def give_back(self, limits: Sequence[Limit]) -> None:
        """Bundles that were removed return, dearest first, as far as all limits still hold."""
        dearest = sorted(self._removed, key=lambda index: (-self._removed[index], -index))
        for index in dearest[:_TRIED_AGAIN]:
            later = index + 1  # of the same kind, so that the remainder of a width comes last
            if self._kinds[later : later + 1] == [self._kinds[index]] and later in self._removed:
                continue
            self.alive[self._bundles[index]] = True
            if any(limit.cost.total(self.alive) > limit.at_most for limit in limits):
                self.alive[self._bundles[index]] = False
            else:
                del self._removed[index]

    def _take(self, index: int) -> bool:
        """Remove a bundle unless a width would fall below its least; then never try it again."""
        self._open[index] = False
        bundle = self._bundles[index]
        column = slice(self._lost.indptr[index], self._lost.indptr[index + 1])
        touched, loss = self._lost.indices[column], self._lost.data[column]
        after = self._counts[touched] - loss
        if (after < self._least[touched]).any():
            # where positions need several atoms the loss may be counted twice: count exactly
            trial = self.alive.copy()
            trial[bundle] = False
            after = self.groups.counts(trial)[touched].astype(np.float64)
            if (after < self._least[touched]).any():
                return False
        self._counts[touched] = after
        self.alive[bundle] = False
        return True

    def exhaust(self) -> None:
        """Remove everything that may go."""
        for index in np.flatnonzero(self._open):
            self._take(int(index))


def smallest_from(search: Search, cost: CostModel) -> int:
    """Least cost reachable from where the search stands."""
    search.exhaust()
    return cost.total(search.alive)


def _bundles(
    groups: ChannelGroups, scores: Values, settings: PlanSettings, alive: Mask
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Atoms that go together so that widths stay multiples, with the number of their kind.

    Kind by kind, lowest scores first.

    Only atoms of one group that touch the same dims equally are interchangeable. The first bundle
    takes the remainder, so that what is left is a multiple.
    """
    lost = positions_lost(groups, np.ones(groups.num_atoms, dtype=np.bool_)).tocsc()
    kind = 0
    for group in groups.groups:
        alike: dict[bytes, list[int]] = {}
        for atom in group.atoms:
            column = slice(lost.indptr[atom], lost.indptr[atom + 1])
            order = np.argsort(lost.indices[column])
            key = lost.indices[column][order].tobytes() + lost.data[column][order].tobytes()
            alike.setdefault(key, []).append(atom)
        for members in alike.values():
            left = [atom for atom in members if alive[atom]]
            atoms = np.array(sorted(left, key=lambda a: (scores[a], a)), dtype=np.int64)
            multiple = settings.multiple_of(len(members))
            start = 0
            while start < len(atoms):
                end = start + ((len(atoms) - start) % multiple or multiple)
                yield kind, atoms[start:end]
                start = end
            kind += 1
