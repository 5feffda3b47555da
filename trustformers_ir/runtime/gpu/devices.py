"""Which GPU executes code for a target: the one of this machine, by its maker's driver, or Triton's interpreter.

``TFIR_GPU=interpreter`` has all code for GPUs interpreted, whatever there is.
"""

from __future__ import annotations

import functools
import importlib.util
import re

from trustformers_ir.ir import env
from trustformers_ir.ir.abi import TargetInfo
from trustformers_ir.ir.device import CUDA_TRIPLE, INTERPRETER_TRIPLE, ROCM_TRIPLE
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.runtime.gpu.driver import Driver
from trustformers_ir.runtime.gpu.interpreter import Interpreter, check_triton
from trustformers_ir.runtime.gpu.tables import CUDA, HIP
from trustformers_ir.runtime.gpu.vendor import NoDevice, VendorDriver

_TABLES = {CUDA_TRIPLE: CUDA, ROCM_TRIPLE: HIP}
KINDS = {"cuda": CUDA_TRIPLE, "rocm": ROCM_TRIPLE}
STAND_IN = {"cuda": "cuda:sm_90", "rocm": "rocm:gfx942"}  # what "the GPU of this machine" is while the interpreter stands in for it


@functools.cache
def _interpreter() -> Interpreter:
    return Interpreter()


@functools.cache
def _vendor(triple: str) -> VendorDriver | NoDevice:
    """The GPU of that maker; why there is none."""
    try:
        return VendorDriver(_TABLES[triple])
    except NoDevice as error:
        return error


def interpreted(target: TargetInfo) -> bool:
    """Whether code for a target goes through the interpreter."""
    return target.triple == INTERPRETER_TRIPLE or env.GPU.get() is not None


def open_driver(target: TargetInfo, where: Where | None = None) -> Driver:
    """The driver that runs code of a target. ``ARTIFACT_TARGET`` where there is none."""
    if interpreted(target):
        check_triton()
        return _interpreter()
    found = problem(target, where)
    if found is not None:
        raise found
    driver = _vendor(target.triple)
    assert not isinstance(driver, NoDevice)
    return driver


def problem(target: TargetInfo, where: Where | None = None) -> CompilerError | None:
    """Why this machine cannot run code of a target for GPUs; None when it can."""
    if interpreted(target):
        try:
            check_triton()
        except CompilerError as error:
            return error
        return None
    driver = _vendor(target.triple)
    help = "run it on a machine with that GPU; TFIR_GPU=interpreter runs it without, slowly"
    if isinstance(driver, NoDevice):
        return CompilerError.of(Code.ARTIFACT_TARGET, f"the code is for {target.name}; {driver}", where, help)
    if not runs(driver.chip, target.name):
        message = f"the code is for {target.name}; the GPU of this machine is {driver.chip} ({driver.title})"
        return CompilerError.of(Code.ARTIFACT_TARGET, message, where, f"compile the model for it: --target {driver.chip}")
    return None


def check_measurable(target: TargetInfo) -> None:
    """``ARTIFACT_TARGET`` where there is no GPU for code of a target, ``TARGET_UNAVAILABLE`` where an interpreter stands in for it."""
    if interpreted(target):
        message = f"what is fast on '{target.name}' is found by measuring on that GPU, and here its code is interpreted"
        raise CompilerError.of(Code.TARGET_UNAVAILABLE, message, help="tune on a machine that has one; tables can be copied to others")
    found = problem(target)
    if found is not None:
        raise found


def runs(chip: str, target: str) -> bool:
    """Whether a GPU runs code of a target: that of its own kind, and, before sm_90, whose code is of one kind alone, that of an older chip of
    the same generation (CUDA C++ Programming Guide, section on binary compatibility)."""
    if chip == target:
        return True
    have, want = (re.fullmatch(r"cuda:sm_(\d+)(\d)", name) for name in (chip, target))
    if have is None or want is None:
        return False
    return have[1] == want[1] and int(have[1]) < 9 and int(have[2]) >= int(want[2])


def resolved(names: str) -> str:
    """The text of a request's targets with the GPUs of this machine by their names. ``TARGET_UNAVAILABLE``."""
    given = [name.strip() for name in names.split(",")]
    return ",".join(this_gpu(name) if name in KINDS else name for name in given) if any(name in KINDS for name in given) else names


def this_gpu(kind: str) -> str:
    """The name of the target that the GPU of this machine is, ``kind`` of them: ``cuda``, ``rocm``. ``TARGET_UNAVAILABLE``."""
    if env.GPU.get() is not None:
        return STAND_IN[kind]
    driver = _vendor(KINDS[kind])
    if isinstance(driver, NoDevice):
        names = "cuda:sm_80, cuda:sm_90" if kind == "cuda" else "rocm:gfx90a, rocm:gfx942"
        help = f"code for others can be made anywhere: {names}; `tfc targets` lists them"
        raise CompilerError.of(Code.TARGET_UNAVAILABLE, f"the target '{kind}' is the GPU of this machine, and {driver}", help=help)
    return driver.chip


def told(name: str) -> tuple[bool, str]:
    """Whether code for the GPU target of that name is executed here, and by what, or why not."""
    kind = name.partition(":")[0]
    if kind not in KINDS or env.GPU.get() is not None:
        there = importlib.util.find_spec("triton") is not None
        return there, f"by {Interpreter.title}" if there else "Triton's interpreter needs Triton: pip install triton"
    driver = _vendor(KINDS[kind])
    if isinstance(driver, NoDevice):
        return False, str(driver)
    if runs(driver.chip, name):
        return True, f"this machine: {driver.title}"
    return False, f"the GPU of this machine is {driver.chip}, {driver.title}"
