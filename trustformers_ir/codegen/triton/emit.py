"""From kernel IR to a Triton function, as text that can be read.

A program of Triton works on blocks of values where a kernel of the IR has loops over elements. The tags of axes say which is which:

* PARALLEL loops are the grid: ``tl.program_id`` is taken apart into them;
* TILE axes are dimensions of blocks: the loop itself vanishes, every expression that depends on it is a block, and a fold over it is
  ``tl.sum`` or its like. Axes that meet in one expression lie in different dimensions (``dimensions``);
* SEQ loops stay loops; a fold over one has an accumulator, a block that is carried round.

A sum of products in which one factor has the dimension *m*, the other *n*, and both *k* is ``tl.dot``. Guards, and the conditions above a load,
become masks. Scratch buffers whose elements are addressed by TILE axes alone are variables that hold blocks; the others lie in memory, one piece for
each program. What does not depend on a loop is computed before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.depth import deep
from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, TILE, Axis, Buffer, Const, Expr, conjuncts, const
from trustformers_ir.codegen.kernel_ir.simplify import SymbolFacts
from trustformers_ir.codegen.triton.ask import tile_axes
from trustformers_ir.codegen.triton.fold import Folds
from trustformers_ir.codegen.triton.optable import TYPES
from trustformers_ir.codegen.triton.write import ATOM, INDENT, Val, joined
from trustformers_ir.ir.dtypes import DType


@dataclass(frozen=True)
class Emitted:
    """The text of a kernel's function. Its parameters are the kernel's buffers, then ``memory`` (scratch buffers that lie in memory, with the
    elements that each program needs), then the symbols, then ``status`` where an index is checked. ``programs`` is the size of the grid."""

    name: str
    text: str
    functions: tuple[tuple[str, DType], ...]  # expansions that it calls, by operator and dtype
    kernel: Kernel
    memory: tuple[tuple[Buffer, Expr], ...]
    programs: Expr
    checks: bool


@deep
def emit(kernel: Kernel, name: str, facts: SymbolFacts | None = None) -> Emitted:
    """The function of a kernel whose loops are tagged for a GPU."""
    return _Emitter(kernel, facts).run(name)


class _Emitter(Folds):
    def run(self, name: str) -> Emitted:
        grid, body = self.grid()
        for b in self.kernel.params:
            if b.dtype is DType.f8e4m3:
                self.scope.line(f"{self.names[b]} = eighths({self.names[b]})")
        for b in self.memory:
            self.scope.line(f"{self.names[b]} += pid * {self.value(b.size).over((), ATOM)}")
        self.guards += [loop.guard for loop in grid if loop.guard is not None]
        self.statements(body)
        buffers = [self.names[b] for b in (*self.kernel.params, *self.memory)]
        parameters = [*buffers, *self.symbols.values(), *(["status"] if self.checks else []), "INDEX: tl.constexpr"]
        text = "\n".join([f"def {name}({', '.join(parameters)}):", *(self.scope.lines or [f"{INDENT}pass"])])
        programs: Expr = const(1)
        for loop in grid:
            programs = programs * loop.axis.extent
        memory = tuple((b, b.size) for b in self.memory)
        return Emitted(name, text, tuple(self.functions), self.kernel, memory, programs, self.checks)

    def grid(self) -> tuple[list[For], tuple[Stmt, ...]]:
        """Takes the number of the program apart into the PARALLEL loops. These, and what stands inside them."""
        loops: list[For] = []
        body = self.kernel.body
        while len(body) == 1 and isinstance(body[0], For) and body[0].axis.kind is PARALLEL:
            loops.append(body[0])
            body = body[0].body
        if loops or self.memory:
            self.scope.line("pid = tl.program_id(0).to(INDEX)")
        rest = Val("pid")
        for n, loop in enumerate(reversed(loops)):
            axis = self.axes[loop.axis] = self.fresh(loop.axis.name)
            if n == len(loops) - 1:
                self.scope.line(f"{axis} = {rest.text}")
                break
            extent = self.value(loop.axis.extent)
            self.scope.line(f"{axis} = {self.apply('{0} % {1}', rest, extent).text}")
            rest = self.apply("{0} // {1}", rest, extent)
            if n < len(loops) - 2:
                rest = self.name(rest, "rest", self.scope)
        return loops, body

    # -- statements ----------------------------------------------------------------------------------------------------

    def statements(self, body: tuple[Stmt, ...]) -> None:
        for s in body:
            if isinstance(s, Store):
                self.store(s)
            elif isinstance(s, For) and s.axis.kind is TILE:
                self.guarded(s)
            elif isinstance(s, For):
                self.loop(s)

    def guarded(self, s: For) -> None:
        """The body of a loop whose points are all there at once."""
        known = len(self.guards)
        if s.guard is not None:
            self.guards += conjuncts(s.guard)
        self.statements(s.body)
        del self.guards[known:]

    def loop(self, s: For) -> None:
        self.forget({t.buffer for t in walk_statements(s.body) if isinstance(t, Store)})
        known = len(self.guards)
        self.open(s.axis, self.scope)
        if s.guard is not None:
            self.guards += conjuncts(s.guard)
        self.statements(s.body)
        del self.guards[known:]
        self.close()
        self.forget({t.buffer for t in walk_statements(s.body) if isinstance(t, Store)})

    def store(self, s: Store) -> None:
        value = self.value(s.value, root=True)
        if isinstance(s.value, Const):
            value = self.const(s.value, alone=True)
        tiles = [i for i in s.index if isinstance(i, Axis) and i.kind is TILE]
        if s.buffer in self.blocks:
            shape, dims = self.extents(tiles)
            text = value.text if value.dims == dims else self.spread(value, s.value, dims, shape)
            if [self.dimension[a] for a in tiles] != list(dims):
                text = f"tl.trans({text})"
            single = self.mask([g for g in self.guards if not tile_axes(g)])
            if single is not None:
                text = f"tl.where({single.text}, {text}, {self.names[s.buffer]})"
            self.forget({s.buffer})
            self.scope.line(f"{self.names[s.buffer]} = {text}")
            return
        place = self.place(s.buffer, s.index)
        mask = self.mask(self.guards)
        dims = joined(place, value, *([] if mask is None else [mask]))
        if dims != place.dims and dims:
            sizes = {self.dimension[a]: a.static_extent for e in (*s.index, s.value, *self.guards) for a in tile_axes(e)}
            place = Val(f"tl.broadcast_to({place.over(dims)}, {[sizes[d] for d in dims]})", dims)
        masked = "" if mask is None else f", mask={mask.over(dims)}"
        self.forget({s.buffer})
        self.scope.line(f"tl.store({self.address(s.buffer, place, dims)}, {value.over(dims)}{masked})")
        if s.buffer in self.mutable:
            self.scope.line("tl.debug_barrier()")

    def spread(self, value: Val, e: Expr, dims: tuple[int, ...], shape: Sequence[int | None]) -> str:
        """A value as a block of that shape."""
        if isinstance(e, Const):
            return f"tl.full({list(shape)}, {self.const(e).text}, {TYPES[e.dtype]})"
        return f"tl.broadcast_to({value.over(dims)}, {list(shape)})"
