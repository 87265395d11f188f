"""Find out what a pickle would do, without doing any of it.

What enters: the bytes of a pickle. What leaves: a `PickleUse` with the globals it names, those it
calls, and those whose instances it sets the state of. Every global is replaced by an inert class,
so nothing of the file runs; opcodes that Python's own unpickler refuses are refused.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO


@dataclass(frozen=True, kw_only=True)
class PickleUse:
    """Names of globals (`module.name`) by what the pickle does with them."""

    named: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    created: set[str] = field(default_factory=set)
    state_set: set[str] = field(default_factory=set)


class _InertType(type):
    """The class of the stand-ins: calling one only notes that it was called."""

    on_call: Callable[[], object]

    def __call__(cls, *_args: object, **_kwargs: object) -> Any:
        return cls.on_call()


class _Inert:
    """An instance that accepts whatever a pickle does to it and does nothing."""

    def __setitem__(self, _key: object, _value: object) -> None:
        return None

    def append(self, _item: object) -> None:
        """Take a list item."""

    def extend(self, _items: object) -> None:
        """Take list items."""

    def add(self, _item: object) -> None:
        """Take a set item."""


class _DryRun(pickle.Unpickler):
    def __init__(self, file: BinaryIO, use: PickleUse) -> None:
        super().__init__(file, encoding="latin1")
        self.use = use

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        full_name = f"{module_name}.{global_name}"
        self.use.named.add(full_name)

        def create(_cls: type, *_args: object, **_kwargs: object) -> object:
            self.use.created.add(full_name)
            return object.__new__(inert)

        def call() -> object:
            self.use.called.add(full_name)
            return object.__new__(inert)

        def set_state(_self: object, _state: object) -> None:
            self.use.state_set.add(full_name)

        body = {"__new__": create, "__setstate__": set_state}
        inert: Any = _InertType("Inert", (_Inert,), body)
        inert.on_call = call
        return inert

    def persistent_load(self, pid: object) -> Any:
        # The old format keeps the class of a module, with its source text, as such an id.
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":
            return pid[1]
        return _Inert()


def dry_run(file: BinaryIO, num_pickles: int = 1) -> PickleUse:
    """What the next `num_pickles` pickles of `file` would do.

    Raises what `pickle` raises on a stream it cannot read; what was found before that is lost.
    """
    use = PickleUse()
    for _ in range(num_pickles):
        _DryRun(file, use).load()
    return use


def globals_before_failure(file: BinaryIO, num_pickles: int) -> set[str]:
    """The globals named until the stream ends or breaks, for the text of a refusal."""
    use = PickleUse()
    try:
        for _ in range(num_pickles):
            _DryRun(file, use).load()
    except PICKLE_ERRORS:
        return use.named
    return use.named


# What reading a broken or hostile pickle raises, in Python's unpickler and in torch's.
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
