"""Attention of sequences that lie one behind the other: blocks of rows run across their borders.

A program takes a block of tokens of q, whatever sequences they belong to, so no program is idle and nothing is padded. It first finds the range of
keys that each row sees, folding over the starts: ``low[i] <= j < limit[i]``, in which the sequence, a causal limit and a window are one. Their
extremes say which blocks of keys anybody sees, and which everybody does; the others are left out. A block of rows that lies in two sequences
visits the keys of both.
"""

from __future__ import annotations

from collections.abc import Callable

from trustformers_ir.codegen.kernel_ir.kernel import Stmt, nest, store
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, SCRATCH, SEQ, TILE, Axis, Buffer, Expr, Reduce, binary, cast, const
from trustformers_ir.codegen.lower.definer import Definer
from trustformers_ir.codegen.lower.definitions.nn import PackedMath
from trustformers_ir.codegen.lower.flash import Emit, Flash, Rows, parallel
from trustformers_ir.codegen.lower.flash_tiles import FlashTile
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType

STARTS = 32  # that are looked at together


def packed_nest(d: Definer, o: Operation, emit: Emit, tile: FlashTile) -> tuple[Stmt, ...]:
    """The loops of one packed attention; ``emit`` stores the element at ``(token, head, e)``. Head sizes are constants."""
    m = PackedMath(d, o)
    heads = parallel("h", dim_expr(o.inputs[0].type.shape[1]))
    count = dim_expr(m.queries)
    block = Axis("block", (count + (tile.queries - 1)) // tile.queries, PARALLEL)
    loops = tuple(x for x in (heads, block) if isinstance(x, Axis))
    rows = Rows(loops, const(0), m.kv_head(heads), heads, block * tile.queries, count, 1)
    flash = PackedFlash(m, rows, tile)
    return nest(loops, *flash.ranges(), *flash.start(), *flash.blocks(), *flash.result(emit))


class PackedFlash(Flash):
    """Rows are tokens, and each sees a range of keys."""

    def __init__(self, m: PackedMath, rows: Rows, tile: FlashTile) -> None:
        super().__init__(m, rows, tile)
        self.m = m
        self.low, self.limit = (Buffer(n, m.word, (self.height,), space=SCRATCH) for n in ("low", "limit"))
        names = ("first", "first_of_all", "last_of_all", "last")
        self.first, self.first_of_all, self.last_of_all, self.last = (Buffer(n, m.word, (), space=SCRATCH) for n in names)

    def place(self, head: Expr, token: Expr, feature: Expr) -> Index:
        return (token, head, feature)

    def ranges(self) -> list[Stmt]:
        """What each row sees, then what any and what all of them see."""

        def fold(kind: str, body: Callable[[Expr], Expr]) -> Expr:
            size = dim_expr(self.a.o.inputs[3].type.shape[0])
            outer, inner = Axis("n", (size + (STARTS - 1)) // STARTS, SEQ), Axis("n.i", STARTS, TILE)
            n = outer * STARTS + inner
            return Reduce(kind, (outer, inner), body(n), n < size)

        def each(i: Axis) -> list[Stmt]:
            low, limit = self.m.seen(self.rows.first + i, fold)
            return [store(self.low, i, low), store(self.limit, i, limit)]

        def extreme(kind: str, of: Buffer, some: bool) -> Expr:
            i = self.i()
            there = self.rows.first + i < self.rows.count
            return Reduce(kind, (i,), of[i], there & (self.low[i] < self.limit[i]) if some else there)

        return [
            *self.each(each),
            store(self.first, (), extreme("min", self.low, True)),
            store(self.last, (), extreme("max", self.limit, True)),
            store(self.first_of_all, (), extreme("max", self.low, False)),
            store(self.last_of_all, (), extreme("min", self.limit, False)),
        ]

    def spans(self) -> list[tuple[Expr, Expr, bool]]:
        def number(b: Buffer) -> Expr:
            return cast(b[()], DType.i64)

        zero: Expr = const(0)
        end = binary("max", number(self.last) + (self.width - 1), zero) // self.width
        begin = binary("min", binary("max", number(self.first), zero) // self.width, end)
        whole_begin = binary("min", (binary("max", number(self.first_of_all), zero) + (self.width - 1)) // self.width, end)
        whole_end = binary("min", binary("max", number(self.last_of_all), zero) // self.width, end)
        whole_begin = binary("max", whole_begin, begin)
        return [(begin, whole_begin, True), (whole_begin, whole_end, False), (binary("max", whole_begin, whole_end), end, True)]

    def seen(self, i: Axis, key: Expr, checked: bool) -> Expr | None:
        word = cast(key, self.m.word)
        return (self.low[i] <= word) & (word < self.limit[i]) if checked else None


