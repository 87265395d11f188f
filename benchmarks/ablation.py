"""`make bench-ablation` (`python -m benchmarks.ablation`): what each part of the default recipe is
worth.

The network, images and measurements of `benchmarks.accuracy`, at 30 % of the MACs, with one part of
the recipe taken out or made as is usual elsewhere (`benchmarks.ablated`). Cells are kept as there,
so that the command goes on where it stopped; docs/ablation.md is written after each. `--only NAME
--epochs E --seed S` (each repeatable) choose cells.
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks.ablated import VARIANTS
from benchmarks.accuracy import measure_all
from benchmarks.accuracy_cells import EPOCHS, Cell, Outcomes, measured
from benchmarks.accuracy_cells import SEEDS as ALL_SEEDS
from benchmarks.accuracy_data import prepare
from benchmarks.accuracy_page import shown_of
from benchmarks.tables import ROOT, markdown_table

DOCUMENT = ROOT / "docs" / "ablation.md"
KEEP, SEEDS = 0.3, (0,)
METHOD = f"""\
A CIFAR-10 network of 20 layers is cut to {KEEP:.0%} of its MACs by the default recipe, and by the
same with one part taken out or made as is usual elsewhere; all else is as in
[Accuracy](accuracy.md). Top-1 on 10,000 test images, and beside it the difference to the default
with the same seeds (n of them where there are several); with one seed, up to a point and a half may
be luck. Empty: the part plays no role there. *: of earlier code.
"""


def wanted(epochs: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
    """The default's cells and those of its variants, cheap ones first."""
    return [
        Cell(method=method, keep=KEEP, epochs=passes, seed=seed)
        for seed in seeds
        for passes in epochs
        for method in ("default", *VARIANTS)
        if method == "default" or passes in VARIANTS[method].plays_in
    ]


def shown(outcomes: Outcomes) -> list[Cell]:
    """All cells of the first seed, and of others of which something is there."""
    others = {
        cell.seed
        for cell in wanted(EPOCHS, ALL_SEEDS)
        if cell.method in VARIANTS and cell.name in outcomes
    }
    return wanted(EPOCHS, sorted({*SEEDS, *others}))


def rows(every: Sequence[Cell], outcomes: Outcomes) -> list[tuple[str, ...]]:
    """One row a variant, the default first: a column for each number of passes."""
    passes = list(dict.fromkeys(cell.epochs for cell in every))
    return [
        (
            name,
            VARIANTS[name].instead if name in VARIANTS else "the recipe as it is",
            *(_told(name, number, every, outcomes) for number in passes),
        )
        for name in ("default", *VARIANTS)
    ]


def _told(name: str, passes: int, every: Sequence[Cell], outcomes: Outcomes) -> str:
    cells = {
        method: [cell for cell in every if (cell.method, cell.epochs) == (method, passes)]
        for method in (name, "default")
    }
    if not cells[name]:
        return ""
    own, default = (shown_of(cells[method], outcomes) for method in (name, "default"))
    seeds = sorted(own.by_seed.keys() & default.by_seed.keys())
    mean, beside = (found.mean("accuracy", seeds) for found in (own, default))
    if mean is None or beside is None:
        return "not measured"
    star = own.mark(seeds)
    count = "" if len(seeds) == 1 else f", n = {len(seeds)}"
    if name == "default":
        return f"{mean:.2%}{star}{count}"
    if star != default.mark(seeds):
        return f"{mean:.2%}{star}{count}"  # the rest of the recipe differs too
    return f"{mean:.2%}{star} ({100 * (mean - beside):+.2f}{count})"


def document(every: Sequence[Cell], outcomes: Outcomes) -> str:
    """The content of docs/ablation.md."""
    passes = list(dict.fromkeys(cell.epochs for cell in every))
    header = ("part", "instead", *(f"{n} pass{'es' * (n != 1)}" for n in passes))
    machines = dict.fromkeys(
        outcomes[cell.name]["measured_with"] for cell in every if cell.name in outcomes
    )
    return (
        "# What each part of the recipe is worth\n\n`make bench-ablation`.\n\n"
        f"{METHOD}\n{markdown_table(header, rows(every, outcomes))}\nMeasured with:\n\n"
        + "".join(f"- {machine}\n" for machine in machines)
    )


def main(arguments: list[str]) -> int:
    """Measure what is asked and not there yet; 0 also where the material is absent."""
    parser = argparse.ArgumentParser(prog="benchmarks.ablation")
    parser.add_argument("--only", action="append", choices=["default", *VARIANTS])
    parser.add_argument("--epochs", action="append", type=int, choices=EPOCHS)
    parser.add_argument("--seed", action="append", type=int, choices=ALL_SEEDS)
    options = parser.parse_args(arguments)
    if prepare() is None:
        print("skipped: the JPEG copy of CIFAR-10 or the trained network is absent")
        return 0
    asked = wanted(options.epochs or EPOCHS, options.seed or SEEDS)
    chosen = [cell for cell in asked if cell.method in (options.only or [cell.method])]
    measure_all(chosen, lambda: DOCUMENT.write_text(document(shown(measured()), measured())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
