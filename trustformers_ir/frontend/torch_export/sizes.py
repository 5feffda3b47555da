"""torch's symbolic sizes (expressions of sympy) as our dims."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trustformers_ir.ir.dims import Atom, Dim, SymbolFact, SymExpr, floordiv, maximum, minimum, mod, substitute, symbol
from trustformers_ir.ir.functional import tensor
from trustformers_ir.ir.tensor import Tensor

UNBOUNDED = 1 << 40  # bounds beyond stand for none: torch writes infinity, or the largest integer


class NoDim(Exception):
    """An expression of sizes that our dims cannot say."""


class Sizes:
    """Dims of the expressions of one program. ``names`` says what torch's symbols are called here."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self.names = dict(names or {})
        self._known: dict[Any, Dim] = {}

    def dim(self, size: Any) -> Dim:
        """A size (an int or a ``SymInt``) as a dim."""
        if isinstance(size, int):
            return size
        return self.of(size.node.expr)

    def of(self, expr: Any) -> Dim:
        """A sympy expression as a dim."""
        found = self._known.get(expr)
        if found is None:
            found = self._known[expr] = self._made(expr)
        return found

    def _made(self, expr: Any) -> Dim:
        if expr.is_Integer:
            return int(expr)
        if expr.is_Symbol:
            name = str(expr)
            return symbol(self.names.setdefault(name, name))
        args = expr.args
        if expr.is_Add:
            total: Dim = 0
            for a in args:
                total = total + self.of(a)
            return _rounded_up(total)
        if expr.is_Mul:
            return self._product(args)
        if expr.is_Pow and args[1].is_Integer and int(args[1]) > 0:
            return self._power(self.of(args[0]), int(args[1]))
        kind = type(expr).__name__
        if kind in ("Mod", "PythonMod"):
            return _remainder(*map(self.of, args))
        if kind in _CALLS:
            made: Dim = _CALLS[kind](*map(self.of, args))
            return made
        if kind in ("Max", "Min"):
            out = self.of(args[0])
            for a in args[1:]:
                out = maximum(out, self.of(a)) if kind == "Max" else minimum(out, self.of(a))
            return out
        if kind == "PowByNatural" and args[1].is_Integer:
            return self._power(self.of(args[0]), int(args[1]))
        if kind in _ROUNDED:
            return self._rounded(_ROUNDED[kind], args[0])
        raise NoDim(str(expr))

    def _product(self, args: Any) -> Dim:
        """Rational factors become one exact division."""
        out: Dim = 1
        below = 1
        for a in args:
            if a.is_Rational and not a.is_Integer:
                out, below = out * int(a.p), below * int(a.q)
            else:
                out = out * self.of(a)
        return out if below == 1 else floordiv(out, below)

    @staticmethod
    def _power(base: Dim, exponent: int) -> Dim:
        out: Dim = 1
        for _ in range(exponent):
            out = out * base
        return out

    def _rounded(self, way: str, expr: Any) -> Dim:
        """``ceil``, ``floor`` or ``trunc`` of a quotient of sizes, which are not negative."""
        kind = type(expr).__name__
        if kind in ("IntTrueDiv", "FloatTrueDiv"):
            a, b = (self.of(_plain(x)) for x in expr.args)
            return -floordiv(-a, b) if way == "ceil" else floordiv(a, b)
        if expr.is_Mul and all(x.is_Rational or not x.is_Float for x in expr.args):
            numbers = [x for x in expr.args if x.is_Rational]
            rest = [self.of(_plain(x)) for x in expr.args if not x.is_Rational]
            above: Dim = 1
            below = 1
            for x in numbers:
                above, below = above * int(x.p), below * int(x.q)
            for d in rest:
                above = above * d
            return -floordiv(-above, below) if way == "ceil" else floordiv(above, below)
        return self._float_product(way, _plain(expr))

    def _float_product(self, way: str, expr: Any) -> Dim:
        """``n * 0.5`` and the like: a float that is a small fraction."""
        if expr.is_Mul and len(expr.args) == 2:
            (number,) = [a for a in expr.args if a.is_Float] or [None]
            (rest,) = [a for a in expr.args if not a.is_Float] or [None]
            if number is not None and rest is not None:
                top, bottom = float(number).as_integer_ratio()
                if bottom <= 1 << 16 and abs(top) <= 1 << 16:
                    above = self.of(_plain(rest)) * top
                    return -floordiv(-above, bottom) if way == "ceil" else floordiv(above, bottom)
        return self.of(expr)

    def number(self, expr: Any) -> Tensor:
        """A float of sizes (a ``SymFloat``) as an f64 scalar, computed at run time."""
        if expr.is_number:
            return tensor(float(expr), "f64")
        kind = type(expr).__name__
        args = expr.args
        if kind in ("ToFloat", "Identity"):
            return self.number(args[0])
        if expr.is_Add or expr.is_Mul:
            out = self.number(args[0])
            for a in args[1:]:
                out = out + self.number(a) if expr.is_Add else out * self.number(a)
            return out
        if kind in ("FloatTrueDiv", "IntTrueDiv"):
            return self.number(args[0]) / self.number(args[1])
        if expr.is_Pow or kind == "FloatPow":
            return self.number(args[0]).pow(self.number(args[1]))
        if kind.startswith("OpaqueUnaryFn_"):
            name = kind.removeprefix("OpaqueUnaryFn_")
            if name in ("sqrt", "log", "log2", "exp", "sin", "cos", "tanh"):
                found: Tensor = getattr(self.number(args[0]), name)()
                return found
        return tensor(self.of(expr)).to("f64")


def _plain(expr: Any) -> Any:
    """Without conversions to float."""
    return expr.args[0] if type(expr).__name__ in ("ToFloat", "Identity") else expr


def _remainder(a: Dim, by: Dim) -> Dim:
    """``a % by``; remainders by the same number in a are left out first: ``(3 * (n % 4)) % 4`` is ``(3 * n) % 4``."""
    if isinstance(a, SymExpr) and isinstance(by, int) and by > 0:
        for atom, times in _atoms(a, "mod"):
            if atom.args[1] == by:
                return _remainder(a - times * mod(*atom.args) + times * atom.args[0], by)
    return mod(a, by)


def _rounded_up(total: Dim) -> Dim:
    """``n + (-n) % 4``, what is padded to a multiple, as ``4 * ((n + 3) // 4)``."""
    if isinstance(total, SymExpr):
        for atom, times in _atoms(total, "mod"):
            a, by = atom.args
            rest = total - mod(a, by)
            if times == 1 and isinstance(by, int) and by > 0 and mod(rest + a, by) == 0:
                return by * floordiv(rest + by - 1, by)
    return total


def _atoms(dim: SymExpr, kind: str) -> list[tuple[Atom, int]]:
    """The atoms of a kind that are terms by themselves, with their factors."""
    return [(m[0][0], times) for m, times in dim.terms if len(m) == 1 and m[0][1] == 1 and m[0][0].kind == kind]


def _modular(a: Dim, by: Dim, modulus: Dim) -> Dim:
    return mod(floordiv(a, by), modulus)


_CALLS: dict[str, Any] = {
    "FloorDiv": floordiv,
    "CleanDiv": floordiv,
    "ModularIndexing": _modular,
    "CeilDiv": lambda a, b: -floordiv(-a, b),
    "Identity": lambda a: a,
    "TruncToInt": lambda a: a,
}
_ROUNDED = {"CeilToInt": "ceil", "FloorToInt": "floor", "TruncToInt": "floor"}
del _CALLS["TruncToInt"]


def constants_of(dim: Dim) -> set[int]:
    """The numbers that a dim is written with, bounds of sizes among them."""
    return {int(n) for n in re.findall(r"\d+", re.sub(r"[A-Za-z_]\w*", " ", str(dim)))} if not isinstance(dim, int) else set()


def fact_of(low: Any, high: Any, least: int = 1) -> SymbolFact:
    """What torch's range of a symbol says. Its lower bound 2 says no more than that the example was larger than 1: ``least`` is taken then."""
    found, most = _whole(low), _whole(high)
    least = least if found is None or found <= 2 else found
    return SymbolFact(least, most if most is not None and least <= most < UNBOUNDED else None)


def _whole(bound: Any) -> int | None:
    return int(bound) if isinstance(bound, int) or getattr(bound, "is_Integer", False) else None


__all__ = ["NoDim", "Sizes", "fact_of", "substitute"]
