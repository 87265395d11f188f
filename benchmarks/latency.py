"""`python -m benchmarks.latency` (`make bench-latency`): speed at equal MACs, and targets in time.

Part one: networks with random weights at half of their MACs, ours and Torch-Pruning's (its default
and its round_to=8, uniform, as near below half as bisection finds it), all timed in turns beside
the original, with 1 and with 2 threads. Part two (`benchmarks.latency_target`): what `compress
--target-latency 0.5x` reaches, measured later by `compress bench`. Results are kept in
bench-runs/latency, so what was measured already is not measured again; docs/latency.md is written
at the end. Exit code 1 where a promise is broken.

`python -m benchmarks.latency networks|peers THREADS|targets NAME ...` does one piece alone,
`... document` writes the document from what there is.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

import exporters
from benchmarks import latency_target
from benchmarks.latency_networks import FILES, make_files
from benchmarks.tables import ROOT, RUNS, markdown_table, measured_with
from exporters.intervals import median_interval

DOCUMENT = ROOT / "docs" / "latency.md"
FOLDER = RUNS / "latency"
COMMAND = "make bench-latency"
NAMES = ("resnet18", "resnet50", "mobilenet_v2")
THREADS = (1, 2)
IMAGE = 160
MIN_OVER_PEER = 1.10
MIN_OF_IDEAL = {"resnet50": 0.88}
SECONDS = 15.0


def measure_peers(name: str, threads: int) -> dict[str, Any]:
    """One interleaved run over all files of a network; kept on disk."""
    store = FOLDER / name / f"peers-{threads}.json"
    if store.is_file():
        known: dict[str, Any] = json.loads(store.read_text())
        return known
    paths = {kind: FOLDER / name / f"{kind}.onnx" for kind in FILES}
    cores = exporters.quiet_cores(threads)
    sessions = [
        exporters.open_session(path, "cpu", threads, cores=cores) for path in paths.values()
    ]
    inputs = {sessions[0].input_names[0]: np.zeros((1, 3, IMAGE, IMAGE), np.float32)}
    rng = np.random.default_rng(0)
    inputs = {key: rng.normal(size=value.shape).astype(np.float32) for key, value in inputs.items()}
    timed = [
        exporters.Timed(name=kind, session=session, inputs=inputs)
        for kind, session in zip(paths, sessions, strict=True)
    ]
    settings = exporters.LatencySettings(
        min_runs=200, min_seconds=SECONDS, max_seconds=2 * SECONDS, seed=0
    )
    with exporters.on_core(cores):
        measured = exporters.measure_latency(timed, settings)
    macs = {kind: exporters.count_macs(path).num_macs for kind, path in paths.items()}
    ours = measured.samples_ms[measured.undisturbed][:, FILES.index("ours")]
    found: dict[str, Any] = {"undisturbed": measured.undisturbed_share, "n": len(ours)}
    for index, kind in enumerate(FILES):
        speedups = measured.speedups(index)
        column = measured.samples_ms[measured.undisturbed][:, index]
        found[kind] = {
            "p50_ms": float(np.median(column)),
            "cv": measured.stats[index].cv,
            "macs_kept": macs[kind] / macs["original"],
            "speedup": float(np.median(speedups)),
            "ci95": list(median_interval(speedups, rng)),
            "ours_over_it": float(np.median(column / ours)),
        }
    store.write_text(json.dumps(found, indent=1))
    return found


def _peer_rows() -> Iterator[tuple[list[str], list[str]]]:
    """Cells of the table, and the promises that the row breaks."""
    for name in NAMES:
        for threads in THREADS:
            store = FOLDER / name / f"peers-{threads}.json"
            if not store.is_file():
                yield [name, str(threads), *["not measured"] * 8], [f"{name}: not measured"]
                continue
            found = json.loads(store.read_text())
            ours, peers = found["ours"], [found["peer"], found["peer-8"]]
            broken = [
                f"{name}, {threads} threads: {text}"
                for text, holds in (
                    ("slower than the original", ours["speedup"] >= 1.0),
                    (
                        f"below {MIN_OVER_PEER}x of the peer",
                        all(peer["ours_over_it"] >= MIN_OVER_PEER for peer in peers),
                    ),
                    (
                        f"below {MIN_OF_IDEAL.get(name, 0)} of the ideal speed-up",
                        _of_ideal(ours) >= MIN_OF_IDEAL.get(name, 0),
                    ),
                )
                if not holds
            ]
            yield [
                name, str(threads), f"{found['original']['p50_ms']:.2f}",
                *(_speed_cell(found[kind]) for kind in FILES[1:]),
                *(f"{peer['ours_over_it']:.2f}x" for peer in peers),
                str(found["n"]), "; ".join(b.partition(": ")[2] for b in broken) or "met",
            ], broken  # fmt: skip


def _of_ideal(found: dict[str, Any]) -> float:
    """Speed-up over that of the MACs alone."""
    return float(found["speedup"] * found["macs_kept"])


def _speed_cell(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    return (
        f"{found['speedup']:.2f}x [{low:.2f}, {high:.2f}] at {found['macs_kept']:.1%}, "
        f"{_of_ideal(found):.2f} of ideal"
    )


PEER_HEADER = (
    *("network", "threads", "original, ms", "ours", "Torch-Pruning", "Torch-Pruning, round_to=8"),
    *("ours over it", "ours over round_to=8", "rounds", "verdict"),
)


def document() -> tuple[str, list[str]]:
    """The content of docs/latency.md, and all broken promises."""
    rows = list(_peer_rows())
    targets, missed = latency_target.section(FOLDER, NAMES)
    broken = [text for _, texts in rows for text in texts] + missed
    return (
        "# Latency\n\n"
        f"Measured by `{COMMAND}` with {measured_with()}. Random weights, batch 1, input "
        f"3x{IMAGE}x{IMAGE}, provider cpu; the machine has other users.\n\n"
        "## At equal MACs\n\n"
        "Half of the MACs at most. Ours: by magnitude, channels going where a millisecond costs "
        "least of it, with times and the channel multiple as the main job measures them; of a few "
        "plans the fastest. Accuracy is not compared: the weights are random. "
        "Torch-Pruning 1.6.1: the same share of every layer. All files of a network take turns in "
        "one run; speed-ups are medians of ratios round by round with their 95 % interval. *Of "
        "ideal*: speed-up over 1 / MACs kept. Asked: at least "
        f"{MIN_OVER_PEER:.2f}x of the peer, at least {MIN_OF_IDEAL['resnet50']} of the ideal on "
        "resnet50, never slower than the original.\n\n"
        f"{markdown_table(PEER_HEADER, (cells for cells, _ in rows))}\n{targets}"
    ), broken


def main(arguments: list[str]) -> int:
    """All pieces, or the one named."""
    piece, *rest = arguments or ["all"]
    if piece in ("networks", "all"):
        for name in rest or NAMES:
            make_files(name, IMAGE, FOLDER / name)
    if piece == "peers":
        measure_peers(rest[1], int(rest[0]))
    if piece in ("targets", "all"):
        for name in rest or NAMES:
            latency_target.run(name, FOLDER, IMAGE)
    if piece == "all":
        for name in NAMES:
            for threads in THREADS:
                measure_peers(name, threads)
            latency_target.measure(name, FOLDER)
    if piece == "measure-targets":
        for name in rest or NAMES:
            latency_target.measure(name, FOLDER)
    if piece not in ("all", "document"):
        return 0
    text, broken = document()
    DOCUMENT.write_text(text)
    print("\n".join(broken) or "every promise is kept", f"\nwrote {DOCUMENT.relative_to(ROOT)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
