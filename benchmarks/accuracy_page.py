"""docs/accuracy.md from the outcomes of `benchmarks.accuracy`.

No command. What enters: cells and their outcomes. What leaves: the page's text: where the default
recipe stands beside the best peer, then every method, a mean over the seeds that were measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.accuracy_cells import PEER_METHODS, Cell, Outcomes, is_current
from benchmarks.tables import markdown_table

METHOD = """\
A CIFAR-10 network of 20 layers, trained on the JPEG copy, is cut to a share of its MACs and
recovered for so many passes over the same 10,000 training images. Top-1 is of all 10,000 test
images, by onnxruntime on the exported file; MACs are counted on that file, for every method alike.

Alike for all: images and their order, mirrored and moved as `default` has it (in 1 pass as they
are, in 5 mirrored; `gbn-2019` always mirrors and shifts them), SGD with momentum 0.9, batches of
128, batch norm statistics renewed after a cut, no rounding of widths, one thread. `default` and the
peers (`tp-...`) learn from the original's outputs at a peak rate of 0.05. `default` is this
project's own way: it learns from the original's residual streams too, scores on images that are not
augmented, takes smaller steps where there are few, and after a cut, in 0 and 1 passes, refits
layers and keeps the original's statistics. `gbn-2019` is
the published recipe, which learns from labels alone at its own rates. Images seen are those of
scoring and training. Peers prune
globally in steps of half a per cent of the channels, as in their CIFAR reproduction; GroupTaylor
scores on as many batches as `default`, in one place at the start; BNScale and GroupNorm train
sparsely for the first half of the budget. The numbers of `default` were chosen on this network and
these test images, most of them with one seed; the peers have those of their own reproductions, and
its learning rate. Seconds are of the whole: import, export and accuracy, and for this project's
runs accuracy before, latency and a page as well. The machine was shared, at times by more processes
than it has cores: seconds are rough.
"""
STANDING = (
    *("MACs, at most", "passes", "default", "best peer", "ahead by", "gbn-2019"),
    "time beside fine-tuning",
)
PLAIN = "tp-group-magnitude"  # its cut needs no images: all else is fine-tuning
HEADER = (
    *("MACs, at most", "passes", "method", "seeds", "top-1", "from", "to", "MACs kept"),
    *("parameters kept", "images seen", "seconds", "CPU seconds", "peak MiB"),
)


def document(all_cells: Sequence[Cell], outcomes: Outcomes) -> str:
    """The content of docs/accuracy.md."""
    found = [outcomes[cell.name] for cell in all_cells if cell.name in outcomes]
    missing = len(all_cells) - len(found)
    earlier = len(found) - sum(is_current(cell, outcomes) for cell in all_cells)
    notes = sorted({outcome["note"] for outcome in found if outcome.get("note")})
    baselines = {outcome["baseline"] for outcome in found if "baseline" in outcome}
    before = f"Before: {max(baselines):.2%} top-1. " if baselines else ""
    marked = f" {earlier} cells are of earlier code, or failed." if earlier else ""
    state = f"{missing} of {len(all_cells)} cells are not measured yet" if missing else "complete"
    told = "".join(f"- Torch-Pruning 1.6.1 {note}.\n" for note in notes)
    machines = dict.fromkeys(outcome.get("measured_with", "unknown") for outcome in found)
    settings = list(dict.fromkeys((cell.keep, cell.epochs) for cell in all_cells))
    beside = [standing(all_cells, outcomes, keep, passes) for keep, passes in settings]
    return (
        "# Accuracy after pruning, beside Torch-Pruning\n\n"
        f"`make bench-accuracy`. {before}State: {state}.{marked} Figures marked * are of earlier "
        "code, at least of one seed.\n\n"
        f"{METHOD}\n{told}\n"
        "## Beside the best peer\n\n"
        "Top-1, means over the seeds that both have; *ahead by*, its mean and, of several seeds, "
        "its lowest and highest. `gbn-2019` is the published method. Time: the seconds for which "
        "the default recipe scores, cuts, proves, repairs and trains over those for which "
        f"`{PLAIN}` only trains, taught by the same original and with as many images in all; of "
        "seeds for which both ran on one processor with a core to themselves.\n\n"
        f"{markdown_table(STANDING, beside)}\n"
        "## All methods\n\n"
        "Means over the seeds, top-1 also from its lowest to its highest. Each measurement, with a "
        "hash of the code that decided it: [accuracy.jsonl](accuracy.jsonl). Where code changed "
        "that plays no part in a cell, the hash was moved along, and some of these were run again "
        "to see that they are the same.\n\n"
        f"{markdown_table(HEADER, rows(all_cells, outcomes))}\n"
        "Measured with:\n\n" + "".join(f"- {machine}\n" for machine in machines)
    )


_QUIET = 0.95  # of a core: who had less waited for others, and took longer by the clock


@dataclass(frozen=True)
class Shown:
    """Of a method at a setting: good outcomes by seed, those of the present code, and failures."""

    by_seed: dict[int, dict[str, Any]]
    present: frozenset[int]
    failed: list[str]

    def mark(self, seeds: Iterable[int]) -> str:
        """A star where one of these seeds is of earlier code."""
        return "" if self.present.issuperset(seeds) else "*"

    def mean(self, key: str, seeds: Iterable[int]) -> float | None:
        """Over these seeds; None where nothing is known."""
        known = [self.by_seed[seed][key] for seed in seeds if key in self.by_seed[seed]]
        return fmean(known) if known else None


def shown_of(of_seeds: Sequence[Cell], outcomes: Outcomes) -> Shown:
    """The cells are of one method and setting, one a seed."""
    found = {cell.seed: outcomes[cell.name] for cell in of_seeds if cell.name in outcomes}
    good = {seed: outcome for seed, outcome in found.items() if "error" not in outcome}
    present = frozenset(cell.seed for cell in of_seeds if is_current(cell, outcomes))
    failed = [outcome["error"] for outcome in found.values() if "error" in outcome]
    return Shown(good, present, failed)


def rows(all_cells: Sequence[Cell], outcomes: Outcomes) -> list[tuple[str, ...]]:
    """One row a method and setting, measured or not."""
    table = []
    for (keep, passes, method), of_seeds in _by_setting(all_cells).items():
        shown = shown_of(of_seeds, outcomes)
        # earlier code never enters a mean beside the present
        seeds = sorted(shown.present or shown.by_seed)
        begin = (f"{keep:.0%}", str(passes), method + shown.mark(seeds))
        count = str(len(seeds))
        if shown.failed:
            count += f", {len(shown.failed)} failed: {shown.failed[0]}"
        if not seeds:
            blank = [""] * (len(HEADER) - 5)
            table.append((*begin, count, "not measured yet", *blank))
            continue
        tops = [shown.by_seed[seed]["accuracy"] for seed in seeds]
        shares = [shown.mean(key, seeds) for key in ("flops_kept", "params_kept")]
        amounts = [shown.mean(key, seeds) for key in ("images", "seconds", "cpu_seconds")]
        table.append(
            (
                *(*begin, count),
                *(f"{top:.2%}" for top in (fmean(tops), min(tops), max(tops))),
                *("" if share is None else f"{share:.1%}" for share in shares),
                *("" if amount is None else f"{amount:,.0f}" for amount in amounts),
                str(max(shown.by_seed[seed]["peak_mib"] for seed in seeds)),
            )
        )
    return table


def standing(
    all_cells: Sequence[Cell], outcomes: Outcomes, keep: float, passes: int
) -> tuple[str, ...]:
    """The default recipe beside the best peer at one setting, on the seeds that both have."""
    shown = {
        method: shown_of(of_seeds, outcomes)
        for (share, number, method), of_seeds in _by_setting(all_cells).items()
        if (share, number) == (keep, passes)
    }
    begin = (f"{keep:.0%}", str(passes))
    own = shown["default"]
    shared = {m: sorted(own.by_seed.keys() & s.by_seed.keys()) for m, s in shown.items()}
    peers = {m: shown[m].mean("accuracy", shared[m]) for m in PEER_METHODS if shared.get(m)}
    if not peers:
        return (*begin, "not measured yet", "", "", "", "")
    best = max(peers, key=lambda method: peers[method] or 0.0)
    ahead = [
        100 * (own.by_seed[seed]["accuracy"] - shown[best].by_seed[seed]["accuracy"])
        for seed in shared[best]
    ]
    spread = f" [{min(ahead):+.2f}, {max(ahead):+.2f}]" if len(ahead) > 1 else ""

    def told(method: str, seeds: Sequence[int]) -> str:
        mean = shown[method].mean("accuracy", seeds) if seeds else None
        if mean is None:
            return "not measured yet"
        return f"{mean:.2%}{shown[method].mark(seeds)} (n = {len(seeds)})"

    return (
        *(*begin, told("default", shared[best]), f"{told(best, shared[best])}, {best}"),
        f"{fmean(ahead):+.2f} points{spread}",
        told("gbn-2019", shared.get("gbn-2019", [])) if "gbn-2019" in shown else "",
        _beside_plain(shown),
    )


def _beside_plain(shown: dict[str, Shown]) -> str:
    """Seconds of the default recipe over those of fine-tuning alone, with as many images."""
    if PLAIN not in shown:
        return ""
    own, plain = shown["default"], shown[PLAIN]
    ratios = [
        own.by_seed[seed]["recipe_seconds"] / plain.by_seed[seed]["training_seconds"]
        for seed in sorted(own.present & plain.present)
        if _timed_alike(own.by_seed[seed], plain.by_seed[seed])
    ]
    if not ratios:
        return ""
    spread = f" [{min(ratios):.2f}, {max(ratios):.2f}]" if len(ratios) > 1 else ""
    return f"{fmean(ratios):.2f}x{spread} (n = {len(ratios)})"


def _timed_alike(own: dict[str, Any], plain: dict[str, Any]) -> bool:
    """Whether both trained, on one processor, and each had a core of its own."""
    if not own.get("recipe_seconds") or not plain.get("training_seconds"):
        return False
    quiet = all(found["cpu_seconds"] >= _QUIET * found["seconds"] for found in (own, plain))
    return quiet and own["measured_with"] == plain["measured_with"]


def _by_setting(all_cells: Sequence[Cell]) -> dict[tuple[float, int, str], list[Cell]]:
    found: dict[tuple[float, int, str], list[Cell]] = {}
    for cell in sorted(all_cells, key=lambda cell: cell.seed):
        found.setdefault((cell.keep, cell.epochs, cell.method), []).append(cell)
    return found
