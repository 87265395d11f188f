"""Rules of ATen ops, one room for each kind; importing this registers them all."""

from gbn.rules import contract, elementwise, layout, lookup, reduce, reshape
from gbn.rules.base import (
    RULES,
    Dead,
    Facts,
    Info,
    MacRecord,
    NormGate,
    OpCall,
    Rule,
    numbers_in,
    register_rule,
    rule_of,
    tensors_and_numbers,
    tensors_in,
)

__all__ = [
    "RULES",
    "Dead",
    "Facts",
    "Info",
    "MacRecord",
    "NormGate",
    "OpCall",
    "Rule",
    "contract",
    "elementwise",
    "layout",
    "lookup",
    "numbers_in",
    "reduce",
    "register_rule",
    "reshape",
    "rule_of",
    "tensors_and_numbers",
    "tensors_in",
]
