"""A compiler for transformer models: from checkpoints to native code, through a typed IR.

``import trustformers_ir as tfir`` loads nothing heavy; every name below is looked up when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trustformers_ir.ir.version import VERSION as __version__

if TYPE_CHECKING:
    from trustformers_ir import api as api
    from trustformers_ir.api import compile as compile
    from trustformers_ir.api import evaluate as evaluate
    from trustformers_ir.api import export as export
    from trustformers_ir.api import load as load
    from trustformers_ir.api import parse as parse
    from trustformers_ir.api import quantization_error as quantization_error
    from trustformers_ir.api import trace as trace
    from trustformers_ir.api import tune as tune
    from trustformers_ir.ir.core import Module as Module
    from trustformers_ir.ir.diagnostics import CheckFailed as CheckFailed
    from trustformers_ir.ir.diagnostics import CompilerError as CompilerError
    from trustformers_ir.ir.diagnostics import Diagnostic as Diagnostic
    from trustformers_ir.ir.diagnostics import InternalError as InternalError
    from trustformers_ir.ir.dtypes import DType as DType
    from trustformers_ir.passes.recipes import F16 as F16
    from trustformers_ir.passes.recipes import Q4_0 as Q4_0
    from trustformers_ir.passes.recipes import Q4_1 as Q4_1
    from trustformers_ir.passes.recipes import Q8_0 as Q8_0
    from trustformers_ir.passes.recipes import Bf16 as Bf16
    from trustformers_ir.passes.recipes import Int4 as Int4
    from trustformers_ir.passes.recipes import Int8 as Int8

    i8, i16, i32, i64 = DType.i8, DType.i16, DType.i32, DType.i64
    u8, u16, u32, u64 = DType.u8, DType.u16, DType.u32, DType.u64
    f16, bf16, f32, f64 = DType.f16, DType.bf16, DType.f32, DType.f64
    c64, c128 = DType.c64, DType.c128

_FUNCTIONS = ("compile", "evaluate", "export", "load", "parse", "quantization_error", "trace", "tune")
_DTYPES = ("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "f16", "bf16", "f32", "f64", "c64", "c128")
_HOMES = {
    **dict.fromkeys(_FUNCTIONS, "api"),
    **dict.fromkeys(("CheckFailed", "CompilerError", "Diagnostic", "InternalError"), "ir.diagnostics"),
    "DType": "ir.dtypes",
    **dict.fromkeys(("Bf16", "F16", "Fp8", "Int4", "Int8", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K", "Q8_0"), "passes.recipes"),
    "Module": "ir.core",
}

# `bool` is DType.bool: a module attribute of that name would shadow the builtin in `from trustformers_ir import *`.
__all__ = [
    "F16",
    "Q4_0",
    "Q4_1",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "Q8_0",
    "Bf16",
    "CheckFailed",
    "CompilerError",
    "DType",
    "Diagnostic",
    "Fp8",
    "Int4",
    "Int8",
    "InternalError",
    "Module",
    "__version__",
    "api",
    "bf16",
    "c64",
    "c128",
    "compile",
    "evaluate",
    "export",
    "f16",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "load",
    "parse",
    "quantization_error",
    "trace",
    "tune",
    "u8",
    "u16",
    "u32",
    "u64",
]


def __getattr__(name: str) -> Any:
    value: Any
    if name == "api":
        value = importlib.import_module("trustformers_ir.api")
    elif name in _DTYPES:
        value = getattr(importlib.import_module("trustformers_ir.ir.dtypes").DType, name)
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"trustformers_ir.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'trustformers_ir' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(__all__) | set(globals()))
