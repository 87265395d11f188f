"""The onnx package's own tests of each op, run through the importer.

No command: `benchmarks.onnx_in` and the tests use it. What enters: a case of the package (a model
of one node, inputs, expected outputs). What leaves: "passed", "refused: why" or "wrong: how".
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from pipeline.errors import UsageError, one_line
from pipeline.importers.onnx_in import import_proto
from pipeline.importers.onnx_in.errors import FOREIGN

Values = list[Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`kind`: passed, refused or wrong; `detail` says why."""

    kind: str
    detail: str = ""


def node_cases() -> Iterator[Any]:
    """Every case of the package for one node; those whose model grows a node into many as well."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    yield from cases


def run_case(model: onnx.ModelProto, data: tuple[Values, Values], rtol: float) -> Outcome:
    """Import and run one case; what must be a constant is one in a second try."""
    inputs, outputs = ([_array(value) for value in values] for values in data)
    if not all(isinstance(value, np.ndarray | np.generic) for value in [*inputs, *outputs]):
        return Outcome(kind="refused", detail="a sequence, map or optional as input or output")
    if any(value.dtype.kind not in "fiub" for value in map(np.asarray, [*inputs, *outputs])):
        return Outcome(kind="refused", detail="an element type without a counterpart in torch")
    refusal = ""
    for num_live in dict.fromkeys((len(inputs), 1)):
        try:
            return _compared(_run(model, inputs, num_live), outputs, rtol)
        except UsageError as error:
            refusal = refusal or str(error)
        except FOREIGN as error:
            return Outcome(kind="wrong", detail=one_line(error, 300))
    return Outcome(kind="refused", detail=refusal)


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _run(model: onnx.ModelProto, inputs: Values, num_live: int) -> list[Any]:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for value, given in list(zip(copied.graph.input, inputs, strict=True))[num_live:]:
        copied.graph.initializer.append(numpy_helper.from_array(np.asarray(given), value.name))
    imported = import_proto(copied, Path())
    given = [torch.from_numpy(np.array(value)) for value in inputs[:num_live]]
    with torch.no_grad():
        found = imported.module(*given)
    return [t.numpy() for t in (found if isinstance(found, tuple) else (found,))]


def _compared(found: Values, expected: Values, rtol: float) -> Outcome:
    if len(found) != len(expected):
        return Outcome(kind="wrong", detail=f"{len(found)} outputs for {len(expected)}")
    for ours, theirs in zip(found, map(np.asarray, expected), strict=True):
        if ours.shape != theirs.shape:
            return Outcome(kind="wrong", detail=f"shape {ours.shape} for {theirs.shape}")
        if theirs.dtype.kind == "f":
            # half precision is computed in float32, and double in float32 where inputs are
            atol = 1e-3 if theirs.dtype.itemsize == 2 else 1e-5
            same = np.allclose(ours.astype(theirs.dtype), theirs, rtol, atol, equal_nan=True)
        else:
            same = ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
        if not same:
            gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
            return Outcome(
                kind="wrong", detail=f"{ours.dtype} for {theirs.dtype}, up to {gap.max():.3g} apart"
            )
    return Outcome(kind="passed")
