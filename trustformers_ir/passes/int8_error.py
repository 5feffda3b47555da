"""How far a quantized model lies from the same model in f32, product by product: what :func:`trustformers_ir.quantization_error` tells.

Two errors of each product: its *own*, where both see the same activation, and the one *arrived* at, where the quantized product sees what the
quantized model gives it. Sums are kept in float64, so any number of examples can be looked at one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trustformers_ir.passes.smoothing import Smoothing


@dataclass
class Deviation:
    """The difference between what was wanted and what came, over all arrays seen."""

    values: int = 0
    noise: float = 0.0  # sum (have - want)**2
    signal: float = 0.0  # sum want**2
    power: float = 0.0  # sum have**2
    together: float = 0.0  # sum want * have
    largest: float = 0.0  # max |have - want|
    peak: float = 0.0  # max |want|

    def see(self, want: np.ndarray, have: np.ndarray) -> None:
        """Counts more values; arrays of one shape."""
        w, h = want.astype(np.float64).reshape(-1), have.astype(np.float64).reshape(-1)
        difference = h - w
        self.values += w.size
        self.noise += float(difference @ difference)
        self.signal += float(w @ w)
        self.power += float(h @ h)
        self.together += float(w @ h)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        self.peak = max(self.peak, float(np.abs(w).max(initial=0.0)))

    @property
    def relative(self) -> float:
        """``|have - want| / |want|``, lengths as vectors of all values."""
        return math.sqrt(self.noise / self.signal) if self.signal else math.inf if self.noise else 0.0

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise, ``10 log10(sum want**2 / sum (have - want)**2)`` in dB; infinite when they are equal."""
        return -20 * math.log10(self.relative) if 0 < self.relative < math.inf else math.inf if self.relative == 0 else -math.inf

    @property
    def cosine(self) -> float:
        """Of the angle between the vectors of all values; 1 when both are zero."""
        both = math.sqrt(self.signal) * math.sqrt(self.power)
        return self.together / both if both else float(self.signal == self.power)

    def as_dict(self) -> dict[str, float]:
        """Plain data for ``--json``."""
        return {"relative": self.relative, "sqnr_db": self.sqnr, "cosine": self.cosine, "max_abs": self.largest, "largest": self.peak}


@dataclass
class ProductError:
    """The errors of one product. ``smoothing`` says how outliers of its activation moved into its weight, and what it was before on the sample."""

    name: str
    location: str
    smoothing: Smoothing | None = None
    own: Deviation = field(default_factory=Deviation)
    arrived: Deviation = field(default_factory=Deviation)


@dataclass(frozen=True)
class ErrorReport:
    """The errors of all quantized products, worst own error first; of the results of the model, by name; and what stayed in f32, with the reason.

    ``str`` is a table, ``as_dict`` plain data.
    """

    recipe: str
    products: Sequence[ProductError]
    outputs: dict[str, Deviation]
    kept: dict[str, str]
    examples: int

    def as_dict(self) -> dict[str, object]:
        """Plain data for ``--json``."""
        products = [
            {"name": p.name, "location": p.location, "own": p.own.as_dict(), "arrived": p.arrived.as_dict()}
            | ({} if p.smoothing is None else {"smoothing": p.smoothing.as_dict()})
            for p in self.products
        ]
        outputs = {name: d.as_dict() for name, d in self.outputs.items()}
        return {"recipe": self.recipe, "examples": self.examples, "products": products, "outputs": outputs, "kept": dict(self.kept)}

    @property
    def head(self) -> tuple[str, ...]:
        """What the columns of ``table`` are; there is one about smoothing where something is smoothed."""
        return (*HEAD, "unsmoothed, on the sample") if any(p.smoothing for p in self.products) else HEAD

    def table(self) -> list[tuple[str, ...]]:
        """Rows of texts under ``head``."""
        rows: list[tuple[str, ...]] = [(p.name, *_shown(p.own), *_shown(p.arrived), p.location, _moved(p.smoothing)) for p in self.products]
        rows += [(f"result {name}", "", "", "", *_shown(d), "", "") for name, d in self.outputs.items()]
        return [row[: len(self.head)] for row in rows]

    def __str__(self) -> str:
        cells = [self.head, *self.table()]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join(lines + [f"{name} stays as it is: {reason}" for name, reason in self.kept.items()])


HEAD = ("product", "own relative", "SQNR dB", "cosine", "arrived relative", "SQNR dB", "cosine", "where")


def _moved(s: Smoothing | None) -> str:
    return "" if s is None else f"{s.before:.3g} -> {s.after:.3g}, alpha {s.alpha:g}"


def _shown(d: Deviation) -> tuple[str, str, str]:
    return f"{d.relative:.3g}", f"{d.sqnr:.1f}", f"{d.cosine:.6f}"
