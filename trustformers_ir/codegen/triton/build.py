"""A module for a GPU, top to bottom: lower, emit, and what can be looked at on the way.

The module has been through the passes of GPUs (``passes/pipelines.py``). Equal kernels (layers of one model) are emitted and compiled once.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.printer import print_kernel
from trustformers_ir.codegen.kernel_ir.simplify import symbol_facts
from trustformers_ir.codegen.lower.block_choices import misfit
from trustformers_ir.codegen.lower.blocks import BlockMachine
from trustformers_ir.codegen.lower.definer import Sites
from trustformers_ir.codegen.lower.function import lower_function
from trustformers_ir.codegen.lower.schedules import check_table
from trustformers_ir.codegen.program import KernelCall, Program
from trustformers_ir.codegen.triton.aot import Wanted, Workers, attempt_kernels, compile_kernels
from trustformers_ir.codegen.triton.binary import Binary
from trustformers_ir.codegen.triton.emit import Emitted, emit
from trustformers_ir.codegen.triton.module import module_text
from trustformers_ir.codegen.triton.target import GpuTarget, GpuTargetError, parse_gpu
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.schedule_table import TABLE, Choice, Chosen, ScheduleKey, ScheduleTable, TunedEntry


@dataclass(frozen=True)
class GpuCode:
    """A module after lowering. Labels say what a kernel computes."""

    module: Module
    target: GpuTarget
    programs: tuple[Program, ...]

    @functools.cached_property
    def _numbers(self) -> Mapping[Hashable, int]:
        keys = dict.fromkeys(_distinct(c) for p in self.programs for c in p.calls)
        return {key: n for n, key in enumerate(keys)}

    def number(self, call: KernelCall) -> int:
        """Which kernel a call runs, in order of first use."""
        return self._numbers[_distinct(call)]

    @functools.cached_property
    def calls(self) -> Mapping[str, KernelCall]:
        """The first call of each distinct kernel by its name, in order."""
        first: dict[int, KernelCall] = {}
        for c in (c for p in self.programs for c in p.calls):
            first.setdefault(self.number(c), c)
        return {f"kernel_{n}": c for n, c in first.items()}

    @property
    def chosen(self) -> dict[str, Chosen]:
        """What was chosen for each distinct kernel that leaves a choice, by its name."""
        return {name: c.schedule for name, c in self.calls.items() if c.schedule is not None}

    @functools.cached_property
    def emitted(self) -> tuple[Emitted, ...]:
        facts = symbol_facts(self.module.facts)
        return tuple(emit(c.kernel, name, facts) for name, c in self.calls.items())

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """Each distinct kernel as it is to be compiled, in order."""
        return tuple(Wanted(e, c.launch, c.label) for e, c in zip(self.emitted, self.calls.values(), strict=True))

    def text(self, stage: str) -> str:
        """The kernels as kernel IR, as a file of Triton functions, or as the target's assembly. ``USAGE`` for the assembly of another maker,
        ``MISSING_DEPENDENCY`` without Triton."""
        if stage == "kernels":
            return "\n\n".join(f"// {name}: {c.label}\n{print_kernel(c.kernel)}" for name, c in self.calls.items())
        if stage == "triton":
            return module_text(self.emitted, self.target)
        if stage != self.target.assembly:
            message = f"'{self.target.name}' has no {stage}"
            raise CompilerError.of(Code.USAGE, message, help=f"its stages are graph, kernels, triton {self.target.assembly}".rstrip())
        return "\n\n".join(f"// {b.name}: {self.calls[b.name].label}\n{b.assembly.strip()}" for b in self.binaries())

    def binaries(self) -> list[Binary]:
        """The machine code of every kernel. ``MISSING_DEPENDENCY`` without Triton."""
        require_triton()
        return compile_kernels(self.wanted, self.target)


def _distinct(c: KernelCall) -> Hashable:
    """Kernels that are launched in different ways are distinct, and so are those that are chosen by different keys: each is measured by itself."""
    return c.kernel.key(), c.launch, None if c.schedule is None else c.schedule.key


def has_triton() -> bool:
    """Whether machine code can be made here. Texts can be without it."""
    return importlib.util.find_spec("triton") is not None


def require_triton() -> None:
    """``MISSING_DEPENDENCY`` where no machine code can be made."""
    if not has_triton():
        raise CompilerError.of(Code.MISSING_DEPENDENCY, "machine code for GPUs is made by Triton", help="install it: pip install triton")


def find_gpu(name: str) -> GpuTarget:
    """The target of that name; ``UNKNOWN_TARGET``."""
    try:
        return parse_gpu(name)
    except GpuTargetError as error:
        raise CompilerError.of(Code.UNKNOWN_TARGET, str(error), help="`tfc targets` lists what this machine can compile for") from None


def machine_of(target: GpuTarget) -> BlockMachine:
    """What the heuristics know of a target."""
    return BlockMachine(target.kind, target.shared, target.cores, target.warp)


def fitting(module: Module, target: GpuTarget, choices: Mapping[ScheduleKey, Choice], workers: Workers) -> dict[ScheduleKey, Choice]:
    """Those of some choices with which the kernels of a module can be compiled, spill no registers and stay within the shared memory of the chip.
    The module is changed."""
    table = ScheduleTable(target.chip, tuple(TunedEntry(key, choice) for key, choice in choices.items()))
    code = lower(module, target, table=table)
    wanted = [w for w in code.wanted if (chosen := code.chosen.get(w.emitted.name)) is not None and chosen.origin == TABLE]
    good = dict(choices)
    for w, made in zip(wanted, attempt_kernels(wanted, target, workers), strict=True):
        if not isinstance(made, Binary) or made.spilled or made.shared > target.shared:
            good.pop(code.chosen[w.emitted.name].key, None)
    return good


def lower(
    module: Module,
    target: GpuTarget,
    machine: BlockMachine | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    table: ScheduleTable | None = None,
) -> GpuCode:
    """Every function of the module. The module is changed: what is left outside regions is put into some. ``names`` are those of the outputs;
    ``table`` has schedules that were tuned for the chip: ``SCHEDULE_TABLE`` when it cannot follow one."""
    sites, known, shape = Sites(), names or {}, machine or machine_of(target)
    if table is not None:
        check_table(table, functools.partial(misfit, shape))
    choices = {} if table is None else table.choices
    programs = [lower_function(module, f, shape, tuple(known.get(f.name, ())), sites, choices) for f in module.functions.values()]
    return GpuCode(module, target, tuple(programs))
