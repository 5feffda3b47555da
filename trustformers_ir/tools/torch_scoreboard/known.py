"""Ops of which a sample is known not to agree, and why."""

from __future__ import annotations

#: (op, dtype) -> why
KNOWN: dict[tuple[str, str], str] = {}
