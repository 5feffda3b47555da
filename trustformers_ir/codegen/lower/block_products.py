"""Products of matrices in blocks: which tiles a GPU takes, for how many rows, and the moves that make them.

A choice (``BlockChoice``) is data: the heuristic has one for every key, a tuned table better ones for some. A product whose rows are known only when
it runs becomes several kernels of one nest, each for a range of rows; which one is launched is looked up then (``Condition``):

* **one row** is a product of a matrix and a vector: memory decides, so no program waits for another's turn of matrix instructions. A block of
  the matrix is multiplied by a piece of the vector, summed up at the end;
* **few rows** (up to 32): the least that matrix instructions take, narrow columns so that all cores have some, deep turns of the loop;
* **some rows**: tiles so small that there is one for each core. Up to 128 where columns are so few that the sums are cut into parts besides;
* **many rows**: the tiles of which the matrix units reach their rate. Hopper multiplies from shared memory (wgmma) 64 rows at a time by up to 256
  columns. 128 x 256 moves least, 128 x 128 leaves room for two programs on a core, of which one computes while the other stores: that is
  better for short sums. (Predicted, not measured: no GPU was there.)

Where that leaves two thirds of the cores without anything to do, sums are cut into parts (``part_sums.py``).

Programs run in the order of ``Group``: those of one moment share rows and columns in L2 (Triton's tutorial on products calls it super-grouping).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from trustformers_ir.codegen.kernel_ir.kernel import Kernel, Stmt, Store, nest, walk, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, Axis, Binary, Expr, Load, Reduce, Unary
from trustformers_ir.codegen.kernel_ir.schedule import Group, Move, Reorder, Tile, Walk, apply, axes_of
from trustformers_ir.codegen.kernel_ir.simplify import SymbolFacts
from trustformers_ir.codegen.lower.blocks import LEAST, BlockMachine, covering
from trustformers_ir.codegen.lower.definer import Definer
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.codegen.lower.part_sums import Cut
from trustformers_ir.codegen.math import expand
from trustformers_ir.codegen.program import Launch
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.device import Condition
from trustformers_ir.ir.dims import Dim, Facts, product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import HEURISTIC, TABLE, BlockChoice, Choice, Chosen, ScheduleKey

FEW = 32  # rows up to which a product reads a matrix once
MIDDLE = 128  # rows up to which there are kernels with sums in parts, where columns are few
LONG_SUM = 2048  # terms from which on the largest tile pays for storing it alone
#: Parts into which sums are cut, and bytes that a part reads. A core alone reads some 50 GB/s, so that two thirds of them have all that memory gives,
#: and the 2 microseconds of a second kernel are 100 KB. (Predicted, not measured: no GPU was there.)
LEAST_PARTS, MOST_PARTS, LEAST_READ = 3, 16, 96 << 10
MOST_SUMS = 128  # of a thread: what registers hold
HEAVY = {"ampere": 16, "hopper": 32, "cdna": 32}  # where each of them is divided
#: Columns of the tile that leaves no room for a second program on a core: the loads for the next tile hide behind the end of this one only if one
#: program makes both. On sm_90, 128 x 256, 4 stages (Triton 3.9): 222 to 243 registers and 224 KB, and no load is waited for at the end of a tile;
#: up to 224 bytes are spilled where another block is read behind the sums, heads are taken apart, or ends are masked, and up to 56 where indices have
#: 64 bits. (Seen in machine code; what it gains was not measured: no GPU was there.)
WALKING = 256
WASTE = 1.1  # how much more columns than there are tiles may cover
NARROW = (DType.f16, DType.bf16, DType.i8, DType.u8, DType.f8e4m3)


@dataclass(frozen=True)
class Variant:
    """A kernel of a product: how it runs, and for how many rows (None: always)."""

    chosen: Chosen
    when: Condition | None

    @property
    def choice(self) -> BlockChoice:
        assert isinstance(self.chosen.choice, BlockChoice)
        return self.chosen.choice

    @property
    def launch(self) -> Launch:
        return Launch(self.choice.warps, self.choice.stages)


@dataclass(frozen=True)
class Behind:
    """What stands behind a product: with how many sums of a thread it fits into registers, and whether it is so ``light`` that the loads for the next
    tile run meanwhile (``WALKING``)."""

    most_sums: int = MOST_SUMS
    light: bool = True

    @classmethod
    def of(cls, kernel: Kernel, machine: BlockMachine) -> Behind:
        """What stands behind the product in its plain nest."""
        return cls(HEAVY[machine.kind] if divides(kernel) else MOST_SUMS, is_light(kernel))


@dataclass(frozen=True)
class BlockProduct:
    """A product of matrices: dims along which the right one changes, those of the left one that share a right one, columns, terms of a sum."""

    lead: tuple[Dim, ...]
    rows: tuple[Dim, ...]
    columns: Dim
    terms: Dim
    dtype: DType
    template: str

    @classmethod
    def of(cls, anchor: Operation | None, shape: tuple[Dim, ...]) -> BlockProduct | None:
        """The product when the region is one."""
        if anchor is None or not isinstance(anchor.op, (ops.Linear, ops.MatMul, ops.LinearInt8, ops.LinearF8)) or anchor.result.type.shape != shape:
            return None
        if len(shape) < 2:
            return None
        left = anchor.inputs[0].type
        if isinstance(anchor.op, ops.MatMul):
            right = anchor.inputs[1].type
            alone = all(size == 1 for size in right.shape[:-2])
            lead, rows = ((), shape[:-1]) if alone else (shape[:-2], shape[-2:-1])
        else:
            lead, rows = (), shape[:-1]
        return cls(lead, rows, shape[-1], left.shape[-1], left.dtype, f"gpu_{anchor.op.mnemonic}")

    def nest(self, d: Definer, emit: Callable[[Index], list[Store]]) -> tuple[Stmt, ...]:
        lead = [Axis(f"b{i}", dim_expr(size), PARALLEL) for i, size in enumerate(self.lead)]
        m, n = Axis("m", dim_expr(product(self.rows)), PARALLEL), Axis("n", dim_expr(self.columns), PARALLEL)
        return nest([*lead, m, n], *emit((*lead, *d.flat.digits(m, self.rows), n)))

    def variants(self, machine: BlockMachine, facts: Facts, table: Mapping[ScheduleKey, Choice], kernel: Kernel) -> list[Variant]:
        """The kernels that ``kernel``, the plain nest, becomes, fewest rows first."""
        rows, behind = product(self.rows), Behind.of(kernel, machine)
        if isinstance(rows, int):
            return [Variant(self.choose(machine, table, rows, behind), None)]
        low, high = facts.bounds(rows)
        found: list[Variant] = []
        above = 0
        for most in (*self.limits(machine), None):
            if most is None or low <= most:
                chosen = self.choose(machine, table, most, behind)
                last = most is None or high <= most
                found.append(Variant(chosen, Condition(rows, above, None if last else most) if above or not last else None))
                above = 0 if most is None else most
                if last:
                    break
        return found

    def limits(self, machine: BlockMachine) -> list[int]:
        """Rows up to which a kernel of its own serves. Products of batches of matrices have one for all, and so have those of sizes unknown."""
        if self.lead or not isinstance(self.columns, int) or not matrix_units(self.dtype):
            return []
        some = min(machine.filled // max(self.columns, 1) // 64, machine.cores) * 64 if self.dtype in NARROW else 0
        middle = self.choose(machine, {}, MIDDLE).choice
        assert isinstance(middle, BlockChoice)
        return [1, FEW, *([MIDDLE] if some > MIDDLE and middle.parts > 1 else []), *([some] if some > 2 * FEW else [])]

    def tiled(self, kernel: Kernel, choice: BlockChoice, facts: SymbolFacts | None) -> Kernel:
        """The nest of the product in tiles."""
        return apply(kernel, moves(kernel, choice), facts)

    def cut(self, choice: BlockChoice) -> Cut:
        """Where the sums are cut into parts: between turns of the loop over their terms."""
        return Cut("k", choice.terms, choice.parts)

    def turns(self, choice: BlockChoice) -> int | None:
        """How often that loop runs in all parts; None where only a call knows."""
        return -(-self.terms // choice.terms) if isinstance(self.terms, int) else None

    def key(self, rows: int | None) -> ScheduleKey:
        columns, terms = (size if isinstance(size, int) else None for size in (self.columns, self.terms))
        return ScheduleKey(self.template, self.dtype, columns, terms, rows)

    def choose(self, machine: BlockMachine, table: Mapping[ScheduleKey, Choice], rows: int | None, behind: Behind | None = None) -> Chosen:
        """The choice of the table, where it has one; else that of the heuristic."""
        key = self.key(rows)
        found = table.get(key)
        if found is None:
            behind = behind or Behind()
            choice = lighter(fitted(self.preferred(machine, key), key), machine.warp * self.sums(behind.most_sums))
            programs = machine.cores if machine.wgmma and behind.light and self.walks(choice) else 0
            return Chosen(key, replace(choice, parts=self.parts(machine, choice, rows), programs=programs), HEURISTIC)
        assert isinstance(found, BlockChoice)
        choice = fitted(found, key)
        return Chosen(key, replace(choice, parts=whole(choice.parts, self.turns(choice))), TABLE)

    def parts(self, machine: BlockMachine, choice: BlockChoice, rows: int | None) -> int:
        """Into how many parts the heuristic cuts the sums of at most so many rows (``LEAST_READ``): evenly, where that takes few of them away."""
        turns = self.turns(choice)
        if rows is None or turns is None or self.lead or not isinstance(self.columns, int):
            return 1
        tiles = -(-rows // choice.rows) * -(-self.columns // choice.columns)
        most = min(machine.cores // max(tiles, 1), turns * self.reads(choice) // LEAST_READ, turns, MOST_PARTS)
        return 1 if most < LEAST_PARTS else whole(next((p for p in range(most, most * 2 // 3, -1) if turns % p == 0), most), turns)

    def walks(self, choice: BlockChoice) -> bool:
        """Whether one program a core makes one tile after the other (``WALKING``): masks at the ends of columns and terms would cost the last
        registers."""
        whole = all(isinstance(size, int) and size % tile == 0 for size, tile in ((self.columns, choice.columns), (self.terms, choice.terms)))
        return choice.columns == WALKING and whole and not self.lead

    def reads(self, choice: BlockChoice) -> int:
        """Bytes of a turn of that loop."""
        return (choice.rows + choice.columns) * choice.terms * self.dtype.itemsize

    def preferred(self, machine: BlockMachine, key: ScheduleKey) -> BlockChoice:
        """What the heuristic says of such products."""
        return heuristic(machine, key, bool(self.lead))

    def sums(self, most: int) -> int:
        """How many sums a thread may have where it could hold ``most``."""
        return most


def whole(parts: int, turns: int | None) -> int:
    """The parts that there are where so many share the turns: none is left without one."""
    return parts if turns is None else -(-turns // -(-turns // parts)) if turns else 1


def matrix_units(dtype: DType) -> bool:
    """Whether products of blocks of that dtype are ones of matrices; others are products of three dimensions."""
    return dtype in (*NARROW, DType.f32)


def heuristic(machine: BlockMachine, key: ScheduleKey, batched: bool = False) -> BlockChoice:
    """The tile of a product of that size where no table knows better."""
    if not matrix_units(key.dtype):
        return BlockChoice(LEAST, LEAST, LEAST, warps=4, stages=2)
    size = key.dtype.itemsize
    turned = key.template == "gpu_matmul"  # columns of the right side lie next to each other
    if key.rows == 1:
        return BlockChoice(1, 32, 128, warps=4, stages=2, group=1) if turned else BlockChoice(1, 4, 2048 // size, warps=4, stages=2, group=1)
    if key.dtype is DType.f32:
        return BlockChoice(64, 64, 32, warps=4, stages=2)
    deep = 64 if key.dtype is DType.f8e4m3 and not machine.wgmma else 128 // size  # terms of a line of memory; what is widened fills registers
    if key.rows is not None and key.rows <= FEW:
        return BlockChoice(FEW, 64, 2 * deep, warps=4, stages=min(4, machine.stages(FEW, 64, 2 * deep, size)), group=1)
    if batched or (key.rows is not None and key.n is not None and key.rows * key.n <= machine.filled):
        return BlockChoice(64, wide(key.n, 128), deep, warps=4, stages=min(4, machine.stages(64, 128, deep, size)))
    columns = wide(key.n, 256 if machine.wgmma and size == 2 and (key.k or 0) >= LONG_SUM else 128)  # sums of bytes lie beside those of products
    terms = deep if machine.shared > 100 << 10 else deep // 2
    return BlockChoice(128, columns, terms, machine.warps(128 * columns), min(4 if columns > 128 else 3, machine.stages(128, columns, terms, size)))


def wide(columns: int | None, most: int) -> int:
    """The widest tile that leaves little of its columns unused."""
    while columns is not None and most > 64 and -(-columns // most) * most > WASTE * columns:
        most //= 2
    return most


def fitted(choice: BlockChoice, key: ScheduleKey) -> BlockChoice:
    """The choice for a product that may be smaller than its tile."""
    rows = choice.rows if key.rows is None or choice.rows == 1 else min(choice.rows, covering(key.rows))
    columns = choice.columns if key.n is None else min(choice.columns, covering(key.n))
    terms = choice.terms if key.k is None else min(choice.terms, covering(key.k))
    if key.dtype.bits == 8:
        terms = max(terms, 2 * LEAST)  # matrix instructions take bytes 32 at a time
    return replace(choice, rows=rows, columns=columns, terms=terms)


def lighter(choice: BlockChoice, most: int) -> BlockChoice:
    """The choice with at most so many sums to a warp: more warps, then fewer columns, then fewer rows."""
    while choice.rows * choice.columns > most * choice.warps and choice.rows > LEAST:
        if choice.warps < 8:
            choice = replace(choice, warps=choice.warps * 2)
        elif choice.columns > 64:
            choice = replace(choice, columns=choice.columns // 2)
        else:
            choice = replace(choice, rows=choice.rows // 2)
    return choice


def is_light(kernel: Kernel) -> bool:
    """Whether there is one result, which lies in rows like the sums and is made of them without another block of their size, by one function at most
    that is computed by a polynomial."""
    m, n = (next((a for a in axes_of(kernel) if a.name == name), None) for name in ("m", "n"))
    stores = [s for s in walk_statements(kernel.body) if isinstance(s, Store)]
    seen: set[Expr] = set()

    def cost(e: Expr) -> int:
        if e in seen or isinstance(e, Reduce):
            return 0
        seen.add(e)
        block = isinstance(e, Load) and {m, n} <= {*e.free_axes, None}
        function = isinstance(e, (Unary, Binary)) and e.dtype.is_float and expand(e) is not None
        return 2 * block + function + sum(map(cost, e.children))

    turned = any(isinstance(x, Binary) and x.op in ("floordiv", "mod") for s in stores for i in s.index for x in walk(i))
    return len(stores) == 1 and not turned and cost(stores[0].value) <= 1


def divides(kernel: Kernel) -> bool:
    """Whether each element is divided by another before it is stored (tanh, sigmoid). Divisions that are rounded right are calls, around which
    registers are kept: with 64 of them at once Triton's code spills (3.9, sm_80)."""
    m, n = (next((a for a in axes_of(kernel) if a.name == name), None) for name in ("m", "n"))
    seen: set[Expr] = set()

    def slow(e: Expr) -> bool:
        if e in seen or isinstance(e, Reduce) or not {m, n} <= {*e.free_axes, None}:
            return False
        seen.add(e)
        whole = expand(e) if isinstance(e, (Unary, Binary)) and e.dtype.is_float else None
        parts = [e, *([] if whole is None else walk(whole))]
        found = any(isinstance(x, (Unary, Binary)) and x.op in ("div", "recip") and x.dtype.is_float for x in parts)
        return found or any(map(slow, e.children))

    return any(slow(s.value) for s in walk_statements(kernel.body) if isinstance(s, Store))


def moves(kernel: Kernel, choice: BlockChoice) -> tuple[Move, ...]:
    """The schedule of the nest ``m, n``, as far as its loops were not dropped because they have one turn."""
    axes = {a.name: a for a in axes_of(kernel)}
    sizes = {name: size for name, size in (("m", choice.rows), ("n", choice.columns), ("k", choice.terms)) if name in axes and size > 1}
    blocks = [name for name in ("m", "n") if name in axes and (name not in sizes or (axes[name].static_extent or sizes[name] + 1) > sizes[name])]
    outer = tuple(f"{name}.o" if name in sizes else name for name in blocks)
    order = (*outer, *(f"{name}.i" for name in ("m", "n") if name in sizes))
    return (
        *(Tile(name, size) for name, size in sizes.items()),
        *((Reorder(order),) if len(order) > 1 else ()),
        *in_turn(outer, choice),
    )


def in_turn(tiles: tuple[str, ...], choice: BlockChoice) -> tuple[Move, ...]:
    """Which programs make which tiles: the loops over them are the innermost ones of the grid."""
    grouped = tiles == ("m.o", "n.o") and choice.group > 1
    joined = (Group(*tiles, choice.group if grouped else 1),) if len(tiles) == 2 and (grouped or choice.programs) else ()
    walked = (Walk("_".join(tiles), choice.programs),) if tiles and choice.programs else ()
    return (*joined, *walked)
