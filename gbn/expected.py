"""What each op of a cut network should give by its groups, and where in the user's code it ran.

What enters: groups, the atoms that survive, records of the uncut run. What leaves: sizes,
positions, and places such as `model.py:12` for reasons.
"""

import linecache
import os
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gbn.errors import TraceError
from gbn.faults import OpRecord
from gbn.groups import ChannelGroups, Mask, surviving
from gbn.ids import Rows

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_HERE = f"{Path(__file__).parent}{os.sep}"
_not_the_users = [_TORCH, _HERE]

_UNKNOWN = "an unknown line"
SLICE, ALIAS = "aten.slice.Tensor", "aten.alias.default"
Shapes = tuple[tuple[int, ...], ...]


class Expected:
    """Sizes and positions that tensors should have after the cut."""

    def __init__(self, groups: ChannelGroups, alive: Mask) -> None:
        self._lost = groups.lost_ids(alive)
        self._known: dict[bytes, Any] = {}
        # by the `id` of an array, which is held
        self._seen: dict[int, tuple[Rows, Any]] = {}
        self._gone: dict[int, tuple[Rows, int]] = {}

    def kept(self, rows: Rows) -> Any:
        """Surviving positions of a dimension with these ids."""
        seen = self._seen.get(id(rows))
        if seen is None:
            key = rows.tobytes() + b"%d" % len(rows)
            if key not in self._known:
                self._known[key] = np.flatnonzero(surviving(rows, self._lost))
            seen = self._seen[id(rows)] = (rows, self._known[key])
        return seen[1]

    def num_lost(self, rows: Rows) -> int:
        """How many positions of a dimension with these ids go."""
        seen = self._gone.get(id(rows))
        if seen is None:
            seen = self._gone[id(rows)] = (rows, rows.shape[1] - len(self.kept(rows)))
        return seen[1]

    def left_out(self, record: OpRecord, now: str) -> bool:
        """Whether the cut network runs `now` without the recorded slice before it.

        A slice that takes everything is no op; alone in its brackets it is an alias.
        """
        if record.op != SLICE or now in (SLICE, ALIAS):
            return False
        (taken,), (whole,) = record.outputs, record.inputs
        return all(len(self.kept(taken[d])) == len(self.kept(whole[d])) for d in taken)

    def shapes(self, record: OpRecord, uncut: Shapes | None = None) -> Shapes:
        """Shapes of all outputs; `uncut`: those of a run in which sizes may depend on values."""
        if uncut is None and not any(record.outputs):
            return record.shapes
        found = []
        for shape, ids in zip(uncut or record.shapes, record.outputs, strict=True):
            sizes = list(shape)
            for dim, rows in ids.items():
                sizes[dim] -= self.num_lost(rows)
            found.append(tuple(sizes))
        return tuple(found)

    def select(self, tensor: Tensor, ids: dict[int, Rows]) -> Tensor:
        """The surviving part of a tensor of the uncut network."""
        for dim, rows in ids.items():
            index = torch.from_numpy(self.kept(rows)).to(tensor.device)
            tensor = tensor.index_select(dim, index)
        return tensor


def not_the_users(folder: Path) -> None:
    """Code in `folder` is a tool's: lines that call it are named in its place."""
    _not_the_users.append(f"{folder}{os.sep}")


def place_of(frame: FrameType | None) -> str:
    """The innermost line on the stack that is neither torch's nor a tool's."""
    while frame is not None:
        if _is_the_users(frame.f_code.co_filename):
            return _place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return _UNKNOWN


def _is_the_users(name: str) -> bool:
    return not name.startswith(tuple(_not_the_users))


def _place(name: str, number: int) -> str:
    """`model.py:12`; of code that was made at run time, as graphs are, what stands there."""
    if not name.startswith("<"):
        return f"{Path(name).name}:{number}"
    code = linecache.getline(name, number).strip().partition(";")[0]
    return f"`{code}`" if code else f"line {number} of generated code"


def place_of_error(error: TraceError) -> str:
    """The innermost line of the user's that an error went through."""
    cause = error.__cause__
    frames = traceback.extract_tb(cause.__traceback__) if cause is not None else []
    own = [f for f in frames if _is_the_users(f.filename)]
    return _place(own[-1].filename, own[-1].lineno or 0) if own else _UNKNOWN
