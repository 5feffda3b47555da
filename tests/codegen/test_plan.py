"""The arena plan against a simulation: every buffer still holds what was written when it is read, whatever the dims."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from trustformers_ir.codegen.kernel_ir.kernel import Kernel
from trustformers_ir.codegen.plan import Plan, Slot, lifetimes, plan_arena, verify_plan
from trustformers_ir.codegen.program import BufferRef, KernelCall, Program, Storage
from trustformers_ir.ir.diagnostics import InternalError
from trustformers_ir.ir.dims import Facts, SymbolFact, evaluate
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.types import TensorType

KERNEL = Kernel("nothing", (), ())
SHAPES = [("b", "s", 96), ("b", 384), ("s", "s"), (7,), ("b", "s", 1536), (1,), ("b*s", 3)]


def facts() -> Facts:
    out = Facts()
    out.declare("b", SymbolFact(1, 64))
    out.declare("s", SymbolFact(1, 512))
    return out


def arena(key: int, shape: tuple[object, ...] = (4,)) -> BufferRef:
    return BufferRef(Storage.ARENA, key, TensorType(shape, DType.f32))  # type: ignore[arg-type]


def call(*, reads: tuple[BufferRef, ...] = (), writes: tuple[BufferRef, ...] = (), parallel: bool = True) -> KernelCall:
    return KernelCall(KERNEL, (*reads, *writes), (False,) * len(reads) + (True,) * len(writes), "k", parallel=parallel)


def program(*calls: KernelCall) -> Program:
    buffers = {r.key: r for c in calls for r in c.arguments if r.storage is Storage.ARENA}
    return Program("main", (), (), tuple(buffers.values()), calls, ())


def random_program(seed: int) -> Program:
    rng = random.Random(seed)
    made: list[BufferRef] = []
    calls: list[KernelCall] = []
    for _ in range(rng.randint(1, 14)):
        reads = tuple(rng.sample(made[-6:], min(len(made[-6:]), rng.randint(0, 3))))
        new = arena(len(made), rng.choice(SHAPES))
        made.append(new)
        calls.append(call(reads=reads, writes=(new,), parallel=rng.random() < 0.8))
    return program(*calls)


@dataclass
class Overwritten(Exception):
    """The simulation read something else than what was written."""

    key: int


def simulate(p: Program, plan: Plan, dims: dict[str, int]) -> None:
    """Run the calls on an arena whose cells hold the number of the buffer that was written there."""
    cells: dict[int, int] = {}

    def span(ref: BufferRef) -> range:
        start = evaluate(plan.offset(ref), dims)
        return range(start, start + evaluate(ref.type.bytes, dims))

    for c in p.calls:
        for ref, writes in zip(c.arguments, c.writes, strict=True):
            if writes:
                assert span(ref).stop <= evaluate(plan.arena_bytes, dims)
                cells.update((i, int(ref.key)) for i in (span(ref).start, span(ref).stop - 1, *span(ref)[::64]))
        for ref, writes in zip(c.arguments, c.writes, strict=True):
            for i in (span(ref).start, span(ref).stop - 1, *span(ref)[::64]):
                if not writes and cells.get(i) != int(ref.key):
                    raise Overwritten(int(ref.key))


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_keep_their_values(seed: int) -> None:
    p, known = random_program(seed), facts()
    plan = plan_arena(p, known)
    verify_plan(p, plan, known)
    for dims in ({"b": 1, "s": 1}, {"b": 3, "s": 5}, {"b": 2, "s": 17}):
        simulate(p, plan, dims)


@pytest.mark.parametrize("seed", range(60))
def test_a_plan_that_overwrites_is_rejected(seed: int) -> None:
    p, known, rng = random_program(seed), facts(), random.Random(seed)
    plan = plan_arena(p, known)
    if len(p.arena) < 2:
        return
    a, b = rng.sample([int(r.key) for r in p.arena], 2)
    wrong = replace(plan, slot_of={**plan.slot_of, a: plan.slot_of[b]})
    try:
        for dims in ({"b": 1, "s": 1}, {"b": 3, "s": 5}, {"b": 1, "s": 17}):
            simulate(p, wrong, dims)
    except (Overwritten, AssertionError):
        with pytest.raises(InternalError):
            verify_plan(p, wrong, known)


@pytest.mark.parametrize("seed", range(60))
def test_no_barrier_can_be_left_out(seed: int) -> None:
    p, known = random_program(seed), facts()
    plan = plan_arena(p, known)
    for i in plan.barriers:
        with pytest.raises(InternalError, match="P5"):
            verify_plan(p, replace(plan, barriers=plan.barriers - {i}), known)


def chain() -> Program:
    x, y, z = (arena(i, ("b", "s", 16)) for i in range(3))
    return program(call(writes=(x,)), call(reads=(x,), writes=(y,)), call(reads=(y,), writes=(z,)), call(reads=(z,)))


def test_a_chain_needs_two_slots() -> None:
    plan = plan_arena(chain(), facts())
    assert len(plan.slots) == 2
    assert plan.slot_of[0] == plan.slot_of[2]
    assert str(plan.arena_bytes) == "128*b*s"
    assert plan.barriers == {1, 2, 3}


def test_lifetimes_reach_from_first_to_last_use() -> None:
    assert lifetimes(chain()) == {0: (0, 1), 1: (1, 2), 2: (2, 3)}


def test_a_slot_is_as_large_as_the_larger_tenant() -> None:
    x, y, z = arena(0, ("s", 16)), arena(1, ("b", 16)), arena(2, ("b", 16))
    plan = plan_arena(program(call(writes=(x,)), call(reads=(x,), writes=(z,)), call(writes=(y,)), call(reads=(y, z))), facts())
    assert plan.slot_of[0] == plan.slot_of[1]
    assert str(plan.slots[plan.slot_of[0]].size) in ("max(64*b, 64*s)", "max(64*s, 64*b)")


def test_worker_0_does_not_wait_for_itself() -> None:
    x, y = arena(0), arena(1)
    calls = [call(writes=(x,), parallel=False), call(reads=(x,), writes=(y,), parallel=False), call(reads=(y,))]
    assert plan_arena(program(*calls), facts()).barriers == {2}


BROKEN = {
    "P1": (program(call(reads=(arena(0),))), Plan((Slot(0, 64),), {0: 0}, 64, frozenset())),
    "P2": (
        program(call(writes=(arena(0), arena(1))), call(reads=(arena(0), arena(1)))),
        Plan((Slot(0, 64),), {0: 0, 1: 0}, 64, frozenset({1})),
    ),
    "P3": (program(call(writes=(arena(0, (100,)),))), Plan((Slot(0, 64),), {0: 0}, 64, frozenset())),
    "P4": (
        program(call(writes=(arena(0), arena(1)))),
        Plan((Slot(0, 128), Slot(64, 64)), {0: 0, 1: 1}, 128, frozenset()),
    ),
    "P4 alignment": (program(call(writes=(arena(0),))), Plan((Slot(8, 64),), {0: 0}, 128, frozenset())),
    "P4 end": (program(call(writes=(arena(0),))), Plan((Slot(0, 64),), {0: 0}, 32, frozenset())),
    "P5": (program(call(writes=(arena(0),)), call(reads=(arena(0),))), Plan((Slot(0, 64),), {0: 0}, 64, frozenset())),
    "P6": (
        program(call(writes=(BufferRef(Storage.WEIGHT, "w", DType.f32[4]),))),
        Plan((), {}, 0, frozenset()),
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_rejects(rule: str) -> None:
    p, plan = BROKEN[rule]
    with pytest.raises(InternalError, match=rule.split()[0]):
        verify_plan(p, plan, facts())
