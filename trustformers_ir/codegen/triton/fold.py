"""Folds of blocks: over their dimensions, with accumulators over loops, and as products of matrices."""

from __future__ import annotations

from collections.abc import Sequence

from trustformers_ir.codegen.kernel_ir.nodes import TILE, Axis, Binary, Cast, Const, Expr, Load, Reduce, conjuncts
from trustformers_ir.codegen.kernel_ir.optable import neutral
from trustformers_ir.codegen.triton.ask import tile_axes, unsigned_factor
from trustformers_ir.codegen.triton.blocks import Blocks
from trustformers_ir.codegen.triton.optable import BINARY, TYPES, text_of
from trustformers_ir.codegen.triton.write import LEVELS, Val
from trustformers_ir.ir.dtypes import DType


class Folds(Blocks):
    """What is folded, and how."""

    # -- folds ---------------------------------------------------------------------------------------------------------

    def fold(self, e: Reduce, conditions: tuple[Expr, ...]) -> Val:
        loops = [a for a in e.axes if a.kind is not TILE]
        tiles = [a for a in e.axes if a.kind is TILE]
        guard = [] if e.guard is None else conjuncts(e.guard)
        known = len(self.guards)
        self.guards += guard
        try:
            if e.kind.startswith("arg"):
                return self.extremum_place(e, guard, conditions)
            factors = self.dot_factors(e)
            if loops:
                return self.looped(e, loops, tiles, factors, guard, conditions)
            if factors is not None:
                product = Val(f"tl.dot({self.dot_operands(e, factors, guard, conditions)})", self.dims_of(e))
                side = self.side(e, factors, conditions)
                return product if side is None else self.moved(product, side)
            return self.folded(e, self.element(e, guard, conditions), tiles)
        finally:
            del self.guards[known:]

    def looped(
        self, e: Reduce, loops: list[Axis], tiles: list[Axis], factors: tuple[Expr, Expr] | None, guard: list[Expr], conditions: tuple[Expr, ...]
    ) -> Val:
        """A fold with an accumulator that is carried round."""
        outside = self.home(e, conditions)
        rest = [a for a in tile_axes(e.body, *guard) if factors is None or a not in tiles]
        rest.sort(key=lambda a: self.dimension[a])
        shape, dims = [a.static_extent for a in rest], tuple(self.dimension[a] for a in rest)
        dtype = e.body.dtype
        start = self.const(Const(neutral(e.kind, dtype), dtype)).text
        zeros = f"tl.zeros({shape}, {TYPES[dtype]})" if start in ("0", "0.0") and shape else f"tl.full({shape}, {start}, {TYPES[dtype]})"
        acc = Val(self.fresh("acc"), dims)
        outside.lines.append(f"{outside.indent}{acc.text} = {zeros}")
        current = self.scope
        self.scope = outside
        side = None if factors is None else unsigned_factor(factors)
        if side is not None:
            n = self.other(e, factors, side)  # type: ignore[arg-type]
            sums = Val(self.fresh("sums"), (self.dimension[n],))
            outside.lines.append(f"{outside.indent}{sums.text} = tl.zeros([{n.static_extent}], tl.int32)")
        for a in loops:
            self.open(a, self.scope)
        if side is not None:
            part = self.side(e, factors, conditions)  # type: ignore[arg-type]
            assert part is not None
            self.scope.lines.append(f"{self.scope.indent}{sums.text} = {self.apply('{0} + {1}', sums, part).text}")
        if factors is not None:
            text = f"tl.dot({self.dot_operands(e, factors, guard, conditions, acc.text)})"
        else:
            x = self.element(e, guard, conditions)
            text = self.combine(e.kind, dtype, acc, x).text
        self.scope.lines.append(f"{self.scope.indent}{acc.text} = {text}")
        for _ in loops:
            self.close()
        self.scope = current
        if factors is not None:
            return acc if side is None else self.moved(acc, sums)
        named = self.folded(e, acc, tiles)
        return named if named is acc else self.name(named, e.kind, outside)

    def dims_of(self, e: Expr) -> tuple[int, ...]:
        return tuple(sorted(self.dimension[a] for a in e.free_axes if a.kind is TILE))

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
        rest = sorted(tile_axes(e.body, *guard), key=lambda a: self.dimension[a])
        shape, dims = [a.static_extent for a in rest], tuple(self.dimension[a] for a in rest)
        best, at = Val(self.fresh("best"), dims), Val(self.fresh("at"), dims)
        worst = self.const(Const(neutral(kind, dtype), dtype)).text
        outside.lines += [f"{outside.indent}{best.text} = tl.full({shape}, {worst}, {TYPES[dtype]})"]
        outside.lines += [f"{outside.indent}{at.text} = tl.full({shape}, -1, tl.int64)"]
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
        inner = self.scope
        inner.lines.append(f"{inner.indent}{best.text} = {self.apply('tl.where({0}, {1}, {2})', better, x, best).text}")
        inner.lines.append(f"{inner.indent}{at.text} = {self.apply('tl.where({0}, {1}, {2})', better, Val(self.axes[axis]), at).text}")
        self.close()
        self.scope = current
        return self.apply("tl.maximum({0}, {1})", at, Val("0"))

    # -- products of matrices --------------------------------------------------------------------------------------------

    def dot_factors(self, e: Reduce) -> tuple[Expr, Expr] | None:
        """The factors of a sum of products that is one of matrices: of the kept dimensions each has one, and both have the one that is summed."""
        tiles = [a for a in e.axes if a.kind is TILE]
        if e.kind != "sum" or len(tiles) != 1 or not isinstance(e.body, Binary) or e.body.op != "mul" or e.dtype not in (DType.f32, DType.i32):
            return None
        (k,) = tiles
        a, b = e.body.a, e.body.b
        left, right = (tile_axes(x) for x in (a, b))
        if k not in left or k not in right or len(left) != 2 or len(right) != 2 or set(left) & set(right) != {k}:
            return None
        if any((x.static_extent or 0) < 16 for x in {*left, *right}):
            return None
        kinds = [x.x.dtype if isinstance(x, Cast) else x.dtype for x in (a, b)]
        if e.dtype is DType.i32 and (DType.i8 not in kinds or not set(kinds) <= {DType.i8, DType.u8}):
            return None
        (m,), (n,) = ([x for x in axes if x is not k] for axes in (left, right))
        return (a, b) if self.dimension[m] < self.dimension[n] else (b, a)

    def dot_operands(self, e: Reduce, factors: tuple[Expr, Expr], guard: list[Expr], conditions: tuple[Expr, ...], acc: str = "") -> str:
        (k,) = (a for a in e.axes if a.kind is TILE)
        halves = {x.x.dtype for x in factors if isinstance(x, Cast)} if all(isinstance(x, Cast) for x in factors) else set()
        narrow = len(halves) == 1 and halves <= {DType.f16, DType.bf16}
        texts = []
        unsigned = unsigned_factor(factors)
        for position, x in enumerate(factors):
            inner = x.x if (narrow or e.dtype is DType.i32) and isinstance(x, Cast) else x
            v = self.value(inner, conditions)
            bare = inner.x if isinstance(inner, Cast) else inner
            if guard and not isinstance(bare, Load):
                mask = self.mask(guard)
                assert mask is not None
                v = self.apply("tl.where({0}, {1}, {2})", mask, v, Val("0.0"))
            if position == unsigned:
                v = self.apply("tl.cast({0}, tl.int8, bitcast=True)", self.apply("{0} ^ {1}", v, Val("128")))
            last = v.dims[-1] == self.dimension[k]
            texts.append(v.text if last == (position == 0) else f"tl.trans({v.text})")
        if acc:
            texts.append(acc)
        exact = ', input_precision="ieee"' if e.dtype is DType.f32 and not narrow else ""
        kind = f", out_dtype={TYPES[e.dtype]}" if e.dtype is DType.i32 else ""
        return ", ".join(texts) + exact + kind

    # Matrix instructions multiply bytes of one kind. Of u8 and i8, the first is moved by 128 (its highest bit is turned round): sum (a - 128) b
    # is sum a b less 128 times the sum of b, which is added up on the side.

    def side(self, e: Reduce, factors: tuple[Expr, Expr], conditions: tuple[Expr, ...]) -> Val | None:
        """What one block adds to the sums of b; None where both factors are of one kind."""
        unsigned = unsigned_factor(factors)
        if unsigned is None:
            return None
        (k,) = (a for a in e.axes if a.kind is TILE)
        b = self.value(factors[1 - unsigned], conditions)
        return Val(f"tl.sum({b.text}, {b.dims.index(self.dimension[k])})", tuple(d for d in b.dims if d != self.dimension[k]))

    def other(self, e: Reduce, factors: tuple[Expr, Expr], unsigned: int) -> Axis:
        """The dimension of the factor that is signed."""
        return next(a for a in tile_axes(factors[1 - unsigned]) if a not in e.axes)

    def moved(self, product: Val, sums: Val) -> Val:
        return self.apply("{0} + {1}", product, self.apply("{0} * {1}", sums, Val("128")))
