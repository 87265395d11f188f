"""A run in one precision: what a forward casts to another is left as it is.

What enters: a precision, that of the network and its inputs. What leaves: a context in which casts
to another floating type, and new tensors of another, come out in this one. Two networks that round
to half in the middle would differ by that rounding alone, in what they compute they need not.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class OnePrecision(TorchDispatchMode):
    """Within, every floating tensor is of `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") in _FLOATS:
            kwargs = {**kwargs, "dtype": self._dtype}
        return func(*args, **kwargs)
