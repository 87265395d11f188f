"""Which function imports which op: `@importer("Conv", since=1)`.

What enters: functions, by the name of the op and the opset from which their reading of it holds.
What leaves: the one for a node. A version of an op newer than those that were read for this
package is not imported by an older reading.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import onnx

from pipeline.importers.onnx_in.values import Value

if TYPE_CHECKING:
    from pipeline.importers.onnx_in.context import Op

Result: TypeAlias = Value | tuple[Value | None, ...]
OpImporter: TypeAlias = Callable[["Op"], Result]
_F = TypeVar("_F", bound=Callable[..., Result])

READ_UP_TO = 28
"""The newest opset whose texts were read; a later version of an op may mean something else."""

_IMPORTERS: dict[str, dict[int, OpImporter]] = {}


def importer(*names: str, since: int = 1) -> Callable[[_F], _F]:
    """Register a function for the ops `names` from opset `since` on."""

    def register(function: _F) -> _F:
        for name in names:
            versions = _IMPORTERS.setdefault(name, {})
            assert since not in versions, f"{name} since {since} is registered twice"
            versions[since] = function
        return function

    return register


def find_importer(op_type: str, opset: int) -> OpImporter | None:
    """The function for this op in this opset; None: not supported."""
    try:
        version = onnx.defs.get_schema(op_type, opset, "").since_version
    except onnx.defs.SchemaError:
        return None
    versions = _IMPORTERS.get(op_type, {})
    fitting = [since for since in versions if since <= version]
    if not fitting or version > READ_UP_TO:
        return None
    return versions[max(fitting)]


def supported_ops() -> tuple[str, ...]:
    """All names with an importer, sorted."""
    return tuple(sorted(_IMPORTERS))
