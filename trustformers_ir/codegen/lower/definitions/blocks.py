"""Pointwise definitions of matrices in blocks: products by them, and rows of tables.

    y = sum over groups g of  scale[g] * sum over j of x[g, j] * (code[g, j] - zero)  +  low[g] * sum over j of x[g, j]

Codes of 4 bits lie in pairs: byte j of a group has the codes of elements j and j + group / 2. So the inner sum is two, one with the low and one with
the high bits of the same bytes, over runs of x that lie side by side; both have one axis, hence one loop. (Groups of 16 are one sum.) The bits above
four that codes of 5 or 6 have lie in four bytes for a group: byte e mod 4 has those of element e, behind those of e - 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from trustformers_ir.codegen.kernel_ir.nodes import LANES, SEQ, VECTOR, Axis, Expr, Reduce, cast
from trustformers_ir.codegen.lower.definer import Definer, define
from trustformers_ir.codegen.lower.indexing import Index, broadcast_index
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.blocks import InBlocks


class Rows:
    """A row of a matrix in blocks ``[…, k]``: what the codes of a group are made into numbers with. ``planes``: in the order of the operands.
    ``place``: which row, behind which matrix where there are several."""

    def __init__(self, d: Definer, op: InBlocks, planes: Sequence[Value | None], place: Index, k: int) -> None:
        self.d, self.op, self.row, self.place, self.groups = d, op, op.row, place, k // op.group
        codes, self.scale, self.low, self.steps, self.low_steps, self.high = planes
        assert codes is not None
        self.codes = codes

    def pair(self, g: Expr, j: Expr, h: Expr | int) -> Expr:
        """The code of the element of group g that is the j-th of its half h, where a byte holds two of them."""
        run = self.op.group // 2
        byte = self.d.at(self.codes, (*self.place, g * run + j))
        known = {0: byte & 15, 1: byte >> 4}
        code = known[h] if isinstance(h, int) else (byte >> cast(h * 4, DType.u8)) & 15
        if self.high is None:
            return code
        bits = self.row.high_bits
        field = (h * (run // 4) + j // 4) * bits
        return code | (((self.d.at(self.high, (*self.place, g * 4 + j % 4)) >> cast(field, DType.u8)) & ((1 << bits) - 1)) << 4)

    def signed(self, codes: Sequence[Expr], g: Expr) -> list[Expr]:
        """Codes of group g in f32, less its zero point, which is 128 more where a sign has been lifted."""
        lifted = 0 if self.row.paired or self.codes.type.dtype is not DType.u8 else 128
        zero = self._at(self.low, g) if self._zeros else self.row.zero + lifted
        found = [cast(c, DType.f32) for c in codes]
        return found if isinstance(zero, int) and not zero else [c - zero for c in found]

    def of_group(self, g: Expr, coded: Expr, plain: Expr | None = None) -> Expr:
        """``coded`` times the scale of group g, plus its low, times ``plain`` where ``coded`` is a sum, and that the sum of ones."""
        y = self.scale_of(g) * coded
        if not self.moves:
            return y
        moved = self.low_of(g) if plain is None else self.low_of(g) * plain
        return y - moved if self.row.subtracts else y + moved

    @property
    def moves(self) -> bool:
        """Whether something is added to the scaled codes."""
        return self.low is not None and not self._zeros

    def scale_of(self, g: Expr) -> Expr:
        """What the codes of a group are multiplied by."""
        return self._product(self.scale, self.steps, g)

    def low_of(self, g: Expr) -> Expr:
        """What is added after that, or subtracted."""
        return self._product(self.low, self.low_steps, g)

    def zero_of(self, g: Expr) -> Expr:
        """What is subtracted from the codes of a group before that, i32."""
        return self._at(self.low, g, DType.i32)

    @property
    def _zeros(self) -> bool:
        return self.low is not None and self.low.type.dtype is DType.u8

    def _product(self, plane: Value | None, factor: Value | None, g: Expr) -> Expr:
        found = self._at(plane, g)
        return found if factor is None else found * self._at(factor, g)

    def _at(self, plane: Value | None, g: Expr, dtype: DType = DType.f32) -> Expr:
        """The entry of a plane for a group, of which several may share one."""
        assert plane is not None
        columns = plane.type.shape[-1]
        assert isinstance(columns, int)
        return cast(self.d.at(plane, (*self.place, g // (self.groups // columns))), dtype)


@define(ops.LinearBlocks)
def _linear_blocks(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    *lead, n = index
    bias = o.operands[-1]
    y = _sum(d, o, tuple(lead), (n,))
    return d.finish(o, result, y if bias is None else y + d.lifted(bias, (n,)))


@define(ops.ExpertBlocks)
def _expert_blocks(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    return d.finish(o, result, _sum(d, o, *places_of_expert(d, o, index)))


def places_of_expert(d: Definer, o: Operation, index: Index) -> tuple[Index, Index]:
    """Where the row of the activation, the first operand, lies, and where that of its expert's matrix, for an element of a product by chosen
    matrices."""
    assert isinstance(o.op, InBlocks)
    x, codes, experts = o.inputs[0], o.operands[o.op.planes_at], o.operands[-1]
    assert codes is not None and experts is not None
    *row, n = index
    chosen = d.checked(o, d.at(experts, tuple(row)), codes.type.shape[0], "expert")
    return broadcast_index(tuple(row), x.type.shape[:-1], experts.type.shape), (chosen, n)


def _sum(d: Definer, o: Operation, lead: Index, place: Index) -> Expr:
    """A row of x by a row of a matrix."""
    assert isinstance(o.op, InBlocks)
    x, codes = o.inputs[:2]
    size, terms = o.op.group, x.type.shape[-1]
    assert isinstance(terms, int)
    rows = Rows(d, o.op, o.operands[1:-1], place, terms)
    g = Axis("g", terms // size, SEQ)
    halves = rows.row.paired and size // 2 >= LANES  # shorter runs fill no vector, and no side of a product of matrices: the group is one
    run = size // 2 if halves else size
    j = Axis("j", run, VECTOR)
    if halves:
        coded = [rows.pair(g, j, 0), rows.pair(g, j, 1)]
    else:
        coded = [rows.pair(g, j % (size // 2), j // (size // 2)) if rows.row.paired else d.at(codes, (*place, g * run + j))]
    weights = rows.signed(coded, g)
    parts = [d.lifted(x, (*lead, g * size + (j + i * run))) for i in range(len(weights))]
    products = _added([Reduce("sum", (j,), part * w) for part, w in zip(parts, weights, strict=True)])
    plain = _added([Reduce("sum", (j,), part) for part in parts]) if rows.moves else None
    return Reduce("sum", (g,), rows.of_group(g, products, plain))


@define(ops.EmbeddingBlocks)
def _embedding_blocks(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.EmbeddingBlocks)
    *planes, ids = o.operands
    codes = planes[0]
    assert codes is not None and ids is not None
    size, (*lead, j) = o.op.group, index
    terms = o.result.type.shape[-1]
    assert isinstance(terms, int)
    n = d.checked(o, d.at(ids, tuple(lead)), codes.type.shape[0], "token id")
    rows = Rows(d, o.op, planes, (n,), terms)
    g, within = j // size, j % size
    if rows.row.paired:
        half = size // 2
        code = rows.pair(g, within % half, within // half)
    else:
        code = d.at(codes, (n, j))
    (signed,) = rows.signed((code,), g)
    return rows.of_group(g, signed)


def _added(terms: Sequence[Expr]) -> Expr:
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]
