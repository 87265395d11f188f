"""`compress init` and `compress completion`: what makes the other commands easier to use.

Enters: their arguments. Leaves: a configuration file, or a shell script on standard output.
"""

import shlex
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from pipeline.cli_errors import RunState

INIT_HELP = """\
Write a commented compress.toml, with what MODEL says of its inputs.

\b
Examples:
  compress init --arch timm:NAME weights.pt
  compress --config compress.toml --dry-run
      shows the plan, and how long it will take
"""
COMPLETION_HELP = """\
Print the script that completes `compress` in SHELL: bash, zsh or fish.

\b
Examples:
  eval "$(compress completion bash)"          # in ~/.bashrc
  compress completion fish > ~/.config/fish/completions/compress.fish
"""
_NO_FILE = "compress.toml"


@click.command("init", help=INIT_HELP, short_help="A configuration file to start from.")
@click.argument("model", required=False, type=click.Path())
@click.option("--arch", type=click.Path(), metavar="WHERE:NAME", help="Of a state dict.")
@click.option("--input-size", metavar="C,H,W", help="Where the model does not say it.")
@click.option("--trust-pickle", is_flag=True, help="Let a pickled model run its code.")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=_NO_FILE,
    help=f"Default: {_NO_FILE}.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@click.option("-v", "--verbose", is_flag=True, help="Tracebacks of errors.")
@click.pass_context
def init(ctx: click.Context, /, **options: Any) -> int:
    """Load the model, write the file."""
    state = ctx.ensure_object(RunState)
    state.verbose = bool(options["verbose"])
    output: Path = options["output"]

    from pipeline.errors import UsageError
    from pipeline.starter import known_of, nothing_known, starter
    from pipeline.text_files import is_stream, text_writer

    of_model = ("arch", "input_size", "trust_pickle")
    if options["model"] is None and any(options[name] for name in of_model):
        raise UsageError("--arch, --input-size and --trust-pickle are of a model: give MODEL")
    write = text_writer(output, "--output")
    there = (output.exists() or output.is_symlink()) and not is_stream(output)
    if there and not options["force"]:
        raise UsageError(f"'{output}' is there already: --force overwrites it")
    known = nothing_known() if options["model"] is None else known_of(options)
    text = starter(_described(ctx), known, output)
    write(lambda: text)
    unset = [] if options["model"] is not None else ["model"]
    unset += [] if "input_size" in known.values or unset else ["input-size"]
    first = f"set {unset[0]}, " if unset else ""
    command = shlex.join(["compress", "--config", str(output), "--dry-run"])
    click.echo(f"wrote {output}: {first}look it over, then: {command}", err=is_stream(output))
    return 0


def _described(ctx: click.Context) -> list[Any]:
    """The options of the main job, as its help has them."""
    from pipeline.starter import Described

    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    prune = group.commands["prune"]
    described = [Described(name="model", section="Model", help="The trained model's file.")]
    described += [
        Described(name=param.name, section=getattr(param, "section", "Run"), help=param.help or "")
        for param in prune.params
        if isinstance(param, click.Option) and param.name is not None
    ]
    return described


@click.command("completion", help=COMPLETION_HELP, short_help="Completion for a shell.")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> int:
    """Print click's own script."""
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "compress", "_COMPRESS_COMPLETE")
    # `source` of the bash class also asks bash for its version, which needs bash to be there.
    click.echo(script.source_template % script.source_vars())
    return 0
