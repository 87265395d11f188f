"""What only a machine with a GPU can show; `make gpu-test` runs these there."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import exporters
from exporters.node_times import Place, node_times, whole_ms
from exporters.spread_times import spread
from pipeline.cli import main

HERE = (
    torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="no CUDA device is available")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network, a narrower one, and the first in half precision."""
    folder = tmp_path_factory.mktemp("gpu")
    found = {}
    for name, width in (("wide", 128), ("narrow", 32)):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
        )  # fmt: skip
        found[name] = folder / f"{name}.onnx"
        request = exporters.ExportRequest(
            example_inputs=(torch.zeros(2, 3, 96, 96),), path=found[name]
        )
        exporters.export_onnx(net.eval(), request)
    found["half"] = folder / "half.onnx"
    exporters.to_fp16(found["wide"], found["half"])
    return found


def batch(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, 96, 96)).astype(np.float32)


def timed(path: Path, count: int) -> exporters.Timed:
    session = exporters.open_session(path, "cuda")
    inputs = {session.input_names[0]: session.as_taken(batch(count))}
    return exporters.Timed(name=path.stem, session=session, inputs=inputs)


def test_the_cuda_provider_ran_and_agrees_with_the_cpu(files: dict[str, Path]) -> None:
    on_gpu = exporters.open_session(files["wide"], "cuda")
    assert on_gpu.provider == "cuda" and "Conv" not in on_gpu.nodes_elsewhere
    expected = exporters.open_session(files["wide"], "cpu").run_batch(batch(4))[0]
    np.testing.assert_allclose(on_gpu.run_batch(batch(4))[0], expected, rtol=1e-3, atol=1e-4)


def test_bound_inputs_and_outputs_stay_on_the_device(files: dict[str, Path]) -> None:
    session = exporters.open_session(files["wide"], "cuda")
    run = session.bind({session.input_names[0]: batch(2)})
    run()
    assert set(run.output_devices()) == {"cuda"}


def test_half_precision_is_within_its_tolerance_and_not_slower(files: dict[str, Path]) -> None:
    whole = exporters.open_session(files["wide"], "cuda").run_batch(batch(4))[0]
    half = exporters.open_session(files["half"], "cuda").run_batch(batch(4))[0]
    assert np.abs(whole - half).max() <= exporters.FP16_TOLERANCE * np.abs(whole).max()
    settings = exporters.LatencySettings(batch=64, min_seconds=2.0, max_seconds=10.0)
    found = exporters.compare_latency(timed(files["wide"], 64), timed(files["half"], 64), settings)
    assert found.speedup_ci95[0] > 1


def test_files_that_take_turns_on_the_gpu_are_told_apart(files: dict[str, Path]) -> None:
    settings = exporters.LatencySettings(batch=32, min_seconds=2.0, max_seconds=10.0)
    found = exporters.compare_latency(
        timed(files["wide"], 32), timed(files["narrow"], 32), settings
    )
    assert found.measured.provider == "cuda"
    assert found.speedup_ci95[0] > 1.2


def test_times_of_whole_graphs_are_spread_over_their_nodes(files: dict[str, Path]) -> None:
    place = Place(provider="cuda", threads=1, batch=32)
    nodes = [node_times(files[name], place) for name in ("wide", "narrow")]
    times = [whole_ms(files[name], place) for name in ("wide", "narrow")]
    found = [sum(node.ms for node in graph) for graph in spread(nodes, times)]
    assert found == pytest.approx(times, rel=0.2)


def test_the_gate_and_the_bench_run_there(files: dict[str, Path], tmp_path: Path) -> None:
    gate = CliRunner().invoke(
        main,
        ["verify", str(files["narrow"]), "--baseline", str(files["wide"]), "--provider", "cuda",
         "--min-speedup", "1.05", "--batch-size", "32"],
    )  # fmt: skip
    assert gate.exit_code == 0, gate.output
    store = tmp_path / "bench.json"
    bench = CliRunner().invoke(
        main,
        ["bench", *map(str, files.values()), "--provider", "cuda", "--batch-size", "32",
         "--json", str(store)],
    )  # fmt: skip
    assert bench.exit_code == 0, bench.output
    rows = json.loads(store.read_text())["rows"]
    assert [row["provider"] for row in rows] == ["cuda"] * 3
