"""Both schedules spend their budget to the batch; lengths and cuts are counted by hand."""

import pytest

from gbn.ticktock import Phase, schedule, schedule_2019


def lengths(phases: tuple[Phase, ...], kind: str) -> list[int]:
    return [phase.batches for phase in phases if phase.kind == kind]


def letters(phases: tuple[Phase, ...]) -> str:
    return "".join({"tick": ".", "tock": "T", "finetune": "F"}[phase.kind] for phase in phases)


@pytest.mark.parametrize("make", [schedule, schedule_2019])
@pytest.mark.parametrize("target", [0.9, 0.6, 0.4, 0.05])
@pytest.mark.parametrize("budget", [1, 2, 3, 6, 7, 13, 69, 70, 78, 390, 2345, 25000])
def test_no_batch_is_lost_or_invented(make, target: float, budget: int) -> None:
    phases = make(budget=budget, target=target)
    assert sum(phase.batches for phase in phases) == budget
    assert all(phase.batches > 0 for phase in phases)


@pytest.mark.parametrize("make", [schedule, schedule_2019])
def test_the_last_tick_reaches_the_target_and_each_takes_the_same_share(make) -> None:
    target = 0.5
    costs = [
        target + phase.keep * (1 - target)
        for phase in make(budget=0, target=target)
        if phase.kind == "tick"
    ]
    assert costs[-1] == target
    shares = [after / before for before, after in zip([1.0, *costs], costs, strict=False)]
    assert shares == pytest.approx([shares[0]] * len(shares))


def test_a_large_budget_gets_the_published_lengths() -> None:
    # 1 % a tick: ln 0.4 / ln 0.99 = 91.2 ticks, so 10 rounds of 10; 10 + 10 * 20 + 40 = 250 passes
    phases = schedule_2019(budget=250 * 100, target=0.4)
    assert letters(phases) == "T" + ("." * 10 + "T") * 10 + "F"
    assert set(lengths(phases, "tick")) == {100}
    assert set(lengths(phases, "tock")) == {1000}
    assert lengths(phases, "finetune") == [4000]


def test_small_budgets_keep_the_order_and_the_proportions() -> None:
    # one round: 10 ticks of 1 batch; 68 are left, as 10 : 10 : 40
    phases = schedule_2019(budget=78, target=0.6)
    assert letters(phases) == "T" + "." * 10 + "TF"
    assert (lengths(phases, "tock"), lengths(phases, "finetune")) == ([11, 11], [46])
    # 130 ticks' worth of three batches hold 50 + 4 * 20 units: four rounds
    phases = schedule_2019(budget=390, target=0.4)
    assert letters(phases) == "T" + ("." * 10 + "T") * 4 + "F"
    assert set(lengths(phases, "tick")) == {3}
    assert set(lengths(phases, "tock")) == {30}  # of 270 left, a ninth each, and 120 at the end
    # two ticks where ten would leave nothing to train with
    phases = schedule_2019(budget=14, target=0.6)
    assert letters(phases) == "T..TF"
    assert [phase.batches for phase in phases] == [2, 1, 1, 2, 8]


def test_without_a_budget_ten_ticks_score_and_nothing_learns() -> None:
    phases = schedule_2019(budget=0, target=0.4)
    assert letters(phases) == "." * 10
    assert {phase.lr_from for phase in phases} == {0.0}


def test_rates_and_penalty_are_the_published_ones() -> None:
    phases = schedule_2019(budget=7000, target=0.4)
    for phase in phases:
        rates = (phase.lr_from, phase.lr_top, phase.lr_to, phase.penalty)
        assert (
            rates
            == {
                "tick": (0.1, None, 0.0, 0.0),
                "tock": (0.1, 1.0, 0.1, 1e-3),
                "finetune": (0.1, 1.0, 0.1, 0.0),
            }[phase.kind]
        )


@pytest.mark.parametrize("make", [schedule, schedule_2019])
def test_a_target_that_is_met_needs_training_alone(make) -> None:
    assert letters(make(budget=10, target=1.0)) == "F"
    assert make(budget=0, target=1.0) == ()
