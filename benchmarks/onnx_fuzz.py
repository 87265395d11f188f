"""Mutated ONNX files through the importer, in worker processes of bounded memory and time.

    python -m benchmarks.onnx_fuzz --mutations 20000

What enters: the onnx package's small test models as seeds. What leaves: counts of how each mutated
file ended: a network, a refusal in one line, or what must not be: anything else.
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

import onnx
from onnx import numpy_helper

MEMORY_BYTES = 6 * 2**30
"""Of address space: torch alone maps some gigabytes."""
SECONDS_EACH = 20
_SEEDS = (
    "conv_with_autopad_same", "resize_upsample_scales_cubic", "averagepool_2d_ceil", "if",
    "layer_normalization_2d_axis0", "gemm_all_attributes", "slice", "tile", "expand_dim_changed",
    "reshape_reordered_all_dims", "onehot_with_axis", "attention_4d", "convtranspose_pads",
    "batchnorm_example", "constantofshape_float_ones", "einsum_batch_diagonal", "col2im",
    "scatternd", "gathernd_example_float32", "depthtospace_crd_mode_example", "constant_pad",
    "maxpool_2d_ceil", "instancenorm_example", "top_k", "split_equal_parts_2d_opset13",
)  # fmt: skip


class _TooLongError(BaseException):
    """Not an Exception, so that nothing on the way takes it for one of its own."""


def seeds() -> list[bytes]:
    """Small models with weights, and the light ones of the package."""
    from benchmarks.onnx_node_tests import node_cases

    wanted = {f"test_{name}" for name in _SEEDS}
    found = []
    for case in node_cases():
        if case.name in wanted:
            model = onnx.ModelProto()
            model.CopyFrom(case.model)
            given = zip(model.graph.input, case.data_sets[0][0], strict=True)
            for value, array in list(given)[1:]:
                model.graph.initializer.append(numpy_helper.from_array(array, value.name))
            found.append(model.SerializeToString())
    light = Path(onnx.__file__).parent / "backend/test/data/light/light_shufflenet.onnx"
    return [*found, light.read_bytes()]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, taken out, put in, copied from elsewhere, or the end cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place, kind = rng.randrange(max(len(data), 1)), rng.random()
        if kind < 0.6 and data:
            data[place] = rng.randrange(256)
        elif kind < 0.75:
            del data[place : place + rng.randrange(1, 9)]
        elif kind < 0.85:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif kind < 0.95:
            start = rng.randrange(max(len(data), 1))
            data[place : place + 32] = data[start : start + 32]
        else:
            del data[place:]
    return bytes(data)


def work(seed: int, count: int) -> dict[str, Any]:
    """Import `count` mutated files in this process, whose memory is bounded from here on."""
    from pipeline.errors import UsageError
    from pipeline.importers.onnx_in import import_onnx

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _too_long)
    rng, contents = random.Random(seed), seeds()
    ends: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for _ in range(count):
            path.write_bytes(mutated(rng.choice(contents), rng))
            began = monotonic()
            signal.alarm(SECONDS_EACH)
            try:
                import_onnx(path)
                ends["a network"] += 1
            except UsageError as error:
                ends["refused" if "\n" not in str(error) else "refused in several lines"] += 1
            except _TooLongError:
                ends[f"over {SECONDS_EACH} s"] += 1
            except Exception as error:  # what must not be, whatever it is, is to be counted
                ends[f"traceback: {type(error).__name__}"] += 1
            finally:
                signal.alarm(0)
            slowest = max(slowest, monotonic() - began)
    return {"ends": ends, "slowest_s": slowest, "peak_bytes": _peak_bytes()}


def _peak_bytes() -> int:
    """Of this process's memory. (getrusage counts what the parent held when it started this.)"""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _too_long(_signal: int, _frame: object) -> None:
    raise _TooLongError


def fuzz(mutations: int, first_seed: int = 0, per_worker: int = 1000) -> dict[str, Any]:
    """All mutations, a worker process for each `per_worker`; a crash of one counts as such."""
    ends: Counter[str] = Counter()
    slowest, peak = 0.0, 0
    for seed, start in enumerate(range(0, mutations, per_worker), first_seed):
        count = min(per_worker, mutations - start)
        command = [sys.executable, "-m", "benchmarks.onnx_fuzz", "--worker", str(seed), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            ends[f"worker ended with {done.returncode}"] += 1
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        ends.update(found["ends"])
        slowest, peak = max(slowest, found["slowest_s"]), max(peak, found["peak_bytes"])
    return {"ends": dict(ends), "slowest_s": slowest, "peak_bytes": peak}


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--worker", type=int, nargs=2, metavar=("SEED", "COUNT"))
    given = parser.parse_args()
    print(json.dumps(work(*given.worker) if given.worker else fuzz(given.mutations)))


if __name__ == "__main__":
    main()
