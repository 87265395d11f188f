"""Channel pruning with Gated Batch Norm gates, usable without the rest of this distribution.

groups = gbn.trace(model, example_inputs)
plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.5)
small = gbn.prune(model, plan)
assert gbn.prove(model, plan, small, example_inputs).ok
"""

from gbn.cost import CostModel, Sparing, TimeTerm
from gbn.errors import (
    GbnError,
    PlanMismatch,
    ProofFailed,
    RuleError,
    ScoresNotFinite,
    TraceError,
    UnreachableTarget,
)
from gbn.gates import Gates
from gbn.groups import LEAST_WIDTH, ChannelGroups, Group
from gbn.norms import settle_norms
from gbn.plan import choose, choose_in_time, choose_within, plan, smallest
from gbn.plan_search import Limit, PlanSettings
from gbn.proof import Proof, gate_to_zero, prove
from gbn.prune_plan import PrunePlan
from gbn.refit import Refit, RefitSettings, refit
from gbn.rules import Info, OpCall, register_rule
from gbn.scores import Scores, magnitude_scores
from gbn.surgery import apply_plan, prune
from gbn.ticktock import Phase, schedule
from gbn.trace import trace

__all__ = [
    "LEAST_WIDTH",
    "ChannelGroups",
    "CostModel",
    "Gates",
    "GbnError",
    "Group",
    "Info",
    "Limit",
    "OpCall",
    "Phase",
    "PlanMismatch",
    "PlanSettings",
    "Proof",
    "ProofFailed",
    "PrunePlan",
    "Refit",
    "RefitSettings",
    "RuleError",
    "Scores",
    "ScoresNotFinite",
    "Sparing",
    "TimeTerm",
    "TraceError",
    "UnreachableTarget",
    "apply_plan",
    "choose",
    "choose_in_time",
    "choose_within",
    "gate_to_zero",
    "magnitude_scores",
    "plan",
    "prove",
    "prune",
    "refit",
    "register_rule",
    "schedule",
    "settle_norms",
    "smallest",
    "trace",
]
