"""The help of the main job: an example first, then its options by section, then what else there is.

Enters: a command whose options know their section. Leaves: text, of one screen or whole.
"""

from typing import Any

import click

EXAMPLE = """\
Example:
  compress --target-flops 0.6 model.pt        keeps at most 60 % of the MACs
  compress --target-flops 0.6 --data photos/ --max-accuracy-drop 0.5 model.pt
      recovers accuracy on photos/train; fails if more than 0.5 points are lost
"""

EXIT_CODES = """\
Also: compress inspect (what can be pruned), verify (a gate for CI), bench
  (latency), report (pages of runs), init (settings), completion (of shells).
Exit codes: 0 all met, 1 diverged, 2 usage, 10 FLOPs, params or size, 11 surgery
  or parity, 12 accuracy, 13 latency, 14 provider, 130 interrupted: --resume.
"""


HELP_COLUMN = 25


class SectionedOption(click.Option):
    """An option that the help lists under a heading; a rare one only in `--help-all`."""

    def __init__(self, *args: Any, section: str, rare: bool = False, **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.section = section
        self.rare = rare


def write_help(
    ctx: click.Context, command: click.Command, formatter: click.HelpFormatter, *, whole: bool
) -> None:
    formatter.write(f"Usage: {ctx.find_root().info_name} [OPTIONS] MODEL\n\n")
    formatter.write(f"{command.help}\n\n{EXAMPLE}" + ("" if whole else "\n"))
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        rare = isinstance(param, SectionedOption) and param.rare
        if isinstance(param, click.Option) and record is not None and (whole or not rare):
            # --help itself comes last, and belongs to the last section.
            section = param.section if isinstance(param, SectionedOption) else list(sections)[-1]
            sections.setdefault(section, []).append((record[0].ljust(HELP_COLUMN), record[1]))
    for name, records in sections.items():
        # one screen: headings stand without blank lines between
        formatter.write(f"\n{name}\n" if whole else f"{name}\n")
        with formatter.indentation():
            formatter.write_dl(records)
    formatter.write(f"\n{EXIT_CODES}")


class SectionedCommand(click.Command):
    """A command whose help leads with an example and lists its options in sections."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help."""
        write_help(ctx, self, formatter, whole=False)
