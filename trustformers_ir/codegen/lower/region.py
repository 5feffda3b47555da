"""From one fused region to kernels: pick the loop nest, inline the definitions, store the results.

The results of a region are often views of what it computes (``reshape(transpose(attention))``). Loops run over the index space of the
*core* value behind the views, and each element is stored where the views put it, so a view at the end of a region costs nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, nest, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import LANES, PARALLEL, SEQ, UNROLL, Axis, Binary, Buffer, Expr, Load, Reduce, Unary, const
from trustformers_ir.codegen.kernel_ir.schedule import Move, Split, Stage, Tag, apply, axes_of
from trustformers_ir.codegen.kernel_ir.simplify import SymbolFacts, simplify_kernel, symbol_facts
from trustformers_ir.codegen.lower import definitions, flash_tiles
from trustformers_ir.codegen.lower.attention import attention_nest, has_template
from trustformers_ir.codegen.lower.attention_one import is_one_query, one_query_nest
from trustformers_ir.codegen.lower.block_products import BlockProduct, Variant
from trustformers_ir.codegen.lower.blocks import BLOCKS, BlockMachine, folds, in_blocks, line_nest, tiled_line
from trustformers_ir.codegen.lower.cache import write_nest
from trustformers_ir.codegen.lower.definer import PORTABLE, Definer, Sites, require_native, unsupported
from trustformers_ir.codegen.lower.experts import ExpertRows
from trustformers_ir.codegen.lower.flash import flash_nest
from trustformers_ir.codegen.lower.flash_packed import packed_nest
from trustformers_ir.codegen.lower.flash_split import Parts, join_nest, part_nest
from trustformers_ir.codegen.lower.flash_tiles import FlashTile
from trustformers_ir.codegen.lower.grouped import GroupedProduct
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.codegen.lower.nest import flat_nest, group_nest, is_flat, row_nest, summary_nest
from trustformers_ir.codegen.lower.ordered import COUNT, ORDERED, count_buffer
from trustformers_ir.codegen.lower.packed_blocks import PackedBlocks
from trustformers_ir.codegen.lower.part_sums import PartSums, joined
from trustformers_ir.codegen.lower.schedules import MachineShape, choose, dot_schedule, expert_schedule, gemm_schedule, prefetch_schedule
from trustformers_ir.codegen.math import expand
from trustformers_ir.codegen.program import LAUNCH, Launch, Temporary
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Block, Operation, Value
from trustformers_ir.ir.device import Condition
from trustformers_ir.ir.dims import Dim, Facts, product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import AttentionChoice, Choice, Chosen, ScheduleKey, TileChoice
from trustformers_ir.ir.schema import FusionKind, Op
from trustformers_ir.ir.types import Panels

assert definitions  # imported for its rules
LITERAL_LIMIT = 16  # inline constants with more elements are read from memory


@dataclass(frozen=True)
class LoweredKernel:
    """A kernel with what is behind each of its buffers: region arguments, results of the region, constants inside it, or buffers that only the
    kernels of this region use. ``prepares``: arithmetic is done by those that follow. ``launch`` and ``when`` are of GPUs."""

    kernel: Kernel
    values: tuple[Value | Temporary, ...]
    writes: tuple[bool, ...]
    label: str
    schedule: Chosen | None = None
    launch: Launch = LAUNCH
    when: Condition | None = None
    prepares: bool = False


@dataclass(frozen=True)
class LoweringContext:
    """What lowering needs to know besides the region."""

    facts: Facts
    sites: Sites
    machine: MachineShape | BlockMachine
    table: Mapping[ScheduleKey, Choice] = field(default_factory=dict)  # choices that were found by measuring
    known: dict[Hashable, tuple[Block, list[LoweredKernel]]] = field(default_factory=dict)  # what equal regions became

    @property
    def symbol_facts(self) -> SymbolFacts:
        return symbol_facts(self.facts)


@dataclass(frozen=True)
class _Output:
    """One result: its place, the yielded value, and the value behind the views with the views, core side first."""

    target: Value
    core: Value
    views: tuple[Operation, ...]

    def place(self, d: Definer, index: Index, value: Expr) -> Store:
        for view in self.views:
            if isinstance(view.op, ops.Transpose):
                index = tuple(index[axis] for axis in view.op.perm)
            else:
                index = d.flat.reshape(index, view.inputs[0].type.shape, view.result.type.shape)
        return d.store(self.target, index, value)


def lower_region(region: Operation, ctx: LoweringContext, in_place: bool = False) -> list[LoweredKernel]:
    """The kernels of one fused region, in order. Equal regions (layers of one model) are lowered once and share their kernels.

    A region whose indices are checked is lowered each time: an error names its place in the source. ``in_place``: it writes into the cache that it
    takes.
    """
    body = region.body
    assert body is not None
    key = (_structure(region, body), in_place)
    if key in ctx.known:
        first, kernels = ctx.known[key]
        same = dict(zip(_values(first), _values(body), strict=True))

        def again(v: Value | Temporary) -> Value | Temporary:
            return v if isinstance(v, Temporary) else same.get(v) or region.results[v.index]

        return [replace(k, values=tuple(map(again, k.values))) for k in kernels]
    asked = ctx.sites.asked
    kernels = _lowered(region, body, ctx, in_place)
    if ctx.sites.asked == asked:
        ctx.known[key] = (body, kernels)
    return kernels


def _values(body: Block) -> list[Value]:
    """Every value of a body, in order."""
    return [*body.args, *(r for o in body for r in o.results)]


def _structure(region: Operation, body: Block) -> Hashable:
    """What the kernels of a region follow from, equal for regions that differ in names, places and operands alone. Attributes are compared as
    they are written: -0.0 is not 0.0."""
    numbers = {v: n for n, v in enumerate(_values(body))}
    rows = tuple(
        (
            o.op if isinstance(o.op, ops.Constant) else repr(o.op),
            tuple(None if v is None else numbers[v] for v in o.operands),
            tuple(r.type for r in o.results),
        )
        for o in body
    )
    return repr(region.op), tuple(a.type for a in body.args), tuple(r.type for r in region.results), rows


def _lowered(region: Operation, body: Block, ctx: LoweringContext, in_place: bool) -> list[LoweredKernel]:
    for o in body:
        require_native(o, region)
    anchor = _anchor(body)
    if anchor is not None and anchor.op.fusion is FusionKind.WRITE:
        if body.outputs != [anchor.result]:
            raise unsupported(anchor, "a region writes into a cache and gives something else as well", "let the write be the end of its region")
        d = _definer(body, [anchor.result], ctx)
        return [_finish(d, write_nest(d, anchor, in_place), _label(body), ctx, {anchor.result: region.result})]
    if anchor is not None and type(anchor.op) in ORDERED:
        return [_lower_ordered(region, body, anchor, ctx)]
    outputs = [_output(target, value) for target, value in zip(region.results, body.outputs, strict=True)]
    groups: dict[tuple[Dim, ...], list[_Output]] = {}
    for output in outputs:
        groups.setdefault(output.core.type.shape, []).append(output)
    if anchor is None and _is_summary(*groups):
        first, second = groups.values()
        return [_lower_summary(body, first, second, ctx)]
    if anchor is None and len(groups) == 2 and any(isinstance(o.op, ops.QuantizeGroups) for o in body):
        return [_lower_groups(body, outputs, ctx)]
    return [kernel for group in groups.values() for kernel in _lower_group(body, anchor, group, ctx)]


def _is_summary(*shapes: tuple[Dim, ...]) -> bool:
    """Whether there are two index spaces, whole rows and one element of each."""
    return len(shapes) == 2 and {s[-1:] == (1,) for s in shapes} == {True, False} and shapes[0][:-1] == shapes[1][:-1] and all(shapes)


def _lower_summary(body: Block, first: list[_Output], second: list[_Output], ctx: LoweringContext) -> LoweredKernel:
    d = _definer(body, [o.target for o in (*first, *second)], ctx)
    summary, columns = (first, second) if first[0].core.type.shape[-1] == 1 else (second, first)
    once, rest = functools.partial(_stores, d, summary), functools.partial(_stores, d, columns)
    paired = isinstance(ctx.machine, MachineShape)
    return _finish(d, summary_nest(columns[0].core.type.shape, once, rest, paired), _label(body), ctx)


def _lower_groups(body: Block, outputs: list[_Output], ctx: LoweringContext) -> LoweredKernel:
    """Results of an op that quantizes groups, and of what makes its operand."""
    (o,) = (o for o in body if isinstance(o.op, ops.QuantizeGroups))
    assert isinstance(o.op, ops.QuantizeGroups)
    shape = o.inputs[0].type.shape
    columns = [out for out in outputs if out.core.type.shape == shape]
    summary = [out for out in outputs if out.core.type.shape == o.results[1].type.shape]
    assert len(columns) + len(summary) == len(outputs)
    d = _definer(body, [out.target for out in (*summary, *columns)], ctx)
    once, rest = functools.partial(_stores, d, summary), functools.partial(_stores, d, columns)
    whole_rows = any(other.op.fusion is FusionKind.REDUCTION and other is not o for other in body)
    return _finish(d, group_nest(d, shape, o.op.group, once, rest, whole_rows), _label(body), ctx)


def _stores(d: Definer, outputs: list[_Output], index: Index) -> list[Store]:
    """The stores of results at a place of the index space that they share."""
    return [o.place(d, index, d.at(o.core, index)) for o in outputs]


def _label(body: Block) -> str:
    return "+".join(dict.fromkeys(o.op.mnemonic for o in body if o.op.fusion not in (FusionKind.CONSTANT, FusionKind.STRUCTURE)))


def _anchor(body: Block) -> Operation | None:
    """The op that decides the loops: an ordered op, an attention, or a contraction."""
    for kinds in ((FusionKind.WRITE, FusionKind.OPAQUE), (FusionKind.ATTENTION,), (FusionKind.CONTRACTION,)):
        for o in body:
            if o.op.fusion in kinds:
                return o
    return None


def _output(target: Value, value: Value) -> _Output:
    views: list[Operation] = []
    core = value
    while core.producer is not None and isinstance(core.producer.op, (ops.Transpose, ops.Reshape)):
        source = core.producer.inputs[0]
        if source.producer is None:
            break  # a view of an input: a copy in the result's own order
        views.append(core.producer)
        core = source
    return _Output(target, core, tuple(reversed(views)))


def _definer(body: Block, targets: list[Value], ctx: LoweringContext) -> Definer:
    names = {a: f"in{i}" for i, a in enumerate(body.args)}
    for o in body:
        if isinstance(o.op, ops.Constant) and o.op.value.splat is None and len(o.op.value.data) > LITERAL_LIMIT * o.op.value.dtype.itemsize:
            names[o.result] = f"literal{len(names)}"
    names.update({t: f"out{i}" for i, t in enumerate(targets)})
    return Definer(ctx.facts, names, ctx.sites, frozenset(targets), BLOCKS if isinstance(ctx.machine, BlockMachine) else PORTABLE)


def _lower_ordered(region: Operation, body: Block, anchor: Operation, ctx: LoweringContext) -> LoweredKernel:
    d = _definer(body, list(anchor.results), ctx)
    statements = ORDERED[type(anchor.op)](d, anchor)
    unread = frozenset(d.buffers.pop(r) for r in anchor.results if r not in body.outputs and r in d.buffers)
    renamed = {r: region.results[body.outputs.index(r)] for r in anchor.results if r in body.outputs}
    own: dict[Temporary, Buffer] | None = None
    if isinstance(anchor.op, ops.NonZero):
        own = {Temporary("count", COUNT, anchor.op.symbol): count_buffer()}
    return _finish(d, _without(statements, unread), anchor.op.mnemonic, ctx, renamed, temporaries=own)


def _without(body: tuple[Stmt, ...], dropped: frozenset[Buffer]) -> tuple[Stmt, ...]:
    """The statements but for stores into buffers that nobody reads."""
    kept = (For(s.axis, _without(s.body, dropped), s.guard) if isinstance(s, For) else s for s in body)
    return tuple(s for s in kept if not (isinstance(s, Store) and s.buffer in dropped))


class _ReadElsewhere(Exception):
    """What stands behind a template reads its value at another place than the one being computed."""


class _Group:
    """The results of a region that share an index space, and what stores them."""

    def __init__(self, body: Block, outputs: list[_Output], ctx: LoweringContext) -> None:
        self.body, self.outputs, self.ctx = body, outputs, ctx
        self.shape = outputs[0].core.type.shape
        self.label = _label(body)
        self.again()

    def again(self) -> None:
        """Another nest begins: nothing has been read or written yet."""
        self.d = _definer(self.body, [o.target for o in self.outputs], self.ctx)

    def emit(self, index: Index) -> list[Store]:
        """The stores at a place of the index space."""
        return _stores(self.d, self.outputs, index)

    def emit_at(self, known: Value) -> Callable[[Index, Expr], Store]:
        """The one store of a nest that computes ``known`` at the given place and nowhere else; ``_ReadElsewhere``."""

        def store(index: Index, value: Expr) -> Store:
            def override(at: Index) -> Expr:
                if any(a is not i and size != 1 for a, i, size in zip(at, index, known.type.shape, strict=True)):
                    raise _ReadElsewhere
                return value

            self.d.overrides[known] = override
            return self.emit(index)[0]

        return store

    def finish(self, statements: tuple[Stmt, ...], blocks: bool = True, temporaries: Mapping[Temporary, Buffer] | None = None) -> LoweredKernel:
        return _finish(self.d, statements, self.label, self.ctx, blocks=blocks, temporaries=temporaries)

    def attention(self, anchor: Operation | None, *kinds: type[Op]) -> Operation | None:
        """The anchor where it is an attention that has a nest of its own, which is all that the region computes."""
        fits = anchor is not None and isinstance(anchor.op, kinds) and has_template(anchor) and self.shape == anchor.result.type.shape
        return anchor if fits and len(self.outputs) == 1 else None


def _lower_group(body: Block, anchor: Operation | None, outputs: list[_Output], ctx: LoweringContext) -> list[LoweredKernel]:
    g = _Group(body, outputs, ctx)
    if isinstance(ctx.machine, BlockMachine):
        return _in_blocks(g, anchor, ctx.machine)
    return _by_experts(g, anchor, ctx.machine) or [_in_lanes(g, anchor, ctx.machine)]


def _by_experts(g: _Group, anchor: Operation | None, machine: MachineShape) -> list[LoweredKernel]:
    """The kernels of a product by chosen matrices in panels: one puts rows of one matrix together, the other multiplies; none where that has no
    tiles."""
    matrix = PackedBlocks.of(anchor, g.shape)
    if anchor is None or matrix is None or not isinstance(anchor.op, ops.ExpertBlocksInt8):
        return []
    chosen = choose(machine, g.ctx.table, matrix.key)
    assert isinstance(chosen.choice, TileChoice)
    rows = ExpertRows.of(anchor, chosen.choice.rows)
    if rows is None:
        return []
    written, read = rows.buffers(readonly=False), rows.buffers(readonly=True)
    first = g.finish(rows.grouping(g.d, written), temporaries=written)
    g.again()
    second = g.finish(rows.nest(g.d, read, matrix.columns, g.emit), temporaries=read)
    if not _is_product(second.kernel):
        g.again()
        return []
    moves = (*matrix.moves(g.d, chosen.choice), *((Stage("m.i"),) if _is_long(second.kernel) else ()))
    kernel = apply(second.kernel, moves, g.ctx.symbol_facts)
    return [replace(first, label=f"{first.label} (rows by expert)", prepares=True), replace(second, kernel=kernel, schedule=chosen)]


def _in_lanes(g: _Group, anchor: Operation | None, machine: MachineShape) -> LoweredKernel:
    """The nest for a CPU."""
    ctx, shape = g.ctx, g.shape
    attention = g.attention(anchor, ops.Attention)
    if attention is not None and is_one_query(attention):
        try:
            return g.finish(one_query_nest(g.d, attention, g.emit_at(attention.result)))
        except _ReadElsewhere:
            g.again()
    if attention is not None:
        chosen = choose(machine, ctx.table, attention_key(attention))
        assert isinstance(chosen.choice, AttentionChoice)
        try:
            return replace(g.finish(attention_nest(g.d, attention, g.emit_at(attention.result), chosen.choice)), schedule=chosen)
        except _ReadElsewhere:
            g.again()  # the plain definition serves
    alone = anchor is None or not isinstance(anchor.op, ops.ExpertBlocksInt8)
    matrix = _Product.of(anchor, shape, g.body) or (PackedBlocks.of(anchor, shape) if alone else None) or _Pair.of(anchor, shape)
    if matrix is not None:
        lead = [Axis(f"b{i}", dim_expr(size), PARALLEL) for i, size in enumerate(matrix.lead)]
        m, n = Axis("m", dim_expr(product(matrix.rows)), SEQ), Axis("n", dim_expr(shape[-1]), SEQ)
        lowered = g.finish(nest([*lead, m, n], *g.emit((*lead, *g.d.flat.digits(m, matrix.rows), n))))
        if _is_product(lowered.kernel, matrix.products):
            chosen = choose(machine, ctx.table, matrix.key)
            assert isinstance(chosen.choice, TileChoice)
            moves = (*matrix.moves(g.d, chosen.choice), *((Stage("m.i"),) if matrix.products > 1 or _is_long(lowered.kernel) else ()))
            return replace(lowered, kernel=apply(lowered.kernel, moves, ctx.symbol_facts), schedule=chosen)
        g.again()  # the plain definition serves
    if anchor is not None and isinstance(anchor.op, ops.ExpertMatMul) and shape == anchor.result.type.shape:
        rows = [const(0) if size == 1 else Axis(f"b{i}", dim_expr(size), PARALLEL) for i, size in enumerate(shape[:-1])]
        n = Axis("n", dim_expr(shape[-1]), SEQ)
        lowered = g.finish(nest([*(a for a in rows if isinstance(a, Axis)), n], *g.emit((*rows, n))))
        if _is_product(lowered.kernel):
            return replace(lowered, kernel=apply(lowered.kernel, expert_schedule(), ctx.symbol_facts))
        g.again()
    flat = all(o.op.fusion in (FusionKind.ELEMENTWISE, FusionKind.CONSTANT) for o in g.body if not o.op.terminator)
    if flat and is_flat(shape, g.body.args) and all(not o.views for o in g.outputs):
        return g.finish(flat_nest(g.d, shape, g.emit))
    return g.finish(row_nest(shape, g.emit))


def _in_blocks(g: _Group, anchor: Operation | None, machine: BlockMachine) -> list[LoweredKernel]:
    """The nests for a GPU: one, several after each other, or several of which one is launched."""
    facts, shape = g.ctx.symbol_facts, g.shape
    attention = g.attention(anchor, ops.Attention, ops.PackedAttention)
    if attention is not None:
        try:
            return _flash(g, attention, *flash_tiles.choose(machine, attention, g.ctx.facts, g.ctx.table))
        except _ReadElsewhere:
            g.again()
    matrix = GroupedProduct.of(anchor, shape) or BlockProduct.of(anchor, shape)
    if matrix is not None:
        lowered = g.finish(matrix.nest(g.d, g.emit), blocks=False)
        if _is_product(lowered.kernel):
            variants = matrix.variants(machine, g.ctx.facts, g.ctx.table, lowered.kernel)
            return [kernel for v in variants for kernel in _in_tiles(lowered, matrix, v, facts)]
        g.again()
    rows = row_nest(shape, g.emit)
    if folds(rows):
        return [g.finish(rows)]
    g.again()
    lowered = g.finish(line_nest(g.d, shape, g.emit))
    return [replace(lowered, kernel=tiled_line(lowered.kernel, facts))]


def _in_tiles(plain: LoweredKernel, matrix: BlockProduct, v: Variant, facts: SymbolFacts) -> list[LoweredKernel]:
    """The kernel of a product for some number of rows: ``plain`` in tiles; or one for the parts of its sums, and one that adds them up."""
    most = None if v.when is None else v.when.most
    parts = PartSums.of(plain.kernel, matrix.cut(v.choice), most, facts) if v.choice.parts > 1 else None
    if parts is None:
        chosen = replace(v.chosen, choice=replace(v.choice, parts=1))
        return [replace(plain, kernel=matrix.tiled(plain.kernel, v.choice, facts), schedule=chosen, launch=v.launch, when=v.when)]
    first = _sharing(plain, matrix.tiled(parts.first, v.choice, facts), parts.sums)
    second = _sharing(plain, joined(parts.second, facts), parts.sums)
    label = f"{plain.label} (parts added up)"
    return [replace(first, schedule=v.chosen, launch=v.launch, when=v.when), replace(second, label=label, schedule=v.chosen, when=v.when)]


def _sharing(plain: LoweredKernel, kernel: Kernel, shared: Temporary) -> LoweredKernel:
    """A kernel of some of the buffers of ``plain``, and a last one that it shares with another."""
    about = dict(zip(plain.kernel.params, zip(plain.values, plain.writes, strict=True), strict=True))
    values, writes = zip(*(about[b] for b in kernel.params[:-1]), (shared, not kernel.params[-1].readonly), strict=True)
    return replace(plain, kernel=kernel, values=values, writes=writes)


def _flash(g: _Group, o: Operation, tile: FlashTile, chosen: Chosen) -> list[LoweredKernel]:
    """The kernels of an attention on blocks; ``_ReadElsewhere``."""
    if not tile.chunk:
        whole = packed_nest if isinstance(o.op, ops.PackedAttention) else flash_nest
        return [replace(g.finish(whole(g.d, o, g.emit_at(o.result), tile)), launch=tile.launch, schedule=chosen)]
    parts = Parts.of(o, tile)
    written, read = parts.buffers(readonly=False), parts.buffers(readonly=True)
    joined = g.finish(join_nest(o, g.emit_at(o.result), parts, read), temporaries=read)
    g.again()
    first = g.finish(part_nest(g.d, o, parts, written, tile), temporaries=written)
    return [replace(first, launch=tile.launch, schedule=chosen), replace(joined, schedule=chosen)]


def _is_product(kernel: Kernel, products: int = 1) -> bool:
    """Whether the axes of so many products are the only ones of their names: something behind one may read it at other places (codes of its rows), or
    be a sum over letters that are called the same."""
    names = [a.name for a in axes_of(kernel)]
    return all(names.count(name) <= most for name, most in (("m", 1), ("n", 1), ("k", products), ("j", products)))


LONG = 16  # operations behind a sum from which on they run in a loop of their own


def _is_long(kernel: Kernel) -> bool:
    """Whether much is done with each sum before it is stored, at one place.

    24 such chains after each other are more than a core looks ahead; LLVM, which sees one block of them, interleaves all and spills (4 KB of
    stack). A loop over the rows of the tile keeps constants in registers and three chains side by side.
    """
    seen: set[Expr] = set()

    def operations(e: Expr) -> int:
        if e in seen or isinstance(e, (Load, Reduce)) or e.pure_index:
            return 0
        seen.add(e)
        own = LONG if isinstance(e, (Unary, Binary)) and expand(e) is not None else 1
        return own + sum(map(operations, e.children))

    values = [s.value for s in walk_statements(kernel.body) if isinstance(s, Store)]
    return len(values) == 1 and operations(values[0]) >= LONG


@dataclass(frozen=True)
class _Product:
    """A matrix product over a packed weight, with its epilogue in the same index space: ``rows``, of ``columns`` each. ``twin`` is the weight of a
    second product of the same activation: one tile after the other is summed up, then what is made of both is computed row by row."""

    rows: tuple[Dim, ...]
    columns: int
    weight: Value
    layout: Panels
    of_bytes: bool
    twin: Value | None = None

    lead: ClassVar[tuple[Dim, ...]] = ()

    @classmethod
    def of(cls, anchor: Operation | None, shape: tuple[Dim, ...], body: Block) -> _Product | None:
        """The product when the region is one that has register tiles."""
        if anchor is None or not isinstance(anchor.op, (ops.Linear, ops.LinearInt8)) or anchor.result.type.shape != shape or len(shape) < 2:
            return None
        integer = isinstance(anchor.op, ops.LinearInt8)
        weight = anchor.operands[3 if integer else 1]
        assert weight is not None
        layout = weight.type.layout
        if not isinstance(layout, Panels) or anchor.result.type.dtype is DType.f64 or not isinstance(shape[-1], int):
            return None
        if shape[-1] == 1:
            return None  # a single column leaves the index, and a vector of columns would be stored where no lane is told from another
        twins = [o.inputs[1] for o in body if isinstance(o.op, ops.Linear) and o is not anchor]
        return cls(shape[:-1], shape[-1], weight, layout, integer and layout.depth == 4, twins[0] if twins else None)

    @property
    def products(self) -> int:
        return 1 if self.twin is None else 2

    @property
    def key(self) -> ScheduleKey:
        template, type = "linear_int8" if self.of_bytes else "linear", self.weight.type
        return ScheduleKey(template, type.dtype, self.columns, _known(type.shape[1]), _known(product(self.rows)), self.layout.width)

    def moves(self, d: Definer, choice: TileChoice) -> tuple[Move, ...]:
        """The schedule, and how the panels of weights are fetched when they lie in memory."""
        tiles = (dot_schedule if self.of_bytes else gemm_schedule)(choice, self.key.rows)
        stored = [d.buffers[w].name for w in (self.weight, self.twin) if w is not None and w in d.buffers]
        return (*tiles, *(move for name in stored for move in prefetch_schedule(name, choice, self.key)))


@dataclass(frozen=True)
class _Pair:
    """A product of two computed matrices, read where they lie. ``lead``: dims along which the right one changes; ``rows``: those of the left
    one that share a right one."""

    lead: tuple[Dim, ...]
    rows: tuple[Dim, ...]
    columns: Dim
    terms: Dim  # of a sum
    turned: bool  # the right one lies transposed
    template: str
    dtype: DType

    products: ClassVar[int] = 1

    @classmethod
    def of(cls, anchor: Operation | None, shape: tuple[Dim, ...]) -> _Pair | None:
        """The product when the region is one that has register tiles."""
        if anchor is None or not isinstance(anchor.op, (ops.Linear, ops.MatMul)) or anchor.result.type.shape != shape or len(shape) < 2:
            return None
        left, right = anchor.inputs[:2]
        columns, terms = shape[-1], left.type.shape[-1]
        if anchor.result.type.dtype not in (DType.f32, DType.f16, DType.bf16) or (isinstance(columns, int) and columns < LANES):
            return None
        if left.type.rank < 2 or right.type.rank < 2:
            return None
        about = (columns, terms, isinstance(anchor.op, ops.Linear), anchor.op.mnemonic, right.type.dtype)
        if isinstance(anchor.op, ops.Linear):
            return cls((), shape[:-1], *about) if isinstance(terms, int) and terms and terms % LANES == 0 else None
        alone = all(size == 1 for size in right.type.shape[:-2])
        return cls((), shape[:-1], *about) if alone else cls(shape[:-2], shape[-2:-1], *about)

    @property
    def key(self) -> ScheduleKey:
        return ScheduleKey(self.template, self.dtype, _known(self.columns), _known(self.terms), _known(product(self.rows)))

    def moves(self, d: Definer, choice: TileChoice) -> tuple[Move, ...]:
        """Register tiles; the transposed matrix is turned round 16 x 16 elements at a time."""
        tiles = gemm_schedule(choice, self.key.rows)
        return (*tiles, Split("k", LANES), Tag("k.i", UNROLL)) if self.turned else tiles


def attention_key(o: Operation) -> ScheduleKey:
    """What the tiles of an attention are chosen by."""
    q, v = o.inputs[0].type, o.inputs[2].type
    return ScheduleKey("attention", q.dtype, _known(q.shape[3]), _known(v.shape[3]), _known(q.shape[2]))


def _known(size: Dim) -> int | None:
    return size if isinstance(size, int) else None


def _finish(
    d: Definer,
    statements: tuple[Stmt, ...],
    label: str,
    ctx: LoweringContext,
    renamed: dict[Value, Value] | None = None,
    blocks: bool = True,
    temporaries: Mapping[Temporary, Buffer] | None = None,
) -> LoweredKernel:
    """``blocks``: on a GPU vectors become blocks. ``temporaries``: what it shares with other kernels of the region, read-only or written."""
    values = [v for v in d.names if v in d.buffers]
    shared = temporaries or {}
    params = (*(d.buffers[v] for v in values), *shared.values())
    kernel = simplify_kernel(Kernel("kernel", params, statements), ctx.symbol_facts)
    launch = LAUNCH
    if blocks and isinstance(ctx.machine, BlockMachine):
        kernel, launch = in_blocks(kernel, ctx.machine, ctx.symbol_facts)
    writes = (*(v in d.written for v in values), *(not b.readonly for b in shared.values()))  # even where a loop was dropped with its stores
    return LoweredKernel(kernel, (*((renamed or {}).get(v, v) for v in values), *shared), writes, label, launch=launch)
