"""One way to say it: exact rules, applied until none applies any more.

Before::

    %1 = neg(%y)
    %2 = add(%x, %1)
    %3 = transpose(%2) perm=[1, 0]
    %4 = transpose(%3) perm=[1, 0]

After::

    %1 = sub(%x, %y)

The rules are in ``rules/``, one list per family of ops; ``docs/passes.md`` shows them all. A result is the same bits before and after.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from trustformers_ir.ir.core import Module
from trustformers_ir.ir.rewriting import RuleSet, apply_rules
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.rules import arithmetic, casts, logic, movement, reductions

FAMILIES = {"arithmetic": arithmetic.RULES, "logic": logic.RULES, "casts": casts.RULES, "movement": movement.RULES, "reductions": reductions.RULES}
RULES = RuleSet(rule for rules in FAMILIES.values() for rule in rules)


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Applies the exact rules; ``only`` restricts them to one rule or to several, joined by ``+``."""

    only: str | None = None

    name = "canonicalize"
    summary = "simplify with exact rules"
    ensures = frozenset({"canonical"})

    def __post_init__(self) -> None:
        known = [r.name for r in RULES.rules]
        for name in self._chosen():
            if name not in known:
                near = get_close_matches(name, known, 1)
                raise ValueError(f"there is no rule '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))

    def _chosen(self) -> list[str]:
        return self.only.split("+") if self.only else []

    def run(self, module: Module, log: PassLog) -> None:
        chosen = self._chosen()
        result = apply_rules(module, RuleSet(r for r in RULES.rules if r.name in chosen) if chosen else RULES)
        log.counts.update(result.applied)
        log.misses.update(result.misses)
