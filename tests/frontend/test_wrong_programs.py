"""What users get wrong, through ``tfc compile``: programs of torch, and ONNX models. Each error has a code, help, no traceback, and says where."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
import onnx_wrong
import torch_wrong

from trustformers_ir.tools.cli import main

RIGHT = 0.95  # of the programs are told at the right line, or at the right node
PROBLEM = re.compile(r"error\[(TFC\d{4})\]: (\S(?:.*\n)(?:  .*\n)*?)  --> (\S.*)\n(?: .*\n)*?  help: \S")


@dataclass(frozen=True)
class Told:
    """What the command line said of a program."""

    name: str
    problems: tuple[tuple[str, str, str], ...]  # code, message, place
    codes: frozenset[str]  # that it should have said
    places: bool  # whether it says where
    text: str

    @property
    def well(self) -> bool:
        """A code, a place and help for every problem, the codes that are due, and no traceback."""
        whole = len(self.problems) == self.text.count("error[TFC") > 0 and "Traceback" not in self.text
        return whole and {code for code, _, _ in self.problems} == self.codes


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[tuple[tuple[str, str, str], ...], str]:
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main(["compile", *words, "-o", "out.tfc"])
    text = capsys.readouterr().err
    assert code == 2 and not Path("out.tfc").exists(), text
    return tuple((c, m, p) for c, m, p in PROBLEM.findall(text)), text


def of_torch(wrong: torch_wrong.Wrong) -> Callable[[pytest.CaptureFixture[str]], Told]:
    def run(capsys: pytest.CaptureFixture[str]) -> Told:
        axes = ("--dynamic", ",".join(wrong.dynamic)) if wrong.dynamic else ()
        problems, text = told(capsys, f"torch_wrong:made.{wrong.name}", *axes)
        wanted = torch_wrong.expected(wrong)
        lines = {int(m[1]) for _, _, place in problems if (m := re.search(r"torch_wrong\.py:(\d+)", place))}
        return Told(wrong.name, problems, frozenset(c for c, _ in wanted), {n for _, n in wanted if n} <= lines, text)

    return run


def of_onnx(wrong: onnx_wrong.WrongModel) -> Callable[[pytest.CaptureFixture[str]], Told]:
    def run(capsys: pytest.CaptureFixture[str]) -> Told:
        problems, text = told(capsys, str(onnx_wrong.write(wrong, Path())))
        places = any(code == wrong.code and wrong.place in f"{message}{place}" for code, message, place in problems)
        return Told(wrong.name, problems, frozenset([wrong.code]), places, text)

    return run


TORCH = [w for w in torch_wrong.PROGRAMS if not isinstance(w.dynamic, dict)]  # the command line has no such request
PROGRAMS = {**{f"onnx: {w.name}": of_onnx(w) for w in onnx_wrong.MODELS}, **{f"torch: {w.name}": of_torch(w) for w in TORCH}}
SOME = {f"torch: {w.name}" for w in TORCH[::9]} | {name for name in PROGRAMS if name.startswith("onnx: ")}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def check(capsys: pytest.CaptureFixture[str], names: list[str]) -> None:
    found = {name: PROGRAMS[name](capsys) for name in names}
    poor = [f"{name}\n{t.text}" for name, t in found.items() if not t.well]
    astray = [f"{name}\n{t.text}" for name, t in found.items() if not t.places]
    assert not poor, "\n\n".join(poor)
    assert len(astray) <= (1 - RIGHT) * len(found), "\n\n".join(astray)
    print(f"{len(found)} programs, {len(found) - len(astray)} told at the right place")


def test_there_are_enough() -> None:
    assert len(PROGRAMS) >= 100 and len(TORCH) >= 60 and len(onnx_wrong.MODELS) >= 60
    texts = [m if isinstance(m := w.make(), bytes) else m.SerializeToString() for w in onnx_wrong.MODELS]
    assert len(set(texts)) == len(texts), "no two are the same"


@pytest.mark.usefixtures("here")
def test_wrong_programs_are_told_in_our_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    check(capsys, sorted(SOME))


@pytest.mark.long
@pytest.mark.usefixtures("here")
def test_all_wrong_programs_are_told_in_our_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    check(capsys, list(PROGRAMS))
