"""Pages are made again from report.json, alone or side by side, and broken reports are refused."""

import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.report import (
    Accuracy,
    BeforeAfter,
    Difference,
    Fidelity,
    Latency,
    LatencySummary,
    Measurements,
    Provider,
    build_report,
    render_html,
)
from pipeline.report.compare import compare
from pipeline.report.format import digits
from pipeline.report.stored import read_report
from pipeline.report.words import gist, outcome

ENVIRONMENT = {
    "versions": {"torch": "2.15.0"}, "platform": "Linux", "device": "cpu", "provider": "cpu",
    "seed": 0, "hashes": {"model": "sha256:ab"}, "command": "compress model.pt",
    "model": "model.pt", "input_size": [3, 8, 8],
    "data": {"source": "a.npz", "training_images": 100},
}  # fmt: skip


def times(p50: float) -> LatencySummary:
    quantiles = tuple(p50 * (0.5 + q / 100) for q in range(101))
    return LatencySummary(p50_ms=p50, p90_ms=1.4 * p50, p99_ms=1.49 * p50, n=50,
                          quantiles_ms=quantiles)  # fmt: skip


def measured(accuracy: float = 0.9, p50: float = 3.0, **changes: Any) -> Measurements:
    point = {"name": "tick 1", "kind": "tick", "flops_kept": 0.6, "value": 0.8}
    whole = Measurements(
        flops=BeforeAfter(before=100, after=60),
        params=BeforeAfter(before=100, after=60),
        size_bytes=BeforeAfter(before=100, after=60),
        accuracy=Accuracy(metric="top1", samples=1000, before=0.92, after=accuracy),
        surgery=Difference(max_abs_diff=0.0, tolerance=1e-4),
        parity=Difference(max_abs_diff=0.0, tolerance=1e-4),
        latency=Latency(
            provider="cpu",
            batch=1,
            before=times(4.0),
            after=times(p50),
            speedup_median=4.0 / p50,
            speedup_ci95=(3.9 / p50, 4.1 / p50),
        ),
        provider=Provider(requested="cpu", ran=("cpu",)),
        target_flops=60,
        groups=[
            {"name": name, "size_before": 8, "size_after": after, "layers": [name],
             "frozen": reason is not None, "reason": reason}
            for name, after, reason in (("a", 4, None), ("b", 8, None), ("c", 8, "an <output>"))
        ],
        layers=[
            {"name": "conv<1>", "kind": "convolution", "before": 8, "after": 4},
            {"name": "head", "kind": "linear", "before": 10, "after": 10},
        ],
        history={
            "metric": "top1", "samples": 64, "higher_is_better": True, "in_points": True,
            "points": [{"name": "as given", "kind": "given", "flops_kept": 1.0, "value": 0.92},
                       point, point | {"name": "tock 1", "kind": "tock", "value": None}],
        },
        sensitivity={
            "metric": "top1", "samples": 64, "in_points": True, "higher_is_better": True,
            "groups": [{"name": "a", "kept": 0.5, "value": 0.75}],
        },
        stages=[{"name": "tick 1", "seconds": 1.0, "flops_kept": 0.6}],
        environment=ENVIRONMENT,
    )  # fmt: skip
    return replace(whole, **changes)


def stored(folder: Path, content: Measurements) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(build_report(content).to_json())
    return folder


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, args)])


def test_the_page_is_made_again_from_the_json_alone(tmp_path: Path) -> None:
    folder = stored(tmp_path / "run", measured())
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").read_text() == render_html(build_report(measured()))
    named = run(folder / "report.json", "--output", tmp_path / "other.html")
    assert named.exit_code == 0
    assert (tmp_path / "other.html").read_text() == (folder / "report.html").read_text()


def test_each_chart_has_a_title_a_description_and_a_table_of_its_figures() -> None:
    page = render_html(build_report(measured()))
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        root = ElementTree.fromstring(chart)
        title, description = root[0], root[1]
        assert root.get("role") == "img"
        assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert title.text
        assert description.text
    captions = re.findall(r"<caption>(.*?)</caption>", page)
    assert {"Width of each layer", "Latency of both files"} <= set(captions)
    assert "conv&lt;1&gt;" in page
    assert "conv<1>" not in page
    assert len(page) < 200_000


def test_a_network_of_many_layers_with_long_names_stays_a_small_page() -> None:
    names = [f"features.block{n}.branch.convolution.with.a.long.name.{n}" for n in range(250)]
    report = build_report(measured())
    assert report.latency is not None
    rows = [
        {"layer": name, "ms_before": 1.0, "ms_after": 0.5, "why_little": None} for name in names
    ]
    large = replace(
        report,
        layers=[{"name": name, "before": 64, "after": 32} for name in names],
        groups=[report.groups[0] | {"name": name, "layers": [name]} for name in names],
        latency=report.latency | {"layers": {"rows": rows}},
    )
    page = render_html(large)
    assert len(page.encode()) < 1_000_000
    assert page.count(names[7]) >= 4  # in the tables of widths, of times and of groups
    chart = re.findall(r"<svg.*?</svg>", page, re.DOTALL)[2]
    assert names[249] not in chart
    # no picture holds 250 bars; the last are as heavy as all, and left to the table
    assert names[149][-20:] in chart
    assert names[150][-20:] not in chart
    assert page.count("The picture has the 150 that") == 2


def test_a_network_of_two_thousand_layers_is_a_page_of_less_than_two_megabytes() -> None:
    names = [f"stages.{n // 10}.blocks.{n % 10}.conv" for n in range(2000)]
    report = build_report(measured())
    assert report.latency is not None
    assert report.sensitivity is not None
    rows = [{"layer": name, "ms_before": 1.0, "ms_after": 0.5} for name in names]
    rows[1999] |= {"ms_before": 9.0}
    costs = [{"name": name, "kept": 0.5, "value": 0.9} for name in names]
    costs[1998] |= {"value": 0.1}
    large = replace(
        report,
        layers=[{"name": name, "before": 64, "after": 32} for name in names],
        groups=[report.groups[0] | {"name": name, "layers": [name]} for name in names],
        latency=report.latency | {"layers": {"rows": rows}},
        sensitivity=report.sensitivity | {"groups": costs},
    )
    page = render_html(large)
    assert len(page.encode()) < 2_000_000
    sensitivity, widths, layer_times = re.findall(r"<svg.*?</svg>", page, re.DOTALL)[1:4]
    # the heaviest are in the pictures, wherever they stand in the network
    assert names[1998] in sensitivity
    assert names[1999] in layer_times
    assert names[1999] not in widths


def test_chart_colours_are_those_of_the_page() -> None:
    page = render_html(build_report(measured()))
    inside = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--before)" in inside
    assert "var(--after)" in inside
    assert not re.search(r"#[0-9a-f]{6}\b", inside)


def test_milliseconds_of_layers_are_drawn_where_they_were_measured() -> None:
    report = build_report(measured())
    assert "Milliseconds of each layer" not in render_html(report)
    assert report.latency is not None
    conv = {"layer": "conv", "ms_before": 1.0, "ms_after": 0.4, "why_little": None}
    relu = {"layer": "conv", "ms_before": 0.25, "ms_after": 0.1, "why_little": "width frozen"}
    layers = {"rows": [conv, relu]}
    page = render_html(replace(report, latency=report.latency | {"layers": layers}))
    assert "In all 1.25 ms before and 0.500 ms after." in page
    assert "width frozen" in page
    skipped = {"layers": {"skipped": "the provider does not tell"}}
    without = render_html(replace(report, latency=report.latency | skipped))
    assert "Milliseconds of each layer" not in without


def test_the_page_names_what_was_missed_first_and_what_to_do() -> None:
    page = render_html(build_report(measured(accuracy=0.9, max_accuracy_drop=1.0)))
    assert "Failed: Accuracy missed. Exit code 12." in page
    missed = page.index(
        "90.00 % top1 on 1,000 samples (±1.9 points), 2.00 points less. A loss of 1 point"
    )
    assert missed < page.index("60.0 % of the multiply-accumulates are left: 60 of 100.")
    assert "What to do: More --epochs" in page


def test_what_was_measured_without_a_limit_is_not_called_skipped() -> None:
    page = render_html(build_report(measured(latency=None, skipped={"latency": "not here"})))
    states = dict(re.findall(r"<strong>(\w+)</strong> <span class=\"state\">([a-z ]+)<", page))
    assert (states["Accuracy"], states["Parameters"]) == ("no limit", "no limit")
    assert (states["Latency"], states["FLOPs"]) == ("skipped", "met")


def test_the_settings_file_of_a_run_is_in_its_page() -> None:
    settings = {"name": "a.toml", "sha256": "ab", "content": 'target-flops = 0.6 # "<most>"\n'}
    page = render_html(build_report(measured(environment=ENVIRONMENT | {"settings": settings})))
    assert "target-flops = 0.6 # &#34;&lt;most&gt;&#34;" in page
    assert page.count("a.toml") == 1
    assert "settings file" not in render_html(build_report(measured()))


def test_the_group_whose_cut_costs_most_is_named() -> None:
    report = build_report(measured())
    assert "Cutting a alone costs most: 75.00 % is left." in render_html(report)
    rows = [{"name": n, "kept": 0.5, "value": v} for n, v in (("low", 0.1), ("high", 0.3))]
    error = {"metric": "error", "samples": 9, "in_points": False, "higher_is_better": False}
    page = render_html(replace(report, sensitivity=error | {"groups": rows}))
    assert "Cutting high alone costs most: 0.3 is left." in page
    without = render_html(replace(report, sensitivity=None))
    assert '<h2 id="sensitivity">' not in without
    assert "was not measured, since it would take long" in without
    assert "was not measured" not in render_html(report)


def test_green_is_only_what_was_judged() -> None:
    """How good it is must have had a limit; else a person decides, and is told the figures."""
    worse = measured(accuracy=0.1, p50=9.0)
    told = "All 4 checks are met. No limit was set for accuracy."
    assert outcome(build_report(worse)) == ("unjudged", told)
    assert gist(build_report(worse)) == (
        "60.0 % of the size, 60.0 % of the FLOPs, 0.44 times as fast (slower), top1 82.00 points "
        "less"
    )
    assert outcome(build_report(replace(worse, max_accuracy_drop=90.0)))[0] == "passed"
    assert outcome(build_report(replace(worse, max_accuracy_drop=80.0)))[0] == "failed"
    made_up = Fidelity(metric="top1 agreement", samples=96, value=0.5)
    free = replace(measured(), accuracy=None, skipped={"accuracy": "no data"}, fidelity=made_up)
    state, line = outcome(build_report(free))
    assert state == "unjudged"
    assert line.endswith("Accuracy is unknown.")
    assert gist(build_report(free)).endswith("50.0 % top1 agreement on made-up images")
    nothing = dict.fromkeys(build_report(free).verdict, "skipped: not here")
    assert outcome(replace(build_report(free), verdict=nothing))[1].startswith("Nothing was check")
    page = render_html(build_report(worse))
    assert '<p class="outcome unjudged">' in page
    assert f"{gist(build_report(worse))}.</span></p>" in page


@pytest.mark.parametrize(
    ("share", "samples", "half"),
    # by hand: p' = (x + 2) / (n + 4), 2 sqrt(p' (1 - p') / (n + 4))
    [(0.9, 1000, "1.9"), (1.0, 100, "2.7"), (0.8809, 10_000, "0.6")],
)
def test_what_a_share_of_so_many_samples_tells(share: float, samples: int, half: str) -> None:
    counted = Accuracy(metric="top1", samples=samples, before=share, after=share)
    page = render_html(build_report(replace(measured(), accuracy=counted)))
    assert f"{samples:,} samples (±{half} points), as before." in page


def test_which_way_is_better_is_said_wherever_it_is_not_the_usual_one() -> None:
    error = Accuracy(metric="error", samples=10, before=1.0, after=2.0,
                     higher_is_better=False, in_points=False)  # fmt: skip
    base = measured()
    assert base.history is not None
    assert base.sensitivity is not None
    lower = {"metric": "error", "in_points": False, "higher_is_better": False}
    page = render_html(build_report(replace(
        base, accuracy=error, history=base.history | lower, sensitivity=base.sensitivity | lower
    )))  # fmt: skip
    assert "error on 10 samples: from 1 to 2 (lower is better)." in page
    for text in ("error (lower is better)</text>", "error (lower is better) with this group"):
        assert text in page
    assert "(lower is better)" not in render_html(build_report(base))
    assert "90.00 % top1 on 1,000 samples (±1.9 points), as before." in render_html(
        build_report(replace(base, accuracy=replace(base.accuracy, before=0.9)))
    )


def test_what_quantising_costs_is_told_beside_the_parity_of_the_fp32_file() -> None:
    int8 = {"kind": "int8", "num_layers": 7, "float_layers": [], "relative_error_from_fp32": 0.0612}
    page = render_html(build_report(measured(precision=int8)))
    assert "Before quantising: onnxruntime and PyTorch give the same outputs" in page
    assert "The outputs of the int8 file are off by 6.1 % on real images." in page
    assert "0 of 7 layers in float; outputs off fp32 by 6.1 %" in page
    assert "Before quantising" not in render_html(build_report(measured()))


def test_a_difference_that_is_no_number_is_no_agreement() -> None:
    wrong = measured(parity=Difference(max_abs_diff=float("nan"), tolerance=1e-4))
    assert "give different outputs: no finite difference" in render_html(build_report(wrong))


def test_a_target_missed_by_little_is_told_in_whole_numbers() -> None:
    counts = BeforeAfter(before=40_551_808, after=24_331_200)
    page = render_html(build_report(measured(flops=counts, target_flops=24_331_084)))
    assert "At most 60.0 % were asked for. That is 24,331,200 for 24,331,084." in page


@pytest.mark.parametrize(
    ("value", "text"), [(4, "4.00"), (270, "270"), (999.4, "999"), (999.7, "1000"), (1234, "1234")]
)
def test_numbers_are_never_written_with_exponents(value: float, text: str) -> None:
    assert digits(value) == text


def test_limits_of_time_are_told_beside_what_was_found() -> None:
    report = build_report(measured())
    target = report.target | {"latency_ms": 3.5, "latency_kept": 0.9, "latency_tolerance": 0.05}
    page = render_html(replace(report, target=target))
    assert (
        "At most 3.5 ms was asked for; 5 % more is allowed. At most 0.9 of the time was asked for;"
        in page
    )


def test_a_difference_that_is_not_finite_is_told(tmp_path: Path) -> None:
    wrong = measured(parity=Difference(max_abs_diff=float("nan"), tolerance=1e-4))
    folder = stored(tmp_path / "run", wrong)
    assert run(folder).exit_code == 0
    assert "give different outputs: no finite difference" in (folder / "report.html").read_text()


def test_the_layout_that_is_promised_is_the_one_that_is_written(tmp_path: Path) -> None:
    folder = stored(tmp_path / "run", measured())
    assert read_report(folder).to_json() == (folder / "report.json").read_text()


def test_a_report_without_the_later_sections_is_still_read(tmp_path: Path) -> None:
    folder = stored(tmp_path / "run", measured())
    content = json.loads((folder / "report.json").read_text())
    for key in ("layers", "history", "sensitivity", "fidelity", "data_free", "precision"):
        del content[key]
    (folder / "report.json").write_text(json.dumps(content))
    assert run(folder).exit_code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is no JSON"),
        ('{"flops": 1', r"is no JSON"),
        ("\xff\xfe", r"is no JSON"),
        ("[]", r"the file: \[\] is not of type 'object'"),
        ("{}", r"'target' is a required property"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "report.json").write_bytes(text.encode("latin1"))
    result = run(tmp_path)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("section", "value", "place"),
    [
        ("size_bytes", {"before": 1}, "size_bytes: 'after' is a required property"),
        ("flops", {"before": 1, "after": 1, "kept": "x"}, "flops.kept: 'x'"),
        ("verdict", {"flops": "perhaps"}, "verdict.flops: 'perhaps'"),
        ("groups", [{}], "groups.0: 'name' is a required property"),
        ("latency", {"provider": "cpu"}, "latency: 'batch' is a required property"),
        ("exit_code", None, "exit_code: None"),
        ("target", {"latency_kept": "x<b>"}, "target.latency_kept: 'x<b>'"),
        ("precision", {"kind": {}}, "precision.kind: {}"),
        ("environment", {"model": "\x00\ud800"}, "characters that no page can show"),
        ("environment", {"settings": "x"}, "environment.settings: 'x'"),
        (
            "environment",
            {"settings": {"name": "x"}},
            "environment.settings: 'sha256' is a required",
        ),
        ("environment", {"hashes": None}, "environment.hashes: None"),
        ("precision", {"kind": "int8", "float_layers": 5}, "precision.float_layers: 5"),
        ("verdict", {}, "verdict: {}"),
    ],
)
def test_a_broken_section_is_named(tmp_path: Path, section: str, value: Any, place: str) -> None:
    folder = stored(tmp_path / "run", measured())
    content = json.loads((folder / "report.json").read_text()) | {section: value}
    (folder / "report.json").write_text(json.dumps(content))
    result = run(folder)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert place in line


@pytest.mark.parametrize("interval", [[1.3, 1.2], [0, 2]])
def test_an_interval_that_is_none_is_refused(tmp_path: Path, interval: list[float]) -> None:
    folder = stored(tmp_path / "run", measured())
    content = json.loads((folder / "report.json").read_text())
    content["latency"]["speedup"]["ci95"] = interval
    (folder / "report.json").write_text(json.dumps(content))
    result = run(folder)
    assert result.exit_code == 2
    assert "is no interval" in result.stderr


def test_dollars_and_signs_of_other_scripts_are_names_like_any_other(tmp_path: Path) -> None:
    name = "cost $_$ 日本 " + "x" * 150
    accuracy = Accuracy(metric=name, samples=9, before=0.9, after=0.9)
    content = measured(accuracy=0.9)
    assert content.history is not None
    content = replace(content, accuracy=accuracy, history=content.history | {"metric": name})
    folders = [stored(tmp_path / f"{n} a$b^$c 名", content) for n in ("one", "x" * 150)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(folders[0]).exit_code == 0
        result = run(*folders, "--output", tmp_path / "both.html")
    assert result.exit_code == 0, result.output
    assert "a$b^$c 名" in (tmp_path / "both.html").read_text()


def test_runs_at_one_point_share_a_label(tmp_path: Path) -> None:
    folders = [stored(tmp_path / name, measured()) for name in ("one", "two")]
    assert run(*folders, "--output", tmp_path / "both.html").exit_code == 0
    assert ">one, two</text>" in (tmp_path / "both.html").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_folder_whose_name_is_no_text_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    folders = [stored(tmp_path / name, measured()) for name in ("one", os.fsdecode(b"bad\xff"))]
    result = run(*folders, "--output", tmp_path / "both.html")
    assert result.exit_code == 0, result.output
    assert "bad\ufffd" in (tmp_path / "both.html").read_text()


def test_no_file_but_a_page_is_overwritten(tmp_path: Path) -> None:
    folders = [stored(tmp_path / name, measured()) for name in ("one", "two")]
    before = (folders[0] / "report.json").read_text()
    result = run(*folders, "--output", folders[0] / "report.json")
    assert result.exit_code == 2
    assert "is no name of a page" in result.stderr
    assert (folders[0] / "report.json").read_text() == before


def test_a_run_that_is_absent_or_has_not_ended_is_refused(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "run.json").write_text("{}")
    found = [run(path) for path in (tmp_path / "none", tmp_path, begun)]
    assert [result.exit_code for result in found] == [2, 2, 2]
    assert "does not exist" in found[0].stderr
    assert "is no run's directory" in found[1].stderr
    assert "repeat its command with --resume" in found[2].stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["accuracy"].update(after=5), "accuracy.after: 5 is no share of one"),
        (lambda c: c["accuracy"].update(after=1e999), "a number that is not finite"),
        (lambda c: c["latency"]["after"].update(p50_ms=0), "latency.after.p50_ms"),
        (lambda c: c["flops"].update(before=10**400), "flops.before"),
        (lambda c: c["history"].update(points=[]), "history.points"),
        (lambda c: c["verdict"].update(flops="missed"), "flops missed, but exit_code 0"),
    ],
)
def test_figures_that_make_no_sense_are_refused(
    tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    folder = stored(tmp_path / "run", measured())
    content = json.loads((folder / "report.json").read_text())
    change(content)
    (folder / "report.json").write_text(json.dumps(content))
    result = run(folder)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert message in line


def test_a_file_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("[" * 100_000)
    result = run(tmp_path)
    assert result.exit_code == 2
    assert "is no JSON" in result.stderr


def test_times_without_a_distribution_are_left_out_of_the_pictures() -> None:
    report = build_report(measured())
    assert report.latency is not None
    after = report.latency["after"] | {"quantiles_ms": []}
    page = render_html(replace(report, latency=report.latency | {"after": after}))
    assert "Latency of both files" not in page


@pytest.mark.parametrize("name", ["new.txt", "new", "model.onnx"])
def test_a_page_is_written_under_a_pages_name_alone(tmp_path: Path, name: str) -> None:
    result = run(stored(tmp_path / "run", measured()), "--output", tmp_path / name)
    assert result.exit_code == 2
    assert not (tmp_path / name).exists()


def test_output_must_be_a_file_in_a_folder_that_is_there(tmp_path: Path) -> None:
    folder = stored(tmp_path / "run", measured())
    for output, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "none" / "x.html", "does not exist"),
    ):
        result = run(folder, "--output", output)
        assert result.exit_code == 2
        assert message in result.stderr


def test_names_that_look_like_styles_stay_as_they_are() -> None:
    layers = [
        {"name": name, "kind": "linear", "before": 8, "after": 4}
        for name in ("font-family: x", "#010101", "a")
    ]
    page = render_html(build_report(measured(layers=layers)))
    drawn = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    texts = {text for root in drawn for element in root.iter() if (text := element.text)}
    assert {"font-family: x", "#010101"} <= texts


def test_a_fidelity_that_is_not_finite_is_told_and_read_again(tmp_path: Path) -> None:
    endless = Fidelity(metric="relative error", samples=96, value=float("inf"))
    content = replace(measured(), accuracy=None, fidelity=endless, skipped={"accuracy": "no data"})
    folder = stored(tmp_path / "run", content)
    assert run(folder).exit_code == 0
    assert "not finite" in (folder / "report.html").read_text()
    assert compare([("one", read_report(folder))]).entries[0].quality is None
