"""The build of a module for a CPU, top to bottom: lower, plan, verify the plan, emit, compile.

The module has been through the passes of the target (``passes/pipelines.py``). Equal kernels (layers of one model) are emitted and compiled
once. The result is plain data of ``ir/abi.py``; weights stay where they are until the runtime or the artifact writer asks for them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from trustformers_ir.codegen.kernel_ir.kernel import Kernel
from trustformers_ir.codegen.kernel_ir.simplify import symbol_facts
from trustformers_ir.codegen.llvm import pool
from trustformers_ir.codegen.llvm.compile import compile_object
from trustformers_ir.codegen.llvm.emit import EmittedFunction, emit_kernel, module_text
from trustformers_ir.codegen.llvm.entry import STAMP, STAMP_DECLARATION, emit_entry
from trustformers_ir.codegen.llvm.target import Target, TargetError, parse
from trustformers_ir.codegen.lower.definer import Sites
from trustformers_ir.codegen.lower.function import lower_function
from trustformers_ir.codegen.lower.indexing import expr_dim
from trustformers_ir.codegen.lower.schedules import MachineShape, check_table, misfit
from trustformers_ir.codegen.lowered import entry_symbols, schedules, stored_weights, tuned_metadata, weight_makers
from trustformers_ir.codegen.plan import Plan, aligned, plan_arena, verify_plan
from trustformers_ir.codegen.program import Program
from trustformers_ir.ir.abi import COMPUTED_KEY, CompiledModule, Entry, KernelInfo, Manifest, StoredWeight, TargetInfo
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import Dim, maximum
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.schedule_table import ScheduleTable
from trustformers_ir.ir.text import print_module
from trustformers_ir.ir.version import VERSION


@dataclass(frozen=True)
class Lowered:
    """A module after lowering and planning: what is left to do is text and machine code."""

    module: Module
    target: Target
    programs: tuple[Program, ...]
    plans: tuple[Plan, ...]
    sites: Sites
    placed: tuple[StoredWeight, ...] = ()  # weights that have their place already, for the code of other targets

    @functools.cached_property
    def symbols(self) -> tuple[str, ...]:
        """The dim symbols in the order of the ABI's ``dims``."""
        return tuple(sorted(self.module.facts.symbols))

    @functools.cached_property
    def weights(self) -> tuple[StoredWeight, ...]:
        """Weights that some kernel reads, at their places."""
        return stored_weights(self.module, self.programs, self.placed)

    @functools.cached_property
    def kernels(self) -> Mapping[str, Kernel]:
        """Distinct kernels by the name of their function, in order of first use."""
        return {self.kernel_name(c.kernel): c.kernel for p in self.programs for c in p.calls}

    @functools.cached_property
    def _numbers(self) -> Mapping[str, int]:
        keys = dict.fromkeys(c.kernel.key() for p in self.programs for c in p.calls)
        return {key: i for i, key in enumerate(keys)}

    def kernel_name(self, kernel: Kernel) -> str:
        """The symbol of a kernel: equal kernels have one."""
        return f"tfir_kernel_{self._numbers[kernel.key()]}"

    @functools.cached_property
    def entry_symbols(self) -> tuple[str, ...]:
        """The symbol of each function."""
        return entry_symbols(self.programs)


def find_target(name: str) -> Target:
    """The target of that name; ``CompilerError`` for an unknown one."""
    try:
        return parse(name)
    except TargetError as error:
        raise CompilerError.of(Code.UNKNOWN_TARGET, str(error), help="`tfc targets` lists what this machine can compile for") from None


def target_info(target: Target) -> TargetInfo:
    """What an artifact says of the target of its code."""
    return TargetInfo(target.name, target.triple, target.cpu, target.features)


def machine_shape(target: Target) -> MachineShape:
    """What the scheduling heuristics know of a target."""
    return MachineShape(target.registers)


def find_targets(names: str) -> list[Target]:
    """The targets of a text such as ``cpu:avx2,cpu:avx512``, best first: whatever has more features is better. ``CompilerError`` for an unknown
    one, and for two that are the same machine."""
    targets = [find_target(name.strip()) for name in names.split(",")]
    for n, target in enumerate(targets):
        twin = next((t for t in targets[:n] if (t.triple, t.features) == (target.triple, target.features)), None)
        if twin is not None:
            message = f"the targets '{twin.name}' and '{target.name}' are the same machine"
            raise CompilerError.of(Code.USAGE, message, help="give each machine once")
    return sorted(targets, key=lambda t: (-len(t.features), t.name))


def common_panel(targets: Sequence[Target]) -> int | None:
    """The width of weight panels that the code of all targets reads: a wider micro-kernel reads several panels side by side. None when there is
    none, so that each target needs weights of its own."""
    widths = [machine_shape(t).panel for t in targets]
    return min(widths) if all(w % min(widths) == 0 for w in widths) else None


def lower(
    module: Module,
    target: Target,
    names: Mapping[str, Sequence[str]] | None = None,
    placed: Sequence[StoredWeight] = (),
    table: ScheduleTable | None = None,
) -> Lowered:
    """Every function of the module as a planned program. ``names`` gives the names of each function's outputs, ``placed`` the weights that
    have their place already. ``SCHEDULE_TABLE`` when the target cannot follow an entry of ``table``."""
    sites, shape = Sites(), machine_shape(target)
    if table is not None:
        check_table(table, functools.partial(misfit, shape))
    choices = {} if table is None else table.choices
    programs: list[Program] = []
    plans: list[Plan] = []
    for function in module.functions.values():
        program = lower_function(module, function, shape, tuple((names or {}).get(function.name, ())), sites, choices)
        plan = plan_arena(program, module.facts)
        verify_plan(program, plan, module.facts)
        programs.append(program)
        plans.append(plan)
    return Lowered(module, target, tuple(programs), tuple(plans), sites, tuple(placed))


def llvm_text(lowered: Lowered) -> str:
    """The LLVM text of everything: kernels, entries and the worker pool."""
    kernels: list[EmittedFunction] = []
    facts = symbol_facts(lowered.module.facts)
    for i, (name, kernel) in enumerate(lowered.kernels.items()):
        note("emit", i, len(lowered.kernels))
        kernels.append(emit_kernel(kernel, lowered.symbols, name, facts, lowered.target.features))
    offsets = {w.name: w.offset for w in lowered.weights}
    entries = [
        emit_entry(symbol, p, plan, [lowered.kernel_name(c.kernel) for c in p.calls], offsets, lowered.symbols, lowered.module.facts)
        for symbol, p, plan in zip(lowered.entry_symbols, lowered.programs, lowered.plans, strict=True)
    ]
    declarations = (*pool.pool_declarations(lowered.target), STAMP_DECLARATION)
    return module_text(kernels, "\n\n".join([STAMP, *entries, pool.pool_text(lowered.target)]), declarations)


def build(
    module: Module,
    target: Target,
    names: Mapping[str, Sequence[str]] | None = None,
    metadata: Mapping[str, str] | None = None,
    meanwhile: Callable[[Sequence[StoredWeight], Mapping[str, Callable[[], np.ndarray]]], None] | None = None,
    placed: Sequence[StoredWeight] = (),
    table: ScheduleTable | None = None,
) -> CompiledModule:
    """Compile a module that has been through the target's passes. The module is changed: what is left outside regions is put into some.

    ``names`` gives the names of each function's outputs; ``metadata`` is added to the module's in the manifest. ``meanwhile`` is called with the
    weights, and what makes them, while another thread makes the machine code: LLVM works without the interpreter's lock. ``placed`` are the
    weights that code for other targets, of the same artifact, reads. ``table`` has schedules that were tuned for the target. The report says which
    kernel got which schedule, and from where.
    """
    note("lower")
    lowered = lower(module, target, names, placed, table)
    text = llvm_text(lowered)
    weights = weight_makers(module, lowered.weights)
    note("compile")
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(compile_object, text, target)
        about = manifest(lowered)
        if meanwhile is not None:
            meanwhile(lowered.weights, weights)
    about = replace(about, metadata={**about.metadata, **(metadata or {})})
    printer = functools.partial(print_module, module)
    chosen = {lowered.kernel_name(c.kernel): c.schedule for p in lowered.programs for c in p.calls if c.schedule is not None}
    report = {"schedules": schedules(chosen, table)}
    return CompiledModule(about, code.result(), printer, weights, lambda name: module.weights[name].digest, report)


def manifest(lowered: Lowered) -> Manifest:
    """What the artifact says about itself."""
    facts = lowered.module.facts
    target = lowered.target
    entries = []
    for symbol, program, plan in zip(lowered.entry_symbols, lowered.programs, lowered.plans, strict=True):
        needs = dict.fromkeys(aligned(expr_dim(c.kernel.scratch_bytes), facts) for c in program.calls)  # few, however many the calls
        scratch: Dim = 0
        for need in needs:
            scratch = need if facts.is_less_equal(scratch, need) else maximum(scratch, need)
        kernels = tuple(KernelInfo(lowered.kernel_name(c.kernel), c.label, c.location, c.flops, c.bytes) for c in program.calls)
        ports, meetings = (program.inputs, program.outputs), len(plan.barriers)
        entries.append(Entry(program.name, symbol, *ports, plan.arena_bytes, scratch, kernels, meetings, program.states))
    return Manifest(
        name=lowered.module.name,
        target=target_info(target),
        symbols=tuple((s, facts.symbols[s]) for s in lowered.symbols),
        entries=tuple(entries),
        weights=lowered.weights,
        sites=tuple(lowered.sites.rows),
        compiler=VERSION,
        metadata={**lowered.module.metadata, **tuned_metadata(lowered.target.kind, lowered.programs), **_computed(lowered.programs)},
    )


def _computed(programs: Sequence[Program]) -> dict[str, str]:
    """The symbols whose values the code computes, with what they are at most."""
    found = {name: str(bound) for p in programs for name, bound in p.computed.items()}
    return {COMPUTED_KEY: json.dumps(found, sort_keys=True)} if found else {}
