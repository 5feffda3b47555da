"""Diagnostics: the catalogue, how a problem is printed, and how several are raised together."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustformers_ir.ir import env
from trustformers_ir.ir.diagnostics import ADVICE, GROUPS, CheckFailed, Code, Collector, CompilerError, Diagnostic, InternalError, Where
from trustformers_ir.tools.docs import PAGES


def test_codes_are_distinct_and_described() -> None:
    assert len({c.number for c in Code}) == len(list(Code))
    assert [c.number for c in Code] == sorted(c.number for c in Code)
    for code in Code:
        assert code.group == GROUPS[code.number // 1000]
        assert code.title and code.explanation.endswith(".")
    assert str(Code.SYNTAX) == "TFC1001"


def test_every_problem_has_help() -> None:
    """The catalogue's, unless the place that found the problem knows better."""
    assert set(ADVICE) == {c for c in Code if c.number < 9000}
    assert str(Diagnostic(Code.UNREADABLE, "no")) == "error[TFC6003]: no\n  help: look at the path and its permissions"
    assert str(Diagnostic(Code.UNREADABLE, "no", help="wait")) == "error[TFC6003]: no\n  help: wait"
    assert "please report it" in str(Diagnostic(Code.INTERNAL, "no"))


def test_a_problem_in_a_text_shows_the_line() -> None:
    source = "  %1 = softmax(%x) {axis = 7} : f32[2, 3]"
    problem = Diagnostic(Code.CONSTRAINT, "softmax.C1: axis 7 of a rank 2 tensor", Where("a.tfir", 3, 28), "use axis -1", source)
    assert str(problem) == (
        "error[TFC1009]: softmax.C1: axis 7 of a rank 2 tensor\n"
        "  --> a.tfir:3:28\n"
        "    3 |   %1 = softmax(%x) {axis = 7} : f32[2, 3]\n"
        "      |                            ^\n"
        "  help: use axis -1"
    )


def test_a_problem_in_a_user_file_finds_its_line(tmp_path: Path) -> None:
    model = tmp_path / "model.py"
    model.write_text("def f(x):\n    return bool(x)\n")
    assert "    2 | return bool(x)" in str(Diagnostic(Code.TRACE_CONTROL_FLOW, "no", Where(str(model), 2)))
    assert "    2 |" not in str(Diagnostic(Code.TRACE_CONTROL_FLOW, "no", Where(str(tmp_path / "gone.py"), 2)))


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (Where(), ""),
        (Where("m.safetensors", tensor="w", offset=8), 'm.safetensors (tensor "w", byte 8)'),
        (Where(tensor="w"), 'tensor "w"'),
        (Where(line=4, column=2), "line 4:2"),
        (Where("a.py", 9, op="softmax"), "a.py:9 (op softmax)"),
        (Where(request="tfc run m.tfc"), "tfc run m.tfc"),
    ],
)
def test_places(where: Where, text: str) -> None:
    assert str(where) == text


def test_long_lines_are_cut_around_the_caret() -> None:
    source = "x" * 4999 + "!" + "y" * 5000
    lines = str(Diagnostic(Code.SYNTAX, "m", Where("f", 1, 5000), source=source)).splitlines()
    quoted, caret = lines[2], lines[3]
    assert len(quoted) < 140
    assert quoted[caret.index("^")] == "!"


@given(st.text(), st.text(), st.text())
def test_hostile_names_print_no_control_characters(message: str, tensor: str, source: str) -> None:
    text = str(Diagnostic(Code.WEIGHT_SHAPE, message, Where("f", 1, 1, tensor=tensor), "h", source))
    assert all(c.isprintable() or c == "\n" for c in text)
    text.encode("utf-8")


def test_all_problems_are_listed_together() -> None:
    problems = Collector()
    problems.check()
    problems.add(Code.WEIGHT_MISSING, "a is missing")
    problems.add(Code.WEIGHT_SHAPE, "b is 2x3, not 3x2")
    with pytest.raises(CompilerError) as caught:
        problems.check()
    assert caught.value.codes == (Code.WEIGHT_MISSING, Code.WEIGHT_SHAPE)
    assert "a is missing" in str(caught.value) and "b is 2x3" in str(caught.value)


def test_a_collector_block_keeps_what_came_before_an_error() -> None:
    with pytest.raises(CompilerError) as caught, Collector() as problems:
        problems.add(Code.WEIGHT_MISSING, "first")
        raise CompilerError.of(Code.CONFIG_INVALID, "second")
    assert caught.value.codes == (Code.WEIGHT_MISSING, Code.CONFIG_INVALID)
    with pytest.raises(KeyError), Collector() as problems:
        problems.add(Code.WEIGHT_MISSING, "first")
        raise KeyError("not ours")


def test_exit_codes() -> None:
    assert (CheckFailed.exit_code, CompilerError.exit_code, InternalError.exit_code) == (1, 2, 3)
    with pytest.raises(ValueError, match="without a diagnostic"):
        CompilerError()


def test_errors_can_be_pickled() -> None:
    error = CompilerError.of(Code.SYNTAX, "m", Where("f", 1), "h")
    assert pickle.loads(pickle.dumps(error)).diagnostics == error.diagnostics


def test_as_dict_leaves_out_what_is_absent() -> None:
    row = Diagnostic(Code.SYNTAX, "m", Where(line=3)).as_dict()
    assert row == {"code": "TFC1001", "title": "syntax error", "message": "m", "where": {"line": 3}, "help": Code.SYNTAX.advice}


def test_environment_variables_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TFIR_THREADS", raising=False)
    assert env.THREADS.get() is None
    monkeypatch.setenv("TFIR_THREADS", " 3 ")
    assert env.THREADS.get() == 3
    for bad in ("0", "-1", "many"):
        monkeypatch.setenv("TFIR_THREADS", bad)
        with pytest.raises(CompilerError, match=r"TFC6012.*TFIR_THREADS takes a positive number"):
            env.THREADS.get()
    monkeypatch.setenv("TFIR_VERIFY", "off")
    assert env.VERIFY.get() is False
    monkeypatch.setenv("TFIR_VERIFY", "")
    assert env.VERIFY.get() is True


@pytest.mark.parametrize("name", sorted(PAGES))
def test_pages_written_from_tables_are_in_step(name: str) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / name
    assert page.read_text(encoding="utf-8") == PAGES[name](), "run `make docs`"


def test_a_line_is_quoted_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    for text in ("before = 1\n", "after = 2, and longer\n"):
        path.write_text(text)
        assert text.strip() in str(CompilerError.of(Code.USAGE, "wrong", Where(file=str(path), line=1)))
