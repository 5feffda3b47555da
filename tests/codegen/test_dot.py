"""Products of bytes: the scheduled kernel against the naive one and numpy, on every kind of machine that this one can be, to the last bit."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from codegen_harness import Compiled, check
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_harness import Runner, compile_modules
from test_lowering_conformance import ISAS

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, kernel, store
from trustformers_ir.codegen.kernel_ir.nodes import DOT, SEQ, UNROLL, Axis, Buffer, Expr, Reduce, Sym, cast, const
from trustformers_ir.codegen.kernel_ir.schedule import GUARD, ScheduleError, Split, Tag, apply
from trustformers_ir.codegen.llvm.compile import compile_assembly
from trustformers_ir.codegen.llvm.dot import DotKind
from trustformers_ir.codegen.llvm.emit import emit_kernel, module_text
from trustformers_ir.codegen.llvm.target import Target, parse
from trustformers_ir.codegen.lower.schedules import MachineShape, dot_schedule
from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.dims import Facts, SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.ops.contract import pack_panels
from trustformers_ir.ir.schedule_table import TileChoice
from trustformers_ir.ir.types import Panels, TensorType

FACTS = {"m": (1, None, 1)}
u8, i8, i32, f32 = DType.u8, DType.i8, DType.i32, DType.f32


def naive(n: int, k: int, width: int = 48) -> Kernel:
    """``C[m, n] = sum over k of i32(A[m, k]) * i32(B[n, k])``, B in panels four deep."""
    layout = Panels(width, 4)
    a, c = Buffer("A", u8, (Sym("m"), const(k)), readonly=True), Buffer("C", i32, (Sym("m"), const(n)))
    b = Buffer("B", i8, [const(int(d)) for d in layout.storage((n, k))], readonly=True)  # type: ignore[call-overload]
    i, j, r = Axis("m", Sym("m"), SEQ), Axis("n", n, SEQ), Axis("k", k, SEQ)
    total = Reduce("sum", (r,), cast(a[i, r], i32) * cast(b[layout.place((j, r))], i32))
    return kernel("dots", [a, b, c], For(i, (For(j, (store(c, (i, j), total),)),)))


def machine(target: Target) -> MachineShape:
    return MachineShape(registers=target.registers)


def tile(shape: MachineShape, columns: int) -> TileChoice:
    return TileChoice(shape.dot_rows, columns, 128)


@functools.cache
def scheduled(isa: str, n: int, k: int) -> tuple[Kernel, Compiled]:
    target = parse(isa)
    width = min(machine(target).panel, -(-n // 16) * 16)
    fast = apply(naive(n, k, width), dot_schedule(tile(machine(target), width)), FACTS)
    return fast, Compiled(fast, FACTS, target)


def arrays(m: int, n: int, k: int, width: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (m, k), np.uint8), rng.integers(-128, 128, (n, k), np.int8)
    extremes = rng.random(b.shape) < 0.3
    b[extremes] = rng.choice(np.int8([-128, 127]), int(extremes.sum()))
    a[rng.random(a.shape) < 0.3] = 255
    return [a, pack_panels(b, width, 4), np.zeros((m, n), np.int32)]


@pytest.mark.parametrize("isa", ISAS)
def test_a_small_one_by_the_interpreter(isa: str) -> None:
    """The scheduled kernel compiled, and the naive one element by element."""
    for m, n, k in ((1, 1, 1), (5, 20, 7), (9, 50, 4), (3, 17, 10)):
        fast, compiled = scheduled(isa, n, k)
        width = int(fast.params[1].shape[2].value)  # type: ignore[attr-defined]
        check(fast, arrays(m, n, k, width), {"m": m}, facts=FACTS, compiled=compiled, reference=naive(n, k, width))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=12, deadline=None)
@given(m=st.integers(1, 40), n=st.integers(1, 110), k=st.integers(1, 70), seed=st.integers(0, 99))
def test_ragged_sizes(isa: str, m: int, n: int, k: int, seed: int) -> None:
    fast, compiled = scheduled(isa, n, k)
    width = int(fast.params[1].shape[2].value)  # type: ignore[attr-defined]
    a, b, c = arrays(m, n, k, width, seed)
    for workers in (1, 2):
        c[:] = -1
        compiled([a, b, c], {"m": m}, workers)
        matrix = np.swapaxes(b, -3, -2).reshape(b.shape[0] * width, -1)[:n, :k]
        assert np.array_equal(c, a.astype(np.int32) @ matrix.T.astype(np.int32))


@pytest.mark.parametrize("isa", ISAS)
def test_extreme_sums_do_not_saturate(isa: str) -> None:
    """255 * 127 and 255 * -128 at every place: pairs of products pass 2^15 at once, and the sums come close to 2^31."""
    n, k = 48, 65793
    fast, compiled = scheduled(isa, n, k)
    width = int(fast.params[1].shape[2].value)  # type: ignore[attr-defined]
    a = np.full((2, k), 255, np.uint8)
    b = np.where(np.arange(n) % 2, 127, -128).astype(np.int8)[:, None].repeat(k, 1)
    c = np.zeros((2, n), np.int32)
    compiled([a, pack_panels(b, width, 4), c], {"m": 2})
    assert np.unique(c[:, 0::2]).tolist() == [-255 * 128 * k] and np.unique(c[:, 1::2]).tolist() == [255 * 127 * k]


@pytest.mark.parametrize(
    ("isa", "kind", "instruction", "register"),
    [
        ("cpu:avx512vnni", DotKind.VNNI_512, "vpdpbusd\t", "zmm"),
        ("cpu:avxvnni", DotKind.VNNI_256, "vpdpbusd\t", "ymm"),
        ("cpu:avx512", DotKind.MADD_512, "vpmaddwd\t", "zmm"),
        ("cpu:avx2", DotKind.MADD_256, "vpmaddwd\t", "ymm"),
    ],
)
@pytest.mark.parametrize("k", [64, 67])
def test_every_machine_has_its_instruction(isa: str, kind: DotKind, instruction: str, register: str, k: int) -> None:
    target = parse(isa)
    assert DotKind.of(target.features) is kind
    shape = machine(target)
    fast = apply(naive(96, k, shape.panel), dot_schedule(tile(shape, shape.panel)), FACTS)
    lines = compile_assembly(module_text([emit_kernel(fast, ["m"], "k", FACTS, target.features)]), target).splitlines()
    found = [line for line in lines if instruction in line]
    tiles = shape.dot_rows * shape.panel // 16 * (1 if kind is DotKind.VNNI_512 else 2 if "VNNI" in kind.name or kind is DotKind.MADD_512 else 4)
    assert len(found) % tiles == 0 and len(found) // tiles in (1, 2, 4) and all(register in line for line in found)
    assert not any("vpmaddubsw" in line or "vpdpbusds" in line for line in lines), "these saturate"


def test_a_machine_without_such_instructions_runs_the_plain_fold() -> None:
    fast = apply(naive(20, 10, 32), dot_schedule(tile(MachineShape(), 32)), FACTS)
    text = module_text([emit_kernel(fast, ["m"], "k", FACTS)])
    assert "llvm.x86" not in text
    check(fast, arrays(3, 20, 10, 32), {"m": 3}, facts=FACTS)


# --- the move ----------------------------------------------------------------------------------------------------------------------------


def fold(body: Any, kind: str = "sum") -> Kernel:
    """One fold over k of what ``body`` makes of the loads of a u8 and an i8."""
    x, w = Buffer("X", u8, (const(16),), readonly=True), Buffer("W", i8, (const(16),), readonly=True)
    r, i = Axis("k", 16, SEQ), Axis("i", 1, SEQ)
    value: Expr = Reduce(kind, (r,), body(x[r], w[r]))
    return kernel("fold", [x, w, out := Buffer("Y", value.dtype, (const(1),))], For(i, (store(out, (i,), value),)))


def products(x: Expr, w: Expr) -> Expr:
    return cast(w, i32) * cast(x, i32)


def test_four_products_of_bytes_are_a_dot() -> None:
    after = apply(fold(products), (Split("k", 4, GUARD), Tag("k.i", DOT)))
    check(after, [np.arange(16, dtype=np.uint8), np.arange(16, dtype=np.int8) - 8, np.zeros(1, np.int32)], reference=fold(products))


@pytest.mark.parametrize(
    ("before", "moves"),
    [
        (fold(products), (Tag("k", DOT),)),  # 16 of them
        (fold(products), (Split("k", 8, GUARD), Tag("k.i", DOT))),
        (fold(products), (Split("k", 4, GUARD), Tag("k.o", DOT))),  # not the last axis, although it has four points
        (fold(products), (Split("k", 4, GUARD), Split("k.o", 2, GUARD), Tag("k.i", DOT))),  # of three axes, two of them loops
        (fold(products), (Tag("i", DOT),)),  # a loop
        (fold(products, "max"), (Split("k", 4, GUARD), Tag("k.i", DOT))),
        (fold(lambda x, w: cast(x, i32) + cast(w, i32)), (Split("k", 4, GUARD), Tag("k.i", DOT))),
        (fold(lambda x, w: cast(x, i32) * cast(x, i32)), (Split("k", 4, GUARD), Tag("k.i", DOT))),  # both unsigned
        (fold(lambda x, w: cast(x, DType.i64) * cast(w, DType.i64)), (Split("k", 4, GUARD), Tag("k.i", DOT))),
        (fold(lambda x, w: cast(cast(x, i8) * w, i32)), (Split("k", 4, GUARD), Tag("k.i", DOT))),  # wraps in 8 bits
        (fold(lambda x, w: cast(x, f32) * cast(w, f32)), (Split("k", 4, GUARD), Tag("k.i", DOT))),
    ],
)
def test_anything_else_is_not(before: Kernel, moves: tuple[Any, ...]) -> None:
    with pytest.raises(ScheduleError, match="K11"):
        apply(before, moves)


def test_a_dot_axis_may_be_tagged_back() -> None:
    after = apply(fold(products), (Split("k", 4, GUARD), Tag("k.i", DOT), Tag("k.i", UNROLL)))
    check(after, [np.full(16, 255, np.uint8), np.full(16, -128, np.int8), np.zeros(1, np.int32)], reference=fold(products))


# --- the op with what follows it -----------------------------------------------------------------------------------------------------------

ROWS = (1, 2, 7, 8, 9, 32, 33)


def layer(n: int, k: int, width: int, rows: Any, epilogue: str) -> Module:
    """``linear_int8`` over packed weights with gelu, a residual or codes after it."""
    module = Module("layer", Facts({"m": SymbolFact()}))
    block = Block()
    module.add_function(Function("main", block))
    types = (u8[rows, k], f32[rows, 1], i32[rows, 1], TensorType((n, k), i8, Panels(width, 4)), f32[n], i32[n], f32[n])
    build = Builder(module, block)
    y = build(ops.LinearInt8(), *(block.add_arg(t, f"x{i}") for i, t in enumerate(types)))
    if epilogue == "gelu":
        y = build(ops.Gelu(), y)
    elif epilogue == "residual":
        y = build(ops.Add(), y, block.add_arg(f32[rows, n], "residual"))
    elif epilogue == "codes":
        y = build(ops.QuantizeStatic(), y, *(block.add_arg(t, name) for t, name in ((f32[()], "scale"), (i32[()], "zero"))))
    build.create(ops.Return(), y)
    return module


def inputs(m: int, n: int, k: int, width: int, epilogue: str) -> list[np.ndarray]:
    rng = np.random.default_rng(m)
    weight = rng.integers(-128, 128, (n, k), np.int8)
    out = [rng.integers(0, 256, (m, k), np.uint8), rng.random((m, 1)).astype(np.float32) / 50, rng.integers(0, 256, (m, 1), np.int32)]
    out += [pack_panels(weight, width, 4), rng.random(n).astype(np.float32) / 50, weight.sum(1, dtype=np.int32)]
    out.append(rng.standard_normal(n).astype(np.float32))
    if epilogue == "residual":
        out.append(rng.standard_normal((m, n)).astype(np.float32))
    elif epilogue == "codes":
        out += [np.float32(0.05), np.int32(100)]
    return out


@functools.cache
def layers(isa: str, epilogue: str) -> tuple[Runner, ...]:
    width = MachineShape(registers=parse(isa).registers).panel
    return tuple(compile_modules([layer(100, 70, width, "m", epilogue), layer(100, 70, width, 1, epilogue)], isa))


@pytest.mark.parametrize("epilogue", ["none", "gelu", "residual", "codes"])
def test_layers_have_the_same_bits_everywhere(epilogue: str) -> None:
    """Whatever the machine, the workers and the number of rows; but for gelu these are the reference's bits as well."""
    for m in ROWS:
        first: np.ndarray | None = None
        for isa in ISAS:
            width = MachineShape(registers=parse(isa).registers).panel
            given = inputs(m, 100, 70, width, epilogue)
            for runner in layers(isa, epilogue)[: 2 if m == 1 else 1]:
                for workers in (1, 2, 3):
                    (got,) = runner(given, {"m": m}, workers)
                    first = got if first is None else first
                    assert got.tobytes() == first.tobytes(), f"{m} rows on {isa} by {workers} workers"
            if epilogue != "gelu":
                np.testing.assert_array_equal(got, evaluate(layer(100, 70, width, "m", epilogue), *given))
