"""Elementary functions on kernel IR (placeholder: filled in below)."""

from __future__ import annotations

from trustformers_ir.codegen.kernel_ir.nodes import Binary, Expr, Unary

LIBM: dict[str, str] = {}


def expand(e: Unary | Binary) -> Expr | None:
    """The expansion of an operator, or None when it is primitive."""
    return None
