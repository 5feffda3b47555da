"""How long a call will take, before anything runs: a roofline for every kernel (Williams, Waterman, Patterson, "Roofline", 2009).

A kernel takes the longer of two times: that of its arithmetic at the machine's rate of fused multiply-adds, and that of its bytes. Products read
weights, which come from memory unless those of all products fit into the last cache together, as they do when a small model is called again and
again; everything else lies in a cache. To that comes what it costs to begin. What is
counted as arithmetic is what the graph asks for, so kernels other than matrix products, where an exponential counts as one operation and is
twenty instructions, are given a part of the rate only.

The rates are measured (``tools/bench/limits.py``) and kept per machine and number of threads in the cache folder. ``docs/performance.md`` says how
far the prediction was off.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from trustformers_ir.ir.abi import Entry, KernelInfo
from trustformers_ir.ir.atomic import write_text
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.ir.env import cache_folder
from trustformers_ir.ir.machine import last_cache
from trustformers_ir.runtime.host import this_machine


class Kind(enum.Enum):
    """What kernels are told apart by, with the part of the machine's rate that they reach."""

    PRODUCT = 0.95  # a register tile of floats
    INTEGER = 0.85  # of bytes: a part of the rate of `vpdpbusd`, or of multiply-adds where there is none
    ATTENTION = 0.6
    OTHER = 0.16


PRODUCTS = ("linear", "matmul", "conv")  # ops that run a register tile
CACHE_RATE = 4.0  # a cache is so many times as fast as memory
BEGIN = 1.5e-6  # seconds: the barrier before a kernel, and its first loads


@dataclass(frozen=True)
class Rates:
    """What a machine does at best on ``threads`` threads: f32 GFLOP/s of multiply-adds, GOP/s of ``vpdpbusd`` (0: it has none), GB/s of reads
    from memory."""

    threads: int
    fma: float
    vnni: float
    memory: float

    def arithmetic(self, kind: Kind) -> float:
        """Operations per second that kernels of a kind reach."""
        peak = self.vnni if kind is Kind.INTEGER and self.vnni else self.fma
        return peak * kind.value * 1e9


@dataclass(frozen=True)
class Roof:
    """A kernel call that was predicted: ``seconds``, and what bounds it, ``arithmetic`` or ``memory``."""

    kernel: KernelInfo
    seconds: float
    bound: str


def predict(entry: Entry, dims: Mapping[str, int], rates: Rates) -> list[Roof]:
    """Every kernel call of an entry, in order, at these values of all dim symbols. ``KeyError`` when one is missing."""
    read = sum(evaluate(k.bytes, dims) for k in entry.kernels if _reads_weights(kind(k)))
    return [_roof(k, dims, rates, read <= last_cache()) for k in entry.kernels]


def kind(kernel: KernelInfo) -> Kind:
    """The kind of a kernel, by the ops that its label names."""
    words = kernel.label.split("+")
    if not {"linear_int8", "linear_blocks_int8", "expert_blocks_int8"}.isdisjoint(words):
        return Kind.INTEGER
    if any(word.startswith(PRODUCTS) for word in words):
        return Kind.PRODUCT
    return Kind.ATTENTION if "attention" in words else Kind.OTHER


def _reads_weights(kind: Kind) -> bool:
    return kind in (Kind.PRODUCT, Kind.INTEGER)


def _roof(kernel: KernelInfo, dims: Mapping[str, int], rates: Rates, cached: bool) -> Roof:
    of = kind(kernel)
    arithmetic = evaluate(kernel.flops, dims) / rates.arithmetic(of)
    reads = evaluate(kernel.bytes, dims) / (rates.memory * 1e9 * (1.0 if _reads_weights(of) and not cached else CACHE_RATE))
    return Roof(kernel, max(arithmetic, reads) + BEGIN, "arithmetic" if arithmetic >= reads else "memory")


def known_rates(threads: int) -> Rates | None:
    """What was measured on this machine with so many threads; None when nothing was, or the note is broken."""
    try:
        found = json.loads(_place(threads).read_text("utf-8"))
        rates = Rates(**{f.name: found[f.name] for f in fields(Rates)})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    numbers = (rates.fma, rates.vnni, rates.memory)
    good = all(isinstance(n, float) and 0 <= n < 1e9 for n in numbers) and rates.fma and rates.memory and rates.threads == threads
    return rates if good else None


def keep_rates(rates: Rates) -> None:
    """Notes what was measured. ``OSError`` or ``CompilerError`` when the cache folder cannot be written."""
    place = _place(rates.threads)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, json.dumps(asdict(rates)), durable=False)


def _place(threads: int) -> Path:
    return cache_folder() / "machines" / f"{_machine()}-{threads}.json"


@functools.cache
def _machine() -> str:
    return hashlib.sha256(json.dumps(this_machine(), sort_keys=True).encode()).hexdigest()[:32]
