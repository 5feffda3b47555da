"""A module for a GPU as an artifact has it: machine code of every distinct kernel, and a static plan of each function (``ir/device.py``).

The arena is planned as for CPUs (``codegen/plan.py``). Behind it lies what single launches need besides: memory of the programs, and the bytes that
Triton's own code wants. One launch after the other uses the same place, since they run in order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trustformers_ir.codegen.lower.indexing import expr_dim
from trustformers_ir.codegen.lowered import entry_symbols, schedules, stored_weights, tuned_metadata, weight_makers
from trustformers_ir.codegen.plan import Plan, aligned, plan_arena, verify_plan
from trustformers_ir.codegen.program import BufferRef, KernelCall, Program, Storage
from trustformers_ir.codegen.triton.aot import Workers, compile_kernels
from trustformers_ir.codegen.triton.binary import Binary
from trustformers_ir.codegen.triton.build import GpuCode, lower, require_triton
from trustformers_ir.codegen.triton.emit import Emitted
from trustformers_ir.codegen.triton.module import module_text
from trustformers_ir.codegen.triton.target import GpuTarget
from trustformers_ir.ir.abi import Entry, KernelInfo, Manifest, StoredWeight, TargetInfo
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.device import (
    ARENA,
    NARROW_LIMIT,
    Condition,
    DeviceBuffer,
    DeviceCode,
    DeviceFunction,
    DeviceKernel,
    DeviceLaunch,
    DeviceModule,
    Memory,
)
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError
from trustformers_ir.ir.dims import Dim, Facts, maximum, symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.schedule_table import HELP, TABLE, ScheduleTable
from trustformers_ir.ir.text import print_module
from trustformers_ir.ir.version import VERSION


@dataclass(frozen=True)
class DeviceBuild:
    """What a build gives: the manifest, the plan and the code of each kernel by its name, narrow first; the graph and the weights when they are
    asked for; which kernel got which schedule, and from where."""

    manifest: Manifest
    device: DeviceModule
    codes: Mapping[str, tuple[bytes, ...]]
    print_graph: Callable[[], str]
    weights: Mapping[str, Callable[[], np.ndarray]]
    digest: Callable[[str], str]
    schedules: Mapping[str, object]


def target_info(target: GpuTarget) -> TargetInfo:
    """What an artifact says of the target of its code."""
    return TargetInfo(target.name, target.triple, str(target.name.partition(":")[2]), ())


def build(
    module: Module,
    target: GpuTarget,
    names: Mapping[str, Sequence[str]] | None = None,
    metadata: Mapping[str, str] | None = None,
    placed: Sequence[StoredWeight] = (),
    table: ScheduleTable | None = None,
    workers: Workers | None = None,
) -> DeviceBuild:
    """Compile a module that has been through the passes of GPUs. The module is changed: what is left outside regions is put into some.

    ``names`` gives the names of each function's outputs, ``metadata`` is added to the module's, ``placed`` are the weights that code for other
    targets, of the same artifact, reads. ``table`` has schedules that were tuned for the chip, ``workers`` are processes of Triton that stay.
    ``MISSING_DEPENDENCY`` without Triton, ``TOO_LARGE`` for what no index reaches, ``SCHEDULE_TABLE`` for schedules that the chip cannot follow.
    """
    if target.executable:
        require_triton()
    note("lower")
    code = lower(module, target, names=names, table=table)
    planner = _Planner(code, stored_weights(module, code.programs, placed))
    note("compile")
    narrow, wide = planner.binaries(workers) if target.executable else ({}, {})
    device = planner.device(narrow, wide)
    codes = {k.name: tuple(b[k.name].code for b in (narrow, wide) if k.name in b) for k in device.kernels}
    entries = [
        Entry(p.name, symbol, p.inputs, p.outputs, f.arena_bytes, 0, planner.infos(p), 0, p.states)
        for p, symbol, f in zip(code.programs, entry_symbols(code.programs), device.functions, strict=True)
    ]
    manifest = Manifest(
        name=module.name,
        target=target_info(target),
        symbols=tuple((s, module.facts.symbols[s]) for s in sorted(module.facts.symbols)),
        entries=tuple(entries),
        weights=planner.weights,
        sites=code.programs[-1].sites if code.programs else (),
        compiler=VERSION,
        metadata={**module.metadata, **tuned_metadata(target.chip, code.programs), **(metadata or {})},
    )
    makers = weight_makers(module, planner.weights)

    def digest(name: str) -> str:
        return module.weights[name].digest

    return DeviceBuild(manifest, device, codes, functools.partial(print_module, module), makers, digest, schedules(code.chosen, table))


class _Planner:
    """Plans the functions of lowered code."""

    def __init__(self, code: GpuCode, weights: tuple[StoredWeight, ...]) -> None:
        self.code = code
        self.weights = weights
        self.facts: Facts = code.module.facts
        self.number = {w.name: n for n, w in enumerate(weights)}
        self.calls = list({self.alike(c): c for p in code.programs for c in p.calls}.values())
        for c in self.calls:
            self.check_reach(c)

    def emitted(self, c: KernelCall) -> Emitted:
        return self.code.emitted[self.code.number(c)]

    # -- indices of 32 and of 64 bits --------------------------------------------------------------------------------

    def is_narrow(self, c: KernelCall) -> bool:
        """Whether 32 bits are enough for every index of a call, whatever the dims with which it is made."""
        e = self.emitted(c)
        programs = expr_dim(e.programs)
        counts: list[tuple[Dim, int]] = [(symbol(s), 1) for s in e.kernel.symbols]
        counts += [(r.type.bytes, r.type.dtype.itemsize) for r in c.arguments]
        counts += [(expr_dim(size) * programs * b.dtype.itemsize, b.dtype.itemsize) for b, size in e.memory]
        return all(self.is_within(c.when, size, (NARROW_LIMIT - 1) * unit) for size, unit in counts)

    def is_within(self, when: Condition | None, count: Dim, limit: int) -> bool:
        """Whether a number is at most ``limit`` where the condition holds."""
        if self.facts.is_less_equal(count, limit):
            return True
        return when is not None and when.most is not None and self.facts.is_less_equal(count, when.size * (limit // when.most))

    def check_reach(self, c: KernelCall) -> None:
        """``TOO_LARGE`` where the static part of a buffer is too long even for the wide code: loops of constant length count in 32 bits."""
        for r in c.arguments:
            part: Dim = 1
            for size in r.type.shape[1:]:
                part = part * size if isinstance(size, int) else part
            if isinstance(part, int) and part >= NARROW_LIMIT:
                message = f"{c.label}: a row of {r.type} has {part} elements, more than {NARROW_LIMIT}"
                raise CompilerError.of(Code.TOO_LARGE, message, help="split the tensor")

    def binaries(self, workers: Workers | None) -> tuple[dict[str, Binary], dict[str, Binary]]:
        """Machine code by the name of the kernel: for indices of 32 bits, and of 64 where those may not be enough."""
        code, count = self.code, len(self.code.emitted)
        long = sorted({code.number(c) for c in self.calls if not self.is_narrow(c)})
        made = compile_kernels([*code.wanted, *(replace(code.wanted[n], wide=True) for n in long)], code.target, workers)
        check_shared(code, made)
        return {b.name: b for b in made[:count]}, {b.name: b for b in made[count:]}

    # -- the plan ----------------------------------------------------------------------------------------------------

    def device(self, narrow: Mapping[str, Binary], wide: Mapping[str, Binary]) -> DeviceModule:
        """Kernels and functions as plain data."""
        kernels = [
            DeviceKernel(
                e.name,
                narrow[e.name].symbol if e.name in narrow else e.name,
                tuple(b.dtype.name for b in e.kernel.params),
                tuple(Memory(b.dtype.name, expr_dim(size)) for b, size in e.memory),
                e.kernel.symbols,
                int(e.checks),
                _code(narrow.get(e.name), 32),
                _code(wide.get(e.name), 64),
            )
            for e in self.code.emitted
        ]
        return DeviceModule(tuple(kernels), tuple(self.function(p, kernels) for p in self.code.programs), module_text(self.code.emitted))

    def function(self, program: Program, kernels: Sequence[DeviceKernel]) -> DeviceFunction:
        plan = plan_arena(program, self.facts)
        verify_plan(program, plan, self.facts)
        base = aligned(plan.arena_bytes, self.facts)
        made = [self.launch(c, plan, base, kernels[self.code.number(c)]) for c in program.calls]
        return DeviceFunction(program.name, base + self.largest([extra for _, extra in made]), tuple(launch for launch, _ in made))

    def largest(self, sizes: Sequence[Dim]) -> Dim:
        """The maximum of some sizes. Layers repeat them, and what another one covers is left out: proofs about maxima of many would take for ever."""
        kept: list[Dim] = []
        for size in dict.fromkeys(sizes):
            if not any(self.facts.is_less_equal(size, other) for other in kept):
                kept = [other for other in kept if not self.facts.is_less_equal(other, size)] + [size]
        total: Dim = 0
        for size in kept:
            total = maximum(total, size) if total != 0 else size
        return total

    def launch(self, c: KernelCall, plan: Plan, base: Dim, kernel: DeviceKernel) -> tuple[DeviceLaunch, Dim]:
        """A call, and the bytes that it uses behind the planned arena, which ends at ``base``."""
        programs = expr_dim(self.emitted(c).programs)
        extra: Dim = 0
        memory: list[Dim] = []
        for m in kernel.memory:
            memory.append(base + extra)
            extra = extra + aligned(m.elements * programs * DType[m.dtype].itemsize, self.facts)
        work = base + extra
        needs = [b.work for b in (kernel.narrow, kernel.wide) if b is not None]
        if any(needs):
            extra = extra + aligned(programs * max(needs), self.facts)
        buffers = tuple(self.buffer(r, plan) for r in c.arguments)
        conditions = () if c.when is None else (c.when,)
        return DeviceLaunch(self.code.number(c), programs, buffers, tuple(memory), work if any(needs) else 0, conditions), extra

    def buffer(self, r: BufferRef, plan: Plan) -> DeviceBuffer:
        if r.storage is Storage.ARENA:
            return DeviceBuffer(ARENA, 0, plan.offset(r), r.type.bytes)
        number = self.number[str(r.key)] if r.storage is Storage.WEIGHT else int(r.key)
        return DeviceBuffer(r.storage.value, number, 0, r.type.bytes)

    def infos(self, program: Program) -> tuple[KernelInfo, ...]:
        """What reports say of the calls."""
        known: dict[Hashable, Dim] = {}
        for c in program.calls:
            if self.alike(c) not in known:
                known[self.alike(c)] = c.bytes
        return tuple(KernelInfo(self.emitted(c).name, c.label, c.location, c.flops, known[self.alike(c)]) for c in program.calls)

    def alike(self, c: KernelCall) -> Hashable:
        """Equal for calls of different layers that differ in places alone."""
        return self.code.number(c), tuple(r.type for r in c.arguments), c.when


def check_shared(code: GpuCode, binaries: Iterable[Binary]) -> None:
    """``SCHEDULE_TABLE`` with the schedules of a table whose kernels want more shared memory than the chip has."""
    with Collector() as problems:
        for b in binaries:
            chosen = code.chosen.get(b.name)
            if b.shared > code.target.shared and chosen is not None and chosen.origin == TABLE:
                message = f"{chosen.key}: {chosen.choice} takes {b.shared} bytes of shared memory, and a program has {code.target.shared}"
                problems.add(Code.SCHEDULE_TABLE, message, help=HELP)


def _code(b: Binary | None, bits: int) -> DeviceCode | None:
    if b is None:
        return None
    return DeviceCode(0, 0, bits, b.warps, b.shared, b.registers, b.spilled, b.reserved, b.work, b.work_alignment)

