"""Simplification of index arithmetic, with the ranges of axes and the facts of symbols.

i64 expressions are kept as integer polynomials over *atoms* (axes, symbols, and whatever is not a sum or product). Addition,
subtraction and multiplication become ring operations, valid modulo 2^64, so two ways of writing one index meet in one form.
Division splits the polynomial: with ``a = c*q + r``, ``a // c = q + r // c`` and ``a % c = r % c`` hold for floor division
without any condition; when ``0 <= r < c`` can be proved, they end as ``q`` and ``r``. With ``g | c`` and ``r = g*s + t``,
``0 <= t < g``: ``r // c = s // (c/g)`` and ``r % c = g * (s % (c/g)) + t``, which is what makes reshaped and split indices
affine again.

Proofs: ``prove_nonneg(p)`` replaces, one at a time, each axis by the end of its range that makes ``p`` smallest, ``min`` by
an argument, ``d * (x // d)`` by ``x`` or ``x - d + 1``, until interval arithmetic decides. "False" means "not proved".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trustformers_ir.codegen.kernel_ir.depth import deep
from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store
from trustformers_ir.codegen.kernel_ir.nodes import (
    Axis,
    Binary,
    CheckedIndex,
    Const,
    Expr,
    Reduce,
    Select,
    Sym,
    Unary,
    binary,
    const,
)
from trustformers_ir.codegen.kernel_ir.rewrite import Substitution, rebuild, with_body
from trustformers_ir.ir.dims import Facts
from trustformers_ir.ir.dtypes import DType

#: What is known of each symbol: lowest value, highest value (None: unbounded), divisor.
SymbolFacts = Mapping[str, tuple[int, int | None, int]]
Interval = tuple[int | None, int | None]
Monomial = tuple[Expr, ...]
Poly = dict[Monomial, int]
MAX_DEGREE = 8  # of a monomial: addresses stay far below, arithmetic on index values (``iota ** n``) must not explode


def symbol_facts(facts: Facts) -> SymbolFacts:
    """What the graph knows of its symbols, as kernel IR takes it: low, high and divisor of each."""
    return {name: (f.low, f.high, f.divisor) for name, f in facts.symbols.items()}


def _mul_bound(a: int | None, b: int | None) -> int | None:
    if a == 0 or b == 0:
        return 0
    return None if a is None or b is None else a * b


class Simplifier:
    """Simplifies expressions under fixed facts. Keep one per kernel: results are memoised."""

    def __init__(self, facts: SymbolFacts | None = None) -> None:
        self.facts: SymbolFacts = facts or {}
        self._memo: dict[Expr, Expr] = {}
        self._polys: dict[Expr, Poly] = {}
        self._bounds: dict[Expr, Interval] = {}
        self._order: dict[Expr, int] = {}
        self._axes: dict[Axis, Axis] = {}

    # -- polynomials ---------------------------------------------------------------------------------------------------

    def poly(self, e: Expr) -> Poly:
        """The polynomial of an i64 expression (do not modify)."""
        hit = self._polys.get(e)
        if hit is None:
            hit = self._polys[e] = self._poly(e)
        return hit

    def _poly(self, e: Expr) -> Poly:
        if isinstance(e, Const):
            return {(): int(e.value)} if e.value else {}
        if isinstance(e, Unary) and e.op == "neg":
            return {m: -c for m, c in self.poly(e.x).items()}
        if isinstance(e, Binary) and e.dtype is DType.i64:
            if e.op == "add":
                return _add(self.poly(e.a), self.poly(e.b))
            if e.op == "sub":
                return _add(self.poly(e.a), self.poly(e.b), -1)
            if e.op == "mul":
                a, b = self.poly(e.a), self.poly(e.b)
                index = e.a.pure_index or e.b.pure_index  # products of data stay as they are: expanding them only grows
                if index and len(a) * len(b) <= 64 and _degree(a) + _degree(b) <= MAX_DEGREE:
                    return self._times(a, b)
        self._order.setdefault(e, len(self._order))
        return {(e,): 1}

    def _times(self, a: Poly, b: Poly) -> Poly:
        out: Poly = {}
        for ma, ca in a.items():
            for mb, cb in b.items():
                m = tuple(sorted(ma + mb, key=self._order.__getitem__))
                c = out.get(m, 0) + ca * cb
                if c:
                    out[m] = c
                else:
                    out.pop(m, None)
        return out

    def expr(self, p: Poly) -> Expr:
        """The expression of a polynomial, constant last."""
        total: Expr | None = None
        for m, c in p.items():
            if not m:
                continue
            term: Expr = m[0]
            for atom in m[1:]:
                term = term * atom
            if c == -1 and total is not None:
                total = total - term
                continue
            if c != 1:
                term = term * c
            total = term if total is None else total + term
        tail = p.get((), 0)
        if total is None:
            return const(tail)
        return total - (-tail) if tail < 0 else total + tail

    # -- ranges --------------------------------------------------------------------------------------------------------

    def bounds(self, e: Expr) -> Interval:
        """An interval that holds the value, None for an open end. Nothing is assumed about data read from memory."""
        hit = self._bounds.get(e)
        if hit is None:
            hit = self._bounds[e] = self._bound(e)
        return hit

    def _bound(self, e: Expr) -> Interval:
        if isinstance(e, Const):
            return int(e.value), int(e.value)
        if isinstance(e, Sym):
            known = self.facts.get(e.name, (0, None, 1))
            return known[0], known[1]
        if isinstance(e, Axis):
            hi = self.bounds(e.extent)[1]
            return 0, None if hi is None else max(hi - 1, 0)
        if isinstance(e, CheckedIndex):
            hi = self.bounds(e.bound)[1]
            return 0, None if hi is None else max(hi - 1, 0)
        if isinstance(e, Select):
            (a, b), (c, d) = self.bounds(e.a), self.bounds(e.b)
            return None if a is None or c is None else min(a, c), None if b is None or d is None else max(b, d)
        if isinstance(e, Reduce) and e.kind.startswith("arg"):
            hi = self.bounds(e.axes[0].extent)[1]
            return 0, None if hi is None else max(hi - 1, 0)
        if not isinstance(e, Binary) or e.dtype is not DType.i64:
            return None, None
        (al, ah), (bl, bh) = self.bounds(e.a), self.bounds(e.b)
        if e.op in ("add", "sub", "mul"):
            if not e.pure_index:  # data may wrap
                return None, None
            return self.poly_bounds(self.poly(e))
        if e.op == "min":
            los = None if al is None or bl is None else min(al, bl)
            his = [x for x in (ah, bh) if x is not None]
            return los, min(his) if his else None
        if e.op == "max":
            highs = None if ah is None or bh is None else max(ah, bh)
            lows = [x for x in (al, bl) if x is not None]
            return max(lows) if lows else None, highs
        if e.op == "floordiv" and bl is not None and bl > 0:
            lo = None if al is None else (al // bl if al < 0 else (0 if bh is None else al // bh))
            hi = None if ah is None else (ah // bl if ah >= 0 else (-1 if bh is None else ah // bh))
            return lo, hi
        if e.op == "mod" and bl is not None and bl > 0:
            hi = None if bh is None else bh - 1
            if ah is not None and al is not None and al >= 0:
                hi = ah if hi is None else min(hi, ah)
            return 0, hi
        return None, None

    def poly_bounds(self, p: Poly) -> Interval:
        """Interval of a polynomial, term by term."""
        lo: int | None = 0
        hi: int | None = 0
        for m, c in p.items():
            tl: int | None = 1
            th: int | None = 1
            for atom in m:
                al, ah = self.bounds(atom)
                if al is not None and al >= 0 and tl is not None and tl >= 0:
                    tl, th = _mul_bound(tl, al), _mul_bound(th, ah)
                elif None in (tl, th, al, ah):
                    tl = th = None
                else:
                    corners = [x * y for x in (tl, th) for y in (al, ah) if x is not None and y is not None]
                    tl, th = min(corners), max(corners)
            if c < 0:
                tl, th = th, tl
            lo = None if lo is None or tl is None else lo + c * tl
            hi = None if hi is None or th is None else hi + c * th
        return lo, hi

    def divisor(self, e: Expr) -> int:
        """A known divisor of a value (0 for the constant zero)."""
        if isinstance(e, Const):
            return abs(int(e.value))
        if isinstance(e, Sym):
            return self.facts.get(e.name, (0, None, 1))[2]
        if isinstance(e, Binary) and e.op in ("add", "sub", "mul") and e.dtype is DType.i64:
            return math.gcd(*[self._term_divisor(m, c) for m, c in self.poly(e).items()])
        if isinstance(e, Binary) and e.op in ("min", "max"):
            return math.gcd(self.divisor(e.a), self.divisor(e.b))
        return 1

    def _term_divisor(self, m: Monomial, c: int) -> int:
        d = abs(c)
        for atom in m:
            d *= self.divisor(atom)
        return d

    # -- proofs --------------------------------------------------------------------------------------------------------

    def proves_nonneg(self, e: Expr) -> bool:
        """Whether ``e >= 0`` at every point."""
        return self.prove_nonneg(self.poly(e))

    def proves_less(self, a: Expr, b: Expr) -> bool:
        """Whether ``a < b`` at every point."""
        return self.prove_nonneg(_add(_add(self.poly(b), self.poly(a), -1), {(): 1}, -1))

    def proves_less_equal(self, a: Expr, b: Expr) -> bool:
        """Whether ``a <= b`` at every point."""
        return self.prove_nonneg(_add(self.poly(b), self.poly(a), -1))

    def prove_nonneg(self, p: Poly, depth: int = 8) -> bool:
        """Whether the polynomial is provably >= 0 (see the head of this file)."""
        lo, _ = self.poly_bounds(p)
        if lo is not None and lo >= 0:
            return True
        if depth == 0:
            return False
        for atom in {a: None for m in p for a in m}:
            if any(m.count(atom) > 1 for m in p):
                continue
            slope: Poly = {}
            rest: Poly = {}
            for m, c in p.items():
                if atom in m:
                    slope[tuple(a for a in m if a is not atom)] = c
                else:
                    rest[m] = c
            lo, hi = self.poly_bounds(slope)
            rising, falling = lo is not None and lo >= 0, hi is not None and hi <= 0
            for bound in self._extremes(atom, slope, rising, falling):
                if self.prove_nonneg(_add(rest, bound), depth - 1):
                    return True
            if isinstance(atom, Axis) and (rising or falling):
                return False  # the substitution was exact: no other order of elimination helps
        return False

    def _extremes(self, atom: Expr, slope: Poly, rising: bool, falling: bool) -> list[Poly]:
        """Lower bounds of ``slope * atom``, as polynomials."""
        if isinstance(atom, Axis):
            if rising:
                return [{}]
            return [self._times(slope, _add(self.poly(atom.extent), {(): 1}, -1))] if falling else []
        if isinstance(atom, Binary):
            if (atom.op == "min" and falling) or (atom.op == "max" and rising):
                return [self._times(slope, self.poly(atom.a)), self._times(slope, self.poly(atom.b))]
            if atom.op == "mod" and falling and (self.bounds(atom.b)[0] or 0) > 0:
                return [self._times(slope, _add(self.poly(atom.b), {(): 1}, -1))]
            if atom.op == "floordiv" and isinstance(atom.b, Const) and atom.b.value > 0:
                d = int(atom.b.value)
                if all(c % d == 0 for c in slope.values()) and (rising or falling):
                    scaled = {m: c // d for m, c in slope.items()}
                    x = self.poly(atom.a)
                    return [self._times(scaled, _add(x, {(): d - 1}, -1) if rising else x)]
        if isinstance(atom, CheckedIndex) and falling:
            return [self._times(slope, _add(self.poly(atom.bound), {(): 1}, -1))]
        return []

    # -- rewriting -----------------------------------------------------------------------------------------------------

    def __call__(self, e: Expr) -> Expr:
        """The simplified expression."""
        done = self._memo.get(e)
        if done is None:
            done = self._rewrite(e)
            self._memo[e] = done
            self._memo.setdefault(done, done)
        return done

    def _rewrite(self, e: Expr) -> Expr:
        if not e.children:
            return e
        if isinstance(e, Reduce):
            return Reduce(e.kind, e.axes, self(e.body), self._guard(e.guard))
        e = rebuild(e, tuple(self(c) for c in e.children))
        if isinstance(e, CheckedIndex):
            inside = e.index.pure_index and self.proves_nonneg(e.index) and self.proves_less(e.index, e.bound)
            return e.index if inside else e
        if not isinstance(e, Binary):
            if isinstance(e, Unary) and e.op == "neg" and e.dtype is DType.i64:
                return self.expr(self._exact(self.poly(e)))
            return e
        if e.a.dtype is not DType.i64:
            return e
        if e.op in ("add", "sub", "mul"):
            return self.expr(self._exact(self.poly(e)))
        if not e.pure_index:
            return e
        if e.op in ("floordiv", "mod"):
            return self._divide(e.op, e.a, e.b)
        if e.op in ("min", "max"):
            if self.proves_less_equal(e.a, e.b):
                return e.a if e.op == "min" else e.b
            if self.proves_less_equal(e.b, e.a):
                return e.b if e.op == "min" else e.a
            return e
        return self._compare(e)

    def _guard(self, guard: Expr | None) -> Expr | None:
        if guard is None:
            return None
        guard = self(guard)
        return None if isinstance(guard, Const) and guard.value else guard

    def _exact(self, p: Poly) -> Poly:
        """``k*d * (x // d)`` with d dividing x is ``k * x``."""
        for m, c in list(p.items()):
            for atom in m:
                if isinstance(atom, Binary) and atom.op == "floordiv" and isinstance(atom.b, Const) and atom.b.value > 0:
                    d = int(atom.b.value)
                    if c % d == 0 and self.divisor(atom.a) % d == 0:
                        others = list(m)
                        others.remove(atom)
                        rest = {k: v for k, v in p.items() if k != m}
                        return self._exact(_add(rest, self._times({tuple(others): c // d}, self.poly(atom.a))))
        return p

    def _compare(self, e: Binary) -> Expr:
        a, b = e.a, e.b
        if e.op in ("gt", "ge"):
            a, b = b, a
        if e.op in ("lt", "gt"):
            if self.proves_less(a, b):
                return const(True, DType.bool)
            if self.proves_less_equal(b, a):
                return const(False, DType.bool)
        elif e.op in ("le", "ge"):
            if self.proves_less_equal(a, b):
                return const(True, DType.bool)
            if self.proves_less(b, a):
                return const(False, DType.bool)
        elif e.op in ("eq", "ne"):
            if self.proves_less(a, b) or self.proves_less(b, a):
                return const(e.op == "ne", DType.bool)
            if not _add(self.poly(a), self.poly(b), -1):
                return const(e.op == "eq", DType.bool)
        return e

    def _divide(self, op: str, a: Expr, b: Expr) -> Expr:
        if (self.bounds(b)[0] or 0) <= 0:
            return binary(op, a, b)
        quotient, remainder = self._split(self.poly(a), b)
        r = self.expr(remainder)
        if self.prove_nonneg(remainder) and self.proves_less(r, b):
            return self.expr(self._exact(quotient)) if op == "floordiv" else r
        if isinstance(b, Const):
            tail = self._divide_const(op, remainder, int(b.value))
            return self.expr(self._exact(_add(quotient, self.poly(tail)))) if op == "floordiv" else tail
        tail = binary(op, r, b)
        return self.expr(_add(quotient, self.poly(tail))) if op == "floordiv" else tail

    def _split(self, p: Poly, b: Expr) -> tuple[Poly, Poly]:
        """``p = b*q + r``: the terms that b divides, and the rest (a constant is reduced into [0, b))."""
        q: Poly = {}
        r: Poly = {}
        divisor = self.poly(b)
        if isinstance(b, Const):
            d = int(b.value)
            for m, c in p.items():
                if not m:
                    q, r = _add(q, {(): c // d}), _add(r, {(): c % d})
                elif c % d == 0:
                    q = _add(q, {m: c // d})
                elif self._term_divisor(m, c) % d == 0:
                    self._order.setdefault(whole := binary("floordiv", self.expr({m: c}), b), len(self._order))
                    q = _add(q, {(whole,): 1})
                else:
                    r = _add(r, {m: c})
            return q, r
        if len(divisor) != 1:
            return {}, p
        ((dm, dc),) = divisor.items()
        for m, c in p.items():
            rest = list(m)
            if c % dc == 0 and all(rest.count(a) >= dm.count(a) for a in dm):
                for a in dm:
                    rest.remove(a)
                q = _add(q, {tuple(rest): c // dc})
            else:
                r = _add(r, {m: c})
        return q, r

    def _divide_const(self, op: str, r: Poly, d: int) -> Expr:
        """``r // d`` or ``r % d`` by a constant, after the divisible part is gone."""
        for g in sorted({math.gcd(self._term_divisor(m, c), d) for m, c in r.items() if m} - {1, d}, reverse=True):
            s = {m: c // g for m, c in r.items() if c % g == 0 and m}
            t = {m: c for m, c in r.items() if c % g != 0 or not m}
            s_const, t_const = divmod(t.pop((), 0), g)
            s, t = _add(s, {(): s_const}), _add(t, {(): t_const})
            if not s or not self.prove_nonneg(t) or not self.prove_nonneg(_add({(): g - 1}, t, -1)):
                continue
            inner = self._divide(op, self.expr(s), const(d // g))
            return inner if op == "floordiv" else self.expr(_add(self._times({(): g}, self.poly(inner)), t))
        e = self.expr(r)
        if op == "floordiv" and isinstance(e, Binary) and e.op == "floordiv" and isinstance(e.b, Const) and e.b.value > 0:
            return self._divide("floordiv", e.a, const(d * int(e.b.value)))
        if op == "mod" and isinstance(e, Binary) and e.op == "mod" and isinstance(e.b, Const) and e.b.value > 0 and e.b.value % d == 0:
            return self._divide("mod", e.a, const(d))
        if not r or (op == "mod" and all(self._term_divisor(m, c) % d == 0 for m, c in r.items())):
            return const(0)
        return binary(op, e, const(d))

    # -- statements ----------------------------------------------------------------------------------------------------

    def statements(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        """Statements with every expression simplified; guards that always hold vanish, loops that never run too."""
        out: list[Stmt] = []
        for s in body:
            if isinstance(s, For):
                guard = self._guard(s.guard)
                inner = self.statements(s.body)
                if not inner or (isinstance(guard, Const) and not guard.value) or s.axis.static_extent == 0:
                    continue
                out.append(For(s.axis, inner, guard))
            elif isinstance(s, Store):
                out.append(Store(s.buffer, tuple(self(i) for i in s.index), self(s.value)))
        return tuple(out)


def _degree(p: Poly) -> int:
    return max(map(len, p), default=0)


def _add(a: Poly, b: Poly, scale: int = 1) -> Poly:
    out = dict(a)
    for m, c in b.items():
        total = out.get(m, 0) + scale * c
        if total:
            out[m] = total
        else:
            out.pop(m, None)
    return out


@deep
def simplify(e: Expr, facts: SymbolFacts | None = None) -> Expr:
    """One expression simplified under the facts."""
    return Simplifier(facts)(e)


@deep
def simplify_kernel(k: Kernel, facts: SymbolFacts | None = None) -> Kernel:
    """The kernel with every index, value, guard and extent simplified."""
    s = Simplifier(facts)
    sub = _ExtentSimplifier(s)
    return with_body(k, s.statements(tuple(sub.stmt(b) for b in k.body)))


class _ExtentSimplifier(Substitution):
    """Gives each axis whose extent simplifies a fresh axis with the simpler extent."""

    def __init__(self, simplifier: Simplifier) -> None:
        super().__init__({})
        self.simplifier = simplifier

    def axis(self, a: Axis) -> Axis:
        hit = self.mapping.get(a)
        if isinstance(hit, Axis):
            return hit
        extent = self.simplifier(self(a.extent))
        fresh = a if extent is a.extent else a.like(extent=extent)
        if fresh is not a:
            self.mapping[a] = fresh
            self.touched |= {a}
        return fresh

    def __call__(self, e: Expr) -> Expr:
        hit = self.mapping.get(e)
        if hit is not None:
            return hit
        if not e.children:
            return e
        done = self.memo.get(e)
        if done is None:
            done = self.memo[e] = self._rebuild(e)
        return done
