"""Loading models: what a file may hold, what is inferred from it, and what is refused."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from pipeline.errors import UsageError
from pipeline.importers import LoadedModel, ModelSource, check_forward, load_model

SIZE = (3, 32, 32)
NET_SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.bn = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))

def wrong(): return 3
def broken(): raise KeyError("no weights here")
limit = 7
"""


@pytest.fixture
def net_file(tmp_path: Path) -> Path:
    file = tmp_path / "mynet.py"
    file.write_text(NET_SOURCE)
    return file


@pytest.fixture
def net(net_file: Path) -> nn.Module:
    scope: dict[str, type[nn.Module]] = {"__name__": "mynet"}  # type: ignore[dict-item]
    exec(net_file.read_text(), scope)
    torch.manual_seed(0)
    return scope["Net"]()


def load(path: Path, **kwargs: object) -> LoadedModel:
    return load_model(ModelSource(path=path, **{"input_size": SIZE, **kwargs}))  # type: ignore[arg-type]


def assert_same(module: nn.Module, loaded: LoadedModel) -> None:
    images = torch.rand(2, *loaded.input_size)
    with torch.no_grad():
        assert torch.equal(module.eval()(images), loaded.module(images))


@pytest.mark.parametrize(
    "build",
    [
        lambda: torchvision.models.resnet18(),
        lambda: torchvision.models.mobilenet_v3_small(),
        lambda: (
            torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32)
            if False
            else torchvision.models.swin_t()
        ),
        lambda: timm.create_model("mobilenetv3_small_050"),
    ],
    ids=["resnet18", "mobilenet_v3_small", "vit_b_16", "timm-mobilenetv3_small_050"],
)
def test_whole_module_of_a_known_library_needs_no_trust(
    tmp_path: Path, build: Callable[[], nn.Module]
) -> None:
    module = build()
    torch.save(module, tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt")
    assert loaded.num_outputs == 1000
    assert not loaded.module.training
    assert all(parameter.requires_grad for parameter in loaded.module.parameters())
    assert_same(module, loaded)


def test_partial_and_tensor_function_references_are_admitted(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    module = nn.Sequential(nn.Flatten(2), nn.Linear(1024, 8), layer, nn.Flatten(), nn.Linear(24, 4))
    torch.save(module, tmp_path / "model.pt")
    assert load(tmp_path / "model.pt").num_outputs == 4


def test_timm_config_gives_input_size_and_normalisation(tmp_path: Path) -> None:
    module = timm.create_model("mobilenetv3_small_050")
    torch.save(module, tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt", input_size=None)
    assert loaded.input_size == (3, 224, 224)
    assert loaded.mean == (0.485, 0.456, 0.406)
    assert loaded.std == (0.229, 0.224, 0.225)
    assert loaded.preprocessing_origin == "timm config"


def test_torchvision_arch_gives_input_size_and_normalisation(tmp_path: Path) -> None:
    module = torchvision.models.squeezenet1_1(num_classes=6)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt", input_size=None, arch="torchvision:squeezenet1_1")
    assert loaded.input_size == (3, 224, 224)
    assert loaded.mean == (0.485, 0.456, 0.406)
    assert loaded.preprocessing_origin == "torchvision config"
    assert loaded.num_outputs == 6
    assert "built with 6 classes" in " ".join(loaded.warnings)
    assert_same(module, loaded)


def test_weights_without_auxiliary_classifiers_get_a_network_without(tmp_path: Path) -> None:
    module = torchvision.models.googlenet(aux_logits=False, init_weights=False, num_classes=3)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt", arch="torchvision:googlenet")
    assert "built without auxiliary classifiers" in " ".join(loaded.warnings)
    assert_same(module, loaded)


def test_unknown_input_size_asks_for_it(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 4, 3), tmp_path / "model.pt")
    with pytest.raises(UsageError, match="--input-size 3,224,224"):
        load(tmp_path / "model.pt", input_size=None)


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda weights: weights, None),
        (lambda weights: {"state_dict": weights, "epoch": 3}, "took 'state_dict'"),
        (lambda weights: {"model": weights, "optimizer": {"state": {}}}, "took 'model'"),
        (lambda weights: {"model_state_dict": weights}, "took 'model_state_dict'"),
        (lambda weights: {"state_dict": {}, "state_dict_ema": weights}, "took 'state_dict_ema'"),
        (lambda weights: {f"module.{k}": v for k, v in weights.items()}, "under 'module.'"),
        (
            lambda weights: {
                "state_dict": {
                    **{f"model.{k}": v for k, v in weights.items()},
                    "metric.total": torch.zeros(1),
                }
            },
            "left out 1 others (metric.total)",
        ),
    ],
)
def test_wrapped_state_dicts_are_unwrapped_and_it_is_said(
    tmp_path: Path,
    net: nn.Module,
    net_file: Path,
    wrap: Callable[[dict[str, torch.Tensor]], object],
    note: str | None,
) -> None:
    torch.save(wrap(net.state_dict()), tmp_path / "model.ckpt")
    loaded = load(tmp_path / "model.ckpt", arch=f"{net_file}:Net")
    assert_same(net, loaded)
    assert (note in " ".join(loaded.warnings)) if note else loaded.warnings == ()


def test_safetensors_and_old_format_state_dicts_load(
    tmp_path: Path, net: nn.Module, net_file: Path
) -> None:
    safetensors.torch.save_file(net.state_dict(), tmp_path / "weights.bin")
    torch.save(net.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("weights.bin", "old.pth"):
        loaded = load(tmp_path / name, arch=f"{net_file}:Net")
        assert_same(net, loaded)
        assert loaded.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_layer_versions_of_the_file_reach_the_layers(tmp_path: Path) -> None:
    module = torchvision.models.mnasnet0_5()
    torch.save(module.state_dict(), tmp_path / "model.pt")
    safetensors.torch.save_file(module.state_dict(), tmp_path / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        assert_same(module, load(tmp_path / name, arch="torchvision:mnasnet0_5"))


def test_arch_file_may_import_its_neighbours_while_it_builds(
    tmp_path: Path, net: nn.Module, net_file: Path
) -> None:
    torch.save(net.state_dict(), tmp_path / "model.pt")
    late = "def build():\n    from mynet import Net\n    return Net()\n"
    (tmp_path / "late.py").write_text(late)
    assert net_file.parent == tmp_path
    assert_same(net, load(tmp_path / "model.pt", arch=f"{tmp_path / 'late.py'}:build"))


def test_half_precision_weights_become_float32_and_it_is_said(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 4, 3).half(), tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt")
    assert next(loaded.module.parameters()).dtype == torch.float32
    assert loaded.warnings == ("converted float16 weights to float32",)


def test_data_parallel_is_unwrapped_and_frozen_parameters_are_named(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(False)
    torch.save(nn.DataParallel(module), tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt")
    assert isinstance(loaded.module, nn.Sequential)
    assert "DataParallel" in loaded.warnings[0]
    assert "4 of 4 parameters are frozen" in loaded.warnings[1]


def test_state_dict_without_arch_asks_for_it_and_passes_on_its_hint(
    tmp_path: Path, net: nn.Module
) -> None:
    torch.save({"arch": "resnet18", "state_dict": net.state_dict()}, tmp_path / "model.pt")
    with pytest.raises(UsageError, match=r"give --arch .*architecture 'resnet18'"):
        load(tmp_path / "model.pt")


def test_weights_of_another_network_list_what_differs(
    tmp_path: Path, net: nn.Module, net_file: Path
) -> None:
    weights = net.state_dict()
    weights["conv.weight"] = torch.zeros(9, 3, 3, 3)
    weights["head.weight"] = weights.pop("fc.weight")
    torch.save(weights, tmp_path / "model.pt")
    expected = (
        r"1 missing \(fc.weight\); 1 unexpected \(head.weight\); 1 of another shape "
        r"\(conv.weight \(9, 3, 3, 3\) in the file, \(5, 3, 3, 3\) in the network\)"
    )
    with pytest.raises(UsageError, match=expected):
        load(tmp_path / "model.pt", arch=f"{net_file}:Net")


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet18", "must be timm:NAME"),
        ("timm:resnet_18", "did you mean"),
        ("torchvision:resnet19", "did you mean resnet"),
        ("timm:hf-hub:someone/something", "no such model"),
        ("no_such_package.models:net", "no module 'no_such_package'"),
        ("missing.py:Net", "no such file"),
        ("FILE:Nett", "has no 'Nett'; it has"),
        ("FILE:limit", "limit is a int, not a callable"),
        ("FILE:wrong", "returns a int, not a torch.nn.Module"),
        ("FILE:broken", "calling it fails: KeyError: 'no weights here'"),
    ],
)
def test_unusable_arch_is_refused_in_one_line(
    tmp_path: Path, net: nn.Module, net_file: Path, arch: str, message: str
) -> None:
    torch.save(net.state_dict(), tmp_path / "model.pt")
    with pytest.raises(UsageError, match=message) as caught:
        load(tmp_path / "model.pt", arch=arch.replace("FILE", str(net_file)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 32, 32), (3, 2, 2)])
def test_wrong_input_size_is_refused(tmp_path: Path, size: tuple[int, int, int]) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path / "model.pt")
    with pytest.raises(UsageError, match=f"input size {size[0]},{size[1]},{size[2]} at batch 2"):
        load(tmp_path / "model.pt", input_size=size)


def test_check_forward_leaves_the_mode_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    output = check_forward(module, SIZE)
    assert isinstance(output, torch.Tensor)
    assert output.shape == (2, 4, 30, 30)
    assert module.training
    assert int(module[1].num_batches_tracked) == 0


def test_exported_program_needs_trust_and_stays_trainable(tmp_path: Path, net: nn.Module) -> None:
    program = torch.export.export(
        net.eval(),
        (torch.zeros(2, *SIZE),),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(UsageError, match=r"exported program.*--trust-pickle"):
        load(tmp_path / "model.pt2")
    loaded = load(tmp_path / "model.pt2", trust_pickle=True)
    assert_same(net, loaded)
    loaded.module.train()
    loaded.module(torch.rand(3, *SIZE)).sum().backward()
    assert all(p.grad is not None for p in loaded.module.parameters())


def test_impossible_input_size_is_refused() -> None:
    with pytest.raises(UsageError, match="--input-size 3,0,32"):
        ModelSource(path=Path("model.pt"), input_size=(3, 0, 32))
