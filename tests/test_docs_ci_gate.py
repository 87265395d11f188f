"""The CI example does what its page says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lxml import etree

sys.path.insert(0, str(Path(__file__).parent))
from tiny_onnx import write_chain

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "docs" / "ci-gate.sh"


def run_script(folder: Path, *args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """With a `compress` on the path that runs this checkout."""
    program = folder / "bin" / "compress"
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c "
        '"import sys; from pipeline.cli import main; main(sys.argv[1:])" "$@"\n'
    )
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": path} | environment,
        cwd=folder,
    )


@pytest.mark.skipif(os.name == "nt", reason="the example is for a POSIX shell")
def test_the_script_leaves_reports_and_returns_the_code_of_the_gate(tmp_path: Path) -> None:
    small, big = write_chain(tmp_path / "s.onnx"), write_chain(tmp_path / "b.onnx", depth=6)
    summary = tmp_path / "summary.md"
    good = run_script(tmp_path, small, big, "reports", GITHUB_STEP_SUMMARY=str(summary))
    assert good.returncode == 0, good.stdout + good.stderr
    assert json.loads((tmp_path / "reports" / "gate.json").read_text())["exit_code"] == 0
    assert etree.parse(str(tmp_path / "reports" / "gate.xml")).getroot().tag == "testsuites"
    assert summary.read_text() == (tmp_path / "reports" / "gate.md").read_text()
    bad = run_script(tmp_path, small, big, "reports", "--max-size", "10B")
    assert bad.returncode == 10
    assert "❌" in (tmp_path / "reports" / "gate.md").read_text()
    assert run_script(tmp_path, small).returncode == 2
    assert run_script(tmp_path, small, "none.onnx", "reports").returncode == 2


def test_the_workflow_compares_with_the_base_and_posts_the_table() -> None:
    workflow = yaml.safe_load((ROOT / "docs" / "ci-gate.yml").read_text())
    steps = workflow["jobs"]["gate"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert any('ci-gate.sh "$MODEL" "base/$MODEL" reports' in command for command in commands)
    post = next(step for step in steps if "gh pr comment" in step.get("run", ""))
    assert "cancelled()" in post["if"]
    assert workflow["permissions"]["pull-requests"] == "write"


def test_the_page_names_only_options_that_exist() -> None:
    page = (ROOT / "docs" / "ci-gate.md").read_text()
    source = (ROOT / "pipeline" / "cli_deploy.py").read_text()
    named = set(re.findall(r"--[a-z][a-z-]+", page))
    assert named, page
    assert not {option for option in named if f'"{option}"' not in source}
