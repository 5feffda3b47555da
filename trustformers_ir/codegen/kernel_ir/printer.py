"""Kernels as text, for people: loops by indentation, shared sub-expressions named once.

kernel gemm(A: f32[m, 384] readonly, B: f32[8, 384, 48] readonly, C: f32[m, 384])
  parallel i.o < ((m + 7) // 8)
    unroll i.i < 8 if (((i.o * 8) + i.i) < m)
      C[((i.o * 8) + i.i), j] = sum[k:seq<384]((A[…] * B[…]))
"""

from __future__ import annotations

from trustformers_ir.codegen.kernel_ir.depth import deep
from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, walk
from trustformers_ir.codegen.kernel_ir.nodes import Axis, Buffer, Const, Expr, Reduce, Sym, describe


@deep
def print_kernel(kernel: Kernel) -> str:
    """The whole kernel."""
    lines = [f"kernel {kernel.name}({', '.join(_buffer(b) for b in kernel.params)})"]
    lines += [f"  scratch {_buffer(b)}" for b in kernel.scratch]
    for s in kernel.body:
        _statement(s, 1, lines)
    return "\n".join(lines) + "\n"


def _buffer(b: Buffer) -> str:
    shape = ", ".join(map(describe, b.shape))
    flags = "".join(f" {name}" for name, on in (("readonly", b.readonly), ("may_alias", not b.noalias)) if on)
    flags += f" ahead {b.ahead.elements}" + f" among {b.ahead.among}" * bool(b.ahead.among) if b.ahead else ""
    dense = True
    step: Expr | None = None
    for d, s in zip(reversed(b.shape), reversed(b.strides), strict=True):
        dense = dense and (s is step if step is not None else isinstance(s, Const) and s.value == 1)
        step = d * s
    strides = "" if dense else f" strides [{', '.join(map(describe, b.strides))}]"
    return f"{b.name}: {b.dtype}[{shape}]{strides}{flags}"


def _statement(s: Stmt, depth: int, lines: list[str]) -> None:
    pad = "  " * depth
    if isinstance(s, For):
        guard = "" if s.guard is None else f" if {describe(s.guard)}"
        lines.append(f"{pad}{s.axis.kind.value} {s.axis.name} < {describe(s.axis.extent)}{guard}")
        for b in s.body:
            _statement(b, depth + 1, lines)
    elif isinstance(s, Store):
        names: dict[Expr, str] = {}
        for e in _shared(s.value):
            text = describe(e, names=names)
            names[e] = f"%{len(names)}"
            lines.append(f"{pad}let {names[e]} = {text}")
        index = ", ".join(describe(i, names=names) for i in s.index)
        lines.append(f"{pad}{s.buffer.name}[{index}] = {names.get(s.value) or describe(s.value, names=names)}")


def _shared(root: Expr) -> list[Expr]:
    """Sub-expressions used more than once that are worth a name and can stand outside: they bind no axis of a Reduce around them."""
    uses: dict[Expr, int] = {}
    order = list(walk(root))
    bound: set[Axis] = set()
    for e in order:
        if isinstance(e, Reduce):
            bound.update(e.axes)
        for c in e.children:
            uses[c] = uses.get(c, 0) + 1
    return [
        e
        for e in order
        if uses.get(e, 0) > 1
        and e.children
        and not isinstance(e, (Const, Sym, Axis))
        and not e.pure_index
        and bound.isdisjoint(e.free_axes)
    ]
