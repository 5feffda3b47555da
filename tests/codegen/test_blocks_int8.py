"""Products of 8-bit activations by weights in blocks, and the codes of their groups: the bits of the reference on every kind of machine."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_harness import Runner, compile_modules
from test_lowering_conformance import ISAS

from trustformers_ir.codegen.llvm.compile import compile_assembly
from trustformers_ir.codegen.llvm.emit import emit_kernel, module_text
from trustformers_ir.codegen.llvm.target import parse
from trustformers_ir.codegen.lower.function import lower_function
from trustformers_ir.codegen.lower.schedules import MachineShape
from trustformers_ir.ir import ops
from trustformers_ir.ir.block_formats import FORMATS, PLANES, SUPER, Format, unsigned
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.dims import Facts, SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.ops.blocks import DEEP
from trustformers_ir.ir.ops.contract import pack_panels
from trustformers_ir.ir.types import Panels, TensorType
from trustformers_ir.passes.fuse import Fuse
from trustformers_ir.passes.manager import PassManager

f32, u8 = DType.f32, DType.u8
SIZES = {f: (37, row.block) for f, row in FORMATS.items() if row.block == SUPER} | dict.fromkeys([Format.INT4, Format.INT4_ZERO], (20, 128))
GROUPS = {Format.INT4: 64, Format.INT4_ZERO: 128}


def planes_of(format: Format, n: int, k: int, seed: int) -> list[np.ndarray | None]:
    """Random planes, some scales of which are not finite, and some 0."""
    row, rng = FORMATS[format], np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for name, shape in row.shapes(n, k, GROUPS.get(format, 0)).items():
        dtype = row.planes[name].dtype
        if dtype is DType.f16:
            found[name] = rng.standard_normal(shape).astype(np.float16)
            found[name][rng.random(shape) < 0.02] = rng.choice(np.float16([0, np.inf, np.nan, 6e-8]))
        else:
            found[name] = rng.integers(0, 64 if "steps" in name else 16 if name == "low" else 256, shape).astype(dtype.numpy)
    found["codes"] = unsigned(row, found["codes"])
    return [found.get(name) for name in PLANES]


@functools.cache
def product(format: Format, n: int, k: int, rows: Any, packed: bool = True, residual: bool = True) -> Module:
    """What a model has: codes of an activation, the product, a residual sum."""
    row, group = FORMATS[format], FORMATS[format].group or GROUPS[format]
    module = Module("product", Facts({"m": SymbolFact()}))
    block = Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    x = block.add_arg(f32[rows, k], "x")
    planes = []
    for name, shape in row.shapes(n, k, group).items():
        type = TensorType(shape, u8 if name == "codes" else row.planes[name].dtype)
        planes.append((name, block.add_arg(TensorType(shape, type.dtype, Panels(16, 4 if name in DEEP else 1)) if packed else type, name)))
    about = build.create(ops.QuantizeGroups(group), x).results
    y = build(ops.LinearBlocksInt8(format, group), *about, *(dict(planes).get(name) for name in PLANES), None)
    build.create(ops.Return(), build(ops.Add(), y, block.add_arg(f32[rows, n], "r")) if residual else y)
    return module


def stored(planes: list[np.ndarray | None], packed: bool) -> list[np.ndarray]:
    found = [(n, p) for n, p in enumerate(planes) if p is not None]
    return [pack_panels(p, 16, 4 if PLANES[n] in DEEP else 1) if packed else p for n, p in found]


@functools.cache
def runner(isa: str, format: Format, rows: Any) -> Runner:
    return compile_modules([product(format, *SIZES.get(format, (37, 96)), rows)], isa)[0]


@pytest.mark.parametrize("format", Format)
@settings(max_examples=6, deadline=None)
@given(m=st.integers(1, 15), seed=st.integers(0, 999), workers=st.integers(1, 3), scale=st.sampled_from([1e-30, 1.0, 1e25]))
def test_any_rows(format: Format, m: int, seed: int, workers: int, scale: float) -> None:
    """Tiles of rows, rows that are left over, columns that fill no vector; NaN and infinities where the reference has them."""
    n, k = SIZES.get(format, (37, 96))
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((m, k)) * scale).astype(np.float32)
    x[rng.random(x.shape) < 0.01] = rng.choice(np.float32([0, np.inf, np.nan]))
    planes = stored(planes_of(format, n, k, seed), True)
    given = [x, *planes, rng.standard_normal((m, n)).astype(np.float32)]
    with np.errstate(all="ignore"):
        want = evaluate(product(format, n, k, "m"), *given)
    for isa in ISAS:
        (got,) = runner(isa, format, "m")(given, {"m": m}, workers)
        np.testing.assert_array_equal(got, want, err_msg=isa)


def test_extreme_codes_do_not_saturate() -> None:
    """255 and 0 by 127 and -127 everywhere."""
    n, k = SIZES.get(Format.Q8_0, (37, 96))
    x = np.where(np.arange(k) % 2, 5.0, -5.0).astype(np.float32)[None].repeat(2, 0)
    x[1] = 5
    codes = np.where(np.arange(n)[:, None] % 2, 255, 0).astype(np.uint8).repeat(k, 1)
    given = [x, *stored([codes, np.ones((n, k // 32), np.float16), None, None, None, None], True), np.zeros((2, n), np.float32)]
    want = evaluate(product(Format.Q8_0, n, k, "m"), *given)
    for isa in ISAS:
        np.testing.assert_array_equal(runner(isa, Format.Q8_0, "m")(given, {"m": 2})[0], want)


def test_packed_planes_give_the_bits_of_plain_ones() -> None:
    n, k = 37, 96
    planes = planes_of(Format.Q4_1, n, k, 1)
    x, r = np.random.default_rng(0).standard_normal((3, k)).astype(np.float32), np.zeros((3, n), np.float32)
    (plain,) = compile_modules([product(Format.Q4_1, n, k, "m", packed=False)], "host")
    np.testing.assert_array_equal(
        plain([x, *stored(planes, False), r], {"m": 3})[0], runner("host", Format.Q4_1, "m")([x, *stored(planes, True), r], {"m": 3})[0]
    )


@pytest.mark.parametrize(
    ("isa", "instruction", "register", "times"),
    [
        ("cpu:avx512vnni", "vpdpbusd\t", "zmm", 1),
        ("cpu:avxvnni", "vpdpbusd\t", "ymm", 2),
        ("cpu:avx512", "vpmaddwd\t", "zmm", 2),
        ("cpu:avx2", "vpmaddwd\t", "ymm", 4),
    ],
)
@pytest.mark.parametrize("format", [Format.Q4_0, Format.Q5_0, Format.Q8_0])
def test_every_machine_has_its_instruction(format: Format, isa: str, instruction: str, register: str, times: int) -> None:
    """For a tile of rows, and for a row alone: 8 of them for the 32 terms of a group."""
    target = parse(isa)
    module = product(format, 64, 96, "m", residual=False)
    shape = MachineShape(registers=target.registers)
    calls = lower_function(module, module.main, shape).calls
    chosen = calls[-1].schedule
    assert chosen is not None and chosen.key.template == "linear_blocks_int8"
    text = module_text([emit_kernel(calls[-1].kernel, ["m"], "k", {"m": (1, None, 1)}, target.features)])
    found = [line for line in compile_assembly(text, target).splitlines() if instruction in line]
    assert len(found) == 8 * times * (chosen.choice.rows + 1) and all(register in line for line in found)  # type: ignore[union-attr]


# --- codes of groups ---------------------------------------------------------------------------------------------------------------------


def codes(columns: int, norm: bool, fuse: bool) -> Module:
    module = Module("codes", Facts({"m": SymbolFact()}))
    block = Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    y = block.add_arg(f32["m", columns], "x")
    if norm:
        y = build(ops.RmsNorm(1e-5), y, block.add_arg(f32[columns], "w"))
    build.create(ops.Return(), *build.create(ops.QuantizeGroups(32), y).results)
    if fuse:
        PassManager([Fuse()], verify=True).run(module)
    return module


@pytest.mark.parametrize("norm", [False, True])
def test_groups_are_one_kernel_alone_and_behind_a_norm(norm: bool) -> None:
    module = codes(96, norm, True)
    (call,) = lower_function(module, module.main, MachineShape()).calls
    assert len([w for w in call.writes if w]) == 4
    rng = np.random.default_rng(0)
    given = [rng.standard_normal((5, 96)).astype(np.float32), *([rng.standard_normal(96).astype(np.float32)] if norm else [])]
    want = [np.asarray(a) for a in compile_modules([codes(96, norm, False)], "host")[0](given, {"m": 5})]
    for isa in ISAS:
        (run,) = compile_modules([codes(96, norm, True)], isa)
        for workers in (1, 2):
            for a, b in zip(run(given, {"m": 5}, workers), want, strict=True):
                np.testing.assert_array_equal(a, b)
