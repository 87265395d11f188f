"""The command line: parse, call, print.

Enters: the arguments of `compress`. Leaves: the report and an exit code.
Refused: whatever `config` refuses, in one line on standard error.
Heavy packages are imported when a run begins, so that `--help` answers at once.
"""

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import click.shell_completion
from click_default_group import DefaultGroup

from pipeline.cli_deploy import FILE, bench, verify
from pipeline.cli_errors import RunState, guarded, terminated_as_interrupted
from pipeline.cli_help import SectionedCommand, SectionedOption, write_help
from pipeline.cli_init import completion, init
from pipeline.cli_report import report
from pipeline.config import (
    AUGMENTATIONS,
    DEFAULT_OPSET,
    LOGGERS,
    PRECISIONS,
    PROVIDERS,
    RECIPES,
)
from pipeline.config_file import (
    DATA_FREE_EPOCHS,
    DEFAULT_EPOCHS,
    build_config,
    inspect_request,
    read_config_file,
)
from pipeline.config_sections import require_data_there
from pipeline.errors import UsageError


class CompressGroup(DefaultGroup):
    """The group; its help is that of the main job, and no error leaves it as a traceback."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the main job's help."""
        write_help(ctx, self.commands[self.default_cmd_name], formatter, whole=False)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without any argument, help is what is wanted."""
        rest: list[str] = super().parse_args(ctx, args or ["--help"])
        return rest

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A mistyped command would be taken for a model; raises UsageError with the right one."""
        name, known = args[0], self.commands
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        if near and name not in known and not ctx.resilient_parsing and not Path(name).exists():
            raise UsageError(f"no command and no model '{name}': did you mean {near[0]}?")
        found: tuple[str | None, click.Command | None, list[str]]
        found = super().resolve_command(ctx, args)
        return found

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Commands, and what the main job takes, since its name may be left out."""
        found = super().shell_complete(ctx, incomplete)
        found += self.commands[self.default_cmd_name].shell_complete(ctx, incomplete)
        model = click.shell_completion.CompletionItem(incomplete, type="file")
        return found if incomplete.startswith("-") else [model, *found]

    def main(self, args: Any = None, prog_name: str | None = None, **extra: Any) -> None:
        """Run the command line and end the process with its exit code."""
        state = RunState()
        extra |= {"standalone_mode": False, "obj": state}
        run: Callable[..., int | None] = super().main
        sys.exit(guarded(lambda: run(args, prog_name or "compress", **extra) or 0, state))


def _help_all(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        formatter = ctx.make_formatter()
        write_help(ctx, ctx.command, formatter, whole=True)
        click.echo(formatter.getvalue().rstrip("\n"))
        ctx.exit()


def _load_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    if path is not None:
        ctx.default_map, ctx.ensure_object(RunState).settings = read_config_file(path)


_TYPED = click.core.ParameterSource.COMMANDLINE
ARCH_HELP = "Builds the network of a state dict."
DATA_HELP = "Image folders, FILE.npz or FILE.py:FACTORY."
EPOCHS_DEFAULT = f"Default: {DEFAULT_EPOCHS}; without --data {DATA_FREE_EPOCHS}."
FREEZE_HELP = "Modules that keep every channel; repeatable."
ACCUMULATE_HELP = "Batches in N parts: less memory."
INSERT_BN_HELP = "Train ONNX files with norms put back."
NORMS_HELP = "LayerNorm and the like may lose channels."
AUGMENT = click.Choice(AUGMENTATIONS)
AUGMENT_HELP = f"{', '.join(AUGMENTATIONS)}. Auto: more, the more epochs."
RECIPE = click.Choice(RECIPES)
RECIPE_HELP = f"{', '.join(RECIPES)} (as it was published)."
PROVIDER = click.Choice(PROVIDERS)
PROVIDER_HELP = f"{', '.join(PROVIDERS)}. Default: {PROVIDERS[0]}."
PRECISION = click.Choice(PRECISIONS)
PRECISION_HELP = f"{', '.join(PRECISIONS)} (with --data). Default: file's."
LOGGER = click.Choice(LOGGERS)
LOGGER_HELP = f"Curves in DIR/logs: {', '.join(LOGGERS)}."
CONFIG_FILE: dict[str, Any] = {
    "type": click.Path(path_type=Path),
    "is_eager": True,  # It sets the defaults of the others.
    "expose_value": False,
    "callback": _load_config,
}


RARE: dict[str, Any] = {"rare": True}
DEVICES = ("auto", "cpu", "mps", "cuda", "cuda:0")
HELP_ALL: dict[str, Any] = {
    "is_flag": True,
    "is_eager": True,
    "expose_value": False,
    "callback": _help_all,
}


def _option(section: str, *names: str, **attrs: Any) -> Callable[[Any], Any]:
    return click.option(*names, cls=SectionedOption, section=section, **attrs)


# Defaults are not click's: what is not given stays None, and `config` alone holds the defaults.
OPTIONS = (
    _option("Model", "--arch", **FILE, metavar="WHERE:NAME", help=ARCH_HELP),
    _option("Model", "--input-size", metavar="C,H,W", help="Default: the model's own."),
    _option(
        "Model", "--trust-pickle", **RARE, is_flag=True, help="Let a pickled model run its code."
    ),
    _option("Target", "--target-flops", metavar="KEEP", help="At most 0.6, 60% or 25M MACs."),
    _option("Target", "--target-params", **RARE, metavar="KEEP", help="The same for parameters."),
    _option("Target", "--target-latency", metavar="TIME", help="At most 4ms, or 0.6x the time."),
    _option("Target", "--max-accuracy-drop", type=float, metavar="X", help="Points, e.g. 0.5."),
    _option("Data", "--data", **FILE, metavar="SOURCE", help=DATA_HELP),
    _option("Data", "--mean", **RARE, metavar="X,Y,Z", help="Subtracted, one a channel."),
    _option("Data", "--std", **RARE, metavar="X,Y,Z", help="Divided by, one a channel."),
    _option("Data", "--batch-size", **RARE, type=int, metavar="N", help="Default: 128."),
    _option(
        "Data", "--workers", **RARE, type=int, metavar="N", help="Decoding threads. Default: 2."
    ),
    _option("Data", "--augment", **RARE, type=AUGMENT, metavar="HOW", help=AUGMENT_HELP),
    _option("Data", "--task", **FILE, **RARE, metavar="FILE.py:MAKE", help="Own loss and metric."),
    _option("Recovery", "--epochs", type=int, metavar="N", help=f"In all. {EPOCHS_DEFAULT}"),
    _option("Recovery", "--recipe", **RARE, type=RECIPE, metavar="NAME", help=RECIPE_HELP),
    _option("Recovery", "--lr", **RARE, type=float, metavar="X", help="Peak learning rate."),
    _option("Recovery", "--accumulate", **RARE, type=int, metavar="N", help=ACCUMULATE_HELP),
    _option("Recovery", "--no-distill", **RARE, is_flag=True, help="Learn from the labels alone."),
    _option("Recovery", "--insert-bn/--no-insert-bn", **RARE, default=None, help=INSERT_BN_HELP),
    _option("Recovery", "--seed", **RARE, type=int, metavar="N", help="Default: 0."),
    _option("Constraints", "--channel-multiple", metavar="auto|N", help="Widths are multiples."),
    _option("Constraints", "--freeze", multiple=True, metavar="PATTERN", help=FREEZE_HELP),
    _option(
        "Constraints", "--min-channels", **RARE, type=int, metavar="N", help="Fewest in a layer."
    ),
    _option("Constraints", "--prune-norms", **RARE, is_flag=True, help=NORMS_HELP),
    _option("Deployment", "--provider", type=PROVIDER, metavar="NAME", help=PROVIDER_HELP),
    _option("Deployment", "--precision", type=PRECISION, metavar="NAME", help=PRECISION_HELP),
    _option("Deployment", "--ort", **RARE, is_flag=True, help="Also write model.ort, for mobile."),
    _option(
        "Deployment",
        "--opset",
        **RARE,
        type=int,
        metavar="N",
        help=f"Default: the model's, or {DEFAULT_OPSET}.",
    ),
    _option("Run", "--out", **FILE, metavar="DIR", help="Default: MODEL-compressed."),
    _option("Run", "--resume", is_flag=True, help="Go on after the last finished stage."),
    _option(
        "Run",
        "--device",
        **RARE,
        metavar="NAME",
        help="auto, cpu, mps, cuda or cuda:N.",
        shell_complete=lambda _ctx, _param, begun: [d for d in DEVICES if d.startswith(begun)],
    ),
    _option("Run", "--logger", **RARE, type=LOGGER, metavar="NAME", help=LOGGER_HELP),
    _option("Run", "--config", metavar="FILE.toml", help="These options, by name.", **CONFIG_FILE),
    _option("Run", "--dry-run", is_flag=True, help="Plan, and write nothing."),
    _option("Run", "-v", "--verbose", is_flag=True, help="Details, and tracebacks of errors."),
    _option("Run", "-q", "--quiet", **RARE, is_flag=True, help="Only warnings and the result."),
    _option("Run", "--json", is_flag=True, help="The report alone on standard output."),
    _option("Run", "--help-all", help="Every option, also the rarer ones.", **HELP_ALL),
)


def _with_options(command: Any) -> Any:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command(
    "prune",
    cls=SectionedCommand,
    hidden=True,  # its name may be left out
    help="Make a trained vision model a smaller, faster ONNX file that is proven right.",
)
@click.argument("model", required=False, type=click.Path())
@_with_options
@click.pass_context
def prune(ctx: click.Context, /, **options: Any) -> int:
    """Prune, recover, export, verify; returns the exit code."""
    _quiet_or_verbose(ctx, options)
    state: RunState = ctx.obj
    state.verbose = bool(options["verbose"])
    given = {name: value for name, value in options.items() if value != ()}
    config = build_config(given, state.settings)
    state.out = config.out
    require_data_there(config.data.source)

    from pipeline.console import RunConsole
    from pipeline.ranks import is_first
    from pipeline.report import Report, summary_table
    from pipeline.run import run_compress

    console = RunConsole(verbosity=config.verbosity, json=config.json)
    if is_first():
        console.say(f"asked: {config.target.asked()}")
    with terminated_as_interrupted(), _standard_output_kept(config.json):
        done = run_compress(config, console)
    if config.json and done is not None:
        click.echo(done.to_json())
    if not isinstance(done, Report):
        return 0
    if not config.json:
        console.result(summary_table(done))
        page = "report.html" if (config.out / "report.html").is_file() else "report.json"
        console.say(f"the file: {config.out / 'model.onnx'}; all figures: {page} beside it")
    return done.exit_code


def _quiet_or_verbose(ctx: click.Context, options: dict[str, Any]) -> None:
    """What the command line says of the two takes back what the settings file says."""
    typed = {n for n in ("quiet", "verbose") if ctx.get_parameter_source(n) == _TYPED}
    for name in {"quiet", "verbose"} - typed if typed else ():
        options[name] = False


@contextlib.contextmanager
def _standard_output_kept(kept: bool) -> Iterator[None]:
    # torch's exporter prints its progress to standard output.
    with contextlib.redirect_stdout(sys.stderr) if kept else contextlib.nullcontext():
        yield


INPUTS_HELP = "C,H,W; repeatable NAME:C,H,W; or FILE.py:FACTORY."
INSPECT_HELP = """\
What can be pruned in MODEL, what cannot and why; nothing is trained.

\b
Example:
  compress inspect --arch torchvision:NAME weights.pt
"""


@click.command("inspect", help=INSPECT_HELP)
@click.argument("model", type=click.Path())
@click.option("--arch", **FILE, metavar="WHERE:NAME", help=ARCH_HELP)
@click.option("--input-size", multiple=True, metavar="SHAPE", help=INPUTS_HELP)
@click.option("--trust-pickle", is_flag=True, help="Let a pickled model run its code.")
@click.option("--target-flops", metavar="KEEP", default="0.5", help="Of the equal cut shown.")
@click.option("--channel-multiple", metavar="auto|N", default="auto", help="Of the widths.")
@click.option("--freeze", multiple=True, metavar="PATTERN", help=FREEZE_HELP)
@click.option("--prune-norms", is_flag=True, help=NORMS_HELP)
@click.option("--data", **FILE, metavar="SOURCE", help="Adds scores, and what cuts cost alone.")
@click.option("--mean", metavar="X,Y,Z", help="Subtracted, one a channel.")
@click.option("--std", metavar="X,Y,Z", help="Divided by, one a channel.")
@click.option("--max-eval-images", type=int, metavar="N", help="To judge cuts by. Default: 512.")
@click.option("--plot", type=click.Path(path_type=Path), help="Picture of them: .svg, .png, .pdf.")
@click.option("-v", "--verbose", is_flag=True, help="Tracebacks of errors.")
@click.option("--json", "as_json", is_flag=True, help="JSON alone on standard output.")
@click.pass_obj
def inspect(state: RunState, /, **options: Any) -> int:
    """Trace the model and show its groups."""
    state.verbose = bool(options["verbose"])
    request = inspect_request(options)

    import json

    from pipeline.console import RunConsole
    from pipeline.inspect import inspect_model, show

    with _standard_output_kept(options["as_json"]):
        found = inspect_model(request, RunConsole(json=options["as_json"]))
    if options["as_json"]:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        show(found, RunConsole())
    return 0


main = CompressGroup(name="compress", default="prune", no_args_is_help=False)
main.add_command(prune)
main.add_command(inspect)
main.add_command(verify)
main.add_command(bench)
main.add_command(report)
main.add_command(init)
main.add_command(completion)
click.version_option(package_name="gbn-compress", prog_name="compress")(main)

if __name__ == "__main__":
    main()
