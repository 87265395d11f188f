"""Cuts that are tried before a plan: no size or bound of the forward's own gets through."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn
from gbn.cuts import NUM_CUTS, cut

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Slices(nn.Module):
    """(N, 3, 8, 8); part of the inner width is used by itself."""

    def __init__(self, part, width=9, inner=16):
        super().__init__()
        self.a, self.c = nn.Conv2d(3, width, 3), nn.Conv2d(width, inner, 3)
        self.h = nn.Conv2d(inner, 5, 1)
        self.part, self.num_first = part, inner // 2

    def forward(self, x):
        f = self.c(F.relu(self.a(x)))
        return self.h(f) + self.part(self, f).sum((1, 2, 3), keepdim=True)


def survives_every_cut(model, inputs):
    """The reference is the gated network, and the plans are random ones of another kind."""
    groups = gbn.trace(model, inputs)
    generator = np.random.default_rng(99)
    for share in (0.3, 0.5, 0.7, 0.9) * 3:
        alive = generator.random(groups.num_atoms) < share
        for dim in groups.dims:
            if not len(dim.kept(alive)):
                alive[dim.atoms[dim.positions == generator.choice(dim.positions)]] = True
        if alive.all():
            continue
        plan = gbn.PrunePlan.of(groups, alive)
        proof = gbn.prove(model, plan, gbn.prune(model, plan), inputs)
        assert proof.ok, (proof, groups.hard_coded)
    return groups


@pytest.mark.parametrize(
    "part",
    [
        lambda _, f: f[:, :2],
        lambda _, f: f[:, 2:5],
        lambda _, f: f[:, 13:],
        lambda _, f: f[:, -2:],
        lambda _, f: f[:, : f.shape[1] // 2],
        lambda _, f: f[:, : f.shape[1] // 4],
    ],
    ids=["first", "middle", "from", "last", "half", "quarter"],
)
@pytest.mark.parametrize("inner", [5, 16])
def test_a_slice_by_numbers_never_gets_through(part, inner, randomised):
    survives_every_cut(randomised(Slices(part, inner=inner)), X)


def test_a_slice_up_to_an_attribute_leaves_the_width_free(randomised):
    model = randomised(Slices(lambda m, f: f[:, : m.num_first]))
    groups = survives_every_cut(model, X)
    assert not groups.hard_coded and groups.num_atoms == 25
    assert [(s.attribute, s.old) for s in groups.sizes] == [("num_first", 8)]


@pytest.mark.parametrize(("width", "heads"), [(16, 4), (16, 2), (24, 3)])
def test_attention_with_sizes_of_its_own_is_cut_in_the_trial(width, heads, randomised):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, width), nn.Linear(width, 5)
            self.layer = nn.TransformerEncoderLayer(width, heads, 32, batch_first=True)

        def forward(self, x):
            return self.last(self.layer(self.first(x)))

    x = torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(1))
    groups = survives_every_cut(randomised(Attends()), x)
    assert groups.num_atoms >= 32  # the inner width of its feed-forward part


def test_the_cuts_take_every_atom_and_leave_every_width_something(randomised):
    groups = gbn.trace(randomised(Slices(lambda m, f: f[:, : m.num_first])), X)
    masks = [cut(groups, number) for number in range(NUM_CUTS)]
    assert not np.logical_and.reduce(masks).any()
    assert all((groups.counts(alive) > 0).all() for alive in masks)
    for group in groups.groups:
        taken = {int((~alive[list(group.atoms)]).sum()) for alive in masks}
        assert group.frozen or any(0 < n < len(group.atoms) for n in taken)


def test_a_split_bounded_by_a_number_is_frozen(randomised):
    class Bounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.h = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 5, 1)

        def forward(self, x):
            y = self.a(x)
            n, c, h, w = y.shape
            y = y.view(n, min(c, 32), c // min(c, 32), h, w) * 2
            return self.h(F.relu(y.view(n, c, h, w)))

    assert survives_every_cut(randomised(Bounded()), X).hard_coded


def test_a_width_that_is_also_a_kernel_is_not_changed(randomised):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = 5
            self.a, self.h = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1)

        def forward(self, x):
            y = self.a(x)
            y = y.view(y.shape[0], self.k, *y.shape[2:])
            return self.h(F.max_pool2d(y, self.k, 1, self.k // 2))

    survives_every_cut(randomised(Pooled()), X)
