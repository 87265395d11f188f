"""Open and run onnxruntime sessions: the only place that does.

Enters: an ONNX file or its bytes, and the execution provider asked for. Leaves: a `Session` whose
convolutions and matrix products were placed on that provider, which is checked against
onnxruntime's own record. Refused: a provider that is missing or did not take those nodes (never
the CPU in its place), an unreadable file, inputs that do not fit.
"""

import functools
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from exporters.errors import ExportError, ProviderError, one_line
from exporters.providers import ORT_NAMES, device_of, missing, prepare, provider_list

Array = npt.NDArray[np.generic]

# The work a provider is chosen for. What else it leaves to another one (shape arithmetic, mostly)
# is no failure; it is listed in Session.nodes_elsewhere.
_COMPUTE_OPS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Attention", "FusedConv", "FusedGemm"}
    | {"FusedMatMul", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm"}
    | {"DeformConv", "NhwcConv", "NhwcFusedConv", "LSTM", "GRU", "RNN", "MultiHeadAttention"}
    | {"GroupQueryAttention", "QAttention", "MatMulNBits", "DynamicQuantizeMatMul"}
    | {"MatMulIntegerToFloat"}
)

# onnxruntime's errors have no common base but Exception.
ORT_ERRORS: tuple[type[Exception], ...] = (
    *(ort_state.EPFail, ort_state.EngineError, ort_state.Fail, ort_state.InvalidArgument),
    *(ort_state.InvalidGraph, ort_state.InvalidProtobuf, ort_state.NoModel),
    *(ort_state.NoSuchFile, ort_state.NotImplemented, ort_state.RuntimeException),
    *(RuntimeError, ValueError, TypeError),
)

DTYPES: dict[str, npt.DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class BoundRun:
    """One run of a graph, again and again, on inputs that stay on the provider's device.

    Outputs stay there too, so that calling it takes the time of the computation alone.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        inputs: dict[str, Array],
        device: str,
        source: str,
    ) -> None:
        self._session = session
        self._source = source
        try:
            self._binding = session.io_binding()
            for name, value in inputs.items():
                bound = onnxruntime.OrtValue.ortvalue_from_numpy(value, device, 0)
                self._binding.bind_ortvalue_input(name, bound)
            for output in session.get_outputs():
                self._binding.bind_output(output.name, device)
        except ORT_ERRORS as error:
            raise ExportError(f"{source}: inputs do not fit: {one_line(error)}") from error

    def __call__(self) -> None:
        """Run once and wait until the device has finished. Raises ExportError."""
        try:
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except ORT_ERRORS as error:
            raise ExportError(f"{self._source} did not run: {one_line(error)}") from error

    def output_devices(self) -> tuple[str, ...]:
        """Where each output is after a run, by onnxruntime's name of the device."""
        return tuple(value.device_name() for value in self._binding.get_outputs())


class Session:
    """A loaded ONNX graph on one execution provider; made by `open_session`."""

    def __init__(self, session: onnxruntime.InferenceSession, provider: str, source: str) -> None:
        self._session = session
        self._source = source
        self.provider = provider
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        inputs = session.get_inputs()
        self.input_names: tuple[str, ...] = tuple(i.name for i in inputs)
        self.input_shapes: dict[str, tuple[int | str | None, ...]] = {
            i.name: tuple(i.shape) for i in inputs
        }
        self.input_types: dict[str, str] = {i.name: i.type for i in inputs}
        self.output_names: tuple[str, ...] = tuple(o.name for o in session.get_outputs())
        self.gives_half = any(o.type == "tensor(float16)" for o in session.get_outputs())
        self.nodes_elsewhere = self._check_placement()

    @property
    def batch_is_dynamic(self) -> bool:
        """Whether dimension 0 of every input is free."""
        return all(not isinstance(s[0], int) for s in self.input_shapes.values() if s)

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        """Run once; outputs in the order of `output_names`. Raises ExportError.

        Never repeated on another provider when this one fails.
        """
        try:
            return list(self._session.run(None, inputs))
        except ORT_ERRORS as error:
            raise ExportError(f"{self._source} did not run: {one_line(error)}") from error

    def bind(self, inputs: dict[str, Array]) -> "BoundRun":
        """The inputs where the provider keeps its tensors, to be run on again and again."""
        return BoundRun(self._session, inputs, device_of(self.provider), self._source)

    def end_profiling(self) -> Path:
        """The file with the times of every node, for a session opened with `profile`."""
        return Path(self._session.end_profiling())

    def as_taken(self, batch: Array) -> Array:
        """The values of `batch` as a graph of one input takes them: rounded to its type."""
        name, _ = self._only_input()
        return self.as_input(name, batch)

    def run_batch(self, batch: Array) -> list[Array]:
        """Run a graph of one input on (N, ...) of any N; each output is (N, ...).

        Where the file fixes its batch, N is cut into such batches, the last one filled up by
        repeating its last sample, and the fill is cut off the outputs. Floating-point values are
        converted to the input's own floating-point type. Raises ExportError.
        """
        name, shape = self._only_input()
        batch = self.as_input(name, batch)
        size = shape[0] if isinstance(shape[0], int) else max(len(batch), 1)
        parts = [batch[i : i + size] for i in range(0, len(batch), size)]
        if not parts:
            raise ExportError(f"{self._source}: a batch without samples cannot be run")
        results = [self._run_part(name, part, size) for part in parts]
        return [np.concatenate(outputs) for outputs in zip(*results, strict=True)]

    def _run_part(self, name: str, part: Array, size: int) -> list[Array]:
        fill = np.repeat(part[-1:], size - len(part), axis=0)
        outputs = self.run({name: np.concatenate([part, fill]) if len(fill) else part})
        for output_name, output in zip(self.output_names, outputs, strict=True):
            if output.ndim == 0 or len(output) != size:
                raise ExportError(
                    f"{self._source}: output {output_name!r} is {output.shape} for a batch of "
                    f"{size}, so its samples cannot be told apart"
                )
        return [output[: len(part)] for output in outputs]

    def _only_input(self) -> tuple[str, tuple[int | str | None, ...]]:
        if len(self.input_names) != 1:
            raise ExportError(
                f"{self._source} has {len(self.input_names)} inputs {list(self.input_names)}: only "
                f"graphs of one input can be run on batches"
            )
        name = self.input_names[0]
        if not self.input_shapes[name]:
            raise ExportError(f"{self._source}: input {name!r} is a scalar, it has no batch")
        return name, self.input_shapes[name]

    def as_input(self, name: str, values: Array) -> Array:
        """Floating-point values in the input's own floating-point type; others as they are."""
        dtype = np.dtype(DTYPES.get(self.input_types[name], values.dtype))
        both_float = np.issubdtype(dtype, np.floating) and np.issubdtype(values.dtype, np.floating)
        return values.astype(dtype, copy=False) if both_float else values

    def _check_placement(self) -> dict[str, int]:
        """Op type -> nodes left to another provider; ProviderError for the ones that matter."""
        wanted = ORT_NAMES[self.provider]
        elsewhere: Counter[str] = Counter()
        left: list[str] = []
        ran = False
        for subgraph in self._session.get_provider_graph_assignment_info():
            if subgraph.ep_name == wanted:
                ran = True
                continue
            for node in subgraph.get_nodes():
                elsewhere[node.op_type] += 1
                if node.op_type in _COMPUTE_OPS:
                    left.append(f"{node.op_type} {node.name!r} on {subgraph.ep_name}")
        if left:
            raise ProviderError(
                f"provider {self.provider!r} did not run {len(left)} compute nodes of "
                f"{self._source}: {', '.join(left[:5])}{', ...' if len(left) > 5 else ''}; "
                f"{missing(self.provider)}"
            )
        if wanted not in self._session.get_providers() or (elsewhere and not ran):
            raise ProviderError(
                f"provider {self.provider!r} did not load for {self._source}: "
                f"{missing(self.provider)}"
            )
        return dict(sorted(elsewhere.items()))


def open_session(
    path_or_bytes: Path | str | bytes,
    provider: str = "cpu",
    threads: int | None = None,
    *,
    cores: Sequence[int] = (),
    tf32: bool = False,
    profile: Path | None = None,
) -> Session:
    """Load an ONNX graph on `provider`, one of "cpu", "cuda", "tensorrt", "openvino".

    threads: of one op on the CPU; None leaves the choice to onnxruntime.
    cores: where these threads stay, one each, the first for the calling thread; empty pins none.
    tf32: let CUDA round fp32 products to TF32. onnxruntime's own default, but its error of about
    1e-3 hides what a parity check looks for, so here it must be asked for.
    profile: begin of the name of the file that `Session.end_profiling` writes.
    Raises ProviderError when the provider does not run the compute nodes, with what is missing and
    how to install it, and ExportError for a file that cannot be loaded.
    """
    # Its failures come back as exceptions; the same lines on stderr would only be noise.
    onnxruntime.set_default_logger_severity(4)
    prepare(provider)
    source = "the model" if isinstance(path_or_bytes, bytes) else str(path_or_bytes)
    model = path_or_bytes if isinstance(path_or_bytes, bytes) else os.fspath(path_or_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = onnxruntime.InferenceSession(
                model,
                _options(threads, cores, profile),
                providers=provider_list(provider, tf32, threads),
                enable_fallback=0,
            )
    except ORT_ERRORS as error:
        if provider != "cpu" and not isinstance(error, _FILE_ERRORS):
            raise ProviderError(
                f"provider {provider!r} did not load {source}: {missing(provider)} "
                f"({one_line(error)})"
            ) from error
        raise ExportError(f"{source}: cannot be loaded ({one_line(error)})") from error
    return Session(session, provider, source)


@functools.cache
def newest_opset() -> int:
    """The newest opset that the installed onnx can write and onnxruntime runs. Raises nothing."""
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "tried", value[:1], value[1:])
    newest = int(onnx.defs.onnx_opset_version())
    while newest > 1:
        opset = onnx.helper.make_opsetid("", newest)
        # the oldest form of file there is: it is the opset alone that is tried
        model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
        try:
            open_session(model.SerializeToString())
        except ExportError:
            newest -= 1
        else:
            break
    return newest


def write_ort(source: Path, target: Path) -> None:
    """The same graph in onnxruntime's own format, which its builds for mobile read.

    Optimised but for layouts of this machine's processor. Raises ExportError.
    """
    options = _options(1, ())
    options.optimized_model_filepath = os.fspath(target)
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        onnxruntime.InferenceSession(
            os.fspath(source),
            options,
            providers=[ORT_NAMES["cpu"]],
            disabled_optimizers=["NchwcTransformer"],
        )
    except ORT_ERRORS as error:
        raise ExportError(f"{source}: cannot be written as .ort ({one_line(error)})") from error


_FILE_ERRORS = (
    *(ort_state.InvalidProtobuf, ort_state.NoSuchFile),
    *(ort_state.InvalidGraph, ort_state.NoModel),
)


def _options(
    threads: int | None, cores: Sequence[int], profile: Path | None = None
) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile)
    options.log_severity_level = 4
    if threads is not None:
        if threads < 1:
            raise ExportError(f"threads must be at least 1, got {threads}")
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if len(cores) > 1:
        # One for each thread but the calling one, counted from 1.
        pinned = ";".join(str(core + 1) for core in cores[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", pinned)
    # Idle threads would go on spinning after a run, and take the cores from another session.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # The proof of who ran what. "session.disable_cpu_ep_fallback" would refuse graphs whose shape
    # arithmetic onnxruntime keeps on the CPU by design, so the placement is judged node by node.
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options
