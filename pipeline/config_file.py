"""From option values to a checked `RunConfig`.

Enters: option values as text or as TOML types, by the options' names.
Leaves: a `RunConfig`; from a TOML file, option values for the command line to start from.
Refused, with `UsageError`: unknown keys (the nearest right one is named), values of a wrong type,
text that cannot be read.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import (
    ConstraintConfig,
    DataConfig,
    DeployConfig,
    InspectConfig,
    InspectData,
    ModelConfig,
    RecoveryConfig,
    RunConfig,
    SettingsFile,
    Target,
    TargetConfig,
)
from pipeline.errors import UsageError
from pipeline.target import LatencyTarget

DEFAULT_EPOCHS = 10
"""Training budget of a run that has data and does not say."""
DATA_FREE_EPOCHS = 100
"""Training budget of a run without data: passes over the images that it makes."""

_TEXT = "a string"
_FLAG = "true or false"
_WHOLE = "a whole number"
_NUMBER = "a number"
_NUMBERS = "a list of numbers or a string"
_TEXT_OR_NUMBER = "a number or a string"
_TEXTS = "a string or a list of strings"

OPTION_KINDS: dict[str, str] = {
    "model": _TEXT,
    "arch": _TEXT,
    "input_size": _NUMBERS,
    "trust_pickle": _FLAG,
    "target_flops": _TEXT_OR_NUMBER,
    "target_params": _TEXT_OR_NUMBER,
    "target_latency": _TEXT,
    "max_accuracy_drop": _NUMBER,
    "data": _TEXT,
    "mean": _NUMBERS,
    "std": _NUMBERS,
    "batch_size": _WHOLE,
    "workers": _WHOLE,
    "augment": _TEXT,
    "task": _TEXT,
    "epochs": _WHOLE,
    "recipe": _TEXT,
    "lr": _NUMBER,
    "accumulate": _WHOLE,
    "no_distill": _FLAG,
    "seed": _WHOLE,
    "insert_bn": _FLAG,
    "channel_multiple": _TEXT_OR_NUMBER,
    "freeze": _TEXTS,
    "min_channels": _WHOLE,
    "prune_norms": _FLAG,
    "provider": _TEXT,
    "precision": _TEXT,
    "ort": _FLAG,
    "opset": _WHOLE,
    "out": _TEXT,
    "resume": _FLAG,
    "device": _TEXT,
    "logger": _TEXT,
    "dry_run": _FLAG,
    "verbose": _FLAG,
    "quiet": _FLAG,
    "json": _FLAG,
}
"""Every option of the main job, and what a configuration file may give for it."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(check: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(check(item) for item in value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_CHECKS: dict[str, Callable[[object], bool]] = {
    _TEXT: _is_text,
    _FLAG: lambda value: isinstance(value, bool),
    _WHOLE: lambda value: isinstance(value, int) and not isinstance(value, bool),
    _NUMBER: _is_number,
    _NUMBERS: lambda value: _is_text(value) or _is_list_of(_is_number, value),
    _TEXT_OR_NUMBER: lambda value: _is_text(value) or _is_number(value),
    _TEXTS: lambda value: _is_text(value) or _is_list_of(_is_text, value),
}


def read_config_file(path: Path) -> tuple[dict[str, Any], SettingsFile]:
    """Option values of a TOML file, by option name with `_`, and the file itself.

    Lists of numbers become comma-separated text, as on the command line. Raises UsageError for a
    file that cannot be read, is not TOML, or has an unknown key or a wrong type.
    """
    try:
        settings = SettingsFile(name=path.name, content=path.read_bytes())
        content = tomllib.loads(settings.text)
    except OSError as error:
        raise UsageError(f"--config: cannot read '{path}': {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: '{path}' is not TOML: {error}") from error
    options: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name in options:
            raise UsageError(f"--config: '{path}' gives '{name}' twice, with - and with _")
        options[name] = _checked_value(path, key, value)
    return options, settings


def _checked_value(path: Path, key: str, value: object) -> object:
    kind = OPTION_KINDS.get(key.replace("-", "_"))
    if kind is None and isinstance(value, dict):
        raise UsageError(f"--config: '{path}' has a table [{key}]: options stand without tables")
    if kind is None:
        names = [name.replace("_", "-") for name in OPTION_KINDS]
        near = difflib.get_close_matches(key.replace("_", "-"), names, n=1)
        advice = f"did you mean '{near[0]}'?" if near else "keys are named as the options"
        raise UsageError(f"--config: unknown key '{key}' in '{path}': {advice}")
    if not _CHECKS[kind](value):
        raise UsageError(
            f"--config: '{key}' in '{path}' is {value!r} ({type(value).__name__}): give {kind}"
        )
    if kind == _NUMBERS and isinstance(value, list):
        return ",".join(str(number) for number in value)
    if kind == _TEXTS and isinstance(value, str):
        return [value]
    return value


def build_config(options: Mapping[str, Any], settings: SettingsFile | None = None) -> RunConfig:
    """The `RunConfig` of option values named as in `OPTION_KINDS`; absent or None means default.

    settings: the file that some of them were read from, which the report repeats. Raises
    UsageError, naming the option, for text that cannot be read or a value out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if given[name] == "":
            raise UsageError(f"--{name.replace('_', '-')} is empty: leave it out, or give a value")
    unknown = sorted(given.keys() - OPTION_KINDS.keys())
    assert not unknown, f"options without a kind: {unknown}"
    if "model" not in given:
        raise UsageError("no model: give the model file, e.g. compress --target-flops 0.6 model.pt")
    if given.get("verbose") and given.get("quiet"):
        raise UsageError("-v and -q contradict each other: give one")
    path = Path(given["model"])
    default_epochs = DEFAULT_EPOCHS if "data" in given else DATA_FREE_EPOCHS
    recovery = RecoveryConfig(
        epochs=given.get("epochs", default_epochs),
        distill=not given.get("no_distill", False),
        **_picked(given, "recipe", "lr", "seed", "insert_bn", "accumulate"),
    )
    return RunConfig(
        model=ModelConfig(path=path, **_model_options(given)),
        target=_target_config(given),
        data=_data_config(given),
        recovery=recovery,
        constraints=_constraints(given),
        deploy=DeployConfig(**_picked(given, "provider", "precision", "ort", "opset")),
        out=Path(given["out"]) if "out" in given else path.with_name(f"{path.stem}-compressed"),
        verbosity=int(given.get("verbose", False)) - int(given.get("quiet", False)),
        settings=settings,
        **_picked(given, "resume", "device", "logger", "dry_run", "json"),
    )


def inspect_request(options: Mapping[str, Any]) -> InspectConfig:
    """The `InspectConfig` of option values; raises UsageError as `build_config` does."""
    given = {name: value for name, value in options.items() if value is not None}
    inputs = tuple(given.pop("input_size", ()))
    if len(inputs) == 1 and re.fullmatch(r"\d+,\d+,\d+", inputs[0]):
        given["input_size"] = inputs[0]
        inputs = ()
    return InspectConfig(
        inputs=inputs,
        data=_inspect_data(given),
        model=ModelConfig(path=Path(given["model"]), **_model_options(given)),
        constraints=_constraints(given),
        equal_cut=Target.parse(given["target_flops"], "--target-flops"),
    )


def _inspect_data(given: Mapping[str, Any]) -> InspectData | None:
    options = _picked(given, "mean", "std", "max_eval_images", "plot")
    if "data" not in given:
        for name in options:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} has no effect without --data: give --data as well")
        return None
    for name in ("mean", "std"):
        if name in options:
            options[name] = _numbers(f"--{name}", options[name], float, "0.485,0.456,0.406")
    return InspectData(source=given["data"], **options)


def _constraints(given: Mapping[str, Any]) -> ConstraintConfig:
    constraints = _picked(given, "min_channels", "prune_norms")
    if "freeze" in given:
        constraints["freeze"] = tuple(given["freeze"])
    if "channel_multiple" in given:
        constraints["channel_multiple"] = _channel_multiple(str(given["channel_multiple"]))
    return ConstraintConfig(**constraints)


def _picked(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _model_options(given: Mapping[str, Any]) -> dict[str, Any]:
    options = _picked(given, "arch", "trust_pickle")
    if "input_size" in given:
        sizes = _numbers("--input-size", given["input_size"], int, "3,224,224")
        options["input_size"] = sizes
    return options


def _target_config(given: Mapping[str, Any]) -> TargetConfig:
    options: dict[str, Any] = {
        name: Target.parse(str(given[f"target_{name}"]), f"--target-{name}")
        for name in ("flops", "params")
        if f"target_{name}" in given
    }
    if "target_latency" in given:
        options["latency"] = LatencyTarget.parse(given["target_latency"], "--target-latency")
    return TargetConfig(**options, **_picked(given, "max_accuracy_drop"))


def _data_config(given: Mapping[str, Any]) -> DataConfig:
    options = _picked(given, "batch_size", "workers", "augment", "task")
    for name in ("mean", "std"):
        if name in given:
            options[name] = _numbers(f"--{name}", given[name], float, "0.485,0.456,0.406")
    return DataConfig(source=given.get("data"), **options)


def _numbers(option: str, text: str, kind: type, example: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option}: cannot read {text!r}: give numbers as in {example}") from error


def _channel_multiple(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
