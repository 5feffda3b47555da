"""Reading the fields of a model's config: typed, checked against ranges, all problems gathered.

    fields = Fields(json.loads(text), problems)
    layers = fields.whole("num_hidden_layers")                    # an int of at least 1; required, for want of a default
    eps = fields.number("layer_norm_eps", 1e-12)
    problems.check()

A field that is wrong is reported and read as its default, so that the fields after it are checked as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from trustformers_ir.ir.diagnostics import Code, Collector, Where

LARGEST = 1 << 31  # no size of a model is beyond this


class Fields:
    """The fields of one JSON object. ``where`` gives the place of a field (None: of the whole config); ``code`` is what problems are reported as.

    ``asked`` gathers the names that were read, ``wrong`` those with a problem. ``prefix`` is how messages name
    the object, where it is a field itself.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        problems: Collector,
        where: Callable[[str | None], Where] = lambda name: Where(),
        code: Code = Code.CONFIG_INVALID,
        prefix: str = "",
    ) -> None:
        self.raw = raw
        self.prefix = prefix
        self.problems = problems
        self.where = where
        self.code = code
        self.asked: set[str] = set()
        self.wrong: set[str] = set()

    def whole(self, name: str, default: int | None = None, low: int = 1, high: int = LARGEST) -> int:
        """An integer in ``low .. high``."""
        value = self._take(name, default)
        if value is None:
            return low
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            expected = f"a whole number of at least {low}" if high == LARGEST else f"a whole number in {low} .. {high}"
            self.fail(name, f"is {_shown(value)}, not {expected}")
            return low if default is None else default
        return value

    def number(self, name: str, default: float | None = None, low: float = 0.0, high: float = math.inf) -> float:
        """A finite number in ``low .. high``."""
        value = self._take(name, default)
        if value is None:
            return low
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or not math.isfinite(value):
            self.fail(name, f"is {_shown(value)}, not a number{f' of at least {low:g}' if high == math.inf else f' in {low:g} .. {high:g}'}")
            return low if default is None else default
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._take(name, default)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.fail(name, f"is {_shown(value)}, not true or false")
        return bool(default)

    def pair(self, name: str) -> tuple[int, int]:
        """Two positive integers; a single one stands for both. Required."""
        value = self._take(name, None)
        if value is None:
            return (1, 1)
        both = value if isinstance(value, list) else [value, value]
        if len(both) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or not 1 <= v <= LARGEST for v in both):
            self.fail(name, f"is {_shown(value)}, not a whole number of at least 1 or a list of two")
            return (1, 1)
        return (both[0], both[1])

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of so many finite numbers above 0. Required."""
        value = self._take(name, None)
        if value is None:
            return (1.0,) * count
        right = isinstance(value, list) and len(value) == count
        if not right or any(isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 < v < math.inf for v in value):
            self.fail(name, f"is {_shown(value)}, not a list of {count} numbers above 0")
            return (1.0,) * count
        return tuple(float(v) for v in value)

    def names(self, name: str, count: int, among: Iterable[str]) -> tuple[str, ...] | None:
        """A list of so many names of ``among``; None where there is none."""
        self.asked.add(name)
        value = self.raw.get(name)
        if value is None:
            return None
        known = sorted(among)
        if not isinstance(value, list) or len(value) != count or any(v not in known for v in value):
            self.fail(name, f"is {_shown(value)}, not a list of {count} of the names {', '.join(known)}")
            return None
        return tuple(value)

    def inner(self, name: str) -> Fields:
        """The fields of an object, which is empty when it is not there."""
        self.asked.add(name)
        value = self.raw.get(name)
        if value is not None and not isinstance(value, dict):
            self.fail(name, f"is {_shown(value)}, not an object")
        fields = value if isinstance(value, dict) else {}
        return Fields(fields, self.problems, lambda part: self.where(name if part is None else part), self.code, f"{self.prefix}{name}.")

    def labels(self, low: int = 1) -> int:
        """How many labels a classifier has: ``num_labels``, else as many as ``id2label`` names, else 2."""
        names = self.raw.get("id2label")
        return self.whole("num_labels", len(names) if isinstance(names, dict) and len(names) >= low else 2, low)

    def divides(self, part: str, of: str) -> None:
        """Report a field that does not divide another one; both are required and have been read."""
        if self.right(part, of) and self.raw[of] % self.raw[part]:
            self.fail(part, f"is {self.raw[part]}, which does not divide {of} {self.raw[of]}")

    def choice(self, name: str, among: Iterable[str], default: str | None = None) -> str:
        """One of the names in ``among``; a name that is not is reported as not supported."""
        known = sorted(among)
        value = self._take(name, default)
        if value is None:
            return known[0]
        if not isinstance(value, str):
            self.fail(name, f"is {_shown(value)}, not a name")
        elif value not in known:
            near = get_close_matches(value, known, 1)
            help = f"supported are {', '.join(known)}" + (f"; did you mean '{near[0]}'?" if near else "")
            self.unsupported(name, f"is '{value}', which is not supported", help)
        else:
            return value
        return known[0] if default is None else default

    def right(self, *names: str) -> bool:
        """Whether none of these has a problem: checks between fields are for values that were really given."""
        return not self.wrong.intersection(names)

    def unsupported(self, name: str, what: str, help: str = "") -> None:
        """Report a variant that is valid and not written yet."""
        self.wrong.add(name)
        self.problems.add(Code.UNSUPPORTED_CONFIG, f"'{self.shown(name)}' {what}", self.where(name), help)

    def shown(self, name: str) -> str:
        """How messages name a field."""
        return f"{self.prefix}{name}"

    def fail(self, name: str, what: str, help: str = "") -> None:
        """Report a value that cannot be."""
        self.wrong.add(name)
        self.problems.add(self.code, f"'{self.shown(name)}' {what}", self.where(name), help)

    def _take(self, name: str, default: Any) -> Any:
        self.asked.add(name)
        value = self.raw.get(name)
        if value is None and default is None:
            self.wrong.add(name)
            near = get_close_matches(name, [k for k in self.raw if isinstance(k, str)], 1, 0.8)
            help = f"'{near[0]}' is there: is it misspelt?" if near else "the field has no default"
            self.problems.add(self.code, f"'{self.shown(name)}' is missing", self.where(None), help)
        return default if value is None else value


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
