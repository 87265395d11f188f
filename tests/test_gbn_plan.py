"""Targets are met and never overshot; constraints hold; what cannot be reached is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, widths=(32, 48, 40)):
        super().__init__()
        a, b, c = widths
        self.one, self.n1 = nn.Conv2d(3, a, 3, padding=1), nn.BatchNorm2d(a)
        self.two, self.n2 = nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b)
        self.three, self.n3 = nn.Conv2d(b, c, 3, padding=1), nn.BatchNorm2d(c)
        self.last = nn.Linear(c, 4)

    def forward(self, x):
        x = F.relu(self.n1(self.one(x)))
        x = F.relu(self.n2(self.two(x)))
        x = F.relu(self.n3(self.three(x)))
        return self.last(x.mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, groups=4)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.last(F.relu(self.grouped(F.relu(self.norm(self.stem(x))))))


def random_scores(groups, seed):
    return gbn.Scores(np.random.default_rng(seed).random(groups.num_atoms), "random")


def cost_after(model, plan, kind="macs"):
    small = gbn.prune(model, plan)
    if kind == "params":
        return sum(p.numel() for p in small.parameters())
    again = gbn.trace(small, X)
    return gbn.CostModel.macs(again).total(np.ones(again.num_atoms, dtype=np.bool_))


def whole(groups, kind="macs"):
    cost = gbn.CostModel.macs(groups) if kind == "macs" else gbn.CostModel.params(groups)
    return cost.total(np.ones(groups.num_atoms, dtype=np.bool_))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = Net()
    return model, gbn.trace(model, X)


def widths(plan):
    return {group.name: group.size_after for group in plan.groups}


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("share", [0.95, 0.8, 0.6, 0.5, 0.33, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_targets_are_met_and_not_undershot_by_more_than_two_percent(kind, share, seed, net):
    model, groups = net
    target = {"flops" if kind == "macs" else "params": share}
    plan = gbn.plan(groups, random_scores(groups, seed), **target)
    after, before = cost_after(model, plan, kind), whole(groups, kind)
    assert after <= share * before
    assert after >= (share - 0.02) * before


def test_absolute_targets_are_counts(net):
    model, groups = net
    plan = gbn.plan(groups, random_scores(groups, 0), flops=1_000_000)
    assert 1_000_000 - 0.02 * whole(groups) <= cost_after(model, plan) <= 1_000_000
    plan = gbn.plan(groups, random_scores(groups, 0), params=20_000)
    assert cost_after(model, plan, "params") <= 20_000


def test_both_targets_hold(net):
    model, groups = net
    plan = gbn.plan(groups, random_scores(groups, 0), flops=0.7, params=0.4)
    assert cost_after(model, plan) <= 0.7 * whole(groups)
    assert cost_after(model, plan, "params") <= 0.4 * whole(groups, "params")


def test_a_target_of_everything_removes_nothing(net):
    _, groups = net
    plan = gbn.plan(groups, random_scores(groups, 0), flops=1.0)
    assert plan.kept == {}
    assert gbn.plan(groups, random_scores(groups, 0)).kept == {}


def test_the_same_scores_give_the_same_plan(net):
    model, groups = net
    plans = [gbn.plan(groups, random_scores(groups, 3), flops=0.5) for _ in range(2)]
    again = gbn.plan(gbn.trace(model, X), random_scores(groups, 3), flops=0.5)
    assert plans[0] == plans[1] == again


def test_lowest_scores_of_a_width_go_first(net):
    _, groups = net
    values = np.arange(groups.num_atoms, dtype=float)
    plan = gbn.plan(groups, gbn.Scores(values, "rank"), flops=0.5)
    for name, size in (("one", 32), ("two", 48), ("three", 40)):
        dim = groups.dims[next(g.dim for g in groups.groups if g.name == name)]
        kept = plan.kept.get(f"{name}.weight", {}).get(0, tuple(range(size)))
        ranks = np.empty(size)
        ranks[dim.positions] = values[dim.atoms]
        gone = sorted(set(range(size)) - set(kept))
        if gone:
            assert max(ranks[gone]) < min(ranks[list(kept)])


def test_a_worthless_layer_is_cut_rather_than_a_precious_one(net):
    _, groups = net
    values = np.ones(groups.num_atoms)
    two = next(g for g in groups.groups if g.name == "two")
    values[list(two.atoms)] = 1e-6
    plan = gbn.plan(groups, gbn.Scores(values, "set"), flops=0.5)
    assert widths(plan) == {"one": 32, "two": 23, "three": 40, "last": 4}


@pytest.mark.parametrize("multiple", [2, 4, 8])
def test_widths_are_multiples(multiple, net):
    model, groups = net
    plan = gbn.plan(
        groups, random_scores(groups, 0), flops=0.5, settings=gbn.PlanSettings(multiple=multiple)
    )
    assert all(widths(plan)[name] % multiple == 0 for name in ("one", "two", "three"))
    assert cost_after(model, plan) <= 0.5 * whole(groups)


def test_an_odd_width_is_cut_to_a_multiple():
    torch.manual_seed(0)
    groups = gbn.trace(Net((30, 50, 42)), X)
    plan = gbn.plan(groups, random_scores(groups, 0), flops=0.4,
                    settings=gbn.PlanSettings(multiple=8))  # fmt: skip
    after = widths(plan)
    changed = [n for n, size in (("one", 30), ("two", 50), ("three", 42)) if after[n] != size]
    assert changed and all(after[name] % 8 == 0 for name in changed)


def test_auto_takes_an_eighth_of_the_width_at_most():
    torch.manual_seed(0)
    groups = gbn.trace(Net((16, 64, 40)), X)
    plan = gbn.plan(groups, random_scores(groups, 0), flops=0.4,
                    settings=gbn.PlanSettings(multiple="auto"))  # fmt: skip
    after = widths(plan)
    assert after["one"] % 2 == 0 and after["two"] % 8 == 0 and after["three"] % 4 == 0


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        (gbn.PlanSettings(min_channels=12), (12, 12, 12)),
        (gbn.PlanSettings(), (4, 5, 4)),  # a tenth, rounded up
        (gbn.PlanSettings(min_share=0.25), (8, 12, 10)),
        (gbn.PlanSettings(min_channels=1, min_share=0.0), (2, 2, 2)),  # never to one
        (gbn.PlanSettings(min_channels=40), (32, 40, 40)),
        (gbn.PlanSettings(min_channels=12, multiple=8), (16, 16, 16)),
    ],
)  # fmt: skip
def test_each_width_keeps_its_least_and_the_smallest_is_reachable(settings, least, net):
    _, groups = net
    cost = gbn.CostModel.macs(groups)
    a, b, c = least
    expected = 64 * (27 * a + 9 * a * b + 9 * b * c) + 4 * c
    reachable = gbn.smallest(groups, cost, settings)
    assert reachable == expected
    plan = gbn.plan(groups, random_scores(groups, 0), flops=expected, settings=settings)
    assert tuple(widths(plan)[name] for name in ("one", "two", "three")) == least
    with pytest.raises(gbn.UnreachableTarget, match=f"smallest reachable is {expected:,} "):
        gbn.plan(groups, random_scores(groups, 0), flops=expected - 1, settings=settings)


@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_that_a_refusal_states_is_reachable_with_grouped_layers(seed):
    torch.manual_seed(0)
    groups = gbn.trace(Grouped(), X)
    scores = random_scores(groups, seed)
    with pytest.raises(gbn.UnreachableTarget) as caught:
        gbn.plan(groups, scores, flops=1)  # an int of 1 is one whole: see below
        gbn.plan(groups, scores, flops=2)
    text = str(caught.value)
    stated = int(text.split("smallest reachable is ")[1].split(" ")[0].replace(",", ""))
    gbn.plan(groups, scores, flops=stated)


def test_what_fits_the_slack_may_be_exhausted_before_the_target_is_met():
    """Eight coarse channels are left when the four fine ones are at their least."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)
    )
    groups = gbn.trace(model, X)
    for seed in range(5):
        for share in (0.5, 0.4, 0.3, 0.26):
            plan = gbn.plan(groups, random_scores(groups, seed), flops=share)
            assert cost_after(model, plan) <= share * whole(groups)


def test_a_network_that_cannot_shrink_says_so():
    groups = gbn.trace(nn.Conv2d(3, 4, 1), X)
    with pytest.raises(gbn.UnreachableTarget, match=r"smallest reachable is 768 \(100.0% of 768\)"):
        gbn.plan(groups, gbn.Scores(np.zeros(0), "none"), flops=0.5)


@pytest.mark.parametrize("target", [0, -1, -0.5, float("nan")])
def test_targets_that_are_not_positive_are_refused(target, net):
    _, groups = net
    with pytest.raises(ValueError, match="is not positive"):
        gbn.plan(groups, random_scores(groups, 0), flops=target)


@pytest.mark.parametrize(
    "wrong",
    [
        {"multiple": 0},
        {"multiple": "often"},
        {"min_channels": 0},
        {"min_share": 1.5},
        {"rank": "x"},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        gbn.PlanSettings(**wrong)


def test_scores_for_other_groups_are_refused(net):
    _, groups = net
    with pytest.raises(ValueError, match=r"3 scores for \d+ atoms"):
        gbn.plan(groups, gbn.Scores(np.ones(3), "few"), flops=0.5)


def test_a_plain_threshold_takes_the_lowest_scores_whatever_they_cost():
    model = nn.Sequential(
        nn.Conv2d(3, 60, 1), nn.ReLU(), nn.Conv2d(60, 40, 1), nn.ReLU(), nn.Conv2d(40, 4, 1)
    )
    groups = gbn.trace(model, X)
    values = np.full(groups.num_atoms, 100.0)
    values[list(groups.groups[0].atoms)[:30]] = 1.0  # each saves 3 + 40 of 2740 MACs a pixel
    values[list(groups.groups[1].atoms)[:20]] = 1.2  # each saves 60 + 4
    scores = gbn.Scores(values, "set")
    threshold = gbn.plan(groups, scores, flops=0.6, settings=gbn.PlanSettings(rank="score"))
    # 43 * width + 160 must be at most 0.6 * 2740 = 1644: 34
    assert list(widths(threshold).values()) == [34, 40, 4]
    first, second, _ = widths(gbn.plan(groups, scores, flops=0.6)).values()
    assert first >= 59 and second <= 23


def test_a_threshold_leaves_a_tenth_of_each_width():
    groups = gbn.trace(Net(), X)
    values = np.full(groups.num_atoms, 100.0)
    one = next(g for g in groups.groups if g.name == "one")
    values[list(one.atoms)] = 1e-9
    settings = gbn.PlanSettings(rank="score")
    plan = gbn.plan(groups, gbn.Scores(values, "set"), flops=0.4, settings=settings)
    assert widths(plan)["one"] == 4  # of 32, a tenth rounded up


def two_layers():
    """60 channels, then 40; each pixel costs 3 * 60 + 60 * 40 + 40 * 4 MACs."""
    model = nn.Sequential(
        nn.Conv2d(3, 60, 1), nn.ReLU(), nn.Conv2d(60, 40, 1), nn.ReLU(), nn.Conv2d(40, 4, 1)
    )
    groups = gbn.trace(model, X)
    return groups, groups.tensors["0.weight"][0], groups.tensors["2.weight"][0]


def timed(groups, per_width):
    terms = [gbn.TimeTerm(nanoseconds=ns, dims=(d,), steps=(1,)) for d, ns in per_width.items()]
    return gbn.CostModel.time(groups, terms)


def test_a_limit_in_time_cuts_where_time_is_saved_not_where_macs_are():
    groups, first, second = two_layers()
    time = timed(groups, {first: 100.0, second: 1.0})
    limit = gbn.Limit(cost=time, at_most=4000, unit="ns")
    alive = gbn.choose_within(groups, gbn.Scores(np.ones(groups.num_atoms), "even"), [limit])
    counts = groups.counts(alive)
    assert counts[second] == 40 and counts[first] in (38, 39)  # 3840 + 40, or 3940 + 40


def test_channels_can_go_by_time_until_the_macs_are_few_enough():
    groups, first, second = two_layers()
    time = timed(groups, {first: 100.0, second: 1.0})
    macs = gbn.CostModel.macs(groups)
    half = macs.total(np.ones(groups.num_atoms, bool)) // 2
    limit = gbn.Limit(cost=macs, at_most=half, unit="MACs", spent_for=time)
    alive = gbn.choose_within(groups, gbn.Scores(np.ones(groups.num_atoms), "even"), [limit])
    assert macs.total(alive) <= half
    assert groups.counts(alive)[second] == 40 and groups.counts(alive)[first] < 30


def test_several_limits_hold_together():
    groups, _, second = two_layers()
    time = timed(groups, {second: 10.0})
    macs = gbn.CostModel.macs(groups)
    limits = [
        gbn.Limit(cost=macs, at_most=macs.total(np.ones(groups.num_atoms, bool)) // 2, unit="MACs"),
        gbn.Limit(cost=time, at_most=100, unit="ns"),
    ]
    alive = gbn.choose_within(groups, random_scores(groups, 0), limits)
    assert all(limit.cost.total(alive) <= limit.at_most for limit in limits)


def test_a_limit_in_time_that_no_cut_reaches_says_the_least():
    groups, first, _ = two_layers()
    time = timed(groups, {first: 10.0})
    limit = gbn.Limit(cost=time, at_most=59, unit="ns by measured layers")
    with pytest.raises(
        gbn.UnreachableTarget, match=r"59 ns by measured layers .* reachable is 60 "
    ):
        gbn.choose_within(groups, random_scores(groups, 0), [limit])


@pytest.mark.parametrize(("width", "multiple"), [(128, 16), (127, 8), (64, 8), (16, 2), (7, 1)])
def test_auto_starts_from_the_fastest_multiple(width, multiple):
    assert gbn.PlanSettings(multiple="auto", fastest=16).multiple_of(width) == multiple


def test_the_fastest_multiple_is_a_power_of_two():
    with pytest.raises(ValueError, match="fastest is 12; give a power of two"):
        gbn.PlanSettings(fastest=12)


def test_channels_that_take_long_for_few_macs_go_first_where_macs_are_spared():
    groups, first, second = two_layers()
    macs = gbn.CostModel.macs(groups)
    everything = np.ones(groups.num_atoms, bool)
    # a channel of the first layer saves 43 / 2740 of the MACs, one of the second 64 / 2740
    time = timed(groups, {first: 1.0, second: 1.0})
    plain, sparing = (
        gbn.Sparing(of=time, leaving=macs, weight=weight).saving(everything)
        for weight in (0.0, 0.5)
    )
    one, two = (groups.dims[dim].atoms[0] for dim in (first, second))
    assert plain[one] == plain[two] == pytest.approx(1 / 100)
    assert sparing[one] == pytest.approx(1 / 100 - 0.5 * 43 / 2740)
    assert sparing[two] == pytest.approx(max(1 / 100 - 0.5 * 64 / 2740, 1 / 10000))


def test_time_and_macs_are_both_met_and_neither_by_far():
    groups, first, second = two_layers()
    macs = gbn.CostModel.macs(groups)
    everything = np.ones(groups.num_atoms, bool)
    time = timed(groups, {first: 1.0, second: 10.0})  # 60 + 400 ns
    limits = (
        gbn.Limit(cost=time, at_most=400, unit="ns"),
        gbn.Limit(cost=macs, at_most=int(0.5 * macs.total(everything)), unit="MACs"),
    )
    scores = random_scores(groups, 0)
    alive = gbn.choose_in_time(groups, scores, limits[0], limits[1:])
    assert all(limit.cost.total(alive) <= limit.at_most for limit in limits)
    plain = gbn.choose_within(groups, scores, limits)
    assert scores.values[alive].sum() >= 0.9 * scores.values[plain].sum()
    alone = gbn.choose_in_time(groups, scores, limits[0], [])
    assert (alone == gbn.choose_within(groups, scores, limits[:1])).all()


@pytest.mark.parametrize("seed", range(4))
def test_no_channel_that_went_would_still_fit(seed, net):
    _, groups = net
    macs = gbn.CostModel.macs(groups)
    for share in (0.8, 0.55, 0.3):
        alive = gbn.choose(groups, random_scores(groups, seed), flops=share)
        limit = int(share * whole(groups))
        assert macs.total(alive) <= limit
        for atom in np.flatnonzero(~alive):
            more = alive.copy()
            more[atom] = True
            assert macs.total(more) > limit


def test_with_two_limits_what_went_for_the_first_may_come_back_too(net):
    """Prices per MAC and per parameter are of other sizes: shares of the whole are compared."""
    _, groups = net
    scores = gbn.Scores(np.ones(groups.num_atoms), "test")
    alive = gbn.choose(groups, scores, flops=0.6, params=0.6)
    limits = [(c, int(0.6 * c.total(np.ones_like(alive)))) for c in
              (gbn.CostModel.macs(groups), gbn.CostModel.params(groups))]  # fmt: skip
    for atom in np.flatnonzero(~alive):
        more = alive.copy()
        more[atom] = True
        assert any(cost.total(more) > limit for cost, limit in limits)


@pytest.mark.parametrize(
    ("flops", "error", "message"),
    [
        ("0.6", TypeError, "a target of '0.6' MACs is no number"),
        (True, TypeError, "is no number"),
        (2.0, ValueError, "give one up to 1, or an int"),
    ],
)
def test_targets_of_another_kind_are_refused(flops, error, message):
    groups = gbn.trace(Net(), X)
    with pytest.raises(error, match=message):
        gbn.plan(groups, gbn.magnitude_scores(Net(), groups), flops=flops)


def test_scores_of_another_kind_are_refused():
    groups = gbn.trace(Net(), X)
    with pytest.raises(TypeError, match=r"scores are a dict: give gbn\.Scores"):
        gbn.plan(groups, {"one": 1.0}, flops=0.5)
