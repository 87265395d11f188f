"""Numbers with units, as the options of `compress verify` take them.

Enters: text such as "5ms", "3%", "1.3", "5MB". Leaves: milliseconds, shares, factors, bytes.
Refused, with `UsageError` that names the option: other text, and values that nothing could miss or
meet (0ms, -3%, nan).
"""

import math
import re
from decimal import Decimal

from pipeline.errors import UsageError

_NUMBER = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[a-zA-Z%]*)")
_MS = {"us": Decimal("0.001"), "ms": Decimal(1), "s": Decimal(1000)}
_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


def _read(text: str, option: str, forms: str) -> tuple[Decimal, str]:
    """Exact: 2.01 MB are 2,010,000 bytes."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option}: cannot read {text!r}: give {forms}")
    return Decimal(match["number"]), match["unit"].lower()


def milliseconds(text: str, option: str) -> float:
    """ "5ms", "0.4s" or "800us", above 0."""
    forms = "a time above 0 with its unit, as in 5ms, 800us or 0.1s"
    value, unit = _read(text, option, forms)
    if unit not in _MS or value == 0:
        raise UsageError(f"{option}: {text!r} is not {forms}")
    return float(value * _MS[unit])


def factor(text: str, option: str) -> float:
    """ "1.3" or "1.3x", above 0."""
    forms = "a factor above 0, as in 1.3 (30 % faster)"
    value, unit = _read(text, option, forms)
    if unit not in ("", "x") or value == 0:
        raise UsageError(f"{option}: {text!r} is not {forms}")
    return float(value)


def per_cent(text: str, option: str) -> float:
    """ "3%" as the share 0.03; the sign is needed, since 3 and 0.03 could both be meant."""
    forms = "per cent of 0 or more with the sign, as in 3%"
    value, unit = _read(text, option, forms)
    if unit != "%":
        raise UsageError(f"{option}: {text!r} is not {forms}")
    return float(value / 100)


def fraction(text: str, option: str) -> float:
    """ "0.74" or "74%", in (0, 1]."""
    forms = "a share above 0 and at most 1, as in 0.74 or 74%"
    value, unit = _read(text, option, forms)
    value = value / 100 if unit == "%" else value
    if unit not in ("", "%") or not 0 < value <= 1:
        raise UsageError(f"{option}: {text!r} is not {forms}")
    return float(value)


def num_bytes(text: str, option: str) -> int:
    """ "5MB" (decimal) or "4MiB" (binary), at least one byte."""
    forms = "a size above 0 with its unit, as in 5MB, 800kB or 4MiB"
    value, unit = _read(text, option, forms)
    if unit not in _BYTES or value * _BYTES.get(unit, 0) < 1:
        raise UsageError(f"{option}: {text!r} is not {forms}")
    return math.floor(value * _BYTES[unit])
