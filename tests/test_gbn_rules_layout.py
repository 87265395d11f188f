"""Layout ops are executed on the ids; what has a size baked in stays."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def conv_bn(inner: int, outer: int, kernel: int = 3, **options) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outer),
        nn.ReLU(),
    )


class Two(nn.Module):
    """Two branches that `join` brings together, then a convolution of `width` inputs."""

    def __init__(self, join, width=16, a=8, b=8):
        super().__init__()
        self.a, self.b = conv_bn(3, a), conv_bn(3, b)
        self.join = join
        self.last = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        return self.last(self.join(self.a(x), self.b(x)))


class One(nn.Module):
    """One branch, an op on it, then a convolution of `width` inputs."""

    def __init__(self, op, width=8, channels=8):
        super().__init__()
        self.a = conv_bn(3, channels)
        self.op = op
        self.last = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        return self.last(self.op(self.a(x)))


def inputs_kept(result, name="last.weight"):
    return result.plan.kept[name][1]


def test_concatenation_keeps_groups_separate(prune_and_prove, group_of):
    result = prune_and_prove(Two(lambda a, b: torch.cat([a, b], 1), a=10, b=6), X)
    assert group_of(result.groups, "a.0").layers == ("a.0",)
    assert group_of(result.groups, "b.0").layers == ("b.0",)
    a, b = result.plan.kept["a.0.weight"][0], result.plan.kept["b.0.weight"][0]
    assert inputs_kept(result) == (*a, *(10 + p for p in b))


def test_a_tensor_concatenated_with_itself_is_read_twice(prune_and_prove):
    result = prune_and_prove(One(lambda x: torch.cat([x, x], 1), width=16), X)
    kept = result.plan.kept["a.0.weight"][0]
    assert inputs_kept(result) == (*kept, *(8 + p for p in kept))


def test_concatenation_with_the_input_leaves_the_input_whole(prune_and_prove):
    class WithInput(One):
        def forward(self, x):
            return self.last(torch.cat([x, self.a(x)], 1))

    result = prune_and_prove(WithInput(None, width=11), X)
    kept = result.plan.kept["a.0.weight"][0]
    assert inputs_kept(result) == (0, 1, 2, *(3 + p for p in kept))


def test_flatten_gives_a_linear_layer_height_times_width_inputs_a_channel(prune_and_prove):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = conv_bn(3, 6)
            self.pool = nn.AdaptiveAvgPool2d((2, 3))
            self.last = nn.Linear(6 * 2 * 3, 4)

        def forward(self, x):
            return self.last(torch.flatten(self.pool(self.a(x)), 1))

    result = prune_and_prove(Flat(), X)
    kept = result.plan.kept["a.0.weight"][0]
    assert inputs_kept(result) == tuple(6 * c + p for c in kept for p in range(6))
    assert result.small.last.in_features == 6 * len(kept)


def test_channels_last_flatten_interleaves_the_inputs(prune_and_prove):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = conv_bn(3, 6)
            self.last = nn.Linear(6 * 4, 4)

        def forward(self, x):
            x = F.adaptive_avg_pool2d(self.a(x), 2).permute(0, 2, 3, 1)
            return self.last(x.reshape(len(x), -1))

    result = prune_and_prove(Flat(), X)
    kept = result.plan.kept["a.0.weight"][0]
    assert inputs_kept(result) == tuple(6 * p + c for p in range(4) for c in kept)


def shuffle(x, groups=2):
    n, c, h, w = x.shape
    x = x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous()
    return x.view(n, -1, h, w)


def test_channel_shuffle_moves_channels_and_keeps_the_halves_equal(prune_and_prove, group_of):
    result = prune_and_prove(One(shuffle), X)
    kept = result.plan.kept["a.0.weight"][0]
    low = [p for p in kept if p < 4]
    assert [p + 4 for p in low] == [p for p in kept if p >= 4]
    assert inputs_kept(result) == tuple(q for p in low for q in (2 * p, 2 * p + 1))
    assert len(group_of(result.groups, "a.0").atoms) == 4


@pytest.mark.parametrize("groups", [2, 4])
def test_the_channel_shuffle_op_does_the_same(groups, prune_and_prove):
    result = prune_and_prove(One(nn.ChannelShuffle(groups)), X)
    kept = result.plan.kept["a.0.weight"][0]
    assert len(kept) % groups == 0


def test_chunks_are_tied_offset_by_offset(prune_and_prove, group_of):
    def glu(x):
        a, b = x.chunk(2, 1)
        return a * torch.sigmoid(b)

    result = prune_and_prove(One(glu, width=4), X)
    kept = result.plan.kept["a.0.weight"][0]
    assert inputs_kept(result) == tuple(p for p in kept if p < 4)
    assert [p + 4 for p in kept if p < 4] == [p for p in kept if p >= 4]
    assert len(group_of(result.groups, "a.0").atoms) == 4


def test_a_split_into_literal_sizes_stays_with_the_line_as_reason(group_of):
    def halves(x):
        a, b = torch.split(x, [2, 6], 1)
        return torch.cat([b, a], 1)

    stem = group_of(gbn.trace(One(halves), X), "a.0")
    assert stem.frozen
    assert "test_gbn_rules_layout.py:" in stem.reason
    assert "aten.split_with_sizes.default" in stem.reason


def test_a_split_by_sizes_kept_on_the_module_follows(prune_and_prove):
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = conv_bn(3, 12)
            self.parts = [4, 8]
            self.one, self.two = nn.Conv2d(4, 6, 1), nn.Conv2d(8, 6, 1)

        def forward(self, x):
            a, b = self.a(x).split(self.parts, 1)
            return self.one(a) + self.two(b)

    result = prune_and_prove(Split(), X)
    kept = result.plan.kept["a.0.weight"][0]
    assert result.small.parts == [sum(p < 4 for p in kept), sum(p >= 4 for p in kept)]
    assert result.model.parts == [4, 8]


def test_a_view_with_numbers_of_its_own_freezes_what_enters(group_of):
    class Hard(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = conv_bn(3, 8)
            self.b = conv_bn(8, 6)
            self.last = nn.Linear(6 * 64, 4)

        def forward(self, x):
            return self.last(self.b(self.a(x)).view(2, 6 * 64))

    groups = gbn.trace(Hard(), X)
    assert group_of(groups, "b.0").frozen
    assert "has a size baked in at test_gbn_rules_layout.py:" in group_of(groups, "b.0").reason
    assert "aten.view.default" in group_of(groups, "b.0").reason
    assert len(group_of(groups, "a.0").atoms) == 8


def test_a_view_that_hides_its_mistake_is_found_by_comparing_outputs(randomised):
    class Hidden(nn.Module):
        """-1 takes what a literal 2 leaves: half of the channels would move to the next row."""

        def __init__(self):
            super().__init__()
            self.a = conv_bn(3, 8)
            self.last = nn.Linear(8, 4)

        def forward(self, x):
            x = self.a(x).mean((2, 3))
            return self.last(x.view(2, -1, 4).softmax(1).flatten(1))

    model = randomised(Hidden())
    groups = gbn.trace(model, X)
    assert groups.num_atoms == 0


def test_pixel_shuffle_takes_whole_runs_of_channels(prune_and_prove):
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = conv_bn(3, 16)
            self.up = nn.PixelShuffle(2)
            self.last = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.last(self.up(self.a(x)))

    result = prune_and_prove(Up(), X)
    kept = inputs_kept(result)
    assert result.plan.kept["a.0.weight"][0] == tuple(4 * c + k for c in kept for k in range(4))


def test_pixel_unshuffle_multiplies_channels(prune_and_prove):
    result = prune_and_prove(One(nn.PixelUnshuffle(2), width=32), X)
    kept = result.plan.kept["a.0.weight"][0]
    assert inputs_kept(result) == tuple(4 * c + k for c in kept for k in range(4))


@pytest.mark.parametrize(
    ("op", "width"),
    [
        (lambda x: x.flip(1), 8),
        (lambda x: x.repeat(1, 2, 1, 1), 16),
        (lambda x: x.repeat_interleave(2, 1), 16),
        (lambda x: x.unsqueeze(1).squeeze(1), 8),
        (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 8),
        (lambda x: x.transpose(1, -1).transpose(1, -1), 8),
        (lambda x: torch.stack([x, x], 2).flatten(1, 2), 16),
        (lambda x: torch.stack([x, x], 1).sum(1), 8),
        (lambda x: F.pad(x, (1, 1, 1, 1)), 8),
        (lambda x: x.flatten(2).transpose(1, 2).reshape(x.shape[0], 8, 8, -1).movedim(-1, 1), 8),
        (lambda x: x.roll(2, 3), 8),
        (lambda x: torch.einsum("nchw->nhwc", x).movedim(-1, 1), 8),
        (lambda x: x[..., :4, ::2], 8),
        (lambda x: x[:, :, torch.arange(4)], 8),
        (lambda x: F.interpolate(x, scale_factor=2), 8),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)  # fmt: skip
def test_moved_channels_stay_right(op, width, prune_and_prove):
    prune_and_prove(One(op, width=width), X)


@pytest.mark.parametrize(
    ("op", "width", "text"),
    [
        (lambda x: x.roll(1, 1), 8, "rolled by a fixed number of positions (aten.roll.default"),
        (lambda x: x[:, [3, 1, 0, 2, 7, 6, 5, 4]], 8, "indexed by position (aten.index.Tensor"),
        (lambda x: x.index_select(1, torch.arange(8)), 8, "indexed by position (aten.index_select"),
        (lambda x: x.select(1, 3).unsqueeze(1), 1, "picks one position by number (aten.select.int"),
        (lambda x: torch.stack(x.unbind(1), 1), 8, "unbound position by position (aten.unbind.int"),
        (lambda x: torch.cat(x.split(3, 1), 1), 8, "splits channels into unequal parts (aten."),
        (lambda x: x.unfold(1, 2, 1)[..., 0], 7, "is read in windows (aten.unfold.default"),
    ],
    ids=lambda value: "" if callable(value) else str(value)[:20],
)  # fmt: skip
def test_what_picks_channels_by_number_freezes_them(op, width, text, group_of):
    stem = group_of(gbn.trace(One(op, width=width), X), "a.0")
    assert stem.frozen
    assert text in stem.reason
    assert "in the model itself" in stem.reason


def test_a_channel_slice_by_half_the_width_is_right_or_frozen(randomised):
    """x[:, : C // 2] read from the input: any cut must be equal, or nothing is cut."""

    def half(x):
        n = x.shape[1] // 2
        return torch.cat([x[:, n:], F.relu(x[:, :n]) * 2], 1)

    model = randomised(One(half))
    groups = gbn.trace(model, X)
    if groups.num_atoms:
        scores = gbn.magnitude_scores(model, groups)
        plan = gbn.plan(groups, scores, flops=0.6)
        assert gbn.prove(model, plan, gbn.prune(model, plan), X).ok


def test_expanded_parameters_go_with_their_channels(prune_and_prove):
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 4, 4)
            self.token = nn.Parameter(torch.zeros(1, 1, 8))
            self.position = nn.Parameter(torch.zeros(1, 5, 8))
            self.mid = nn.Linear(8, 6)
            self.last = nn.Linear(6, 4)

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
            return self.last(F.relu(self.mid(x)).mean(1))

    result = prune_and_prove(Token(), X)
    kept = result.plan.kept["patch.weight"][0]
    assert result.plan.kept["token"] == {2: kept}
    assert result.plan.kept["position"] == {2: kept}
