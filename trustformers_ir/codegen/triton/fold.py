"""Folds of blocks: over their dimensions, with accumulators over loops, and as products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.nodes import TILE, Axis, Binary, Cast, Const, Expr, Load, Reduce, conjuncts
from trustformers_ir.codegen.kernel_ir.optable import neutral
from trustformers_ir.codegen.triton.ask import half_of, integers, tile_axes
from trustformers_ir.codegen.triton.blocks import Blocks
from trustformers_ir.codegen.triton.optable import BINARY, TYPES, text_of
from trustformers_ir.codegen.triton.write import LEVELS, Val
from trustformers_ir.ir.dtypes import DType


@dataclass(frozen=True)
class Dot:
    """A fold that is a product of matrices, or of a batch of them along the first dimension: its factors, the one whose other dimension comes first
    first, the axis ``k`` that both have, and which of them is made of unsigned bytes where the other is not."""

    factors: tuple[Expr, Expr]
    k: Axis
    unsigned: int | None


#: Terms of products of 8-bit floats after which Hopper's sums, which keep 14 bits, are added to ones of f32 (DeepSeek-V3 Technical Report, 2024,
#: section 3.3.2).
PROMOTED = 128


def eighths(dot: Dot) -> bool:
    """Whether both factors are 8-bit floats."""
    return all(isinstance(x, Cast) and x.x.dtype is DType.f8e4m3 for x in dot.factors)


#: The bits of 128 in bf16 and of 1024 in f16, from which on neighbours are 1 apart, and that number: an integer below it fits into the digits.
ONES = {DType.bf16: (0x4300, 128.0), DType.f16: (0x6400, 1024.0)}


def _small(e: Expr, half: DType) -> tuple[int, float, Expr] | None:
    """What ``small`` needs to make an integer a number of 16 bits: the row of ``ONES``, and the integer; None where that has too many digits."""
    if not isinstance(e, Cast) or (bounds := integers(e.x)) is None:
        return None
    bits, one = ONES[half]
    return (bits, one, e.x) if bounds[0] >= 0 and bounds[1] < one else None


class Folds(Blocks):
    """What is folded, and how."""

    def fold(self, e: Reduce, conditions: tuple[Expr, ...]) -> Val:
        loops = [a for a in e.axes if a.kind is not TILE]
        tiles = [a for a in e.axes if a.kind is TILE]
        guard = [] if e.guard is None else conjuncts(e.guard)
        known = len(self.guards)
        self.guards += guard
        try:
            if e.kind.startswith("arg"):
                return self.extremum_place(e, guard, conditions)
            dot = self.dot(e)
            if loops:
                return self.looped(e, loops, tiles, dot, guard, conditions)
            if dot is not None:
                product = Val(f"tl.dot({self.dot_operands(e, dot, guard, conditions)})", self.extents(tile_axes(e))[1])
                if eighths(dot):
                    return self.apply("eighth_product({0})", product)
                return product if dot.unsigned is None else self.moved(product, self.side(dot, dot.unsigned, conditions))
            return self.folded(e, self.element(e, guard, conditions), tiles)
        finally:
            del self.guards[known:]

    def looped(self, e: Reduce, loops: list[Axis], tiles: list[Axis], dot: Dot | None, guard: list[Expr], conditions: tuple[Expr, ...]) -> Val:
        """A fold with an accumulator that is carried round."""
        outside = self.home(e, conditions)
        shape, dims = self.extents(a for a in tile_axes(e.body, *guard) if dot is None or a not in tiles)
        dtype = e.body.dtype
        start = self.const(Const(neutral(e.kind, dtype), dtype)).text
        zeros = f"tl.zeros({shape}, {TYPES[dtype]})" if start in ("0", "0.0") and shape else f"tl.full({shape}, {start}, {TYPES[dtype]})"
        acc = Val(self.fresh("acc"), dims)
        outside.line(f"{acc.text} = {zeros}")
        current, self.scope = self.scope, outside
        unsigned = None if dot is None else dot.unsigned
        sums: Val | None = None
        if dot is not None and unsigned is not None:
            size, along = self.extents(a for a in tile_axes(dot.factors[1 - unsigned]) if a is not dot.k)
            sums = Val(self.fresh("sums"), along)
            outside.line(f"{sums.text} = tl.zeros({size}, tl.int32)")
        for a in loops:
            self.open(a, self.scope)
        if dot is not None and unsigned is not None and sums is not None:
            self.scope.line(f"{sums.text} = {self.apply('{0} + {1}', sums, self.side(dot, unsigned, conditions)).text}")
        if dot is not None:
            text = f"tl.dot({self.dot_operands(e, dot, guard, conditions, acc.text)})"
        else:
            x = self.element(e, guard, conditions)
            text = self.combine(e.kind, dtype, acc, x).text
        self.scope.line(f"{acc.text} = {text}")
        for _ in loops:
            self.close()
        self.scope = current
        if dot is not None and eighths(dot):
            return self.name(self.apply("eighth_product({0})", acc), "sums", outside)
        if dot is not None:
            return acc if sums is None else self.moved(acc, sums)
        named = self.folded(e, acc, tiles)
        return named if named is acc else self.name(named, e.kind, outside)

    def element(self, e: Reduce, guard: list[Expr], conditions: tuple[Expr, ...]) -> Val:
        """One block of what is folded, neutral where the guard does not hold."""
        x = self.value(e.body, conditions)
        if isinstance(e.body, Const):
            x = self.const(e.body, alone=True)
        bare = e.body.x if isinstance(e.body, Cast) else e.body
        if guard and not (e.kind == "sum" and isinstance(bare, Load)):
            mask = self.mask(guard)
            assert mask is not None
            x = self.apply("tl.where({0}, {1}, {2})", mask, x, self.const(Const(neutral(e.kind, e.body.dtype), e.body.dtype)))
        return x

    def combine(self, kind: str, dtype: DType, a: Val, b: Val) -> Val:
        op = {"sum": "add", "prod": "mul", "any": "or", "all": "and"}.get(kind, kind)
        text = text_of(BINARY, op, dtype)
        assert text is not None
        return self.apply(text, a, b)

    def folded(self, e: Reduce, x: Val, tiles: Sequence[Axis]) -> Val:
        """The fold over those dimensions of a block."""
        dtype = e.body.dtype
        sizes = self.sizes(e.body, () if e.guard is None else (e.guard,)) | {self.dimension[a]: a.static_extent or 1 for a in tiles}
        missing = [a for a in tiles if self.dimension[a] not in x.dims]
        if missing:  # nothing in the body depends on the axis
            dims = tuple(sorted({*x.dims, *(self.dimension[a] for a in missing)}))
            x = Val(f"tl.broadcast_to({x.over(dims)}, {[sizes[d] for d in dims]})", dims)
        for a in sorted(tiles, key=lambda a: -self.dimension[a]):
            axis = x.dims.index(self.dimension[a])
            dims = tuple(d for d in x.dims if d != self.dimension[a])
            if e.kind in ("any", "all"):
                x = Val(f"tl.{'max' if e.kind == 'any' else 'min'}(tl.cast({x.text}, tl.int32), {axis}) != 0", dims, LEVELS["!="])
                continue
            if e.kind == "sum":
                text = f"tl.sum({x.text}, {axis})"
            elif e.kind == "prod" or dtype.is_float:
                combine = {"prod": "product", "max": "maximum", "min": "minimum"}[e.kind]
                text = f"tl.reduce({x.text}, {axis}, {combine})"
            else:
                text = f"tl.{e.kind}({x.text}, {axis})"
            x = Val(text if dtype.is_float or dtype.bits >= 32 else f"tl.cast({text}, {TYPES[dtype]})", dims)
        return x

    def extremum_place(self, e: Reduce, guard: list[Expr], conditions: tuple[Expr, ...]) -> Val:
        """The first place of the largest or smallest; NaN counts as either."""
        (axis,) = e.axes
        kind, dtype = e.kind[3:], e.body.dtype
        if axis.kind is TILE:
            plain = Reduce(kind, e.axes, e.body, e.guard)
            x = self.name(self.element(plain, guard, conditions), "x", self.home(e, conditions))
            best = self.name(self.folded(plain, x, [axis]), "best", self.home(e, conditions))
            hit = self.apply("{0} == {1}", x, best)
            if dtype.is_float:
                hit = self.apply("{0} | {1}", hit, self.apply("{0} != {0}", x))
            mask = self.mask(guard)
            if mask is not None:
                hit = self.apply("{0} & {1}", hit, mask)
            far = axis.static_extent or 1
            places = self.apply(f"tl.where({{0}}, {{1}}, {far})", hit, self.tile_axis(axis))
            first = Val(f"tl.min({places.text}, {places.dims.index(self.dimension[axis])})", best.dims)
            first = self.name(first, "first", self.home(e, conditions))
            found = self.apply("tl.where({0}, {1}, {2})", self.apply("{0} < {1}", first, Val(str(far))), first, Val("0"))
            return self.apply("tl.cast({0}, tl.int64)", found)
        outside = self.home(e, conditions)
        shape, dims = self.extents(tile_axes(e.body, *guard))
        best, at = Val(self.fresh("best"), dims), Val(self.fresh("at"), dims)
        worst = self.const(Const(neutral(kind, dtype), dtype)).text
        outside.line(f"{best.text} = tl.full({shape}, {worst}, {TYPES[dtype]})")
        outside.line(f"{at.text} = tl.full({shape}, -1, tl.int64)")
        current, self.scope = self.scope, outside
        self.open(axis, outside)
        x = self.name(self.value(e.body, conditions), "x", self.scope)
        better = self.apply("{0} > {1}" if kind == "max" else "{0} < {1}", x, best)
        better = self.apply("{0} | {1}", better, self.apply("{0} < {1}", at, Val("0")))
        if dtype.is_float:
            nan = self.apply("{0} & {1}", self.apply("{0} != {0}", x), self.apply("{0} == {0}", best))
            better = self.apply("{0} | {1}", better, nan)
        if (mask := self.mask(guard)) is not None:
            better = self.apply("{0} & {1}", better, mask)
        better = self.name(better, "better", self.scope)
        self.scope.line(f"{best.text} = {self.apply('tl.where({0}, {1}, {2})', better, x, best).text}")
        self.scope.line(f"{at.text} = {self.apply('tl.where({0}, {1}, {2})', better, Val(self.axes[axis]), at).text}")
        self.close()
        self.scope = current
        return self.apply("tl.maximum({0}, {1})", at, Val("0"))

    # -- products of matrices --------------------------------------------------------------------------------------------

    def dot(self, e: Reduce) -> Dot | None:
        """The sum of products as one of matrices: of the kept dimensions each factor has one, and both have the one that is summed."""
        tiles = [a for a in e.axes if a.kind is TILE]
        if e.kind != "sum" or len(tiles) != 1 or not isinstance(e.body, Binary) or e.body.op != "mul" or e.dtype not in (DType.f32, DType.i32):
            return None
        (k,) = tiles
        a, b = e.body.a, e.body.b
        sides = [tile_axes(x) for x in (a, b)]
        batch = [x for x in sides[0] if x in sides[1] and x is not k]
        left, right = ([x for x in side if x not in batch] for side in sides)
        if k not in left or k not in right or len(left) != 2 or len(right) != 2 or len(batch) > 1:
            return None
        if any(self.dimension[x] < self.dimension[y] for x in (*left, *right) for y in batch):
            return None
        if any((x.static_extent or 0) < 16 for x in {*left, *right}):
            return None
        kinds = [x.x.dtype if isinstance(x, Cast) else x.dtype for x in (a, b)]
        if e.dtype is DType.i32 and (DType.i8 not in kinds or not set(kinds) <= {DType.i8, DType.u8}):
            return None
        unsigned = kinds.index(DType.u8) if set(kinds) == {DType.u8, DType.i8} else None
        (m,), (n,) = ([x for x in axes if x is not k] for axes in (left, right))
        if self.dimension[m] < self.dimension[n]:
            return Dot((a, b), k, unsigned)
        return Dot((b, a), k, None if unsigned is None else 1 - unsigned)

    def dot_operands(self, e: Reduce, dot: Dot, guard: list[Expr], conditions: tuple[Expr, ...], acc: str = "") -> str:
        factors = dot.factors
        half = half_of(factors) if e.dtype is DType.f32 else None
        eight = eighths(dot)
        texts = []
        for position, x in enumerate(factors):
            inner = x.x if (half or e.dtype is DType.i32) and isinstance(x, Cast) else x
            inner = x.x if eight and isinstance(x, Cast) else inner
            v = self.value(inner, conditions) if half is None else self.in_half(x, half, conditions)
            bare = inner.x if isinstance(inner, Cast) else inner
            mine = [g for g in guard if g.free_axes <= x.free_axes or not tile_axes(g)]  # what concerns the other factor is its matter
            if mine and not isinstance(bare, Load):
                mask = self.mask(mine)
                assert mask is not None
                v = self.apply("tl.where({0}, {1}, {2})", mask, v, Val("0.0"))
            if position == dot.unsigned:
                v = self.apply("tl.cast({0}, tl.int8, bitcast=True)", self.apply("{0} ^ {1}", v, Val("128")))
            v = self.apply("eighth_factor({0})", v) if eight else v
            last = v.dims[-1] == self.dimension[dot.k]
            turned = f"tl.trans({v.text})" if len(v.dims) == 2 else f"tl.trans({v.text}, 0, 2, 1)"
            texts.append(v.text if last == (position == 0) else turned)
        if acc:
            texts.append(acc)
        exact = ', input_precision="ieee"' if e.dtype is DType.f32 and half is None and not eight else ""
        if eight:
            exact = f", max_num_imprecise_acc={min(dot.k.static_extent or PROMOTED, PROMOTED)}"
        kind = f", out_dtype={TYPES[e.dtype]}" if e.dtype is DType.i32 else ""
        return ", ".join(texts) + exact + kind

    def in_half(self, e: Expr, half: DType, conditions: tuple[Expr, ...]) -> Val:
        """A factor in a dtype of 16 bits that holds it exactly (``half_of``)."""
        if isinstance(e, Const):
            return self.const(e)
        if isinstance(e, Binary):
            if e.op == "sub" and isinstance(e.b, Const) and (known := _small(e.a, half)) is not None:
                return self.small(*known, half, conditions, float(e.b.value))
            return self.apply("{0} + {1}" if e.op == "add" else "{0} - {1}", *(self.in_half(c, half, conditions) for c in e.children))
        assert isinstance(e, Cast)
        if (known := _small(e, half)) is not None:
            return self.small(*known, half, conditions)
        x = self.value(e.x, conditions)
        return x if e.x.dtype is half else self.apply(f"tl.cast({{0}}, {TYPES[half]})", x)

    def small(self, bits: int, one: float, code: Expr, half: DType, conditions: tuple[Expr, ...], less: float = 0.0) -> Val:
        """``code - less``."""
        name = "small"
        if isinstance(code, Binary) and isinstance(code.b, Const):  # half a byte
            known = {("and", 15): "low_bits", ("shr", 4): "high_bits"}.get((code.op, int(code.b.value)))
            name, code = (name, code) if known is None else (known, code.a)
        return self.apply(f"{name}({{0}}, {bits:#x}, {one + less}, {TYPES[half]})", self.value(code, conditions))

    # Matrix instructions multiply bytes of one kind. Of u8 and i8, the first is moved by 128 (its highest bit is turned round): sum (a - 128) b
    # is sum a b less 128 times the sum of b, which is added up on the side.

    def side(self, dot: Dot, unsigned: int, conditions: tuple[Expr, ...]) -> Val:
        """What one block adds to the sums of b."""
        b, k = self.value(dot.factors[1 - unsigned], conditions), self.dimension[dot.k]
        return Val(f"tl.sum({b.text}, {b.dims.index(k)})", tuple(d for d in b.dims if d != k))

    def moved(self, product: Val, sums: Val) -> Val:
        return self.apply("{0} + {1}", product, self.apply("{0} * {1}", sums, Val("128")))
