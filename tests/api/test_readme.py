"""What README shows is what happens: its Python runs as it stands, and its commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trustformers_ir.ir import ops
from trustformers_ir.ir.schema import OPS
from trustformers_ir.tools.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the model where README says that it is."""
    (tmp_path / ".cache" / "models").mkdir(parents=True)
    (tmp_path / ".cache" / "models" / "minilm").symlink_to(minilm)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_readme_runs(folder: Path) -> None:
    program = "\n".join(blocks("python")) + "\nprint(hidden.shape, pooled.shape, embedding.shape, reference.shape)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("(1, 4, 384) (1, 384) (1, 384) (2, 16)")


def test_the_commands_of_readme_run(folder: Path) -> None:
    lines = [line.partition("#")[0] for block in blocks("") for line in block.splitlines() if line.startswith("tfc ")]
    assert {shlex.split(line)[1] for line in lines} <= set(COMMANDS)
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] != "bench":  # torch and a minute
            assert main(words) == 0, line


def test_the_numbers_of_readme_are_counted() -> None:
    declared = [kind for kind in OPS.values() if kind.__module__.startswith(ops.__name__)]
    broken = list((ROOT / "tests" / "ir" / "broken").glob("*.tfir"))
    for number, what in ((len(declared), "ops"), (len(broken), "broken modules")):
        assert f" {number} {what}" in README
