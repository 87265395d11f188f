"""Open and run onnxruntime sessions: the only place that does.

Enters: an ONNX file or its bytes, and the execution provider asked for. Leaves: a `Session` whose
convolutions and matrix products were placed on that provider, which is checked against
onnxruntime's own record. Refused: a provider that is missing or did not take those nodes (never
the CPU in its place), an unreadable file, inputs that do not fit.
"""

import contextlib
import ctypes
import io
import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from exporters.errors import ExportError, ProviderError, one_line

Array = npt.NDArray[np.generic]

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
PROVIDERS = tuple(_PROVIDERS)

_INSTALL = {
    "cpu": 'pip install "onnxruntime>=1.31"',
    "cuda": 'pip install "onnxruntime-gpu[cuda,cudnn]>=1.31"',
    "tensorrt": 'pip install "onnxruntime-gpu[cuda,cudnn]>=1.31" tensorrt',
    "openvino": "pip install onnxruntime-openvino",
}

# The work a provider is chosen for. What else it leaves to another one (shape arithmetic, mostly)
# is no failure; it is listed in Session.nodes_elsewhere.
_COMPUTE_OPS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Attention", "FusedConv", "FusedGemm"}
    | {"FusedMatMul", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm"}
)

# onnxruntime's errors have no common base but Exception.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    *(ort_state.EPFail, ort_state.EngineError, ort_state.Fail, ort_state.InvalidArgument),
    *(ort_state.InvalidGraph, ort_state.InvalidProtobuf, ort_state.NoModel),
    *(ort_state.NoSuchFile, ort_state.NotImplemented, ort_state.RuntimeException),
    *(RuntimeError, ValueError, TypeError),
)

_DTYPES: dict[str, npt.DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class Session:
    """A loaded ONNX graph on one execution provider; made by `open_session`."""

    def __init__(self, session: onnxruntime.InferenceSession, provider: str, source: str) -> None:
        self._session = session
        self._source = source
        self.provider = provider
        inputs = session.get_inputs()
        self.input_names: tuple[str, ...] = tuple(i.name for i in inputs)
        self.input_shapes: dict[str, tuple[int | str | None, ...]] = {
            i.name: tuple(i.shape) for i in inputs
        }
        self._input_types: dict[str, str] = {i.name: i.type for i in inputs}
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
        except _ORT_ERRORS as error:
            raise ExportError(f"{self._source} did not run: {one_line(error)}") from error

    def as_taken(self, batch: Array) -> Array:
        """The values of `batch` as a graph of one input takes them: rounded to its type."""
        name, _ = self._only_input()
        return batch.astype(self._float_type(name, batch), copy=False)

    def run_batch(self, batch: Array) -> list[Array]:
        """Run a graph of one input on (N, ...) of any N; each output is (N, ...).

        Where the file fixes its batch, N is cut into such batches, the last one filled up by
        repeating its last sample, and the fill is cut off the outputs. Floating-point values are
        converted to the input's own floating-point type. Raises ExportError.
        """
        name, shape = self._only_input()
        batch = batch.astype(self._float_type(name, batch), copy=False)
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

    def _float_type(self, name: str, batch: Array) -> npt.DTypeLike:
        dtype = np.dtype(_DTYPES.get(self._input_types[name], batch.dtype))
        both_float = np.issubdtype(dtype, np.floating) and np.issubdtype(batch.dtype, np.floating)
        return dtype if both_float else batch.dtype

    def _check_placement(self) -> dict[str, int]:
        """Op type -> nodes left to another provider; ProviderError for the ones that matter."""
        wanted = _PROVIDERS[self.provider]
        elsewhere: Counter[str] = Counter()
        left: list[str] = []
        for subgraph in self._session.get_provider_graph_assignment_info():
            if subgraph.ep_name == wanted:
                continue
            for node in subgraph.get_nodes():
                elsewhere[node.op_type] += 1
                if node.op_type in _COMPUTE_OPS:
                    left.append(f"{node.op_type} {node.name!r} on {subgraph.ep_name}")
        if left:
            raise ProviderError(
                f"provider {self.provider!r} did not run {len(left)} compute nodes of "
                f"{self._source}: {', '.join(left[:5])}{', ...' if len(left) > 5 else ''}; "
                f"{_missing(self.provider)}"
            )
        if wanted not in self._session.get_providers():
            raise ProviderError(
                f"provider {self.provider!r} did not load for {self._source}: "
                f"{_missing(self.provider)}"
            )
        return dict(sorted(elsewhere.items()))


def open_session(
    path_or_bytes: Path | str | bytes,
    provider: str = "cpu",
    threads: int | None = None,
    *,
    tf32: bool = False,
) -> Session:
    """Load an ONNX graph on `provider`, one of "cpu", "cuda", "tensorrt", "openvino".

    threads: of one op on the CPU; None leaves the choice to onnxruntime.
    tf32: let CUDA round fp32 products to TF32. onnxruntime's own default, but its error of about
    1e-3 hides what a parity check looks for, so here it must be asked for.
    Raises ProviderError when the provider does not run the compute nodes, with what is missing and
    how to install it, and ExportError for a file that cannot be loaded.
    """
    if provider not in _PROVIDERS:
        raise ExportError(f"unknown provider {provider!r}: choose one of {', '.join(PROVIDERS)}")
    source = "the model" if isinstance(path_or_bytes, bytes) else str(path_or_bytes)
    model = path_or_bytes if isinstance(path_or_bytes, bytes) else os.fspath(path_or_bytes)
    if _PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise ProviderError(f"provider {provider!r} did not load: {_missing(provider)}")
    # Its failures come back as exceptions; the same lines on stderr would only be noise.
    onnxruntime.set_default_logger_severity(4)
    if provider in ("cuda", "tensorrt"):
        _preload_libraries()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = onnxruntime.InferenceSession(
                model,
                _options(threads),
                providers=_provider_list(provider, tf32),
                enable_fallback=0,
            )
    except _ORT_ERRORS as error:
        if provider != "cpu" and not isinstance(error, _FILE_ERRORS):
            raise ProviderError(
                f"provider {provider!r} did not load {source}: {_missing(provider)} "
                f"({one_line(error)})"
            ) from error
        raise ExportError(f"{source}: cannot be loaded ({one_line(error)})") from error
    return Session(session, provider, source)


_FILE_ERRORS = (
    *(ort_state.InvalidProtobuf, ort_state.NoSuchFile),
    *(ort_state.InvalidGraph, ort_state.NoModel),
)


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        if threads < 1:
            raise ExportError(f"threads must be at least 1, got {threads}")
        options.intra_op_num_threads = threads
    # The proof of who ran what. "session.disable_cpu_ep_fallback" would refuse graphs whose shape
    # arithmetic onnxruntime keeps on the CPU by design, so the placement is judged node by node.
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _provider_list(provider: str, tf32: bool) -> list[str | tuple[str, dict[str, str]]]:
    cuda = (_PROVIDERS["cuda"], {"use_tf32": "1" if tf32 else "0"})
    if provider == "cuda":
        return [cuda]
    if provider == "tensorrt":
        return [_PROVIDERS["tensorrt"], cuda]
    return [_PROVIDERS[provider]]


def _preload_libraries() -> None:
    """Load the CUDA libraries of the Python environment; importing torch has loaded its own."""
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _missing(provider: str) -> str:
    """Why the provider cannot run here, with the command that installs it."""
    install = f"install it with: {_INSTALL[provider]}"
    if _PROVIDERS[provider] not in onnxruntime.get_available_providers():
        return f"this build of onnxruntime does not contain it; {install}"
    if provider not in ("cuda", "tensorrt"):
        return install
    reasons = []
    if not torch.cuda.is_available():
        reasons.append("no CUDA device is available")
        install = f"run on a machine with an NVIDIA GPU and its driver, and {install}"
    library = _library_error(provider)
    if library:
        reasons.append(f"a library is missing ({library})")
    return f"{' and '.join(reasons) or 'it does not support these nodes'}; {install}"


def _library_error(provider: str) -> str | None:
    """What the system's loader says of the provider's library, which onnxruntime only logs."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    for name in ("shared", provider):
        for library in folder.glob(f"*onnxruntime_providers_{name}.*"):
            try:
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                return one_line(str(error).replace(f"{library}: ", ""), 160)
    return None
