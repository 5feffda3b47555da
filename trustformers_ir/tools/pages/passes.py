"""The page ``docs/passes.md``, from the declarations of passes and rules."""

from __future__ import annotations

import dataclasses

from trustformers_ir.passes.canonicalize import FAMILIES
from trustformers_ir.passes.manager import Pass
from trustformers_ir.passes.options import option_fields, option_text
from trustformers_ir.passes.registry import PASSES

INTRODUCTION = """\
# Passes and rules

This page is written by `make docs` from the declarations in `trustformers_ir/passes/`.

A pass changes a module. It is a frozen dataclass whose fields are its options, one pass per file; its docstring shows a graph before and
after. `passes/pipelines.py` lists the passes of each target, `passes/registry.py` all of them. `PassManager(passes).run(module)` runs some and
returns a report: seconds, operations before and after, rewrites, notes and near misses of each.

## Running passes

```
tfc opt --list
tfc opt FILE.tfir --passes canonicalize,cse,dce
tfc opt FILE.tfir --passes 'constant_fold{max_elements=64},dce{weights=false}'
tfc opt FILE.tfir --passes 'canonicalize{only=add_neg+neg_neg}'      # two rules alone
```

With `FILE.tfir` being

```
module @demo {
  symbol n : [1, 64]
  func @main(%x: f32[n, 8], %y: f32[8]) -> (f32[n, 8]) {
    %0 = neg(%y) : f32[8]
    %1 = add(%x, %0) : f32[n, 8]
    %2 = transpose(%1) {perm = [1, 0]} : f32[8, n]
    %3 = transpose(%2) {perm = [1, 0]} : f32[n, 8]
    return %3
  }
}
```

`tfc opt FILE.tfir --passes canonicalize` prints

```
module @demo {
  symbol n : [1, 64]
  func @main(%x: f32[n, 8], %y: f32[8]) -> (f32[n, 8]) {
    %0 = sub(%x, %y) : f32[n, 8]
    return %0
  }
}
```

| variable | effect |
|---|---|
| `TFIR_VERIFY=0` | the verifier does not run after every pass; a pass that breaks a module is otherwise named in the error |
| `TFIR_DUMP_DIR=dumps` | the text of the module is written to `dumps/NN-name.tfir` whenever a pass changed it |
| `TFIR_STOP_AFTER=n` | only the first n rewrites of a compilation happen |

A wrong result is bisected over n: with `n = 0` nothing is rewritten, and of two neighbouring n, one right and one wrong, the dumps differ by
the rewrite at fault. `tests/passes/test_rewriting.py::test_stop_after_finds_the_wrong_rewrite` does that.

"""

RULES = """\
## Rules

A rule is a value: a name, the equation in a line, a pattern, how to build the replacement, and a check where the pattern alone does not
justify the rewrite. The check answers with the *reason why not*, and the driver counts these near misses.

```python
from trustformers_ir.ir.ops import Add, Flip, Neg, Sub
from trustformers_ir.ir.rewriting import Rule, apply_rules, node, var

x, y = var("x"), var("y")

RULES = (
    Rule("add_neg", "x + (-y) = x - y", node(Add, x, node(Neg, y)), lambda m, b: b(Sub(), m["x"], m["y"])),
    Rule(
        "flip_flip",
        "flip(flip(x)) = x",
        node(Flip, node(Flip, x, name="inner")),
        lambda m, b: m["x"],
        lambda m: None if m.op().axis == m.op("inner").axis else "the axes differ",
    ),
)

result = apply_rules(module, RULES)
result.applied          # Counter({'add_neg': 3})
result.misses           # Counter({('flip_flip', 'the axes differ'): 1})
```

| in a pattern | matches |
|---|---|
| `var("x")`, `var("x", INTS)` | any value (of these dtypes), `m["x"]`; the same name twice is the same value |
| `node(Op, …)`, `node((Op, Op), …)` | an operation of a class or of one of several; base classes stand for all their ops |
| `node(Op, ...)` | whatever its operands are |
| `node(Op, x, None)` | an optional operand that is absent |
| `splat(test, "c")` | a constant of equal elements, seen through views and broadcasts; `m.scalar("c")` is the element |
| `name="inner"` | `m.operation("inner")`, and its attributes: `m.op("inner")`; `m.op()` is the root's |
| `one_use=True` | nobody else reads the result |
| `ordered=True` | the operands of a commutative op in this order only (by default in either) |
| `where=test` | what else is asked of the operation; a refusal is no near miss |

The driver indexes rules by the class of the op where their patterns begin, works a list off until no rule applies, gives new operations the
source location of the one that they replace, and erases what nobody uses any more. A replacement must have the type of what it replaces:
`fitted(b, value, m.type)` broadcasts it where the operand was smaller. Anything else is an error naming the rule.

### Exactness

A rule of `canonicalize` changes no bit of any result under the reference semantics, whatever the inputs are (only *which* NaN it is may
change). That excludes `x + 0.0 = x` (-0.0 becomes 0.0), `x * 0.0 = 0.0` (NaN), `x - x = 0.0` (infinities), `maximum(x, y) = maximum(y, x)` (two
zeros), `f64 -> f32 -> f16` in one step (rounded twice) and every reassociation of floats. Rules that say *integers* rest on integers wrapping.

| claim | command |
|---|---|
| every rule fires on its examples and keeps the bits: random shapes, dtypes, edge values | `pytest tests/passes/test_rules.py` |
| the same property finds wrong rules: dropped checks, swapped operands, ignored NaN and -0.0 … | `pytest tests/passes/test_rule_mutants.py` |
| all core passes together keep the bits of random graphs and of a model full of detours | `pytest tests/passes/test_whole_graphs.py` |
| every op folds to what the reference gives | `pytest tests/passes/test_constant_fold.py` |

A new rule is a row in `trustformers_ir/passes/rules/`, examples under its name in `tests/passes/rule_examples_*.py` (`FIRES`: it must fire;
`NEAR`: it must not), and preferably a mutant in `test_rule_mutants.py`.

"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## The passes\n\n| pass | does | options | requires | ensures | breaks |\n|---|---|---|---|---|---|\n"]
    parts += [_pass_row(kind) for kind in PASSES.values()]
    parts += ["\n", RULES]
    for family, rules in FAMILIES.items():
        parts.append(f"### {family.capitalize()}\n\n| rule | says |\n|---|---|\n")
        parts += [f"| `{rule.name}` | {_cell(rule.says)} |\n" for rule in rules]
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def _pass_row(kind: type[Pass]) -> str:
    options = [f"`{f.name}`" + ("" if f.default is dataclasses.MISSING else f" = {option_text(f.default)}") for f in option_fields(kind)]
    sets = [", ".join(sorted(names)) for names in (kind.requires, kind.ensures, kind.breaks)]
    return f"| `{kind.name}` | {_cell(kind.summary)} | {', '.join(options)} | {' | '.join(sets)} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
