"""Ops that are met less often: found by their rule, frozen, or refused by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn
from gbn.rules import RULES

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Between(nn.Module):
    """A convolution, what is to be tested, and a layer that sums over channels."""

    def __init__(self, op, head, width=16, **layers):
        super().__init__()
        self.c, self.h = nn.Conv2d(3, width, 3, padding=1), head
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.op = op

    def forward(self, x):
        return self.h(self.op(self, F.relu(self.c(x))))


@pytest.mark.parametrize(
    ("op", "head", "width", "num_atoms"),
    [
        (lambda _, f: f.mean((2, 3), True).squeeze_(-1).squeeze_(), nn.Linear(16, 5), 16, 14),
        (lambda _, f: f.mean((2, 3)).t_().t_(), nn.Linear(16, 5), 16, 16),
        (lambda _, f: F.glu(f, 1), nn.Conv2d(8, 5, 1), 16, 8),
        (lambda _, f: f.unfold(3, 2, 2).amax(-1), nn.Conv2d(16, 5, 1), 16, 16),
        (lambda _, f: F.unfold(f, 3, padding=1).transpose(1, 2), nn.Linear(144, 5), 16, 16),
        (lambda _, f: f.permute(0, 2, 3, 1)[:, torch.eye(8) > 0], nn.Linear(16, 5), 16, 16),
    ],
    ids=["squeeze_", "t_", "glu", "unfold", "im2col", "mask"],
)  # fmt: skip
def test_channels_pass(op, head, width, num_atoms, prune_and_prove):
    result = prune_and_prove(Between(op, head, width), X)
    assert result.groups.num_atoms == num_atoms
    assert not result.groups.unknown_ops and not result.groups.hard_coded


@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_depthwise_convolution_with_a_multiplier(bias, prune_and_prove):
    up = nn.ConvTranspose2d(16, 32, 3, stride=2, groups=16, bias=bias)
    model = Between(lambda m, f: F.relu(m.up(f)), nn.Conv2d(32, 5, 1), up=up)
    result = prune_and_prove(model, X, flops=0.6)
    assert result.groups.num_atoms == 16
    kept = result.small.c.out_channels
    assert result.small.up.weight.shape[:2] == (kept, 2)
    assert result.small.up.groups == kept and result.small.h.in_channels == 2 * kept


def test_bits_read_as_another_type_freeze_their_channels():
    model = Between(lambda _, f: f + 0 * f.view(torch.int32).sum(), nn.Conv2d(16, 5, 1))
    groups = gbn.trace(model, X)
    assert groups.num_atoms == 0 and "aten.view.dtype" in groups.unknown_ops


def test_a_rule_that_fails_is_not_blamed_on_the_model():
    op = torch.ops.aten.relu

    def broken(_call):
        raise IndexError("no such dim")

    held = RULES.get(op)
    gbn.register_rule(op)(broken)
    try:
        with pytest.raises(
            gbn.RuleError, match=r"rule for aten.relu.default in the model .*report"
        ):
            gbn.trace(Between(lambda _, f: f, nn.Conv2d(16, 5, 1)), X)
    finally:
        RULES.pop(op)
        if held is not None:
            RULES[op] = held


def test_values_written_by_position_meet_what_they_are_written_into(prune_and_prove, group_of):
    """As pooled regions are put back in the order of their boxes."""

    class Put(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.h = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)

        def forward(self, x):
            rows = self.c(x).flatten(2).transpose(1, 2).flatten(0, 1)
            out = rows.new_zeros((rows.shape[0] + 2, rows.shape[1]))
            out[torch.arange(rows.shape[0])] = rows
            return self.h(out)

    result = prune_and_prove(Put(), X)
    assert len(group_of(result.groups, "c").atoms) == 16
    assert not result.groups.hard_coded and not result.groups.unknown_ops


def test_values_written_across_channels_freeze_them(group_of):
    class Put(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.h = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 5, 3)

        def forward(self, x):
            f = self.c(x)
            f[:, torch.tensor([0, 3])] = 1.0
            return self.h(f)

    assert "written into by position" in group_of(gbn.trace(Put(), X), "c").reason


def test_pooled_regions_keep_their_channels(prune_and_prove, group_of):
    ops = pytest.importorskip("torchvision.ops")

    class Regions(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.h = nn.Conv2d(3, 16, 3), nn.Linear(16 * 4, 5)

        def forward(self, x):
            boxes = x.new_tensor([[0.0, 1, 1, 5, 5], [0, 2, 0, 6, 4], [1, 0, 0, 3, 3]])
            return self.h(ops.roi_align(self.c(x), boxes, output_size=2).flatten(1))

    result = prune_and_prove(Regions(), X)
    assert len(group_of(result.groups, "c").atoms) == 16
    assert not result.groups.unknown_ops


def test_an_op_may_be_named_where_its_library_need_not_be_there():
    gbn.register_rule("nowhere::scaled")(lambda call: call.set(call.info(call.args[0])))
    assert RULES.pop("nowhere::scaled")


def test_a_table_keeps_its_entries_and_its_channels_follow(prune_and_prove, group_of):
    class Coded(nn.Module):
        """Each position gets a code of a table, added to what a layer computed."""

        def __init__(self):
            super().__init__()
            self.c, self.table, self.h = nn.Conv2d(3, 16, 1), nn.Embedding(64, 16), nn.Linear(16, 5)

        def forward(self, x):
            tokens = self.c(x).flatten(2).transpose(1, 2)
            return self.h(torch.tanh(tokens + self.table(torch.arange(64))).mean(1))

    result = prune_and_prove(Coded(), X)
    assert len(group_of(result.groups, "c").atoms) == 16
    assert result.small.table.weight.shape == (64, result.small.c.out_channels)


def test_a_sampled_image_keeps_its_positions_and_its_channels_follow(prune_and_prove):
    def sample(_, f):
        grid = F.affine_grid(torch.eye(2, 3).expand(2, 2, 3) * 1.2, [2, 16, 6, 6], False)
        return F.grid_sample(f, grid, align_corners=False)

    result = prune_and_prove(Between(sample, nn.Conv2d(16, 5, 1)), X)
    assert result.groups.num_atoms == 16 and not result.groups.hard_coded


def test_a_computed_grid_keeps_the_channels_that_it_is_read_from(group_of):
    class Warped(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.flow, self.h = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x):
            grid = self.flow(x).permute(0, 2, 3, 1).tanh()
            return self.h(F.grid_sample(self.c(x), grid, align_corners=False))

    groups = gbn.trace(Warped(), X)
    assert group_of(groups, "flow").frozen and "where to sample" in group_of(groups, "flow").reason
    assert len(group_of(groups, "c").atoms) == 8


def test_windows_that_are_summed_into_an_image_go_with_their_channel(prune_and_prove, group_of):
    """fold(unfold(x)): a channel of the image owns the 4 rows of its 2 x 2 windows."""

    def spread(m, f):
        rows = m.wide(f.flatten(2).transpose(1, 2)).transpose(1, 2)
        return F.fold(rows, (16, 16), 2, stride=2)

    wide = nn.Linear(16, 24)
    result = prune_and_prove(Between(spread, nn.Conv2d(6, 5, 1), wide=wide), X)
    assert len(group_of(result.groups, "wide").atoms) == 6
    assert result.small.wide.out_features == 4 * result.small.h.in_channels
