"""A bar is a figure that must be reached; a line is a figure that was measured, next to its bar."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class Verdict(enum.Enum):
    MET = "met"
    FLOOR = "floor"  # the floor is reached, the bar is not
    MISSED = "missed"
    MISSING = "not available"  # nothing was measured: the note says why


@dataclass(frozen=True)
class Bar:
    """``value`` must be reached: at least, or with ``at_most`` not exceeded. ``floor`` is what still counts for something.

    ``unit`` is how the figure is printed: ``x`` (a ratio of times), ``%`` (a share, 1.0 is 100 %), ``s``, ``MB`` or ``""``.
    ``against`` says what it is compared with.
    """

    against: str
    value: float
    floor: float | None = None
    unit: str = "x"
    at_most: bool = False

    def verdict(self, figure: float) -> Verdict:
        if math.isnan(figure):
            return Verdict.MISSING
        if self._reached(figure, self.value):
            return Verdict.MET
        return Verdict.FLOOR if self.floor is not None and self._reached(figure, self.floor) else Verdict.MISSED

    def _reached(self, figure: float, limit: float) -> bool:
        return figure <= limit if self.at_most else figure >= limit

    def show(self, figure: float | None) -> str:
        if figure is None or math.isnan(figure):
            return ""
        return {"x": f"{figure:.2f}x", "%": f"{figure:.0%}", "s": f"{figure:.2f} s", "MB": f"{figure / 1e6:.0f} MB"}.get(self.unit, f"{figure:.3g}")

    @property
    def text(self) -> str:
        return ("≤ " if self.at_most else "≥ ") + self.show(self.value)


@dataclass(frozen=True)
class Figure:
    """``value`` is what a bar is about (NaN: nothing was measured, and ``note`` says why), ``ours`` and ``peer`` what it was computed from,
    ``of_limit`` the share of the machine's limit that ours reaches (NaN where that means nothing)."""

    value: float = math.nan
    ours: str = ""
    peer: str = ""
    of_limit: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    row: str
    work: str
    bar: Bar
    figure: Figure

    @property
    def verdict(self) -> Verdict:
        return self.bar.verdict(self.figure.value)

    @property
    def cells(self) -> tuple[str, ...]:
        found = self.figure
        share = "" if math.isnan(found.of_limit) else f"{found.of_limit:.0%}"
        bar = f"{self.bar.text} {self.bar.against}".strip()
        return (self.work, bar, self.bar.show(self.bar.floor), found.ours, found.peer, self.bar.show(found.value), share, self.verdict.value)

    @property
    def data(self) -> dict[str, object]:
        return {
            "row": self.row,
            "work": self.work,
            "against": self.bar.against,
            "bar": self.bar.value,
            "floor": self.bar.floor,
            "unit": self.bar.unit,
            "at_most": self.bar.at_most,
            "figure": self.figure.value,
            "ours": self.figure.ours,
            "peer": self.figure.peer,
            "of_limit": self.figure.of_limit,
            "verdict": self.verdict.value,
            "note": self.figure.note,
        }


#: Texts as wide as the columns usually become.
WIDEST = ("", "", "", "100.00 ms (100.00)", "100.00 ms (100.00) inductor-max-autotune", "0.00x", "100%", "not available")
HEAD = ("work", "bar", "floor", "ours", "compared with", "figure", "of limit", "")
