import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from exporters.capture import export_program
from exporters.errors import ExportError
from exporters.files import load_onnx, write_atomically
from exporters.session import open_session
from exporters.to_onnx import ExportRequest, export_onnx


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)
        nn.init.uniform_(self.bn.running_mean, -1, 1)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.bn(self.conv(image)))
        return self.head(self.drop(features.mean((2, 3)))), features


class FixedBatch(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.view(2, 192).relu()


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = TwoHeads()
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    request = ExportRequest(
        example_inputs=(torch.rand(1, 3, 8, 8),), path=path, metadata={"note": "kept 60 %"}
    )
    file = export_onnx(model, request)
    assert file.path == path
    assert file.size_bytes == path.stat().st_size
    return model, path


def numpy_forward(model: nn.Module, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convolution, batch norm, relu, mean and linear layer written out in numpy (float64)."""
    w = {k: v.double().numpy() for k, v in model.state_dict().items()}
    padded = np.pad(image.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    z = np.einsum("nchwij,ocij->nohw", windows, w["conv.weight"])
    z += w["conv.bias"][:, None, None]
    scale = w["bn.weight"] / np.sqrt(w["bn.running_var"] + 1e-5)
    z = (z - w["bn.running_mean"][:, None, None]) * scale[:, None, None]
    features = np.maximum(z + w["bn.bias"][:, None, None], 0)
    return features.mean((2, 3)) @ w["head.weight"].T + w["head.bias"], features


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_file_computes_the_network_at_any_batch(
    two_heads: tuple[nn.Module, Path], batch: int
) -> None:
    model, path = two_heads
    image = np.random.default_rng(batch).normal(size=(batch, 3, 8, 8)).astype(np.float32)
    logits, features = open_session(path, threads=1).run({"image": image})
    expected_logits, expected_features = numpy_forward(model, image)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    np.testing.assert_allclose(features, expected_features, atol=1e-5)


def test_names_batch_and_metadata_are_those_asked(two_heads: tuple[nn.Module, Path]) -> None:
    proto = load_onnx(two_heads[1])
    assert [v.name for v in proto.graph.input] == ["image"]
    assert [v.name for v in proto.graph.output] == ["output", "output_1"]
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {p.key: p.value for p in proto.metadata_props} == {"note": "kept 60 %"}


def test_batch_norm_is_folded_and_nothing_of_the_machine_is_written(
    two_heads: tuple[nn.Module, Path],
) -> None:
    ops = [node.op_type for node in load_onnx(two_heads[1]).graph.node]
    assert ops.count("Conv") == 1
    assert not {"BatchNormalization", "Identity", "Dropout"} & set(ops)
    assert b".py" not in two_heads[1].read_bytes()


def test_the_callers_module_keeps_the_mode_of_each_part(tmp_path: Path) -> None:
    model = TwoHeads().train()
    model.bn.eval()
    export_program(model, (torch.rand(1, 3, 8, 8),), tmp_path / "m.pt2")
    assert model.training
    assert model.drop.training
    assert not model.bn.training


def test_given_names_and_opset_are_used_without_chatter(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    request = ExportRequest(
        example_inputs=(torch.rand(2, 3, 8, 8),),
        path=tmp_path / "new" / "m.onnx",
        input_names=("pixels",),
        output_names=("logits", "map"),
        opset=18,
    )
    file = export_onnx(TwoHeads(), request)
    assert (file.input_names, file.output_names) == (("pixels",), ("logits", "map"))
    assert file.opset == 18
    assert [(e.domain, e.version) for e in load_onnx(file.path).opset_import] == [("", 18)]
    assert tuple(capfd.readouterr()) == ("", "")
    assert logging.root.manager.disable == 0


def test_a_fixed_batch_is_exported_when_asked(tmp_path: Path) -> None:
    request = ExportRequest(
        example_inputs=(torch.rand(2, 3, 8, 8),), path=tmp_path / "m.onnx", dynamic_batch=False
    )
    export_onnx(FixedBatch(), request)
    session = open_session(request.path)
    assert session.input_shapes == {"image": (2, 3, 8, 8)}
    assert not session.batch_is_dynamic


def test_a_module_that_fixes_its_batch_is_refused(tmp_path: Path) -> None:
    request = ExportRequest(example_inputs=(torch.rand(2, 3, 8, 8),), path=tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"fixes its batch size.*\(2, 3, 8, 8\).*x\.shape\[0\]"):
        export_onnx(FixedBatch(), request)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [13, 17, 999])
def test_an_opset_the_exporter_would_change_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(ExportError, match=f"opset {opset} cannot be exported: choose 18 to"):
        ExportRequest(example_inputs=(), path=tmp_path / "m.onnx", opset=opset)


def test_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    example, path = (torch.rand(2, 3, 8, 8),), tmp_path / "m.onnx"
    with pytest.raises(ExportError, match="1 output names were given, the model has 2"):
        export_onnx(
            TwoHeads(), ExportRequest(example_inputs=example, path=path, output_names=("a",))
        )
    with pytest.raises(ExportError, match="input names must be distinct"):
        ExportRequest(example_inputs=example, path=path, input_names=("a", "a"))


def test_one_tensor_may_stand_for_two_inputs_of_variable_arguments(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, *parts: Tensor) -> Tensor:
            return parts[0] + 2 * parts[1]

    x = torch.rand(2, 3)
    request = ExportRequest(
        example_inputs=(x, x), path=tmp_path / "m.onnx", input_names=("left", "right")
    )
    export_onnx(Sum(), request)
    session = open_session(request.path)
    assert session.batch_is_dynamic
    left, right = np.ones((5, 3), np.float32), np.full((5, 3), 4, np.float32)
    assert session.run({"left": left, "right": right})[0].tolist() == [[9.0] * 3] * 5


def test_a_network_torch_cannot_capture_is_refused_in_one_line(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="cannot capture the model") as caught:
        export_program(Branches(), (torch.rand(2, 3),), tmp_path / "m.pt2")
    assert "\n" not in str(caught.value)


def test_the_program_runs_at_other_batches_without_the_class(tmp_path: Path) -> None:
    model = TwoHeads()
    path = export_program(model, (torch.rand(1, 3, 8, 8),), tmp_path / "m.pt2")
    module = torch.export.load(path).module()
    for batch in (1, 5):
        image = torch.rand(batch, 3, 8, 8)
        expected = numpy_forward(model, image.numpy())
        for found, value in zip(module(image), expected, strict=True):
            np.testing.assert_allclose(found.detach().numpy(), value, atol=1e-5)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def fail(_: object) -> None:
        raise OSError("disk full")

    write: Callable[..., None] = fail
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"hello", b"\x08\x07\x12"])
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"bad\.onnx: not an? (readable )?ONNX file"):
        load_onnx(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.onnx: no such file"):
        load_onnx(tmp_path / "none.onnx")


def test_external_weights_are_loaded(tmp_path: Path, two_heads: tuple[nn.Module, Path]) -> None:
    onnx.save(
        load_onnx(two_heads[1]), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0
    )
    proto = load_onnx(tmp_path / "m.onnx")
    assert all(not tensor.external_data for tensor in proto.graph.initializer)


class Enlarges(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.conv(image)
        wide = nn.functional.interpolate(maps, size=image.shape[2:], mode="bilinear")
        return wide, maps.mean((2, 3)).argmax(1)


def test_free_sizes_and_element_types_are_as_asked(tmp_path: Path) -> None:
    model = Enlarges().eval()
    request = ExportRequest(
        example_inputs=(torch.rand(2, 3, 8, 8),),
        path=tmp_path / "model.onnx",
        free_sizes={2: "high", 3: "wide"},
        input_dtypes=("float16",),
        output_dtypes=("float64", "float16"),
    )
    export_onnx(model, request)
    image, *_ = onnx.load(request.path).graph.input
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == [
        *("batch", 3, "high", "wide")
    ]
    x = np.random.default_rng(0).random((3, 3, 12, 20)).astype(np.float16)
    wide, place = open_session(request.path).run({image.name: x})
    assert (wide.dtype, place.dtype) == (np.float64, np.int64)
    with torch.no_grad():
        expected, expected_place = model(torch.from_numpy(x).float())
    np.testing.assert_allclose(wide, expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(place, expected_place.numpy())


def test_sizes_that_the_network_fixes_cannot_be_free(tmp_path: Path) -> None:
    request = ExportRequest(
        example_inputs=(torch.rand(2, 3, 8, 8),), path=tmp_path / "m.onnx", free_sizes={2: "high"}
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with pytest.raises(ExportError, match=r"free sizes in dimensions \[2\]"):
        export_onnx(model, request)
    assert not request.path.exists()
