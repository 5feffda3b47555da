"""Dims as text: ``2*batch + 1``, ``(seq//8)*8``, ``min(seq, 512)``. They are printed by ``str``; this reads them.

The grammar is that of ``ir.dims.parse_dim``, read here with places for problems and with limits, because a short text can have a normal form of
any size (a product of sums) and proofs about nested opaque atoms take long::

    dim    = term {("+" | "-") term}
    term   = factor {("*" | "//" | "%") factor}
    factor = integer | symbol | "-" factor | "(" dim ")" | ("min" | "max") "(" dim "," dim ")"
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import NoReturn

from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.dims import Dim, SymExpr, floordiv, maximum, minimum, mod, symbol
from trustformers_ir.ir.text.lexer import Lexer, TextProblem, shorten

MAX_DEPTH = 16  # nested brackets
MAX_ATOMS = 16  # floor divisions, remainders, minima and maxima
MAX_NESTING = 8  # of those within each other
MAX_TERMS = 256  # of the normal form
MAX_FACTORS = 16  # of one monomial
MAX_COEFFICIENT = (1 << 63) - 1

_TOKEN = re.compile(r"[0-9]+|[A-Za-z_][A-Za-z0-9_]*|//|[-+*%(),]")
_BLANKS = re.compile(r"[ \t\r]*")


def parse_dim_at(lexer: Lexer, symbols: Container[str] | None) -> Dim:
    """The dim at the lexer's place, which moves on past it. Symbols must be among ``symbols`` unless that is None."""
    return _DimParser(lexer, symbols).parse()


class _DimParser:
    def __init__(self, lexer: Lexer, symbols: Container[str] | None) -> None:
        self.lexer = lexer
        self.symbols = symbols
        self.first = lexer.peek()
        self.end = self.first.start
        self.atoms = 0
        self._next()

    def parse(self) -> Dim:
        dim = self._sum(0)
        self.lexer.jump(self.end)
        return dim

    def _next(self) -> None:
        """Read the next token; ``self.token`` is empty where none of a dim's tokens stands."""
        blanks = _BLANKS.match(self.lexer.text, self.end)
        assert blanks is not None
        self.start = blanks.end()
        match = _TOKEN.match(self.lexer.text, self.start)
        self.token = match.group() if match else ""

    def _take(self) -> str:
        token = self.token
        self.end = self.start + len(token)
        self._next()
        return token

    def _expect(self, text: str) -> None:
        if self.token != text:
            self._fail(f"expected '{text}' in a dim")
        self._take()

    def _fail(self, message: str, code: Code = Code.BAD_TYPE, help: str = "", start: int | None = None) -> NoReturn:
        column = self.first.column + (self.start if start is None else start) - self.first.start
        raise TextProblem(code, message, self.first.line, column, help)

    def _sum(self, depth: int) -> Dim:
        out = self._term(depth)
        while self.token in ("+", "-"):
            start = self.start
            out = out + self._term(depth) if self._take() == "+" else out - self._term(depth)
            self._check(out, start)
        return out

    def _term(self, depth: int) -> Dim:
        out = self._factor(depth)
        while self.token in ("*", "//", "%"):
            start = self.start
            operator = self._take()
            right = self._factor(depth)
            if operator == "*":
                if _terms(out) * _terms(right) > MAX_TERMS:
                    self._fail(f"a product of more than {MAX_TERMS} terms", Code.TEXT_LIMIT, start=start)
                out = out * right
            else:
                self._count_atom(start)
                if right == 0:
                    self._fail("a dim is divided by zero", start=start)
                out = floordiv(out, right) if operator == "//" else mod(out, right)
            self._check(out, start)
        return out

    def _factor(self, depth: int) -> Dim:
        if depth > MAX_DEPTH:
            self._fail(f"a dim nested deeper than {MAX_DEPTH}", Code.TEXT_LIMIT)
        start, token = self.start, self.token
        if token == "-":
            self._take()
            return -1 * self._factor(depth + 1)
        if token == "(":
            self._take()
            out = self._sum(depth + 1)
            self._expect(")")
            return out
        if token[:1].isdigit():
            if len(token) > 20 or int(token) > MAX_COEFFICIENT:
                self._fail("an integer of more than 63 bits", Code.TEXT_LIMIT)
            return int(self._take())
        if token in ("min", "max"):
            self._count_atom(start)
            self._take()
            self._expect("(")
            a = self._sum(depth + 1)
            self._expect(",")
            b = self._sum(depth + 1)
            self._expect(")")
            out = (minimum if token == "min" else maximum)(a, b)
            self._check(out, start)
            return out
        if not token[:1].isidentifier():
            self._fail("expected a dim", help="a dim is made of integers, symbols, + - * // %, min(a, b), max(a, b)")
        if self.symbols is not None and token not in self.symbols:
            self._fail(f"the symbol '{shorten(token)}' is not declared", Code.UNKNOWN_NAME, f"declare it: symbol {shorten(token)} : [1, inf]")
        return symbol(self._take())

    def _count_atom(self, start: int) -> None:
        self.atoms += 1
        if self.atoms > MAX_ATOMS:
            self._fail(f"a dim with more than {MAX_ATOMS} of //, %, min and max", Code.TEXT_LIMIT, start=start)

    def _check(self, dim: Dim, start: int) -> None:
        if isinstance(dim, int):
            too_large = abs(dim) > MAX_COEFFICIENT
        else:
            if _nesting(dim) > MAX_NESTING:
                self._fail(f"//, %, min and max nested deeper than {MAX_NESTING}", Code.TEXT_LIMIT, start=start)
            too_large = any(abs(c) > MAX_COEFFICIENT or sum(p for _, p in m) > MAX_FACTORS for m, c in dim.terms)
        if too_large or _terms(dim) > MAX_TERMS:
            message = f"a dim beyond 63 bits, {MAX_FACTORS} factors in a product or {MAX_TERMS} terms"
            self._fail(message, Code.TEXT_LIMIT, start=start)


def _terms(dim: Dim) -> int:
    return len(dim.terms) if isinstance(dim, SymExpr) else 1


def _nesting(dim: Dim) -> int:
    """How deep opaque atoms lie within each other."""
    if not isinstance(dim, SymExpr):
        return 0
    return max((1 + max(map(_nesting, a.args)) for m, _ in dim.terms for a, _ in m if a.args), default=0)
