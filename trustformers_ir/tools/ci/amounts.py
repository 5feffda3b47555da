"""Amounts as people write them: ``100MB``, ``10ms``, ``25%``. ``ValueError`` says what is taken instead."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,3}))?\Z")
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-zµ]*)\Z")
_THOUSANDS = {f"{prefix}b": 10 ** (3 * n) for n, prefix in enumerate(("", "k", "m", "g", "t"))}
SIZES: Mapping[str, int] = {**_THOUSANDS, **{f"{prefix}ib": 1 << 10 * n for n, prefix in enumerate("kmgt", 1)}}
TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


def number(text: str) -> float:
    """A number above 0, ``0.001`` or ``1e-3``."""
    match = _NUMBER.match(text)
    value = float(text) if match else math.nan
    if not 0 < value < math.inf:
        raise ValueError("a number above 0, such as 1e-3")
    return value


def size(text: str) -> float:
    """Bytes: ``100MB`` is 100,000,000, ``100MiB`` 104,857,600, a plain number is bytes."""
    takes = "a size such as 100MB, 1.5GB or 64MiB"
    value, unit = _parts(text, takes)
    scale = SIZES.get(unit.lower() or "b")
    if scale is None:
        raise ValueError(takes)
    return value * scale


def duration(text: str) -> float:
    """Seconds: ``10ms``, ``1.5s``, ``250us``."""
    takes = "a time such as 10ms, 1.5s or 250us"
    value, unit = _parts(text, takes)
    if unit not in TIMES:
        raise ValueError(takes)
    return value * TIMES[unit]


def percent(text: str) -> float:
    """``25%`` as 0.25. The sign is needed: a bare 2 could be twice as much."""
    takes = "a percentage such as 2%, with its sign"
    if not text.endswith("%"):
        raise ValueError(takes)
    value, unit = _parts(text[:-1].rstrip(), takes)
    if unit:
        raise ValueError(takes)
    return value / 100


def _parts(text: str, takes: str) -> tuple[float, str]:
    match = _AMOUNT.match(text)
    if match is None or len(match[1]) > 30:
        raise ValueError(takes)
    return float(match[1]), match[2]


def time_text(seconds: float) -> str:
    """``7.45 ms``."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def change_text(now: float, before: float) -> str:
    """``+3.2%``: how much more than before."""
    if now == before:
        return "±0%"
    return f"{(now / before - 1) * 100:+.1f}%" if before else "up from 0"
