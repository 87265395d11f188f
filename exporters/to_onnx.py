"""torch module -> ONNX file.

Enters: a module and an `ExportRequest`. Leaves: one self-contained, cleaned and checked ONNX file
with the names asked and, by default, a dynamic batch. Refused: a module that fixes its batch, an
opset the exporter cannot give (it is neither lowered nor raised silently), weights of 2 GB or
more, which do not fit into one ONNX file.
"""

from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from exporters.capture import TORCH_ERRORS, capture, export_program, quiet
from exporters.cleanup import clean
from exporters.errors import ExportError, OpsetError, one_line
from exporters.files import write_atomically
from exporters.ports import cast_ports, name_sizes
from exporters.session import newest_opset

__all__ = ["MIN_OPSET", "ExportRequest", "OnnxFile", "export_onnx", "export_program"]

MIN_OPSET = 18
"""torch's exporter has no translation below this opset."""

_MAX_WEIGHT_BYTES = 2**31 - 2**20  # protobuf's limit for one message, less room for the graph


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export and where.

    example_inputs: (N, ...) tensors on the module's device; values do not matter, sizes do.
    path: the file to write, replaced only by a complete one.
    input_names: None gives the argument names of `forward`.
    output_names: None gives "output", "output_1", "output_2", ...
    opset: None gives the default of torch's exporter; the smallest possible is 18.
    dynamic_batch: dimension 0 of every input is free and called `batch_name`.
    free_sizes: further free dimensions of the first input, and what they are called.
    input_dtypes, output_dtypes: "float16", "float32" or "float64" where an input or output is to be
        of that type whatever the network computes in; None as the network has it.
    doc_string: stored in the file as the model's description.
    metadata: strings stored in the file's metadata_props.
    """

    example_inputs: tuple[Tensor, ...]
    path: Path
    input_names: tuple[str, ...] | None = None
    output_names: tuple[str, ...] | None = None
    opset: int | None = None
    dynamic_batch: bool = True
    batch_name: str = "batch"
    free_sizes: dict[int, str] = field(default_factory=dict)
    input_dtypes: tuple[str | None, ...] = ()
    output_dtypes: tuple[str | None, ...] = ()
    doc_string: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        newest = MIN_OPSET if self.opset is None else newest_opset()
        if self.opset is not None and not MIN_OPSET <= self.opset <= newest:
            raise ExportError(
                f"opset {self.opset} cannot be exported: choose {MIN_OPSET} to {newest}, the "
                "newest that the installed onnx and onnxruntime know"
            )
        for kind, names in (("input", self.input_names), ("output", self.output_names)):
            if names is not None and (len(set(names)) != len(names) or "" in names):
                raise ExportError(f"{kind} names must be distinct and not empty, got {names}")


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A written ONNX file, as it was found to be.

    size_bytes: with its external weights. opset: of the standard domain. dynamic_batch: whether
    dimension 0 of every input is free.
    """

    path: Path
    size_bytes: int
    opset: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_batch: bool


def export_onnx(model: nn.Module, request: ExportRequest) -> OnnxFile:
    """Export the module's inference mode, clean it up and write it; the module stays as it was.

    Raises ExportError (see the module's text); then nothing is written.
    """
    weight_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    if weight_bytes > _MAX_WEIGHT_BYTES:
        raise ExportError(
            f"the weights take {weight_bytes / 1e9:.2f} GB: one ONNX file holds at most 2 GB, "
            f"export a smaller or half-precision model"
        )
    # torch.onnx.export(module) retries with a static batch when the dynamic one fails, without a
    # word. Capturing first and exporting the captured program leaves it no such road.
    program = capture(
        model,
        request.example_inputs,
        dynamic_batch=request.dynamic_batch,
        free_sizes=tuple(request.free_sizes),
    )
    proto = clean(_translate(program, request))
    batch = {0: request.batch_name} if request.dynamic_batch else {}
    name_sizes(proto, batch | request.free_sizes, num_inputs=1)
    cast_ports(proto, request.input_dtypes, request.output_dtypes)
    proto.doc_string = request.doc_string or proto.doc_string
    onnx.helper.set_model_props(proto, request.metadata)
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    write_atomically(request.path, lambda file: file.write(content))
    return OnnxFile(
        path=request.path,
        size_bytes=len(content),
        opset=_opset(proto),
        input_names=tuple(value.name for value in proto.graph.input),
        output_names=tuple(value.name for value in proto.graph.output),
        dynamic_batch=request.dynamic_batch,
    )


def _cause(error: BaseException) -> str:
    """The innermost of a chain of errors: torch's outer ones are the same text for all causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def _translate(program: torch.export.ExportedProgram, request: ExportRequest) -> onnx.ModelProto:
    num_outputs = len(program.graph_signature.user_outputs)
    _require_count("input", request.input_names, len(request.example_inputs))
    _require_count("output", request.output_names, num_outputs)
    outputs = request.output_names or _default_output_names(num_outputs)
    with quiet():
        try:
            exported = torch.onnx.export(
                program,
                input_names=request.input_names,
                output_names=outputs,
                opset_version=request.opset,
                dynamo=True,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, *TORCH_ERRORS) as error:
            raise ExportError(f"torch.onnx cannot export the model: {_cause(error)}") from error
    if exported is None:
        raise ExportError("torch.onnx returned no model")
    proto = exported.model_proto
    if request.opset is not None and _opset(proto) != request.opset:
        raise OpsetError(
            f"opset {request.opset} was asked, torch's exporter gives {_opset(proto)} for this "
            f"model: ask for opset {_opset(proto)} or leave it out",
            possible=_opset(proto),
        )
    _require_names("input", request.input_names, [v.name for v in proto.graph.input])
    _require_names("output", outputs, [v.name for v in proto.graph.output])
    return proto


def _default_output_names(count: int) -> tuple[str, ...]:
    return tuple("output" if i == 0 else f"output_{i}" for i in range(count))


def _require_count(kind: str, names: tuple[str, ...] | None, count: int) -> None:
    if names is not None and len(names) != count:
        raise ExportError(f"{len(names)} {kind} names were given, the model has {count}: {names}")


def _require_names(kind: str, asked: tuple[str, ...] | None, found: list[str]) -> None:
    if asked is not None and list(asked) != found:
        raise ExportError(f"the exported {kind}s are called {found}, asked were {list(asked)}")


def _opset(proto: onnx.ModelProto) -> int:
    return next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
