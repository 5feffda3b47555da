"""Every pass by name: what ``tfc opt --passes`` and ``parse_pipeline`` know."""

from __future__ import annotations

from trustformers_ir.passes.manager import Pass

ALL: tuple[type[Pass], ...] = ()

PASSES: dict[str, type[Pass]] = {p.name: p for p in ALL}
