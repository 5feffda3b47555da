"""The page ``docs/ops.md``, from the declarations of ops."""

from __future__ import annotations

import enum
import inspect
import sys
import types as python_types
import typing
from typing import Any

from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import SymExpr
from trustformers_ir.ir.dtypes import ANY, BOOL, COMPLEXES, FLOATS, INTS, NUMERIC, REAL, DType
from trustformers_ir.ir.schema import OPS, Attribute, FusionKind, Op, Operand

INTRODUCTION = """\
# Ops

This page is written by `make docs` from the declarations in `trustformers_ir/ir/ops/`.

Errors cite constraints by number: `softmax.C1` is constraint 1 of `softmax`.
Every op also checks its operand list: `O1` the number of operands, `O2` their dtypes, `O3` the presence of those that are not optional,
`O4` that they are row-major unless another layout is allowed.

Floating-point ops are evaluated in float64 (complex ones in complex128) and rounded once to the result dtype. Integer arithmetic wraps.
*Exact* ops work on the stored values. Sizes may be symbolic; wherever a constraint needs them to be equal or ordered, that must be provable
from the facts recorded for the symbols.

The *fusion kind* says how an op takes part in a fused region:

| kind | meaning |
|---|---|
"""

FAMILIES = (
    *("unary", "elementwise", "bits", "shape", "window", "reduce", "index", "nonzero", "suppress", "cache", "pages", "contract"),
    *("quantized", "quantized_f8", "blocks", "blocks_int8", "expert_blocks", "nn", "data", "check", "region"),
)

KINDS = {
    FusionKind.CONSTANT: "no tensor operands",
    FusionKind.ELEMENTWISE: "an output element needs the input elements at its own position, after broadcasting",
    FusionKind.INJECTIVE: "an output element needs input elements at other, computable positions",
    FusionKind.REDUCTION: "rows are folded",
    FusionKind.CONTRACTION: "a sum of products: the anchor of a matrix template",
    FusionKind.ATTENTION: "the anchor of the attention template",
    FusionKind.WRITE: "rows are written into memory that outlives the call",
    FusionKind.OPAQUE: "a kernel of its own",
    FusionKind.STRUCTURE: "regions and terminators",
}

_GROUPS = [
    (ANY, "any"), (NUMERIC, "any number"), (REAL, "integer or float"), (INTS | BOOL, "integer or bool"), (REAL | BOOL, "any but complex"),
    (FLOATS | COMPLEXES, "float or complex"), (FLOATS, "float"), (INTS, "integer"), (COMPLEXES, "complex"), (BOOL, "bool"),
]  # fmt: skip


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION + "".join(f"| {kind.value} | {text} |\n" for kind, text in KINDS.items())]
    for family in FAMILIES:
        module = sys.modules[f"{ops.__name__}.{family}"]
        kinds = [kind for kind in OPS.values() if kind.__module__ == module.__name__]
        title, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n")
        parts.append(f"\n## {title.rstrip('.')}\n")
        if rest.strip():
            parts.append(f"\n{rest.strip()}\n")
        parts.extend(section(kind) for kind in kinds)
    return "".join(parts)


def section(kind: type[Op]) -> str:
    """The entry of one op."""
    attributes = ", ".join(attribute_text(a) for a in kind.attributes())
    out = [f"\n### `{kind.mnemonic}`\n\n{inspect.cleandoc(kind.__doc__ or '')}\n\n"]
    operands = "; ".join(operand_text(o) for o in kind.operands)
    out.append(f"* operands: {operands or 'none'}\n")
    if attributes:
        out.append(f"* attributes: {attributes}\n")
    notes = [kind.fusion.value]
    notes += ["exact"] if kind.exact else []
    notes += ["commutative"] if kind.commutative else []
    notes += ["ends a block"] if kind.terminator else []
    out.append(f"* fusion: {', '.join(notes)}\n")
    out.extend(f"* C{number}: {text}\n" for number, text in sorted(kind.constraints.items()))
    return "".join(out)


def operand_text(operand: Operand) -> str:
    extra = ["optional"] if operand.optional else []
    extra += ["any number of them"] if operand.variadic else []
    extra += ["any layout"] if operand.any_layout else []
    return f"`{operand.name}` {dtypes_text(operand.dtypes)}" + (f" ({', '.join(extra)})" if extra else "")


def dtypes_text(dtypes: frozenset[DType]) -> str:
    return next((name for group, name in _GROUPS if group == dtypes), " or ".join(d.name for d in DType if d in dtypes))


def attribute_text(attribute: Attribute) -> str:
    return f"`{attribute.name}: {hint_text(attribute.hint)}" + ("" if attribute.required else f" = {value_text(attribute.default)}") + "`"


def hint_text(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"({', '.join('…' if a is Ellipsis else hint_text(a) for a in arguments)})"
    if isinstance(hint, python_types.UnionType) or typing.get_origin(hint) is typing.Union:
        if SymExpr in arguments:
            return "dim" + (" | none" if type(None) in arguments else "")
        return " | ".join("none" if a is type(None) else hint_text(a) for a in arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum) and hint is not DType:
        return " | ".join(str(row.value) for row in hint)
    return str(getattr(hint, "__name__", hint)).lower()


def value_text(value: Any) -> str:
    if isinstance(value, enum.Enum) and not isinstance(value, DType):
        return str(value.value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value)
