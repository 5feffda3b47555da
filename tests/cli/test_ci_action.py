"""``action.yml``: its steps as a runner executes them, with a stand-in for ``tfc``. docs/ci.md says what was run in full."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="pip install PyYAML")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    return found


def test_what_it_refers_to_is_there(action: dict[str, Any]) -> None:
    text = (ROOT / "action.yml").read_text()
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(action["inputs"])
    assert set(re.findall(r"steps\.(\w+)\.", text)) == {s["id"] for s in action["runs"]["steps"] if "id" in s}
    assert action["runs"]["using"] == "composite" and all("description" in i and "default" in i for i in action["inputs"].values())
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1], re.M)
    assert {"ci", *action["inputs"]["extras"]["default"].split(",")} <= set(extras)


def test_nothing_of_the_workflow_becomes_shell(action: dict[str, Any]) -> None:
    """Values come as variables: a branch or a file with a clever name runs nothing."""
    scripts = [s["run"] for s in action["runs"]["steps"] if "run" in s]
    assert len(scripts) == 2 and not any("${{" in s for s in scripts)
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(("code", "state"), [(0, "holds"), (1, "fails"), (2, "error"), (3, "error")])
def test_the_step_that_runs_tfc(action: dict[str, Any], tmp_path: Path, code: int, state: str) -> None:
    (step,) = [s for s in action["runs"]["steps"] if s.get("id") == "tfc"]
    tfc = tmp_path / "tfc"
    tfc.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/asked\nexit {code}\n')
    tfc.chmod(0o755)
    given = {"TFC": str(tfc), "TFC_PIPELINE": "a b.yaml", "TFC_OUTPUT": "out; exit 0", "TFC_ARGUMENTS": "--strict  --only x"}
    assert set(given) == set(step["env"])
    files = {"GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    done = subprocess.run(["bash", "-e", "-c", step["run"]], env={"PATH": "/usr/bin:/bin", **given, **files}, check=False)
    assert done.returncode == code
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["ci", "a b.yaml", "--output", "out; exit 0", "--summary", files["GITHUB_STEP_SUMMARY"], "--strict", "--only", "x"]
    assert (tmp_path / "output").read_text().splitlines() == [f"state={state}", "report=out; exit 0/report.json"]
