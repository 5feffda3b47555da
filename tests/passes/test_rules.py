"""Every rule of ``canonicalize`` keeps the bits of what it rewrites, on random graphs made for it."""

from __future__ import annotations

import pytest
from rule_examples import FIRES, NEAR
from rule_harness import check_rule

from trustformers_ir.ir.rewriting import Rule
from trustformers_ir.passes.canonicalize import RULES


def test_every_rule_has_an_example() -> None:
    names = {r.name for r in RULES.rules}
    assert set(FIRES) == names
    assert set(NEAR) <= names
    assert len(names) >= 40


@pytest.mark.parametrize("rule", RULES.rules, ids=lambda r: r.name)
def test_rule_is_exact(rule: Rule) -> None:
    check_rule(rule, FIRES[rule.name], NEAR.get(rule.name, ()))
