"""The page of passes is written from the declarations, and what it shows is true."""

from __future__ import annotations

import re

import pytest

from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.ir.text import parse_module
from trustformers_ir.passes.canonicalize import RULES, Canonicalize
from trustformers_ir.passes.manager import PassManager, parse_pipeline
from trustformers_ir.passes.registry import ALL, PASSES
from trustformers_ir.tools.pages import passes as catalogue


def test_every_pass_and_rule_has_a_row() -> None:
    text = catalogue.page()
    for name in [*PASSES, *(r.name for r in RULES.rules)]:
        assert text.count(f"\n| `{name}` |") == 1


def test_passes_say_what_they_do() -> None:
    assert len(PASSES) == len(ALL), "no two passes have one name"
    for name, kind in PASSES.items():
        assert name == kind.name and kind.summary and kind.__doc__


def example() -> tuple[str, str]:
    before, after = re.findall(r"```\n(module @demo .*?\n}\n)```", catalogue.page(), re.DOTALL)
    return before, after


def test_the_example_of_the_page() -> None:
    before, after = example()
    module = parse_module(before)
    PassManager(parse_pipeline("canonicalize", PASSES)).run(module)
    assert str(module).strip() == after.strip()


def test_the_rules_of_the_page() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", catalogue.page(), re.DOTALL)
    scope: dict[str, object] = {"module": parse_module(example()[0])}
    exec(code, scope)
    assert scope["result"].applied == {"add_neg": 1}  # type: ignore[attr-defined]


def test_the_pipelines_of_the_page() -> None:
    texts = re.findall(r"--passes '?([\w,{}=+]+)", catalogue.page())
    assert len(texts) == 4
    for text in texts:
        assert parse_pipeline(text, PASSES)


def test_single_rules_may_be_chosen() -> None:
    module: Module = parse_module(example()[0])
    report = PassManager([Canonicalize("transpose_transpose")]).run(module)
    assert report.passes[0].log.counts == {"transpose_transpose": 1}
    with pytest.raises(CompilerError, match="there is no rule 'add_nag'; did you mean 'add_neg'"):
        parse_pipeline("canonicalize{only=add_nag}", PASSES)


def test_near_misses_are_reported() -> None:
    text = example()[0].replace("transpose(%1) {perm = [1, 0]} : f32[8, n]", "flip(%1) {axis = 0} : f32[n, 8]")
    text = text.replace("transpose(%2) {perm = [1, 0]}", "flip(%2) {axis = 1}")
    report = PassManager([Canonicalize()]).run(parse_module(text))
    assert "not flip_flip: the axes differ" in str(report)
    assert report.passes[0].log.misses["flip_one", "the axis may have more than one element (8)"] == 1
