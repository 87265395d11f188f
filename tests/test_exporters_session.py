import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporters.errors import ExportError, ProviderError
from exporters.session import Session, open_session

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is available")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available")


def linear(batch: int | str = "batch", kind: int = TensorProto.FLOAT) -> bytes:
    """y = 2 x for x (N, 3)."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "net",
        [helper.make_tensor_value_info("x", kind, [batch, 3])],
        [helper.make_tensor_value_info("y", kind, [batch, 3])],
        initializer=[numpy_helper.from_array((2 * np.eye(3)).astype(dtype), "w")],
    )
    imports = [helper.make_opsetid("", 18)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return model.SerializeToString()


def rows(count: int) -> np.ndarray:
    return np.arange(3 * count, dtype=np.float32).reshape(count, 3)


def test_a_session_runs_and_tells_its_inputs_and_outputs(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(linear())
    session = open_session(tmp_path / "m.onnx", "cpu", 1)
    assert session.input_names == ("x",)
    assert session.input_shapes == {"x": ("batch", 3)}
    assert session.output_names == ("y",)
    assert session.provider == "cpu"
    assert session.batch_is_dynamic
    assert session.nodes_elsewhere == {}
    np.testing.assert_array_equal(session.run({"x": rows(2)})[0], 2 * rows(2))


@pytest.mark.parametrize("count", [1, 4, 7])
def test_a_fixed_batch_file_takes_batches_of_any_size(count: int) -> None:
    session = open_session(linear(batch=4))
    assert not session.batch_is_dynamic
    np.testing.assert_array_equal(session.run_batch(rows(count))[0], 2 * rows(count))


def test_floats_are_converted_to_the_type_of_the_input() -> None:
    output = open_session(linear(kind=TensorProto.DOUBLE)).run_batch(rows(2))[0]
    assert output.dtype == np.float64
    np.testing.assert_array_equal(output, 2 * rows(2))


def test_a_batch_without_samples_is_refused() -> None:
    with pytest.raises(ExportError, match="without samples"):
        open_session(linear()).run_batch(rows(0))


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"x": np.zeros((2, 4), np.float32)}, "index: 1 Got: 4 Expected: 3"),
        ({"z": rows(2)}, r"Required inputs \(\['x'\]\) are missing"),
        ({"x": np.zeros((2, 3), np.int64)}, "Unexpected input data type"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_one_line(
    inputs: dict[str, np.ndarray], text: str
) -> None:
    with pytest.raises(ExportError, match=text) as caught:
        open_session(linear()).run(inputs)
    assert "\n" not in str(caught.value)


def test_a_corrupted_or_missing_file_is_refused_in_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(linear()[:40])
    with pytest.raises(
        ExportError, match=r"bad\.onnx: cannot be loaded .*parsing failed"
    ) as caught:
        open_session(bad)
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match=r"none\.onnx: cannot be loaded .*doesn't exist"):
        open_session(tmp_path / "none.onnx")
    with pytest.raises(ExportError, match="the model: cannot be loaded"):
        open_session(b"hello")


def test_unknown_providers_and_thread_counts_are_refused() -> None:
    with pytest.raises(ExportError, match="unknown provider 'gpu': choose one of cpu, cuda"):
        open_session(linear(), "gpu")
    with pytest.raises(ExportError, match="threads must be at least 1, got 0"):
        open_session(linear(), threads=0)


@NO_GPU
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_provider_is_refused_without_a_gpu_even_where_onnxruntime_lists_it(
    provider: str,
) -> None:
    with pytest.raises(ProviderError) as caught:
        open_session(linear(), provider)
    text = str(caught.value)
    assert f"provider {provider!r} did not" in text
    assert "pip install" in text
    listed = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[provider]
    if listed in onnxruntime.get_available_providers():
        assert "no CUDA device is available" in text
    assert "\n" not in text


@NO_GPU
def test_the_refusal_prints_nothing_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(linear())
    code = (
        "import sys; from exporters.session import open_session; "
        "from exporters.errors import ProviderError\n"
        "try: open_session(sys.argv[1], 'cuda')\n"
        "except ProviderError: sys.exit(14)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.onnx")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stdout, done.stderr) == (14, "", "")


@pytest.mark.skipif(
    "OpenVINOExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this onnxruntime contains OpenVINO",
)
def test_a_provider_that_onnxruntime_was_built_without_is_refused() -> None:
    with pytest.raises(ProviderError, match=r"does not contain it.*pip install onnxruntime-openv"):
        open_session(linear(), "openvino")


def placed(assignment: dict[str, list[str]]) -> onnxruntime.InferenceSession:
    """A session as onnxruntime describes it: provider -> op types of the nodes it took."""

    def subgraph(provider: str, ops: list[str]) -> SimpleNamespace:
        nodes = [SimpleNamespace(op_type=op, name=f"{op}_0", domain="") for op in ops]
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

    def info() -> list[SimpleNamespace]:
        return [subgraph(provider, ops) for provider, ops in assignment.items()]

    session = SimpleNamespace(
        get_inputs=list,
        get_outputs=list,
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={}),
        get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        get_provider_graph_assignment_info=info,
    )
    return cast(onnxruntime.InferenceSession, session)


def test_compute_nodes_left_to_the_cpu_are_refused_by_name() -> None:
    assignment = {"CUDAExecutionProvider": ["Conv"], "CPUExecutionProvider": ["MatMul", "Gather"]}
    with pytest.raises(
        ProviderError, match=r"did not run 1 compute nodes of net\.onnx: MatMul 'MatMul_0' on CPU"
    ):
        Session(placed(assignment), "cuda", "net.onnx")


def test_shape_arithmetic_left_to_the_cpu_is_listed() -> None:
    assignment = {
        "CUDAExecutionProvider": ["Conv", "Relu"],
        "CPUExecutionProvider": ["Shape", "Gather", "Gather"],
    }
    session = Session(placed(assignment), "cuda", "net.onnx")
    assert session.nodes_elsewhere == {"Gather": 2, "Shape": 1}


@pytest.mark.gpu
@GPU
def test_cuda_runs_the_product_itself() -> None:
    session = open_session(linear(), "cuda")
    assert session.nodes_elsewhere == {}
    np.testing.assert_allclose(session.run({"x": rows(5)})[0], 2 * rows(5), rtol=1e-6)


def test_bound_outputs_are_where_the_provider_keeps_its_tensors() -> None:
    run = open_session(linear(), "cpu").bind({"x": rows(3)})
    run()
    assert set(run.output_devices()) == {"cpu"}
