"""Brings VECTOR loops into the form that the emitter handles: whole vectors of at most 16 lanes, with or without a mask.

    vector v < 48: S(v)                     unroll u < 3: vector l < 16: S(u*16 + l)
    vector v < n:  S(v)                     seq c < n // 16: vector l < 16: S(c*16 + l)
                                            vector l < 16 if n // 16 * 16 + l < n: S(n // 16 * 16 + l)
    unroll r < 8: vector v < n: S(r, v)     the strip loop c goes around the unrolled one, so that the tile stays a tile

The points of a tile are independent (K8), so moving the strip loop outwards changes nothing.
"""

from __future__ import annotations

from trustformers_ir.codegen.kernel_ir.kernel import For, Stmt, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import LANES, SEQ, UNROLL, VECTOR, Axis, Const, Expr
from trustformers_ir.codegen.kernel_ir.rewrite import Substitution
from trustformers_ir.codegen.kernel_ir.simplify import Simplifier

#: A VECTOR loop of up to this many whole vectors becomes part of the register tile instead of a strip loop.
MAX_TILE_VECTORS = 4


def is_tile(s: Stmt) -> bool:
    """A loop that, with all loops below it, can be a register tile."""
    kinds = (UNROLL, VECTOR)
    return isinstance(s, For) and s.axis.kind in kinds and all(f.axis.kind in kinds for f in walk_statements(s.body) if isinstance(f, For))


def legalise(body: tuple[Stmt, ...], simplifier: Simplifier) -> tuple[Stmt, ...]:
    """The statements with every VECTOR loop cut into vectors of at most 16 lanes."""
    out: list[Stmt] = []
    for s in body:
        if not isinstance(s, For):
            out.append(s)
        elif is_tile(s):
            out.extend(_tile(s, simplifier))
        else:
            out.append(For(s.axis, legalise(s.body, simplifier), s.guard))
    return tuple(out)


def _tile(loop: For, simplifier: Simplifier) -> tuple[Stmt, ...]:
    chain = [loop]
    while chain[-1].axis.kind is UNROLL and len(chain[-1].body) == 1 and isinstance(chain[-1].body[0], For):
        chain.append(chain[-1].body[0])
    last = chain[-1]
    if last.axis.kind is not VECTOR:
        below = [s for s in walk_statements(last.body) if isinstance(s, For) and s.axis.kind is VECTOR]
        if not any(_needs_strips(f.axis) for f in below):
            return (For(loop.axis, legalise(loop.body, simplifier), loop.guard),)
        # several statements share the unrolled loop and one wants strips: run it as an ordinary loop
        plain = loop.axis.like(kind=SEQ)
        sub = Substitution({loop.axis: plain})
        moved = tuple(sub.stmt(s) for s in loop.body)
        return (For(plain, legalise(moved, simplifier), None if loop.guard is None else sub(loop.guard)),)
    axis = last.axis
    extent = axis.static_extent
    if extent is not None and extent <= LANES and extent & (extent - 1) == 0:
        return (loop,)
    if extent is not None and extent < LANES:
        return _rebuild(chain, None, Axis(axis.name, LANES, VECTOR), None, True, simplifier)
    if extent is not None and extent % LANES == 0 and extent // LANES <= MAX_TILE_VECTORS:
        unrolled = Axis(f"{axis.name}.u", extent // LANES, UNROLL)
        return _rebuild(chain, unrolled, Axis(f"{axis.name}.l", LANES, VECTOR), unrolled * LANES, False, simplifier)
    whole = simplifier(axis.extent // LANES)
    out: tuple[Stmt, ...] = ()
    if not (isinstance(whole, Const) and whole.value == 0):
        chunk = Axis(f"{axis.name}.c", whole, SEQ)
        strips = _rebuild(chain, None, Axis(f"{axis.name}.l", LANES, VECTOR), chunk * LANES, False, simplifier)
        out += (For(chunk, strips),)
    left = simplifier(axis.extent % LANES)
    if isinstance(left, Const) and left.value == 0:
        return out
    once = Axis(f"{axis.name}.r", 1, SEQ)  # a loop of at most one turn: nothing is evaluated when no element is left
    tail = _rebuild(chain, None, Axis(f"{axis.name}.t", LANES, VECTOR), whole * LANES, True, simplifier)
    return (*out, For(once, tail, None if isinstance(left, Const) else left > 0))


def _needs_strips(axis: Axis) -> bool:
    extent = axis.static_extent
    return extent is None or not (extent <= LANES or (extent % LANES == 0 and extent // LANES <= MAX_TILE_VECTORS))


def _rebuild(
    chain: list[For], unrolled: Axis | None, lane: Axis, base: Expr | None, masked: bool, simplifier: Simplifier
) -> tuple[Stmt, ...]:
    """The nest of ``chain`` with its VECTOR axis replaced by ``base + lane``; masked: lanes past the extent do not exist."""
    axis = chain[-1].axis
    place = lane if base is None else base + lane
    sub = Substitution({axis: place})
    guard = chain[-1].guard
    guards = [] if guard is None else [sub(guard)]
    if masked:
        guards.insert(0, place < axis.extent)
    joined: Expr | None = None
    for g in guards:
        joined = g if joined is None else joined & g
    body: tuple[Stmt, ...] = (For(lane, tuple(sub.stmt(s) for s in chain[-1].body), joined),)
    if unrolled is not None:
        body = (For(unrolled, body),)
    for f in reversed(chain[:-1]):
        body = (For(f.axis, body, f.guard),)
    return simplifier.statements(body)
