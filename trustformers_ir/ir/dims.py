"""Symbolic dimensions: integers, or normalised polynomials over named symbols, and what is known of the symbols.

A ``Dim`` is an ``int`` or a :class:`SymExpr`. A ``SymExpr`` is a sum of integer multiples of monomials; a monomial is a product of atoms;
an atom is a symbol, or a floor division, remainder, minimum or maximum that could not be simplified. Normalisation makes structurally equal
polynomials the same value, so most questions about shapes are answered by subtraction. Everything else is asked of :class:`Facts`,
which answers True, answers False, or raises :class:`UndecidedDim` naming the fact that is missing (after JAX's ``shape_poly``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import gcd, inf
from typing import Union

SYMBOL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
RESERVED = frozenset({"min", "max"})
MAX_NESTING = 64  # of a dim that is parsed
MAX_PRODUCTS = 200_000  # factors multiplied with factors while a dim is parsed
MAX_TERMS = 1 << 14  # terms of one dim times those of another that it is multiplied by
MAX_BITS = 256  # of a coefficient, and MAX_POWER of an atom in a monomial: nobody has so much memory
MAX_POWER = 256
SPLITS = 8  # how many opaque atoms of one dim a proof may take apart


class UndecidedDim(Exception):
    """A question about symbolic dims that the recorded facts do not answer."""


@dataclass(frozen=True)
class Atom:
    """One factor of a monomial: a symbol (``kind == "sym"``) or an opaque call of ``floordiv``, ``mod``, ``min`` or ``max``."""

    kind: str
    name: str = ""
    args: tuple[Dim, ...] = ()

    def __str__(self) -> str:
        if self.kind == "sym":
            return self.name
        a, b = self.args
        if self.kind == "floordiv":
            return f"{_wrapped(a)}//{_wrapped(b)}"
        if self.kind == "mod":
            return f"{_wrapped(a)}%{_wrapped(b)}"
        return f"{self.kind}({a}, {b})"

    @property
    def sort_key(self) -> tuple[bool, str]:
        return (self.kind != "sym", str(self))


Monomial = tuple[tuple[Atom, int], ...]


class SymExpr:
    """A normalised polynomial with at least one symbol. Immutable, hashable, ordered by its text only for printing."""

    __slots__ = ("_hash", "_text", "terms")
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)
        self._text: str | None = None

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, SymExpr) and self._hash == other._hash and self.terms == other.terms)

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Dim) -> Dim:
        return _from_terms(_merge(_terms(self), _terms(other)))

    def __sub__(self, other: Dim) -> Dim:
        return self + (-1 * other)

    def __rsub__(self, other: int) -> Dim:
        return other + (-1 * self)

    def __neg__(self) -> Dim:
        return -1 * self

    def __mul__(self, other: Dim) -> Dim:
        out: dict[Monomial, int] = {}
        if isinstance(other, SymExpr) and len(self.terms) * len(other.terms) > MAX_TERMS:
            raise UndecidedDim(f"a product of dims of {len(self.terms)} and {len(other.terms)} terms is not worked out")
        for m1, c1 in _terms(self).items():
            for m2, c2 in _terms(other).items():
                m = _multiply(m1, m2)
                out[m] = out.get(m, 0) + c1 * c2
        return _from_terms(out)

    __radd__ = __add__
    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __str__(self) -> str:
        if self._text is None:
            parts: list[str] = []
            for monomial, coefficient in self.terms:
                factors = [_factor_text(a, p) for a, p in monomial]
                magnitude = abs(coefficient)
                if magnitude != 1 or not factors:
                    factors.insert(0, str(magnitude))
                sign = "-" if coefficient < 0 else "+"
                parts.append((f" {sign} " if parts else ("-" if coefficient < 0 else "")) + "*".join(factors))
            self._text = "".join(parts)
        return self._text

    __repr__ = __str__

    def __bool__(self) -> bool:
        raise UndecidedDim(f"the truth value of the symbolic dim '{self}' is not known; ask Facts.equal or Facts.less_equal")

    def symbols(self) -> frozenset[str]:
        """Names of all symbols, also those inside opaque atoms."""
        return frozenset(_symbols(self))


Dim = Union[int, SymExpr]  # noqa: UP007  (typing.Union, so that hints look alike on every Python)


def symbol(name: str) -> SymExpr:
    """The dim that is just the symbol ``name``."""
    if not SYMBOL_NAME.match(name) or name in RESERVED:
        raise ValueError(f"'{name}' is not a symbol name")
    return SymExpr(((((Atom("sym", name), 1),), 1),))


def as_symbol(dim: Dim) -> str | None:
    """The symbol's name when ``dim`` is exactly one symbol."""
    if isinstance(dim, SymExpr) and len(dim.terms) == 1:
        ((monomial, coefficient),) = dim.terms
        if coefficient == 1 and len(monomial) == 1 and monomial[0][1] == 1 and monomial[0][0].kind == "sym":
            return monomial[0][0].name
    return None


def symbols_of(*dims: Dim) -> set[str]:
    """Names of all symbols in ``dims``."""
    out: set[str] = set()
    for d in dims:
        out.update(_symbols(d))
    return out


def product(dims: tuple[Dim, ...] | list[Dim]) -> Dim:
    out: Dim = 1
    for d in dims:
        out = out * d
    return out


def floordiv(a: Dim, b: Dim) -> Dim:
    """Floor of ``a / b``; exact where every term divides. ``ZeroDivisionError`` for a constant zero divisor."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if isinstance(b, int) and b == 0:
        raise ZeroDivisionError("a dim is divided by zero")
    if a == b:
        return 1
    quotient, rest = _divide_terms(a, b)
    if rest == 0:
        return quotient
    if isinstance(b, int) and b > 0:
        if isinstance(rest, int):
            return quotient + rest // b
        inner = _floordiv_of_floordiv(rest, b)
        if inner is not None:
            return quotient + inner
        return quotient + _atom("floordiv", rest, b)
    return _atom("floordiv", a, b)


def mod(a: Dim, b: Dim) -> Dim:
    """``a - b * floor(a / b)``."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if isinstance(b, int) and b == 0:
        raise ZeroDivisionError("a dim is divided by zero")
    _, rest = _divide_terms(a, b)
    if rest == 0:
        return 0
    if isinstance(b, int) and b > 0:
        return rest % b if isinstance(rest, int) else _atom("mod", rest, b)
    return _atom("mod", a, b)


def minimum(a: Dim, b: Dim) -> Dim:
    return _extremum("min", a, b)


def maximum(a: Dim, b: Dim) -> Dim:
    return _extremum("max", a, b)


def evaluate(dim: Dim, env: Mapping[str, int]) -> int:
    """The value of ``dim``; ``KeyError`` when a symbol is not bound."""
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, coefficient in dim.terms:
        value = coefficient
        for a, power in monomial:
            value *= _evaluate_atom(a, env) ** power
        total += value
    return total


def substitute(dim: Dim, env: Mapping[str, Dim]) -> Dim:
    """``dim`` with symbols replaced by dims and normalised again."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, coefficient in dim.terms:
        value: Dim = coefficient
        for a, power in monomial:
            if a.kind == "sym":
                base: Dim = env.get(a.name, _from_terms({((a, 1),): 1}))
            else:
                base = _BUILD[a.kind](substitute(a.args[0], env), substitute(a.args[1], env))
            for _ in range(power):
                value = value * base
        total = total + value
    return total


@dataclass(frozen=True)
class SymbolFact:
    """What is known of one symbol: ``low <= symbol <= high`` and ``symbol % divisor == 0``."""

    low: int = 1
    high: int | None = None
    divisor: int = 1

    def __post_init__(self) -> None:
        if self.low < 0 or (self.high is not None and self.high < self.low) or self.divisor < 1:
            raise ValueError(f"impossible facts for a dim symbol: low={self.low} high={self.high} divisor={self.divisor}")

    def admits(self, value: int) -> bool:
        return self.low <= value and (self.high is None or value <= self.high) and value % self.divisor == 0

    def __str__(self) -> str:
        text = f"[{self.low}, {'inf' if self.high is None else self.high}]"
        return text + (f" % {self.divisor}" if self.divisor != 1 else "")


@dataclass
class Facts:
    """The symbols of a module with what is known of each; answers questions about dims or says which fact is missing."""

    symbols: dict[str, SymbolFact] = field(default_factory=dict)

    def declare(self, name: str, fact: SymbolFact | None = None) -> SymExpr:
        """Make ``name`` known (keeping what is already recorded when no fact is given) and return it as a dim."""
        dim = symbol(name)
        if fact is not None or name not in self.symbols:
            self.symbols[name] = fact or SymbolFact()
        return dim

    def copy(self) -> Facts:
        return Facts(dict(self.symbols))

    def bounds(self, dim: Dim) -> tuple[float, float]:
        """An interval that surely contains ``dim`` (``inf`` where nothing is known); its finite ends are exact integers."""
        return self._bounds(self._resolved(dim), SPLITS)

    def equal(self, a: Dim, b: Dim) -> bool:
        """Whether ``a == b`` for every admissible value of the symbols (True), for none (False); undecided otherwise."""
        difference = self._resolved(a - b)
        if isinstance(difference, int):
            return difference == 0
        low, high = self._bounds(difference, SPLITS)
        if low == high == 0:
            return True
        if low > 0 or high < 0 or _never_zero(difference):
            return False
        raise UndecidedDim(f"cannot decide whether {a} == {b}; {self._missing(a - b)}")

    def is_equal(self, a: Dim, b: Dim) -> bool:
        """True only when equality is proven."""
        try:
            return self.equal(a, b)
        except UndecidedDim:
            return False

    def less_equal(self, a: Dim, b: Dim) -> bool:
        """Whether ``a <= b`` always (True) or never (False)."""
        difference = b - a
        low, high = self.bounds(difference)
        if low >= 0:
            return True
        if high < 0:
            return False
        raise UndecidedDim(f"cannot decide whether {a} <= {b}; {self._missing(difference)}")

    def is_less_equal(self, a: Dim, b: Dim) -> bool:
        """True only when ``a <= b`` is proven."""
        try:
            return self.less_equal(a, b)
        except UndecidedDim:
            return False

    def divisor_of(self, dim: Dim) -> int:
        """The largest known constant that divides ``dim`` (0 for the constant zero)."""
        if isinstance(dim, int):
            return abs(dim)
        out = 0
        for monomial, coefficient in dim.terms:
            factor = abs(coefficient)
            for a, power in monomial:
                if a.kind == "sym" and a.name in self.symbols:
                    factor *= self.symbols[a.name].divisor ** power
            out = gcd(out, factor)
        return out

    def divisible(self, dim: Dim, by: int) -> bool:
        """True when ``by`` divides ``dim`` for every admissible value; False means not proven."""
        return self.divisor_of(dim) % by == 0

    def _resolved(self, dim: Dim) -> Dim:
        """``dim`` with every symbol written as a multiple of its divisor, and symbols of one value replaced by it."""
        env: dict[str, Dim] = {}
        for name in symbols_of(dim):
            fact = self.symbols.get(name)
            if fact is not None and fact.low == fact.high:
                env[name] = fact.low
            elif fact is not None and fact.divisor > 1:
                env[name] = _scaled_symbol(name, fact.divisor) * fact.divisor
        return substitute(dim, env) if env else dim

    def _bounds(self, dim: Dim, splits: int) -> tuple[float, float]:
        """The interval of a resolved dim.

        Three proofs are tried and their intervals intersected: the sum of the intervals of the terms; the product with a common factor of
        all terms (``b * s - b = b * (s - 1) >= 0``); and a split at one opaque atom, which keeps the connection between the atom's
        arguments and the other terms (``n - min(n, 5) >= 0``).
        """
        if isinstance(dim, int):
            return (dim, dim)
        low: float = 0
        high: float = 0
        for monomial, coefficient in dim.terms:
            lo: float = 1
            hi: float = 1
            for a, power in monomial:
                alo, ahi = self._atom_bounds(a, splits)
                for _ in range(power):
                    lo, hi = _interval_product(lo, hi, alo, ahi)
            low += coefficient * (lo if coefficient > 0 else hi)
            high += coefficient * (hi if coefficient > 0 else lo)
        common = _common_factor(dim)
        if common and len(dim.terms) > 1:
            factor = _from_terms({common: 1})
            rest = _from_terms({_without(m, common): c for m, c in dim.terms})
            lo, hi = _interval_product(*self._bounds(factor, splits), *self._bounds(rest, splits))
            low, high = max(low, lo), min(high, hi)
        if splits:
            lo, hi = self._split_bounds(dim, splits - 1)
            low, high = max(low, lo), min(high, hi)
        return (low, high)

    def _split_bounds(self, dim: SymExpr, splits: int) -> tuple[float, float]:
        """Bounds of ``rest + c * atom`` from those of polynomials without the atom.

        ``c * min(x, y)`` is the smaller (for c < 0 the larger) of ``c * x`` and ``c * y``, and max the other way round;
        ``x - k + 1 <= k * (x // k) <= x`` for a constant k > 0; ``x % k = x - k * (x // k)``.
        """
        found = [(m[0][0], c) for m, c in dim.terms if len(m) == 1 and m[0][1] == 1 and m[0][0].kind != "sym"]
        found.sort(key=lambda item: item[0].kind not in ("min", "max"))  # exact splits first
        for atom, c in found:
            x, y = atom.args
            rest = dim - c * _from_terms({((atom, 1),): 1})
            if atom.kind in ("min", "max"):
                (alo, ahi), (blo, bhi) = self._bounds(rest + c * x, splits), self._bounds(rest + c * y, splits)
                pick = min if (atom.kind == "min") == (c > 0) else max
                return (pick(alo, blo), pick(ahi, bhi))
            if not isinstance(y, int) or y <= 0:
                continue
            if atom.kind == "mod":
                return self._bounds(rest + c * x - c * y * _atom("floordiv", x, y), splits)
            far, near = self._bounds(rest * y + c * (x - y + 1), splits), self._bounds(rest * y + c * x, splits)
            low, high = (far[0], near[1]) if c > 0 else (near[0], far[1])
            return (low if low == -inf else -(-low // y), high if high == inf else high // y)
        return (-inf, inf)

    def _atom_bounds(self, a: Atom, splits: int) -> tuple[float, float]:
        if a.kind == "sym":
            name, divisor = _unscaled(a.name)
            fact = self.symbols.get(name, SymbolFact(low=0))
            return (-(-fact.low // divisor), inf if fact.high is None else fact.high // divisor)
        (alo, ahi), (blo, bhi) = self._bounds(a.args[0], splits), self._bounds(a.args[1], splits)
        if a.kind == "min":
            return (min(alo, blo), min(ahi, bhi))
        if a.kind == "max":
            return (max(alo, blo), max(ahi, bhi))
        if blo <= 0:
            return (-inf, inf)
        if a.kind == "mod":
            return (0, min(bhi - 1, ahi) if alo >= 0 else bhi - 1)
        low = _floor_ratio(alo, blo if alo < 0 else bhi)
        return (low, _floor_ratio(ahi, bhi if ahi < 0 else blo))

    def _missing(self, difference: Dim) -> str:
        names = sorted(symbols_of(difference))
        known = ", ".join(f"{n}: {self.symbols[n]}" if n in self.symbols else f"{n}: nothing" for n in names)
        return f"a fact that settles '{difference}' against 0 is missing (known: {known})"


def parse_dim(text: str, longest: int = 4096) -> Dim:
    """Parse the printed form of a dim: integers, symbols, ``+ - * // %``, parentheses, ``min(a, b)``, ``max(a, b)``.

    Raises ``ValueError`` for anything else. Recursive descent; never ``eval``. The length, the nesting of the text and of the result, and the
    number of terms that are multiplied are bounded, so that no text takes long.
    """
    if len(text) > longest:
        raise ValueError(f"a dim longer than {longest} characters")
    tokens = _tokens(text)
    position = 0
    products = 0

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def take(expected: str | None = None) -> str:
        nonlocal position
        token = peek()
        if not token or (expected is not None and token != expected):
            raise ValueError(f"in dim '{text[:200]}': expected {expected or 'a term'}, found {token or 'the end'}")
        position += 1
        return token

    def nested(levels: int) -> int:
        if levels > MAX_NESTING:
            raise ValueError(f"a dim nested deeper than {MAX_NESTING}")
        return levels

    # Each rule gives the dim and how deeply its opaque atoms are nested.
    def expression(depth: int) -> tuple[Dim, int]:
        first, levels = term(nested(depth))
        total = _terms(first)
        while peek() in ("+", "-"):
            sign = 1 if take() == "+" else -1
            more, inner = term(depth)
            _merge(total, _terms(sign * more))
            levels = max(levels, inner)
        return _from_terms(total), levels

    def term(depth: int) -> tuple[Dim, int]:
        nonlocal products
        out, levels = factor(depth)
        while peek() in ("*", "//", "%"):
            operator = take()
            right, inner = factor(depth)
            products += _length(out) * _length(right)
            if products > MAX_PRODUCTS:
                raise ValueError("a dim of too many terms")
            levels = nested(max(levels, inner) + (operator != "*"))
            try:
                out = out * right if operator == "*" else floordiv(out, right) if operator == "//" else mod(out, right)
            except ZeroDivisionError as error:
                raise ValueError(str(error)) from None
        return out, levels

    def factor(depth: int) -> tuple[Dim, int]:
        token = take()
        if token == "-":
            value, levels = factor(nested(depth + 1))
            return -1 * value, levels
        if token == "(":
            inside = expression(depth + 1)
            take(")")
            return inside
        if token.isdigit():
            return int(token), 0
        if token in RESERVED:
            take("(")
            a, levels = expression(depth + 1)
            take(",")
            b, inner = expression(depth + 1)
            take(")")
            return _extremum(token, a, b), nested(max(levels, inner) + 1)
        return symbol(token), 0

    out, _ = expression(0)
    if position != len(tokens):
        raise ValueError(f"in dim '{text[:200]}': unexpected '{peek()}'")
    return out


# --- internals ---------------------------------------------------------------------------------------------------------------------


def _tokens(text: str) -> list[str]:
    tokens = re.findall(r"\s*(\d+|[A-Za-z_]\w*|//|[-+*%(),])", text)
    if sum(map(len, tokens)) != len(re.sub(r"\s+", "", text)):
        raise ValueError(f"'{text}' is not a dim")
    return tokens


def _terms(dim: Dim) -> dict[Monomial, int]:
    return ({(): dim} if dim else {}) if isinstance(dim, int) else dict(dim.terms)


def _length(dim: Dim) -> int:
    """How many factors a dim is written with."""
    return sum(1 + len(monomial) for monomial in _terms(dim))


def _merge(a: dict[Monomial, int], b: dict[Monomial, int]) -> dict[Monomial, int]:
    for monomial, coefficient in b.items():
        a[monomial] = a.get(monomial, 0) + coefficient
    return a


def _monomial_key(m: Monomial) -> tuple[int, list[tuple[tuple[bool, str], int]]]:
    return (-sum(p for _, p in m), [(a.sort_key, p) for a, p in m])


def _from_terms(terms: Mapping[Monomial, int]) -> Dim:
    live = [(m, c) for m, c in terms.items() if c]
    if not live:
        return 0
    if len(live) == 1 and live[0][0] == ():
        return live[0][1]
    if any(c.bit_length() > MAX_BITS or any(power > MAX_POWER for _, power in m) for m, c in live):
        raise UndecidedDim(f"a dim with numbers of more than {MAX_BITS} bits, or powers above {MAX_POWER}, is not worked out")
    live.sort(key=lambda item: _monomial_key(item[0]))
    return SymExpr(tuple(live))


def _common_factor(dim: SymExpr) -> Monomial:
    """The largest monomial that divides every term."""
    powers = dict(dim.terms[0][0])
    for monomial, _ in dim.terms[1:]:
        here = dict(monomial)
        powers = {a: min(p, here[a]) for a, p in powers.items() if a in here}
    return tuple((a, p) for a, p in dim.terms[0][0] if a in powers for p in (powers[a],))


def _without(monomial: Monomial, factor: Monomial) -> Monomial:
    """``monomial / factor``."""
    taken = dict(factor)
    return tuple((a, p - taken.get(a, 0)) for a, p in monomial if p > taken.get(a, 0))


def _multiply(a: Monomial, b: Monomial) -> Monomial:
    powers = dict(a)
    for at, p in b:
        powers[at] = powers.get(at, 0) + p
    return tuple(sorted(powers.items(), key=lambda item: item[0].sort_key))


def _divide_terms(a: Dim, b: Dim) -> tuple[Dim, Dim]:
    """``(q, r)`` with ``a == q * b + r``, dividing term by term by a one-term ``b``; r keeps what does not divide."""
    divisor = _terms(b)
    if len(divisor) != 1:
        return (0, a)
    ((dm, dc),) = divisor.items()
    quotient: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for m, c in _terms(a).items():
        powers = dict(m)
        divides = c % dc == 0
        for at, p in dm:
            if powers.get(at, 0) < p:
                divides = False
                break
            powers[at] -= p
        if divides:
            qm = tuple((at, p) for at, p in m if powers[at]) if dm else m
            quotient[tuple((at, powers[at]) for at, _ in qm)] = c // dc
        elif not dm and dc > 0 and c // dc:
            quotient[m] = c // dc
            rest[m] = c % dc
        else:
            rest[m] = c
    return (_from_terms(quotient), _from_terms(rest))


def _floordiv_of_floordiv(a: SymExpr, b: int) -> Dim | None:
    if len(a.terms) == 1:
        ((m, c),) = a.terms
        if c == 1 and len(m) == 1 and m[0][1] == 1 and m[0][0].kind == "floordiv":
            inner, k = m[0][0].args
            if isinstance(k, int) and k > 0:
                return floordiv(inner, k * b)
    return None


def _atom(kind: str, a: Dim, b: Dim) -> SymExpr:
    return SymExpr(((((Atom(kind, args=(a, b)), 1),), 1),))


def _extremum(kind: str, a: Dim, b: Dim) -> Dim:
    difference = a - b
    if isinstance(difference, int):
        first = difference <= 0 if kind == "min" else difference >= 0
        return a if first else b
    if str(b) < str(a):
        a, b = b, a
    return _atom(kind, a, b)


_BUILD: dict[str, Callable[[Dim, Dim], Dim]] = {"floordiv": floordiv, "mod": mod, "min": minimum, "max": maximum}


def _evaluate_atom(a: Atom, env: Mapping[str, int]) -> int:
    if a.kind == "sym":
        return env[a.name]
    x, y = (evaluate(arg, env) for arg in a.args)
    value = _BUILD[a.kind](x, y)
    assert isinstance(value, int)
    return value


def _never_zero(dim: SymExpr) -> bool:
    """Whether the non-constant terms have a common divisor that the constant lacks."""
    coefficients = dict(dim.terms)
    constant = coefficients.pop((), 0)
    return constant % gcd(*coefficients.values()) != 0


def _floor_ratio(a: float, b: float) -> float:
    """``floor(a / b)`` for b > 0, either of which may be infinite."""
    if abs(a) == inf:
        return a
    if b == inf:
        return -1 if a < 0 else 0
    return a // b


def _scaled_symbol(name: str, divisor: int) -> Dim:
    """A symbol for ``name / divisor``; its name is none that a user can write."""
    return _from_terms({((Atom("sym", f"{name}/{divisor}"), 1),): 1})


def _unscaled(name: str) -> tuple[str, int]:
    base, _, divisor = name.partition("/")
    return (base, int(divisor or 1))


def _interval_product(lo: float, hi: float, alo: float, ahi: float) -> tuple[float, float]:
    corners = [0 if 0 in (x, y) else x * y for x in (lo, hi) for y in (alo, ahi)]
    return (min(corners), max(corners))


def _symbols(dim: Dim) -> Iterator[str]:
    if isinstance(dim, SymExpr):
        for monomial, _ in dim.terms:
            for a, _ in monomial:
                if a.kind == "sym":
                    yield a.name
                else:
                    for arg in a.args:
                        yield from _symbols(arg)


def _wrapped(dim: Dim) -> str:
    return str(dim) if (isinstance(dim, int) and dim >= 0) or as_symbol(dim) else f"({dim})"


def _factor_text(a: Atom, power: int) -> str:
    text = f"({a})" if a.kind in ("floordiv", "mod") else str(a)
    return "*".join([text] * power)
