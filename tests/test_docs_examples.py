"""What the documentation shows runs as it is shown, and what it quotes and links exists."""

import functools
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import exporters
import gbn
from pipeline import data_free

sys.path.insert(0, str(Path(__file__).parent))

from docs_world import build_world, run_page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Written by benchmarks: their commands take minutes, and are the benchmarks' own tests.
MEASURED = {
    f"{name}.md"
    for name in (
        "accuracy", "coverage", "data-free", "gated-step", "gpu", "latency", "main-job", "models",
        "onnx-in", "precision", "trace-speed", "verdict",
    )
}  # fmt: skip
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [page for page in sorted(DOCS.glob("*.md")) if page.name not in MEASURED]
MAX_SKIPPED = 1  # the one that CONTRIBUTING shows


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        _quick(patch)
        build_world(folder)
    return folder


def _quick(patch: pytest.MonkeyPatch) -> None:
    """Latency is measured for a moment, and few images are made."""
    settings = exporters.LatencySettings
    short = functools.partial(settings, min_runs=5, min_seconds=0.05, max_seconds=0.2)
    patch.setattr(exporters, "LatencySettings", short)
    patch.setattr(data_free, "_MAX_IMAGES", 96)
    patch.setattr(data_free, "_STEPS", 5)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(
    page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quick(monkeypatch)
    folder = tmp_path / "page"
    shutil.copytree(world, folder)
    ran, skipped = run_page(page, folder)
    blocks = re.findall(r"(?m)^```(?:python|sh)$", page.read_text())
    assert ran + len(skipped) >= len(blocks)


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    marks = [
        (page.name, mark)
        for page in PAGES
        for mark in re.findall(r"<!-- skip: (.*?) -->", page.read_text())
    ]
    assert all(re.fullmatch(r'next "[^"]{10,}"', mark) for _, mark in marks), marks
    assert len(marks) <= MAX_SKIPPED, marks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_stand_in_blocks_that_are_run(page: Path) -> None:
    indented = re.findall(r"(?m)^    (?:compress|pip|make|python) .*$", page.read_text())
    assert not indented


def test_links_of_pages_outside_the_site_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not target.startswith("https:"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_quoted_error_message_is_one_that_the_code_says() -> None:
    page = (DOCS / "errors.md").read_text()
    quoted = re.findall(r"(?m)^\| `([^`]+)` \|", page)
    assert len(quoted) >= 20
    packages = ("gbn", "exporters", "pipeline")
    texts = [p.read_text() for name in packages for p in sorted((ROOT / name).rglob("*.py"))]
    # as Python joins the parts of a message that is broken into lines
    joined = re.sub(r'"\s+f?"', "", "\n".join(texts))
    for message in quoted:
        parts = [part.strip() for part in message.split("...") if part.strip()]
        assert all(part in joined for part in parts), message


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the docs group is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    outside = re.compile(r'(?:src|<link[^>]*href)="https?:')
    assert not [p.name for p in tmp_path.glob("*.html") if outside.search(p.read_text())]


@pytest.mark.parametrize(("package", "name"), [(gbn, "api.md"), (exporters, "api-exporters.md")])
def test_the_api_page_has_every_public_name_with_its_docstring(
    package: ModuleType, name: str
) -> None:
    page = (DOCS / name).read_text()
    shown = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith(":::")}
    assert shown == set(package.__all__)
    public = {name: getattr(package, name) for name in shown}
    called = {name: item for name, item in public.items() if callable(item)}
    assert [name for name, item in called.items() if not item.__doc__] == []
    functions = {name: item for name, item in called.items() if inspect.isfunction(item)}
    assert [name for name, item in functions.items() if "aise" not in (item.__doc__ or "")] == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    # tables are found by their links as well, and may be written before anyone lists them here
    missing = [p.name for p in PAGES if p.parent == DOCS and f" {p.name}" not in navigation]
    assert not missing
