"""What is asked of memory before its turn (``Ahead``): an address for each vector that is read now.

Where T turns of a loop read the same elements (the tiles of rows that share a panel of a weight), turn t asks for the t-th part of the next
elements: a cache line of the present ones stands for ``ceil(64 / T)`` bytes of the part. So memory works all the time, at the pace of the turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trustformers_ir.codegen.kernel_ir.nodes import Ahead, Axis, Buffer, Expr, const, select
from trustformers_ir.codegen.kernel_ir.rewrite import substitute

if TYPE_CHECKING:
    from trustformers_ir.codegen.llvm.tile import Evaluator

LINE = 64  # bytes of a cache line


class Fetches:
    """Writes the addresses into the loops of an evaluator."""

    def __init__(self, ev: Evaluator) -> None:
        self.ev = ev

    def ask(self, buffer: Buffer, ahead: Ahead, flat: Expr, point: dict[Axis, int]) -> None:
        """Asks for what will be read after the elements from ``flat`` on, which are read at this point of the tile."""
        ev, size, parts = self.ev, buffer.dtype.itemsize, self._parts(buffer, ahead)
        if parts is None:
            offset = (flat + (ahead.alone or ahead.elements)) * size
        else:
            step, part = parts
            start = substitute(flat, {a: const(0) for a in flat.free_axes if a in point or a in ev.folded})
            inside = ev.simplifier((flat - start) * size // LINE)
            offset = start * size + part + inside * step
        ev.memory.fetch_early(buffer, ev.eval(ev.simplifier(offset), point))

    def prepare(self, bodies: Sequence[Expr]) -> None:
        """Does the divisions of the parts here, before the loop of a fold over ``bodies``."""
        for b in sorted(frozenset().union(*(body.loads for body in bodies)), key=lambda b: b.name):
            parts = None if b.ahead is None else self._parts(b, b.ahead)
            for e in parts or ():
                if e.free_axes <= self.ev.bound.keys():
                    self.ev.eval(e, {})

    def _parts(self, buffer: Buffer, ahead: Ahead) -> tuple[Expr, Expr] | None:
        """The bytes that a line of the present elements stands for, and how many bytes behind these the part of this turn begins. None: there
        is no such loop."""
        turn = next((a for a in self.ev.bound if a.name == ahead.among), None) if ahead.among else None
        if turn is None:
            return None
        size, turns = buffer.dtype.itemsize, turn.extent
        step = self.ev.simplifier((turns + (LINE - 1)) // turns)
        whole = const(ahead.elements * size)
        start = select(turns < 2, const(ahead.alone * size), whole) if ahead.alone else whole
        return step, self.ev.simplifier(start + turn * step * -(-ahead.elements * size // LINE))
