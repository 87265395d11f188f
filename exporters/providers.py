"""The execution providers: their names, their libraries, and what is missing where one fails.

Enters: a provider's short name. Leaves: onnxruntime's settings for it, or the reason why it cannot
run here with the command that installs it. Libraries come from the Python environment.
"""

import contextlib
import ctypes
import importlib.util
import io
from pathlib import Path

import onnxruntime

from exporters.errors import ExportError, ProviderError, one_line

ORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
PROVIDERS = tuple(ORT_NAMES)
"""Names of execution providers, the default first."""

_ON_GPU = ("cuda", "tensorrt")

_INSTALL = {
    "cpu": 'pip install "onnxruntime>=1.31"',
    "cuda": 'pip install "onnxruntime-gpu[cuda,cudnn]>=1.31"',
    "tensorrt": 'pip install "onnxruntime-gpu[cuda,cudnn]>=1.31" tensorrt',
    "openvino": "pip install onnxruntime-openvino",
}


def device_of(provider: str) -> str:
    """Where the provider keeps its tensors, by onnxruntime's name of the device."""
    return "cuda" if provider in _ON_GPU else "cpu"


def prepare(provider: str) -> None:
    """Load the libraries of a known provider.

    Raises ExportError for an unknown name, ProviderError where onnxruntime does not contain it.
    """
    if provider not in ORT_NAMES:
        raise ExportError(f"unknown provider {provider!r}: choose one of {', '.join(PROVIDERS)}")
    if ORT_NAMES[provider] not in onnxruntime.get_available_providers():
        raise ProviderError(f"provider {provider!r} did not load: {missing(provider)}")
    if provider in _ON_GPU:
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    if provider == "tensorrt":
        _preload_tensorrt()


def provider_list(
    provider: str, tf32: bool, threads: int | None
) -> list[str | tuple[str, dict[str, str]]]:
    """onnxruntime's `providers` argument; nodes that TensorRT leaves go to CUDA.

    threads: for OpenVINO, which has threads of its own; None leaves the choice to it.
    """
    cuda = (ORT_NAMES["cuda"], {"use_tf32": "1" if tf32 else "0"})
    if provider == "cuda":
        return [cuda]
    if provider == "tensorrt":
        return [ORT_NAMES["tensorrt"], cuda]
    if provider == "openvino" and threads is not None:
        return [(ORT_NAMES[provider], {"num_of_threads": str(threads)})]
    return [ORT_NAMES[provider]]


def missing(provider: str) -> str:
    """Why the provider cannot run here, with the command that installs it."""
    install = f"install it with: {_INSTALL[provider]}"
    if ORT_NAMES[provider] not in onnxruntime.get_available_providers():
        return f"this build of onnxruntime does not contain it; {install}"
    if provider not in _ON_GPU:
        return install
    # Slow to import, and needed only to word a failure.
    import torch

    reasons = []
    if not torch.cuda.is_available():
        reasons.append("no CUDA device is available")
        install = f"run on a machine with an NVIDIA GPU and its driver, and {install}"
    library = _library_error(provider)
    if library:
        reasons.append(f"a library is missing ({library})")
    return f"{' and '.join(reasons) or 'it does not support these nodes'}; {install}"


def _preload_tensorrt() -> None:
    """Load TensorRT from its wheel, whose folder no loader searches; what fails is named later."""
    found = importlib.util.find_spec("tensorrt_libs")
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            for library in sorted(Path(folder).glob(f"*{name}.*")):
                with contextlib.suppress(OSError):
                    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


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
