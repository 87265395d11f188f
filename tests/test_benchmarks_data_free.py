"""The table of runs without data tells means and spreads, and misses where one run does."""

from dataclasses import replace

from benchmarks.data_free import Outcome, command, document, own_row, peer_row

RUN = Outcome(
    share="0.8",
    before=0.88,
    after=0.87,
    agreeing=0.95,
    report={
        "flops": {"kept": 0.796},
        "fidelity": {"value": 0.94},
        "data_free": {"images": 896, "made_from": "norms", "steps": 40, "held_out": 128},
        "environment": {"seed": 0},
    },
    cpu_minutes=10.0,
    peer={"kept": 0.799, "top1": 0.86, "cpu_minutes": 6.0},
)
OTHER = replace(RUN, after=0.865, cpu_minutes=13.0, peer=RUN.peer and RUN.peer | {"top1": 0.865})


def test_a_row_has_the_mean_of_the_seeds_and_its_ends() -> None:
    row = own_row([RUN, OTHER])
    assert row[2:4] == ("86.75% [86.50%, 87.00%]", "-1.25 points (allowed -2)")
    assert row[6:] == ("11.5", "met")
    assert own_row([RUN])[2] == "87.00%"
    peer = peer_row([RUN, OTHER])
    assert peer is not None
    assert peer[2:4] == ("86.25% [86.00%, 86.50%]", "-1.75 points")


def test_one_run_below_what_is_allowed_or_too_slow_misses() -> None:
    assert own_row([RUN, replace(RUN, after=0.8599)])[-1] == "MISSED"  # 2.01 points
    assert own_row([RUN, replace(RUN, cpu_minutes=30.1)])[-1] == "MISSED"
    assert own_row([replace(RUN, share="0.6", after=0.8301)])[-1] == "met"  # 4.99 points of 5
    assert own_row([replace(RUN, share="0.6", after=0.8299)])[-1] == "MISSED"


def test_a_peer_that_one_seed_lacks_is_not_told() -> None:
    assert peer_row([RUN, replace(RUN, peer=None)]) is None


def test_the_page_names_the_seeds_and_a_command_that_runs_one() -> None:
    second = replace(RUN, report=RUN.report | {"environment": {"seed": 2}})
    page = document({"0.8": [RUN, second]}, [own_row([RUN, second])], ["the peer"])
    assert "seeds 0, 2: means" in page
    one = document({"0.8": [RUN]}, [own_row([RUN])], [])
    assert "seed 0. The" in one and "means" not in one
    assert "Not measured, so not in the table: the peer." in page
    assert f"    {' '.join(command('0.8', 0))}\n" in page
