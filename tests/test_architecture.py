"""The packages keep apart, files import only what comes before them, and none is too long."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gbn", "exporters", "pipeline")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Each file of gbn imports only files that stand before it here.
GBN_ORDER = [
    "errors", "walk", "equations", "ids", "rules.base", "rules.reshape", "rules.layout",
    "rules.lookup", "rules.elementwise", "rules.contract", "rules.reduce", "rules", "groups",
    "sizes", "grouping", "one_precision", "running", "prune_plan", "norms", "readers", "streams",
    "layer_samples", "refit", "aliases",
    "surgery", "survivors", "distance", "choices", "proof", "cost", "scores", "gates",
    "ticktock", "plan_search", "plan", "captured", "cuts", "faults", "expected", "shapes_only",
    "size_reads", "shape_trial", "trial", "tracer", "training_path", "trace",
]  # fmt: skip
ARCHITECTURES = re.compile(
    r"resn[e]t|resnext|mobilen|vgg|densenet|efficientnet|shufflenet|squeezenet|inception|"
    r"googlenet|alexnet|mnasnet|regnet|convnext|\bvit\b|\bswin|deit|levit|nfnet",
    re.IGNORECASE,
)
MAX_LINES = 350


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Modules of this project that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    known = {name_of(file) for file in FILES}
    return {name for name in names if name in known}


@pytest.mark.parametrize("package", ["gbn", "exporters"])
def test_the_libraries_import_neither_each_other_nor_the_pipeline(package):
    for path in FILES:
        if name_of(path).split(".")[0] == package:
            strangers = {n for n in imports_of(path) if n.split(".")[0] != package}
            assert not strangers, f"{path} imports {strangers}"


def test_every_file_of_the_pruning_library_has_its_place():
    names = {name_of(path).removeprefix("gbn.") for path in FILES if name_of(path) != "gbn"}
    own = {n for n in names if not n.startswith(("exporters", "pipeline"))}
    assert own == set(GBN_ORDER)


@pytest.mark.parametrize("name", GBN_ORDER)
def test_files_import_only_what_comes_before_them(name):
    path = ROOT / "gbn" / f"{name.replace('.', '/')}.py"
    if not path.exists():
        path = ROOT / "gbn" / name / "__init__.py"
    before = GBN_ORDER[: GBN_ORDER.index(name)]
    # naming a file of `rules` names the package as well
    allowed = {f"gbn.{n}" for n in before} | ({"gbn.rules"} if name.startswith("rules") else set())
    late = imports_of(path) - allowed
    assert not late, f"gbn.{name} imports {late}, which come after it"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_names_an_architecture(path):
    found = {
        (number, match.group())
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in ARCHITECTURES.finditer(line)
    }
    assert not found, f"{path}: {sorted(found)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


# A forward may check its sizes and raise what its author chose. A drawing library may raise
# anything, when all that a run promises is proven and on disk.
CATCHES_ALL = {"gbn.running": ["*"], "pipeline.run": ["_write_page"]}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_catches_every_exception_but_in_known_places(path):
    def handlers(node):
        found = [n for n in ast.walk(node) if isinstance(n, ast.ExceptHandler)]
        return {h.lineno for h in found if h.type is None or ast.unparse(h.type) == "Exception"}

    tree, known = ast.parse(path.read_text()), CATCHES_ALL.get(name_of(path), [])
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in known]
    allowed = handlers(tree) if known == ["*"] else set().union(*map(handlers, functions))
    assert handlers(tree) == allowed


def test_the_wheel_lists_every_package():
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^packages = \[(.*?)\]", text, re.MULTILINE | re.DOTALL).group(1)
    folders = {name_of(path) for path in FILES if path.name == "__init__.py"}
    assert folders <= set(re.findall(r'"([\w.]+)"', listed))
