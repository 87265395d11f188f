"""`--precision` in the main job."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto

from pipeline.cli import main

sys.path.insert(0, str(Path(__file__).parent))
from tiny_job import arguments, write_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_job(tmp_path_factory.mktemp("job"))


def compress(args: list[str]) -> Result:
    return CliRunner().invoke(main, args)


def test_fp16_is_verified_against_pytorch_and_halves_the_file(
    job: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = compress(arguments(job, out, "--precision", "fp16", "--ort", "-q"))
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert report["precision"]["kind"] == "fp16"
    assert 1e-6 < report["parity"]["max_abs_diff"] <= report["parity"]["tolerance"] == 1e-2
    assert report["accuracy"]["after"] > 0.8
    assert report["params"]["after"] > 0
    kinds = {t.data_type for t in onnx.load(out / "model.onnx").graph.initializer}
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.FLOAT not in kinds
    fp32 = (out / "stages" / "model-fp32.onnx").stat().st_size
    assert report["size_bytes"]["after"] == (out / "model.onnx").stat().st_size < 0.8 * fp32
    ort = report["precision"]["ort"]
    assert ort["size_bytes"] == (out / "model.ort").stat().st_size
    assert ort["max_abs_diff"] <= 1e-4
    image = np.ones((3, 1, 8, 8), np.float32)
    scores = [
        onnxruntime.InferenceSession(out / name).run(None, {"image": image})[0]
        for name in ("model.onnx", "model.ort")
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    assert "gbn_compress" in {p.key for p in onnx.load(out / "model.onnx").metadata_props}


def test_int8_is_held_to_the_accuracy_asked_for(job: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = ("--precision", "int8", "--max-accuracy-drop", "20", "-q")
    result = compress(arguments(job, out, *asked))
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    precision = report["precision"]
    assert precision["calibration"] in ("minmax", "percentile", "entropy")
    assert precision["accuracy"] == pytest.approx(report["accuracy"]["after"])
    assert precision["num_layers"] == 4
    # the fp32 file behind it is proven; the 8-bit one differs visibly
    assert report["parity"]["max_abs_diff"] <= 1e-4 < precision["relative_error_from_fp32"]
    assert precision["relative_error_from_fp32"] < 0.2
    ops = {node.op_type for node in onnx.load(out / "model.onnx").graph.node}
    assert "QuantizeLinear" in ops
    # the cost is that of the network, whatever holds its weights
    assert report["params"]["after"] > 0.1 * report["params"]["before"]


def test_int8_without_images_is_refused(job: dict[str, Path], tmp_path: Path) -> None:
    args = ["--target-flops", "0.5", str(job["model"]), "--arch", f"{job['arch']}:Tiny"]
    args += ["--input-size", "1,8,8", "--out", str(tmp_path / "run"), "--precision", "int8"]
    result = compress(args)
    assert result.exit_code == 2
    assert "int8 needs real images to calibrate: give --data" in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_precision_is_refused(job: dict[str, Path], tmp_path: Path) -> None:
    result = compress(arguments(job, tmp_path / "run", "--precision", "int4"))
    assert result.exit_code == 2
    assert "int4" in result.stderr
