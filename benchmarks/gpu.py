"""`python -m benchmarks.gpu` (`make gpu-test`): what only a machine with an NVIDIA GPU can show.

Runs the tests marked `gpu`, then times a network, its half at equal width shares, and both in half
precision, in turns, on the CUDA provider, and writes docs/gpu.md. Where there is no GPU it says so
in one line and ends with 0.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import exporters
import gbn
from benchmarks.main_models import build
from benchmarks.tables import ROOT, markdown_table, measured_with
from exporters.intervals import median_interval

DOCUMENT = ROOT / "docs" / "gpu.md"
NETWORK = "resnet50"
BATCHES = (1, 32)
HEADER = (
    "batch",
    "file",
    "p50, ms",
    "speed-up over fp32",
    "95 % interval",
    "cv",
    "nodes elsewhere",
)


def missing() -> str | None:
    """Why nothing can be measured here."""
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA provider"
    return None


def write_files(folder: Path) -> list[Path]:
    """fp32, fp16, and both at half of the MACs."""
    model, size = build(NETWORK)
    example = torch.zeros(2, *size)
    groups = gbn.trace(model, example[:1])
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.5,
                    settings=gbn.PlanSettings(multiple=8))  # fmt: skip
    paths = []
    for name, network in (("whole", model), ("half", gbn.prune(model, plan))):
        path = folder / f"{name}-fp32.onnx"
        exporters.export_onnx(
            network, exporters.ExportRequest(example_inputs=(example,), path=path)
        )
        exporters.to_fp16(path, folder / f"{name}-fp16.onnx")
        paths += [path, folder / f"{name}-fp16.onnx"]
    return paths


def measure(paths: list[Path], batch: int) -> list[list[str]]:
    """All files in turns."""
    timed = []
    images = np.random.default_rng(0).normal(size=(batch, 3, 224, 224)).astype(np.float32)
    for path in paths:
        session = exporters.open_session(path, "cuda")
        inputs = {session.input_names[0]: session.as_taken(images)}
        run = session.bind(inputs)
        run()
        if set(run.output_devices()) != {"cuda"}:
            raise RuntimeError(f"{path.name}: outputs are on {run.output_devices()}, not on cuda")
        timed.append(exporters.Timed(name=path.stem, session=session, inputs=inputs))
    settings = exporters.LatencySettings(batch=batch, min_seconds=10.0, max_seconds=30.0)
    found = exporters.measure_latency(timed, settings)
    rows = []
    for index, one in enumerate(timed):
        speedups = found.speedups(index)
        low, high = median_interval(speedups, np.random.default_rng(0))
        stats = found.stats[index]
        rows.append(
            [
                *(str(batch), one.name, f"{stats.p50_ms:.3f}", f"{np.median(speedups):.2f}x"),
                *(f"[{low:.2f}, {high:.2f}]", f"{stats.cv:.1%}", str(one.session.nodes_elsewhere)),
            ]
        )
    return rows


def main() -> int:
    """Tests, figures, document; 1 where a test fails."""
    reason = missing()
    if reason is not None:
        print(f"gpu-test: nothing to do, {reason}")
        return 0
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-rA", "-q"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(tests.stdout, tests.stderr, sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder))
        rows = [row for batch in BATCHES for row in measure(paths, batch)]
    outcomes = [line for line in tests.stdout.splitlines() if line.startswith(("PASS", "FAIL"))]
    DOCUMENT.write_text(
        f"# On a GPU\n\nMeasured by `make gpu-test` with {measured_with()}; "
        f"{torch.cuda.get_device_name()}. {NETWORK}, random weights, inputs and outputs bound on "
        "the device, all files of a batch size in turns; *half* has half of the MACs.\n\n"
        f"{markdown_table(HEADER, rows)}\nThe tests marked `gpu`, exit code {tests.returncode}:\n\n"
        + "".join(f"- {line}\n" for line in outcomes)
    )
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")
    return 1 if tests.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
