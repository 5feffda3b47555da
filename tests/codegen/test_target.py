"""Targets and object files."""

from __future__ import annotations

import pytest

from trustformers_ir.codegen.kernel_ir.kernel import For, kernel, store
from trustformers_ir.codegen.kernel_ir.nodes import VECTOR, Axis, Buffer, Sym, unary
from trustformers_ir.codegen.llvm.compile import LLVMError, compile_assembly, compile_object
from trustformers_ir.codegen.llvm.emit import emit_kernel, module_text
from trustformers_ir.codegen.llvm.target import TargetError, host, parse
from trustformers_ir.ir.dtypes import DType


def text() -> str:
    n = Sym("n")
    x, y, i = Buffer("x", DType.f32, (n,), readonly=True), Buffer("y", DType.f32, (n,)), Axis("i", n, VECTOR)
    return module_text([emit_kernel(kernel("k", [x, y], For(i, (store(y, i, unary("exp", x[i])),))), ["n"])])


@pytest.mark.parametrize("name", ["host", "cpu:avx2", "cpu:avx512", "cpu:x86-64-v3", "cpu:x86-64-v4", "cpu:znver4"])
def test_objects_are_deterministic(name: str) -> None:
    first = compile_object(text(), parse(name))
    assert first[:4] == b"\x7fELF" and first == compile_object(text(), parse(name))


def test_vectors_have_the_width_of_the_machine() -> None:
    assert "zmm" in compile_assembly(text(), parse("cpu:avx512"))
    avx2 = compile_assembly(text(), parse("cpu:avx2"))
    assert "zmm" not in avx2 and "ymm" in avx2


def test_unknown_names_are_refused() -> None:
    for name in ("cpu:pentium", "gpu", "cpu:", "cpu:x86-64"):
        with pytest.raises(TargetError, match="known are"):
            parse(name)


def test_bad_text_is_an_error_with_the_text() -> None:
    with pytest.raises(LLVMError) as caught:
        compile_object("define void @f() { ret i32 1 }", host())
    assert "ret i32 1" in caught.value.text
