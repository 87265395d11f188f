"""Fewer bits: an ONNX file in half precision, or quantised to 8 bits.

Enters: an fp32 ONNX file; for int8, real inputs and a way to measure accuracy. Leaves: a new file
with the same fp32 inputs and outputs, names and metadata. Refused: weights that half precision
cannot hold, graphs without anything to quantise, no calibration inputs.

Both conversions are onnxruntime's own. int8 is static QDQ with weights scaled per channel. How
activations are calibrated is chosen by accuracy; where that does not suffice, the most sensitive
layers stay in float, as few as will do.
"""

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from exporters.cleanup import clean
from exporters.errors import ExportError, one_line
from exporters.files import load_onnx, write_atomically
from exporters.lean import lean
from exporters.session import ORT_ERRORS, Array, open_session

PRECISIONS = ("fp32", "fp16", "int8")
"""What a file can compute in."""
FP16_TOLERANCE = 1e-2
"""Allowed difference of a half-precision file from fp32, as a share of the output's scale."""

_FP16_MAX = 65504.0
_CALIBRATIONS = ("minmax", "percentile", "entropy")
_LAYER_OPS = ("Conv", "Gemm", "MatMul")
# What onnxruntime fuses with 8-bit neighbours; the rest would only gain conversions.
_QUANTISED_OPS = [
    *("Conv", "Gemm", "MatMul", "Add", "Concat", "Relu", "Clip"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Flatten", "Reshape", "Squeeze", "Transpose"),
]

Inputs = dict[str, Array]


def to_fp16(source: Path, target: Path) -> None:
    """Weights and computation in half precision; inputs and outputs stay fp32.

    Raises ExportError, naming the weight that is out of range.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = load_onnx(source)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            largest = float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0.0))
            if not largest <= _FP16_MAX:
                raise ExportError(
                    f"{source}: weight {tensor.name!r} reaches {largest:.4g}, half precision ends "
                    f"at {_FP16_MAX:g}: use fp32 or int8"
                )
    try:
        with _quiet():
            converted = convert_float_to_float16(copy.deepcopy(model), keep_io_types=True)
        # The casts of the inputs come last in what it makes; this puts the nodes in order.
        converted = clean(converted)
    except ORT_ERRORS as error:
        raise ExportError(
            f"{source}: cannot be converted to half precision ({one_line(error)})"
        ) from error
    write_atomically(target, lambda file: file.write(converted.SerializeToString()))


@dataclass(frozen=True, kw_only=True)
class Int8Request:
    """What quantising needs besides the file.

    calibration: gives the same real inputs, by input name, each time it is called.
    accuracy: of a file, a fraction. least_accuracy: what must hold; None takes what comes.
    symmetric: zero points at zero, as TensorRT wants them.
    """

    calibration: Callable[[], Iterable[Inputs]]
    accuracy: Callable[[Path], float]
    least_accuracy: float | None = None
    symmetric: bool = False


@dataclass(frozen=True, kw_only=True)
class Int8Result:
    """What was chosen.

    calibration: the method. tried: method -> accuracy with all layers quantised. accuracy: of the
    file written. float_layers: nodes left in float, the most sensitive first.
    """

    calibration: str
    tried: dict[str, float]
    accuracy: float
    float_layers: tuple[str, ...]
    num_layers: int


def to_int8(source: Path, target: Path, request: Int8Request) -> Int8Result:
    """Quantise `source`; where `least_accuracy` cannot be reached, `target` is the most accurate
    file that was tried. Raises ExportError.
    """
    with tempfile.TemporaryDirectory() as folder:
        quantiser = _Quantiser(source, Path(folder), request)
        tried = {m: request.accuracy(quantiser.file(m)) for m in _CALIBRATIONS}
        method = max(_CALIBRATIONS, key=lambda m: tried[m])
        found, accuracy = quantiser.file(method), tried[method]
        in_float: tuple[str, ...] = ()
        least = request.least_accuracy
        if least is not None and accuracy < least:
            found, accuracy, in_float = _leave_in_float(quantiser, method, least)
        model = lean(load_onnx(found))
        # The quantiser notes its own steps there.
        del model.metadata_props[:]
        model.metadata_props.extend(load_onnx(source).metadata_props)
        write_atomically(target, lambda file: file.write(model.SerializeToString()))
        return Int8Result(
            calibration=method,
            tried=tried,
            accuracy=accuracy,
            float_layers=in_float,
            num_layers=len(quantiser.layers),
        )


def like_int8(source: Path, target: Path, inputs: Inputs, *, symmetric: bool) -> None:
    """All layers quantised, with the ranges of these inputs: for the time it takes, no more.

    Raises ExportError.
    """
    request = Int8Request(calibration=lambda: [inputs], accuracy=lambda _: 0.0, symmetric=symmetric)
    with tempfile.TemporaryDirectory() as folder:
        found = _Quantiser(source, Path(folder), request).file(_CALIBRATIONS[0])
        content = found.read_bytes()
        write_atomically(target, lambda file: file.write(content))


def _leave_in_float(
    quantiser: "_Quantiser", method: str, least: float
) -> tuple[Path, float, tuple[str, ...]]:
    """The fewest layers, by bisection over their order of sensitivity; one stays quantised."""
    order = sorted(
        quantiser.layers, key=lambda layer: quantiser.error_of(method, layer), reverse=True
    )
    tried: dict[int, tuple[float, Path]] = {}
    low, high = 0, len(order) - 1
    while low <= high:
        middle = (low + high) // 2
        path = quantiser.file(method, in_float=order[:middle])
        accuracy = quantiser.accuracy(path)
        tried[middle] = (accuracy, path)
        low, high = (low, middle - 1) if accuracy >= least else (middle + 1, high)
    enough = [count for count, (accuracy, _) in tried.items() if accuracy >= least]
    best = min(enough) if enough else max(tried, key=lambda count: tried[count][0])
    accuracy, path = tried[best]
    return path, accuracy, tuple(order[:best])


class _Quantiser:
    """Writes quantised versions of one file; each calibration is done once."""

    def __init__(self, source: Path, folder: Path, request: Int8Request) -> None:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self._source = source
        self._folder = folder
        self._request = request
        self._prepared = folder / "prepared.onnx"
        model = load_onnx(source)
        self.layers = [n.name for n in model.graph.node if n.op_type in _LAYER_OPS and n.name]
        if not self.layers:
            raise ExportError(f"{source}: has no named {', '.join(_LAYER_OPS)} to quantise")
        try:
            with _quiet():
                quant_pre_process(
                    str(source),
                    str(self._prepared),
                    skip_optimization=True,
                    skip_symbolic_shape=True,
                )
        except ORT_ERRORS as error:
            raise ExportError(f"{source}: cannot be quantised ({one_line(error)})") from error
        self.accuracy = request.accuracy
        self._expected: list[Array] | None = None
        self._count = 0

    def file(self, method: str, *, in_float: Iterable[str] = (), only: Iterable[str] = ()) -> Path:
        """All layers quantised but those `in_float`, or `only` these."""
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
        from onnxruntime.quantization import quantize_static as quantise

        self._count += 1
        path = self._folder / f"{self._count}.onnx"
        symmetric = self._request.symmetric
        try:
            with _quiet():
                quantise(
                    str(self._prepared),
                    str(path),
                    None,
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=_QUANTISED_OPS,
                    per_channel=True,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                    nodes_to_quantize=list(only),
                    nodes_to_exclude=list(in_float),
                    calibrate_method=_methods(CalibrationMethod)[method],
                    extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
                    calibration_cache_path=self._ranges(method),
                )
        except ORT_ERRORS as error:
            raise ExportError(f"{self._source}: cannot be quantised ({one_line(error)})") from error
        return path

    def error_of(self, method: str, layer: str) -> float:
        """Mean square difference of the outputs when this layer alone is quantised."""
        batch = next(iter(self._request.calibration()))
        if self._expected is None:
            self._expected = open_session(self._source).run(batch)
        found = open_session(self.file(method, only=[layer])).run(batch)
        return sum(
            float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
            for a, b in zip(self._expected, found, strict=True)
        )

    def _ranges(self, method: str) -> Path:
        """The file of the activations' ranges, calibrated batch by batch to bound the memory."""
        from onnxruntime.quantization import CalibrationMethod
        from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

        path = self._folder / f"{method}.json"
        if path.is_file():
            return path
        calibrator = create_calibrator(
            self._prepared,
            _QUANTISED_OPS,
            augmented_model_path=str(self._folder / f"{method}-augmented.onnx"),
            calibrate_method=_methods(CalibrationMethod)[method],
            extra_options={"symmetric": self._request.symmetric},
        )
        batches = 0
        with _quiet():
            for batch in self._request.calibration():
                calibrator.collect_data(_Once(batch))
                batches += 1
            if batches == 0:
                raise ExportError(f"{self._source}: int8 needs real inputs to calibrate, none came")
            save_tensors_data(calibrator.compute_data(), path)
        return path


class _Once:
    """One batch, as onnxruntime's calibrators read data."""

    def __init__(self, batch: Inputs) -> None:
        self._left: list[Inputs] = [batch]

    def get_next(self) -> Inputs | None:
        return self._left.pop() if self._left else None


def _methods(kinds: "type") -> dict[str, object]:
    found = (getattr(kinds, name) for name in ("MinMax", "Percentile", "Entropy"))
    return dict(zip(_CALIBRATIONS, found, strict=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's tools log advice that is followed here, and print what they do."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
