"""A commented configuration file to start from: `compress init`.

Enters: the main job's options with their help, and what a model says of its inputs. Leaves: TOML
text, in which every option has a line, those without a value as a comment.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import DEFAULT_OPSET
from pipeline.config_file import DEFAULT_EPOCHS, OPTION_KINDS

_HEAD = """\
# Settings of a run: {command}
# Each option of the command line has its name here, and the command line wins. Options in comments
# have no effect; they show the default, or an example, and then say so. Paths are seen from the
# folder in which compress runs, not from this file.
"""

# What a run takes where nothing is set.
DEFAULTS: Mapping[str, Any] = {
    "trust_pickle": False,
    "batch_size": 128,
    "workers": 2,
    "augment": "auto",
    "recipe": "default",
    "lr": 0.05,
    "accumulate": 1,
    "no_distill": False,
    "seed": 0,
    "channel_multiple": "auto",
    "min_channels": 1,
    "prune_norms": False,
    "provider": "cpu",
    "ort": False,
    "out": "model-compressed",
    "resume": False,
    "device": "auto",
    "dry_run": False,
    "verbose": False,
    "quiet": False,
    "json": False,
}
# What has no default, or one that depends on the model or on data.
EXAMPLES: Mapping[str, Any] = {
    "model": "model.pt",
    "arch": "torchvision:NAME",
    "input_size": [3, 224, 224],
    "target_flops": 0.6,
    "target_params": 0.6,
    "target_latency": "0.6x",
    "max_accuracy_drop": 0.5,
    "data": "photos/",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "task": "task.py:make",
    "epochs": DEFAULT_EPOCHS,
    "insert_bn": True,
    "freeze": ["head*"],
    "precision": "fp32",
    "opset": DEFAULT_OPSET,
    "logger": "tensorboard",
}


@dataclass(frozen=True, kw_only=True)
class Described:
    """One option: its name, the heading it stands under, and its help."""

    name: str
    section: str
    help: str


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of the model; `notes` says of an option where its value comes from.

    values: set in the file. shown: defaults that follow from the model, as comments.
    """

    values: Mapping[str, Any]
    shown: Mapping[str, Any]
    notes: Mapping[str, str]


def starter(options: Sequence[Described], known: Known, file: Path) -> str:
    """The file's text."""
    return (
        "\n".join(
            [
                _HEAD.format(command=shlex.join(["compress", "--config", str(file)])),
                *_lines(options, known),
            ]
        )
        + "\n"
    )


def _lines(options: Sequence[Described], known: Known) -> Iterator[str]:
    section = None
    for option in options:
        if option.name not in OPTION_KINDS:
            continue
        if option.section != section:
            section = option.section
            yield f"\n# {section}"
        key = option.name.replace("_", "-")
        note = known.notes.get(option.name)
        yield f"\n# {option.help}" + (f" {note}" if note else "")
        if option.name in known.values:
            yield f"{key} = {_toml(known.values[option.name])}"
            continue
        default = {**DEFAULTS, **known.shown}.get(option.name)
        if default is None:
            yield f"# {key} = {_toml(EXAMPLES[option.name])}  # an example"
        else:
            yield f"# {key} = {_toml(default)}"


def _toml(value: Any) -> str:
    # JSON's booleans, numbers, strings and lists of these are TOML's as well.
    return json.dumps(value, ensure_ascii=False)


def nothing_known() -> Known:
    """Without a model: a target, and the rest as examples."""
    return Known(values={"target_flops": EXAMPLES["target_flops"]}, shown={}, notes={})


def known_of(options: Mapping[str, Any]) -> Known:
    """From a model and how to build it, which is loaded but not run. Raises UsageError."""
    from pipeline.config_file import build_config
    from pipeline.importers import model_facts
    from pipeline.importers.source import model_source

    of_model = ("model", "arch", "input_size", "trust_pickle")
    values = {name: options[name] for name in of_model if options.get(name)}
    values["target_flops"] = EXAMPLES["target_flops"]
    config = build_config(values).model
    model, facts = config.path, model_facts(model_source(config))
    shown: dict[str, Any] = {"out": str(model.with_name(f"{model.stem}-compressed"))}
    notes = {"mean": "The model does not say it.", "std": "The model does not say it."}
    if config.input_size is not None:
        values["input_size"] = list(config.input_size)
    elif facts.input_size is not None:
        values["input_size"] = list(facts.input_size)
        notes["input_size"] = f"Found in the {facts.origin}."
    else:
        notes["input_size"] = "The model does not say it: set it."
    if facts.mean is not None and facts.std is not None:
        shown |= {"mean": list(facts.mean), "std": list(facts.std)}
        notes |= dict.fromkeys(("mean", "std"), f"As the {facts.origin}, taken without being set.")
    return Known(values=values, shown=shown, notes=notes)
