"""The arena plan: which intermediate lies where, and before which kernel the workers must meet.

Every arena buffer lives from the call that first writes it to the last call that touches it. Buffers whose lives do not overlap may share a
*slot*. Sizes are expressions of the dims, so a slot's size is the maximum of its tenants' sizes and the offsets are prefix sums: one plan
serves all shapes, and the entry function evaluates the offsets when it is called.

The greedy choice (after Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020: largest first is optimal
only for static sizes) takes calls in order and gives a new buffer the free slot that wastes least: one that is provably large enough, else
one that must grow least at a typical binding of the dims, else a new one.

:func:`verify_plan` trusts none of this and proves the numbered rules again from the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trustformers_ir.codegen.program import BufferRef, KernelCall, Program, Storage
from trustformers_ir.ir.abi import ALIGNMENT
from trustformers_ir.ir.diagnostics import Code, Diagnostic, InternalError
from trustformers_ir.ir.dims import Dim, Facts, evaluate, floordiv, maximum
from trustformers_ir.ir.ops.nonzero import most

RULES = {
    "P1": "an arena buffer is written before it is read",
    "P2": "two buffers that are alive during the same call do not share a slot",
    "P3": "a slot is at least as large as each of its tenants",
    "P4": "slots are aligned, do not overlap and lie inside the arena",
    "P5": "between two conflicting accesses of different workers lies a barrier",
    "P6": "only outputs, arena buffers, states and computed dims are written",
}
TYPICAL_DIM = 64  # stands for a symbol without an upper bound when sizes are compared
Place = tuple[Storage, int | str]


@dataclass(frozen=True)
class Slot:
    """A range of the arena, in bytes."""

    offset: Dim
    size: Dim


@dataclass(frozen=True)
class Plan:
    """``slot_of[key]`` is the slot of the arena buffer ``key``; the workers meet before each call in ``barriers``."""

    slots: tuple[Slot, ...]
    slot_of: Mapping[int, int]
    arena_bytes: Dim
    barriers: frozenset[int]

    def offset(self, ref: BufferRef) -> Dim:
        """Where an arena buffer starts."""
        return self.slots[self.slot_of[int(ref.key)]].offset


def aligned(size: Dim, facts: Facts) -> Dim:
    """``size`` rounded up to the alignment of buffers."""
    return size if facts.divisible(size, ALIGNMENT) else floordiv(size + (ALIGNMENT - 1), ALIGNMENT) * ALIGNMENT


def plan_arena(program: Program, facts: Facts) -> Plan:
    """Slots for every arena buffer and the calls before which the workers meet."""
    sizes = {int(b.key): aligned(most(b.type.bytes, program.computed), facts) for b in program.arena}
    lives = lifetimes(program)
    typical = {name: _typical(fact.low, fact.high, fact.divisor) for name, fact in facts.symbols.items()}
    slot_sizes: list[Dim] = []
    free_from: list[int] = []  # the first call at which the slot has no tenant
    slot_of: dict[int, int] = {}
    for key in sorted(lives, key=lambda k: lives[k]):
        first, last = lives[key]
        free = [s for s, at in enumerate(free_from) if at <= first]
        slot = _choose(sizes[key], [(s, slot_sizes[s]) for s in free], facts, typical)
        if slot is None:
            slot = len(slot_sizes)
            slot_sizes.append(sizes[key])
            free_from.append(0)
        elif not facts.is_less_equal(sizes[key], slot_sizes[slot]):
            bigger = facts.is_less_equal(slot_sizes[slot], sizes[key])
            slot_sizes[slot] = sizes[key] if bigger else maximum(slot_sizes[slot], sizes[key])
        slot_of[key] = slot
        free_from[slot] = last + 1
    offset: Dim = 0
    slots: list[Slot] = []
    for size in slot_sizes:
        slots.append(Slot(offset, size))
        offset = offset + size
    return Plan(tuple(slots), slot_of, offset, _barriers(program, slot_of))


def lifetimes(program: Program) -> dict[int, tuple[int, int]]:
    """First and last call that touches each arena buffer."""
    lives: dict[int, tuple[int, int]] = {}
    for i, call in enumerate(program.calls):
        for ref in call.arguments:
            if ref.storage is Storage.ARENA:
                key = int(ref.key)
                lives[key] = (lives[key][0] if key in lives else i, i)
    return lives


def _typical(low: int, high: int | None, divisor: int) -> int:
    value = max(low, min(TYPICAL_DIM, high if high is not None else TYPICAL_DIM))
    return max(low, value - value % divisor)


def _choose(size: Dim, free: list[tuple[int, Dim]], facts: Facts, typical: Mapping[str, int]) -> int | None:
    """The free slot to put a buffer of ``size`` in; None for a new one."""
    wanted = evaluate(size, typical)

    def cost(entry: tuple[int, Dim]) -> tuple[int, int, int]:
        slot, held = entry
        fits = facts.is_less_equal(size, held)
        return (0 if fits else 1, abs(evaluate(held, typical) - wanted), slot)

    return min(free, key=cost)[0] if free else None


@dataclass
class _Access:
    """Who touched a place since the last barrier: every worker, or worker 0 alone."""

    read_by_all: bool = False
    read_by_first: bool = False
    written_by_all: bool = False
    written_by_first: bool = False

    def conflicts(self, writes: bool, parallel: bool) -> bool:
        """Whether an access by every worker (``parallel``) or by worker 0 must wait for these."""
        if self.written_by_all or (self.written_by_first and parallel):
            return True
        return writes and (self.read_by_all or (self.read_by_first and parallel))

    def add(self, writes: bool, parallel: bool) -> None:
        if writes:
            self.written_by_all |= parallel
            self.written_by_first |= not parallel
        else:
            self.read_by_all |= parallel
            self.read_by_first |= not parallel


def _places(call: KernelCall, slot_of: Mapping[int, int], computed: Mapping[str, Dim]) -> list[tuple[Place, bool]]:
    """Each argument's memory (arena buffers by their slot), and each computed symbol that it reads; and whether the call writes it."""
    out: list[tuple[Place, bool]] = [((Storage.DIM, s), False) for s in call.kernel.symbols if s in computed] if computed else []
    for ref, writes in zip(call.arguments, call.writes, strict=True):
        key = slot_of[int(ref.key)] if ref.storage is Storage.ARENA else ref.key
        out.append(((ref.storage, key), writes))
    return out


def _barriers(program: Program, slot_of: Mapping[int, int]) -> frozenset[int]:
    since: dict[Place, _Access] = {}
    out: set[int] = set()
    for i, call in enumerate(program.calls):
        touched = _places(call, slot_of, program.computed)
        if any(place in since and since[place].conflicts(writes, call.parallel) for place, writes in touched):
            out.add(i)
            since.clear()
        for place, writes in touched:
            since.setdefault(place, _Access()).add(writes, call.parallel)
    return frozenset(out)


def verify_plan(program: Program, plan: Plan, facts: Facts) -> None:
    """Prove the rules P1 to P6 for every admissible value of the dims. ``InternalError`` names the rule that does not hold."""
    _verify_order(program)
    _verify_sharing(program, plan)
    _verify_sizes(program, plan, facts)
    _verify_barriers(program, plan)


def _fail(rule: str, detail: str) -> None:
    raise InternalError(Diagnostic(Code.PLAN_OVERLAP, f"the arena plan breaks {rule} ({RULES[rule]}): {detail}"))


def _verify_order(program: Program) -> None:
    written: set[int | str] = set()
    first_state = len(program.inputs) - program.states
    for i, call in enumerate(program.calls):
        for ref, writes in zip(call.arguments, call.writes, strict=True):
            state = ref.storage is Storage.INPUT and int(ref.key) >= first_state
            if writes and ref.storage not in (Storage.ARENA, Storage.OUTPUT, Storage.DIM) and not state:
                _fail("P6", f"call {i} ({call.label}) writes {ref.storage.value} {ref.key}")
            if not writes and ref.storage is Storage.ARENA and ref.key not in written:
                _fail("P1", f"call {i} ({call.label}) reads arena buffer {ref.key}")
        written.update(r.key for r, w in zip(call.arguments, call.writes, strict=True) if w and r.storage is Storage.ARENA)


def _verify_sharing(program: Program, plan: Plan) -> None:
    last_use: dict[int, int] = {}
    for i, call in enumerate(program.calls):
        last_use.update({int(r.key): i for r in call.arguments if r.storage is Storage.ARENA})
    tenant: dict[int, int] = {}
    for i, call in enumerate(program.calls):
        for ref in call.arguments:
            if ref.storage is not Storage.ARENA:
                continue
            key = int(ref.key)
            slot = plan.slot_of[key]
            other = tenant.get(slot)
            if other is not None and other != key and last_use[other] >= i:
                _fail("P2", f"buffers {other} and {key} are both alive in call {i} ({call.label}) and lie in slot {slot}")
            tenant[slot] = key


def _verify_sizes(program: Program, plan: Plan, facts: Facts) -> None:
    seen = [r for c in program.calls for r in c.arguments if r.storage is Storage.ARENA]  # also other views of a buffer
    for ref in dict.fromkeys([*(b for b in program.arena if int(b.key) in plan.slot_of), *seen]):
        slot = plan.slots[plan.slot_of[int(ref.key)]]
        if not facts.is_less_equal(most(ref.type.bytes, program.computed), slot.size):
            _fail("P3", f"buffer {ref.key} is seen as {ref.type}, its slot has {slot.size} bytes")
    end: Dim = 0
    for i, slot in enumerate(plan.slots):
        if not facts.is_less_equal(end, slot.offset) or not _is_aligned(slot.offset, facts):
            _fail("P4", f"slot {i} starts at {slot.offset}, the one before ends at {end}")
        end = slot.offset + slot.size
    if not facts.is_less_equal(end, plan.arena_bytes):
        _fail("P4", f"the last slot ends at {end}, the arena at {plan.arena_bytes}")


def _is_aligned(dim: Dim, facts: Facts) -> bool:
    """Sums and maxima of multiples of the alignment are multiples of it."""
    if facts.divisible(dim, ALIGNMENT):
        return True
    if isinstance(dim, int):
        return False
    for monomial, coefficient in dim.terms:
        if facts.divisible(type(dim)(((monomial, coefficient),)), ALIGNMENT):
            continue
        (atom, power), *others = monomial or ((None, 0),)
        if others or atom is None or power != 1 or atom.kind not in ("max", "min") or not all(_is_aligned(a, facts) for a in atom.args):
            return False
    return True


def _verify_barriers(program: Program, plan: Plan) -> None:
    """Every pair of conflicting calls has a barrier after the first and not after the second."""
    seen: list[tuple[int, list[tuple[Place, bool]]]] = []
    for i, call in enumerate(program.calls):
        if i in plan.barriers:
            seen.clear()
        touched = _places(call, plan.slot_of, program.computed)
        for j, others in seen:
            if not call.parallel and not program.calls[j].parallel:
                continue
            for place, writes in touched:
                for other, wrote in others:
                    if place == other and (writes or wrote):
                        _fail("P5", f"call {i} ({call.label}) and call {j} ({program.calls[j].label}) meet in {place}")
        seen.append((i, touched))
