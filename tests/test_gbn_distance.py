"""Distances between outputs, by hand; what would hide an error does not."""

import math

import pytest
import torch

from gbn.distance import distance
from gbn.errors import ProofFailed

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([INF, 1.0, 2.0], [5.0, 100.0, 200.0], INF),
        ([INF, 1.0, 2.0], [INF, 1.0, 2.0], 0.0),
        ([-INF, 1.0, 2.0], [-INF, 1.0, 2.5], 0.25),
        ([-INF, 1.0], [INF, 1.0], INF),
        ([NAN, 1.0, 2.0], [NAN, 1.0, 2.5], 0.25),
        ([NAN, 1.0], [1.0, 1.0], INF),
        ([-1e9, 1.0, 2.0], [-1e9, 1.0, 3.0], 0.5),
        ([-3e38, 1.0, 2.0], [-3e38, 1.5, 2.0], 0.25),
    ],
)
def test_distances_by_hand(a, b, apart):
    assert distance([torch.tensor(a)], [torch.tensor(b)]) == pytest.approx(apart)


def test_the_worst_of_all_outputs_counts_each_in_its_own_scale():
    one, small = torch.tensor([1000.0]), torch.tensor([0.001])
    assert distance([one, small], [one, small * 2]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        ([torch.zeros(2)], [torch.zeros(3)], r"\(3,\), not \(2,\)"),
        ([torch.zeros(2)], [], "0 outputs, not 1"),
        ([], [], "nothing to compare"),
        ([torch.zeros(2)], [torch.zeros(2, dtype=torch.complex64)], "complex64"),
    ],
)
def test_other_structures_are_refused(a, b, told):
    with pytest.raises(ProofFailed, match=told):
        distance(a, b)
