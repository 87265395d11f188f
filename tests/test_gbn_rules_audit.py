"""Every rule has a case where channels flow and one where they must stay, written by hand.

An op that gets a rule without cases in `rule_cases` fails here.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision  # noqa: F401 - registers its ops

from gbn.rules import RULES

sys.path.insert(0, str(Path(__file__).parent))

import rule_cases_reduce  # noqa: F401 - adds its cases
from rule_cases import FLOWS, NONE, STAYS
from rule_harness import Case

OPS = [*RULES]


def name_of(op: Any) -> str:
    return op if isinstance(op, str) else str(op)


def runs(ran: list[Any], op: Any) -> bool:
    """One of the ops that ran is the one that the rule is of."""
    for func in ran:
        packet = func.overloadpacket
        if op in (func, packet, packet._qualified_op_name):
            return True
    return False


def test_every_rule_has_its_cases_and_every_case_its_rule():
    known = [op for op in OPS if name_of(op).startswith(("aten.", "torchvision::"))]
    assert {name_of(op) for op in known} == {name_of(op) for op in FLOWS}
    assert FLOWS.keys() == STAYS.keys()


@pytest.mark.parametrize("op", FLOWS, ids=name_of)
def test_channels_flow_as_written_by_hand(op):
    case = FLOWS[op]
    harness, found = case.run()
    assert runs(harness.ran, op)
    assert found[0] == case.channels != NONE
    assert case.result is None or found[1] == case.result


@pytest.mark.parametrize("op", STAYS, ids=name_of)
def test_channels_stay_where_written_by_hand(op):
    case = STAYS[op]
    harness, found = case.run()
    assert runs(harness.ran, op)
    assert found[0] == case.channels
    assert "." in case.channels
    assert case.result is None or found[1] == case.result


def test_an_elementwise_op_that_changes_a_size_freezes_what_it_changes():
    """Not one is known; should torch tag such an op, its channels stay."""

    def halve(h, x):
        return h(torch.ops.aten.mul.Tensor, x, torch.rand(1), result=torch.rand(2, 4, 4, 4))

    assert Case(halve, NONE).run()[1] == [NONE, None]
