"""docs/accuracy.md from the outcomes of `benchmarks.accuracy`.

No command. What enters: cells and their outcomes. What leaves: the page's text: where the default
recipe stands beside the best peer, then every method, a mean over the seeds that were measured.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.accuracy_cells import PEER_METHODS, Cell, is_current
from benchmarks.tables import markdown_table, measured_with

Outcomes = Mapping[str, dict[str, Any]]

METHOD = """\
A CIFAR-10 network of 20 layers, trained on the JPEG copy, is cut to a share of its MACs and
recovered for so many passes over the same 10,000 training images. Top-1 is of all 10,000 test
images, by onnxruntime on the exported file; MACs are counted on that file, for every method alike.

Alike for all: images and their order, mirrored and moved as `default` has it (in 1 pass as they
are, in 5 mirrored; `gbn-2019` always mirrors and shifts them), SGD with momentum 0.9, batches of
128, batch norm statistics renewed after a cut, no rounding of widths, one thread. `default` and the
peers (`tp-...`) learn from the original's outputs at a peak rate of 0.05. `default` is this
project's own way: it learns from the original's residual streams too, keeps their statistics and
refits layers after a cut, scores on images that are not augmented, and takes smaller steps where
there are few. `gbn-2019` is
the published recipe, which learns from labels alone at its own rates. Images seen are those of
scoring and training. Peers prune
globally in steps of half a per cent of the channels, as in their CIFAR reproduction; GroupTaylor
scores on as many batches as `default`, in one place at the start; BNScale and GroupNorm train
sparsely for the first half of the budget. Seconds include import, export and measurement, and for
this project's runs proofs and latency. The machine was shared, at times by more processes than it
has cores: seconds are rough, and CPU seconds, where they were taken, tell more.
"""
STANDING = ("MACs, at most", "passes", "default", "best peer", "ahead by", "gbn-2019")
HEADER = (
    *("MACs, at most", "passes", "method", "seeds", "top-1", "from", "to", "MACs kept"),
    *("parameters kept", "images seen", "seconds", "CPU seconds", "peak MiB"),
)


def document(all_cells: Sequence[Cell], outcomes: Outcomes) -> str:
    """The content of docs/accuracy.md."""
    found = [outcomes[cell.name] for cell in all_cells if cell.name in outcomes]
    missing = len(all_cells) - len(found)
    earlier = len(found) - sum(is_current(cell, dict(outcomes)) for cell in all_cells)
    notes = sorted({outcome["note"] for outcome in found if outcome.get("note")})
    baselines = {outcome["baseline"] for outcome in found if "baseline" in outcome}
    before = f"Before: {max(baselines):.2%} top-1. " if baselines else ""
    marked = f" {earlier} cells, in rows marked *, are of earlier code." if earlier else ""
    state = f"{missing} of {len(all_cells)} cells are not measured yet" if missing else "complete"
    told = "".join(f"- Torch-Pruning 1.6.1 {note}.\n" for note in notes)
    settings = list(dict.fromkeys((cell.keep, cell.epochs) for cell in all_cells))
    beside = [standing(all_cells, outcomes, keep, passes) for keep, passes in settings]
    return (
        "# Accuracy after pruning, beside Torch-Pruning\n\n"
        f"`make bench-accuracy`, {measured_with()}. {before}State: {state}.{marked}\n\n"
        f"{METHOD}\n{told}\n"
        "## Beside the best peer\n\n"
        "Top-1, means over the seeds that both have. `gbn-2019` is the published method.\n\n"
        f"{markdown_table(STANDING, beside)}\n"
        "## All methods\n\n"
        "Means over the seeds, top-1 also from its lowest to its highest. Each measurement, with a "
        "hash of the code that decided it: [accuracy.jsonl](accuracy.jsonl).\n\n"
        f"{markdown_table(HEADER, rows(all_cells, outcomes))}"
    )


def rows(all_cells: Sequence[Cell], outcomes: Outcomes) -> list[tuple[str, ...]]:
    """One row a method and setting, measured or not."""
    table = []
    for (keep, passes, method), of_seeds in _by_setting(all_cells).items():
        found = [outcomes[cell.name] for cell in of_seeds if cell.name in outcomes]
        current = all(is_current(c, dict(outcomes)) for c in of_seeds if c.name in outcomes)
        good = [outcome for outcome in found if "error" not in outcome]
        failed = len(found) - len(good)
        begin = (f"{keep:.0%}", str(passes), method + ("" if current else "*"))
        if not good:
            why = f"failed: {found[0]['error']}" if found else "not measured yet"
            table.append((*begin, str(len(found)), why, *[""] * 8))
            continue
        tops = [outcome["accuracy"] for outcome in good]
        table.append(
            (
                *begin,
                str(len(good)) + (f", {failed} failed" if failed else ""),
                *(f"{top:.2%}" for top in (fmean(tops), min(tops), max(tops))),
                *(f"{fmean(o[key] for o in good):.1%}" for key in ("flops_kept", "params_kept")),
                *(_mean(good, key) for key in ("images", "seconds", "cpu_seconds")),
                str(max(outcome["peak_mib"] for outcome in good)),
            )
        )
    return table


def _mean(outcomes: Sequence[dict[str, Any]], key: str) -> str:
    found = [outcome[key] for outcome in outcomes if key in outcome]
    return f"{fmean(found):,.0f}" if found else ""


def standing(
    all_cells: Sequence[Cell], outcomes: Outcomes, keep: float, passes: int
) -> tuple[str, ...]:
    """The default recipe beside the best peer at one setting, on the seeds that both have."""
    by_method = {
        method: {
            cell.seed: outcomes[cell.name]["accuracy"]
            for cell in of_seeds
            if "accuracy" in outcomes.get(cell.name, {})
        }
        for (share, number, method), of_seeds in _by_setting(all_cells).items()
        if (share, number) == (keep, passes)
    }
    own = by_method.get("default", {})
    seeds = set(own)
    shared = {
        method: [tops[seed] for seed in sorted(seeds & set(tops))]
        for method, tops in by_method.items()
    }
    begin = (f"{keep:.0%}", str(passes))
    peers = {m: fmean(tops) for m, tops in shared.items() if m in PEER_METHODS and tops}
    if not own or not peers:
        return (*begin, "not measured yet", "", "", "")
    best = max(peers, key=lambda method: peers[method])
    common = [own[seed] for seed in sorted(seeds & set(by_method[best]))]
    published = shared.get("gbn-2019", [])
    return (
        *begin,
        f"{fmean(common):.2%} (n = {len(common)})",
        f"{peers[best]:.2%}, {best}",
        f"{100 * (fmean(common) - peers[best]):+.2f} points",
        f"{fmean(published):.2%} (n = {len(published)})" if published else "not measured yet",
    )


def _by_setting(all_cells: Sequence[Cell]) -> dict[tuple[float, int, str], list[Cell]]:
    found: dict[tuple[float, int, str], list[Cell]] = {}
    for cell in sorted(all_cells, key=lambda cell: cell.seed):
        found.setdefault((cell.keep, cell.epochs, cell.method), []).append(cell)
    return found
