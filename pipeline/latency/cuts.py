"""Choices of widths to measure at. Pure: groups in, masks of atoms out.

Two kinds. Telling cuts: so few that each can be exported, and such that every width of the network
has sizes of its own. Sampled cuts: many, spread over what a plan may choose, on the fast steps.
"""

import numpy as np

import gbn
from gbn.groups import Mask

_TELLING_SHARE = 0.5  # at least so much stays, so that no width becomes special
_MOST_TELLING = 4
_ATTEMPTS = 50
_UNIFORM = (1.0, 0.75, 0.5, 0.3)
_NUM_RANDOM = 12
_LEAST_SHARE = 0.15


def whole(groups: gbn.ChannelGroups) -> Mask:
    """Nothing goes."""
    return np.ones(groups.num_atoms, dtype=np.bool_)


def telling_cuts(groups: gbn.ChannelGroups, seed: int = 0) -> list[Mask]:
    """One cut, or as many more as it takes, that tell apart all widths which can ever differ."""
    rng = np.random.default_rng(seed)
    rows = [groups.counts(_random(groups, rng)) for _ in range(24)]
    distinct = _num_distinct([groups.counts(whole(groups)), *rows])
    best: list[Mask] = []
    for count in range(1, _MOST_TELLING + 1):
        for _ in range(_ATTEMPTS):
            best = [_random(groups, rng) for _ in range(count)]
            found = [groups.counts(alive) for alive in (whole(groups), *best)]
            if _num_distinct(found) == distinct:
                return best
    return best


def _num_distinct(rows: list[np.ndarray]) -> int:
    return int(np.unique(np.stack(rows), axis=1).shape[1])


def _random(groups: gbn.ChannelGroups, rng: np.random.Generator) -> Mask:
    alive = whole(groups)
    for group in groups.groups:
        count = len(group.atoms)
        if count > gbn.LEAST_WIDTH:
            least = max(int(count * _TELLING_SHARE), gbn.LEAST_WIDTH)
            gone = rng.permutation(count)[rng.integers(least, count) :]
            alive[np.array(group.atoms)[gone]] = False
    return alive


def uniform_cuts(groups: gbn.ChannelGroups, step: int) -> list[Mask]:
    """All of every width, three quarters, half, and three tenths."""
    return [_shares(groups, step, [share] * len(groups.groups)) for share in _UNIFORM]


def sampled_cuts(groups: gbn.ChannelGroups, step: int, seed: int = 0) -> list[Mask]:
    """The uniform cuts, and random ones, each group at a share of its own."""
    rng = np.random.default_rng(seed)
    count = len(groups.groups)
    random = [
        _shares(groups, step, rng.uniform(_LEAST_SHARE, 1.0, count)) for _ in range(_NUM_RANDOM)
    ]
    return [*uniform_cuts(groups, step), *random]


def _shares(groups: gbn.ChannelGroups, step: int, shares: "np.ndarray | list[float]") -> Mask:
    alive = whole(groups)
    for group, share in zip(groups.groups, shares, strict=True):
        count = len(group.atoms)
        own_step = step
        while own_step > 1 and count < 2 * own_step:
            own_step //= 2
        keep = min(max(round(share * count / own_step), 1) * own_step, count)
        if share < 1 and gbn.LEAST_WIDTH <= keep < count:
            # spread over the group, so that parts of it that lie in fewer layers are cut alike
            kept = np.linspace(0, count - 1, keep).round().astype(int)
            alive[np.delete(np.array(group.atoms), kept)] = False
    return alive
