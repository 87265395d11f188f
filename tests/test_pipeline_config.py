from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RecoveryConfig, RunConfig, Target, TargetConfig
from pipeline.config_file import build_config, read_config_file
from pipeline.errors import UsageError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(b"weights")
    return path


def _config(model: Path, **options: Any) -> RunConfig:
    return build_config({"model": str(model), "target_flops": "0.6"} | options)


@pytest.mark.parametrize(
    ("text", "baseline", "allowed"),
    [
        ("0.6", 10, 6),
        ("0.29", 100, 29),
        ("60%", 41_000_001, 24_600_000),
        ("60 %", 10, 6),
        (".5", 7, 3),
        ("1", 7, 7),
        ("1.0", 7, 7),
        ("100%", 7, 7),
        ("25M", 41, 25_000_000),
        ("1.8G", 41, 1_800_000_000),
        ("300k", 41, 300_000),
        ("2T", 41, 2_000_000_000_000),
        ("1.0005k", 41, 1000),
    ],
)
def test_targets_give_the_allowed_count(text: str, baseline: int, allowed: int) -> None:
    assert Target.parse(text, "--target-flops").absolute(baseline) == allowed


def test_a_target_is_a_fraction_of_its_baseline() -> None:
    assert Target.parse("60%", "x").fraction(999) == 0.6
    assert Target.parse("25M", "x").fraction(100_000_000) == 0.25
    assert Target.parse("60%", "x") == Target(share=Fraction(3, 5))


@pytest.mark.parametrize(
    ("text", "baseline", "line"),
    [
        ("0.6", 41_000_000, "keep 60.0 % = 24.6 of 41.0 MFLOPs (remove 40.0 %)"),
        ("1.2G", 4_000_000_000, "keep 30.0 % = 1.2 of 4.0 GFLOPs (remove 70.0 %)"),
        ("50%", 999, "keep 50.0 % = 499 of 999 FLOPs (remove 50.0 %)"),
        ("25M", 10_000_000, "keep at most 25.0 of 10.0 MFLOPs: already met"),
    ],
)
def test_a_target_says_what_stays_and_what_goes(text: str, baseline: int, line: str) -> None:
    assert Target.parse(text, "x").describe(baseline, "FLOPs") == line


def test_a_fraction_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="baseline of 0"):
        Target.parse("0.6", "x").fraction(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "keeps nothing"),
        ("0.0M", "keeps nothing"),
        ("0.0001k", "keeps nothing"),
        ("60", r"above 1: did you mean 0\.6 or 25M\?"),
        ("1.01", "above 1"),
        ("150%", "at most 100%"),
        ("-0.5", "cannot read '-0.5'"),
        ("", "cannot read ''"),
        ("nan", "cannot read"),
        ("inf", "cannot read"),
        ("25X", "cannot read"),
        ("25M 3", "cannot read"),
        ("0,6", "cannot read"),
    ],
)
def test_unreadable_targets_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^--target-params: .*{message}") as caught:
        Target.parse(text, "--target-params")
    assert "\n" not in str(caught.value)


def test_a_target_is_needed() -> None:
    with pytest.raises(UsageError, match=r"give --target-flops, .* or --target-latency"):
        TargetConfig()


def test_options_become_a_config(model: Path) -> None:
    config = _config(
        model,
        arch="timm:tiny",
        input_size="3,8,8",
        data="photos",
        mean="0.5,0.5,0.5",
        std="0.1,0.2,0.3",
        epochs=4,
        no_distill=True,
        channel_multiple="8",
        freeze=("head", "stem.*"),
        provider="cuda",
        quiet=True,
    )
    assert config.model.input_size == (3, 8, 8)
    assert config.data.std == (0.1, 0.2, 0.3)
    assert config.recovery == RecoveryConfig(epochs=4, distill=False)
    assert config.constraints.channel_multiple == 8
    assert config.constraints.freeze == ("head", "stem.*")
    assert config.deploy.provider == "cuda"
    assert config.verbosity == -1


def test_the_output_lies_beside_the_model_by_default(model: Path) -> None:
    assert _config(model).out == model.parent / "model-compressed"


def test_epochs_default_to_more_passes_over_the_few_images_of_a_run_without_data(
    model: Path,
) -> None:
    assert _config(model).recovery.epochs == 100
    assert _config(model, data="photos").recovery.epochs == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "no.pt"}, "MODEL: 'no.pt' does not exist"),
        ({"model": "."}, "is a directory"),
        ({"arch": "resnet"}, "--arch: cannot read 'resnet'"),
        ({"arch": "timm:"}, "--arch: cannot read"),
        ({"input_size": "224"}, "--input-size: 224 is not C,H,W"),
        ({"input_size": "3,0,8"}, "--input-size: 3,0,8 is not C,H,W"),
        ({"input_size": "3,a,8"}, "--input-size: cannot read '3,a,8'"),
        ({"max_accuracy_drop": -1.0}, "--max-accuracy-drop: -1.0 is outside"),
        ({"max_accuracy_drop": 0.5}, "--max-accuracy-drop cannot be checked without --data"),
        ({"mean": "0.5"}, "--mean has no effect without --data"),
        ({"augment": "none"}, "--augment has no effect without --data"),
        ({"data": "d", "mean": "0.5,nan"}, "--mean: give one finite number"),
        ({"data": "d", "std": "0.5,0"}, "--std: every value must be above 0"),
        ({"data": "d", "mean": "0.5", "std": "1,1"}, "--mean and --std have 1 and 2 values"),
        ({"data": "d", "mean": "0.5"}, "--mean and --std go together"),
        ({"data": "d", "augment": "lots"}, "--augment: 'lots' is not one of auto"),
        ({"batch_size": 0}, "--batch-size: 0 is below 1"),
        ({"workers": -1}, "--workers: -1 is below 0"),
        ({"no_distill": True}, "--no-distill learns from labels alone"),
        ({"data": "d", "epochs": -1}, "--epochs: -1 is below 0"),
        ({"lr": 0.0}, "--lr: 0.0 is not a finite number above 0"),
        ({"lr": float("nan")}, "--lr: nan"),
        ({"seed": -1}, "--seed: -1 is outside"),
        ({"channel_multiple": "0"}, "--channel-multiple: 0 is neither"),
        ({"channel_multiple": "some"}, "--channel-multiple: 'some' is neither"),
        ({"freeze": ("",)}, "--freeze: an empty pattern"),
        ({"min_channels": 0}, "--min-channels: 0 is below 1"),
        ({"provider": "tpu"}, "--provider: 'tpu' is not one of cpu, cuda"),
        ({"opset": 13}, "--opset: 13 is below 18"),
        ({"device": "gpu"}, "--device: 'gpu' is not auto"),
        ({"verbose": True, "quiet": True}, "-v and -q contradict"),
    ],
)
def test_wrong_values_are_refused_in_one_line(
    model: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        build_config({"model": str(model), "target_flops": "0.6"} | options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_without_a_model_is_refused() -> None:
    with pytest.raises(UsageError, match="no model: give the model file"):
        build_config({"target_flops": "0.6"})


def test_the_fingerprint_ignores_where_and_how_a_run_is_done(model: Path, tmp_path: Path) -> None:
    plain = _config(model, data="d")
    elsewhere = _config(
        model,
        data="d",
        out=str(tmp_path / "o"),
        resume=True,
        verbose=True,
        json=True,
        device="cpu",
        workers=3,
    )
    assert len(plain.fingerprint()) == 64
    assert plain.fingerprint() == elsewhere.fingerprint()


def test_the_fingerprint_follows_the_model_by_content(model: Path) -> None:
    moved = model.with_name("other.pt")
    moved.write_bytes(model.read_bytes())
    before = _config(model).fingerprint()
    assert _config(moved).fingerprint() == before
    model.write_bytes(b"other weights")
    assert _config(model).fingerprint() != before


def test_the_fingerprint_follows_the_file_of_a_task(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "task.py"
    source.write_text("def make(): ...")
    given = {"data": "photos", "task": f"{source}:make"}
    before = _config(model, **given).fingerprint()
    assert before != _config(model, data="photos").fingerprint()
    source.write_text("def make(): return 1")
    assert _config(model, **given).fingerprint() != before


def test_a_drop_above_100_points_is_possible_in_the_units_of_a_task_alone(model: Path) -> None:
    given = {"data": "photos", "max_accuracy_drop": 250.0}
    assert _config(model, task="t.py:make", **given).target.max_accuracy_drop == 250
    with pytest.raises(UsageError, match=r"250\.0 is outside 0 to 100 points"):
        _config(model, **given)


def test_the_fingerprint_follows_an_architecture_file(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text("a = 1")
    before = _config(model, arch=f"{source}:make").fingerprint()
    source.write_text("a = 2")
    assert _config(model, arch=f"{source}:make").fingerprint() != before


@pytest.mark.parametrize(
    "change",
    [
        {"target_flops": "0.5"},
        {"target_params": "0.5"},
        {"epochs": 3},
        {"seed": 1},
        {"no_distill": True},
        {"freeze": ("head",)},
        {"channel_multiple": "8"},
        {"opset": 21},
        {"data": "other"},
        {"input_size": "3,8,8"},
    ],
)
def test_the_fingerprint_follows_what_changes_the_result(
    model: Path, change: dict[str, Any]
) -> None:
    assert (
        _config(model, data="d").fingerprint()
        != _config(model, **({"data": "d"} | change)).fingerprint()
    )


def test_equal_targets_have_equal_fingerprints(model: Path) -> None:
    assert _config(model).fingerprint() == _config(model, target_flops="60%").fingerprint()


def test_a_config_cannot_be_changed(model: Path) -> None:
    config = _config(model)
    with pytest.raises(AttributeError):
        config.resume = True  # type: ignore[misc]
    assert replace(config, resume=True).resume


def _toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_a_file_takes_names_with_either_dash(tmp_path: Path) -> None:
    path = _toml(tmp_path, 'target-flops = 0.6\nbatch_size = 4\nmean = [0.5, 1]\nfreeze = "head"\n')
    options, _ = read_config_file(path)
    assert options == {
        "target_flops": 0.6,
        "batch_size": 4,
        "mean": "0.5,1",
        "freeze": ["head"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target-flop = 0.6", "unknown key 'target-flop' in '.*': did you mean 'target-flops'?"),
        ("batchsize = 1", "did you mean 'batch-size'?"),
        ("zzz = 1", "unknown key 'zzz' in '.*': keys are named as the options"),
        ("[recovery]\nepochs = 1", r"a table \[recovery\]: options stand without tables"),
        ('epochs = "3"', r"'epochs' in '.*' is '3' \(str\): give a whole number"),
        ("epochs = true", r"'epochs' in '.*' is True \(bool\): give a whole number"),
        ("resume = 1", "give true or false"),
        ("lr = false", "give a number"),
        ('mean = ["a"]', "give a list of numbers or a string"),
        ("freeze = [1]", "give a string or a list of strings"),
        ("out = 1", "give a string"),
        ("seed = 1\nseed = 2", "is not TOML"),
        ("batch-size = 1\nbatch_size = 2", "gives 'batch_size' twice"),
    ],
)
def test_a_wrong_file_is_refused_naming_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_config_file(_toml(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*No such file"):
        read_config_file(tmp_path / "no.toml")
