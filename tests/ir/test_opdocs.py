"""The page of ops is written from the declarations."""

from __future__ import annotations

from trustformers_ir.ir.schema import OPS
from trustformers_ir.tools.pages import ops as opdocs


def test_every_op_has_a_section() -> None:
    text = opdocs.page()
    for mnemonic, kind in OPS.items():
        assert text.count(f"\n### `{mnemonic}`\n") == 1
        assert all(statement in text for statement in kind.constraints.values())


def test_attributes_are_shown_with_types_and_defaults() -> None:
    assert "* attributes: `axes: (int, …)`, `keepdims: bool = false`\n" in opdocs.section(OPS["reduce_sum"])
    assert "`approximate: none | tanh = none`" in opdocs.section(OPS["gelu"])
    assert "`start: dim`, `stop: dim`, `step: int = 1`" in opdocs.section(OPS["slice"])
    assert "`low: float | none = none`" in opdocs.section(OPS["clamp"])
    assert "`dtype: dtype`" in opdocs.section(OPS["cast"])
    assert "`weight` any number (any layout); `bias` any number (optional)" in opdocs.section(OPS["linear"])
