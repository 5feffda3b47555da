"""Schedules: every legal one gives the very bits of the naive kernel; illegal moves say why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from codegen_harness import Compiled, check, guarded
from hypothesis import event, given, settings
from hypothesis import strategies as st

from trustformers_ir.codegen.kernel_ir.interpret import interpret
from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, kernel, nest, store
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, SEQ, UNROLL, VECTOR, Axis, Buffer, Expr, Sym, const, maximum, minimum, reduce
from trustformers_ir.codegen.kernel_ir.printer import print_kernel
from trustformers_ir.codegen.kernel_ir.rewrite import Substitution
from trustformers_ir.codegen.kernel_ir.schedule import (
    CLAMP,
    GUARD,
    Chunk,
    Collapse,
    Move,
    Prefetch,
    Reorder,
    ScheduleError,
    Split,
    Stage,
    Tag,
    Walk,
    apply,
)
from trustformers_ir.codegen.llvm.compile import compile_assembly
from trustformers_ir.codegen.llvm.emit import emit_kernel, module_text
from trustformers_ir.codegen.llvm.target import parse
from trustformers_ir.codegen.lower.indexing import expr_dim
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.ir.dtypes import DType

f32 = DType.f32


def gemm(columns: int, depth: int, panel: int | None = None) -> Kernel:
    """C = max(A B + bias, 0), the naive nest; B plain, or packed in panels."""
    m = Sym("m")
    a, c = Buffer("A", f32, (m, depth), readonly=True), Buffer("C", f32, (m, columns))
    bias = Buffer("bias", f32, (columns,), readonly=True)
    i, j, k = Axis("i", m), Axis("j", columns), Axis("k", depth)
    if panel is None:
        b = Buffer("B", f32, (depth, columns), readonly=True)
        right = b[k, j]
    else:
        b = Buffer("B", f32, (-(-columns // panel), depth, panel), readonly=True)
        right = b[j // panel, k, j % panel]
    value = maximum(reduce("sum", k, a[i, k] * right) + bias[j], 0.0)
    return kernel("gemm", [a, b, bias, c], *nest([i, j], store(c, (i, j), value)))


TILE: tuple[Move, ...] = (
    Split("i", 8, CLAMP),
    Split("j", 48),
    Split("j.i", 16),
    Reorder(("i.o", "j.o", "i.i", "j.i.o", "j.i.i")),
    Tag("i.o", PARALLEL),
    Tag("j.o", PARALLEL),
    Tag("i.i", UNROLL),
    Tag("j.i.o", UNROLL),
    Tag("j.i.i", VECTOR),
)


def pack(b: np.ndarray, panel: int) -> np.ndarray:
    k, n = b.shape
    padded = np.zeros((k, -(-n // panel) * panel), np.float32)
    padded[:, :n] = b
    return np.ascontiguousarray(padded.reshape(k, -1, panel).transpose(1, 0, 2))


@pytest.mark.parametrize("columns", [96, 48, 80, 50, 17])
@pytest.mark.parametrize("tail", [CLAMP, GUARD], ids=lambda t: t.value)
@pytest.mark.parametrize("staged", [False, True])
def test_gemm_tile(columns: int, tail: object, staged: bool) -> None:
    rng = np.random.default_rng(0)
    naive = gemm(columns, 20, 48)
    tiled = apply(naive, (Split("i", 8, tail), *TILE[1:], *((Stage("i.i"),) if staged else ())))  # type: ignore[arg-type]
    compiled = Compiled(tiled)
    b, bias = rng.normal(size=(20, columns)).astype(np.float32), rng.normal(size=columns).astype(np.float32)
    for m in (0, 1, 7, 8, 9, 16, 19):
        a = rng.normal(size=(m, 20)).astype(np.float32)
        arrays = [guarded(x) for x in (a, pack(b, 48), bias, np.zeros((m, columns), np.float32))]
        compiled(arrays, {"m": m}, workers=2)
        np.testing.assert_allclose(arrays[3], np.maximum(a @ b + bias, 0), rtol=1e-4, atol=1e-5)
        expected = np.zeros((m, columns), np.float32)
        if m in (1, 9):
            interpret(naive, [a, pack(b, 48), bias, expected], {"m": m})
            np.testing.assert_array_equal(arrays[3].view(np.int32), expected.view(np.int32))


def test_the_inner_loop_is_what_it_should_be() -> None:
    """24 fused multiply-adds on registers per step of k, no spills, on AVX-512; narrower machines split the vectors."""
    k = apply(gemm(96, 384, 48), TILE)
    text = module_text([emit_kernel(k, ["m"], "k", {"m": (1, None, 1)})])
    lines = compile_assembly(text, parse("cpu:avx512")).splitlines()
    fused = [n for n, line in enumerate(lines) if "vfmadd" in line and "zmm" in line]
    assert len(fused) == 24
    loop = lines[fused[0] : fused[-1] + 1]
    assert not any("rsp" in line for line in loop)
    assert len(loop) < 50
    avx2 = compile_assembly(text, parse("cpu:avx2"))
    assert "zmm" not in avx2 and avx2.count("vfmadd") == 48


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_random_schedules_keep_every_bit(data: st.DataObject) -> None:
    draw = data.draw
    columns, depth, m = draw(st.sampled_from([5, 16, 33, 48])), draw(st.sampled_from([1, 6, 16])), draw(st.integers(0, 11))
    naive = gemm(columns, depth)
    chunked = draw(st.booleans())
    size = draw(st.sampled_from([1, 2, 3, 4]))
    moves: list[Move] = [
        Chunk("i", size) if chunked else Split("i", size, draw(st.sampled_from([GUARD, CLAMP]))),
        Split("j", draw(st.sampled_from([4, 5, 16, 32, 40])), GUARD),
    ]
    if draw(st.booleans()):
        moves.append(Split("k", draw(st.sampled_from([2, 3, 4])), GUARD))
        if draw(st.booleans()):
            moves.append(Tag("k.i", UNROLL))
    order = draw(st.permutations(["i.o", "j.o"])) + draw(st.permutations(["i.i", "j.i"]))
    moves.append(Reorder(tuple(order)))
    for name in ("i.i", "j.i"):
        moves.append(Tag(name, draw(st.sampled_from(([SEQ] if chunked else [SEQ, UNROLL]) if name == "i.i" else [SEQ, UNROLL, VECTOR]))))
    if draw(st.booleans()):
        moves += [Tag("i.o", PARALLEL), Tag("j.o", PARALLEL)]
        if draw(st.booleans()):
            moves.append(Collapse((order[0], order[1])))
    try:
        scheduled = apply(naive, moves)
    except ScheduleError as error:
        reason = str(error)
        event(f"refused: {reason[:20]}")
        if "VECTOR" in reason or "K6" in reason:
            return
        raise
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(np.float32) for s in ((m, depth), (depth, columns), (columns,), (m, columns))]
    check(scheduled, arrays, {"m": m}, reference=naive, workers=draw(st.integers(1, 3)))
    small = [a.copy() for a in arrays]
    again = [a.copy() for a in arrays]
    interpret(scheduled, small, {"m": m})
    interpret(naive, again, {"m": m})
    np.testing.assert_array_equal(small[3].view(np.int32), again[3].view(np.int32))


@pytest.mark.parametrize(("m", "sizes"), [(0, []), (1, [1]), (12, [12]), (13, [6, 7]), (16, [8, 8]), (25, [8, 8, 9])])
def test_chunks_are_fair(m: int, sizes: list[int]) -> None:
    naive = gemm(16, 2)
    chunked = apply(naive, (Chunk("i", 12),))
    outer = chunked.body[0]
    assert isinstance(outer, For) and isinstance(outer.body[0], For)
    extents = {"m": m}
    count = evaluate(expr_dim(outer.axis.extent), extents)
    found = [evaluate_at(outer.body[0].axis.extent, outer.axis, b, extents) for b in range(count)]
    assert [n for n in found if n] == sizes


def evaluate_at(extent: Expr, axis: Axis, value: int, dims: dict[str, int]) -> int:
    """An extent at one turn of the loop around it."""
    return evaluate(expr_dim(Substitution({axis: const(value)})(extent)), dims)


def test_all_targets_give_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    k = apply(gemm(80, 30, 48), TILE)
    arrays = [rng.normal(size=s).astype(np.float32) for s in ((13, 30), (2, 30, 48), (80,), (13, 80))]
    for name in ("cpu:avx2", "host"):
        check(k, arrays, {"m": 13}, compiled=Compiled(k, target=parse(name)), reference=gemm(80, 30, 48))


def test_worker_counts_give_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    k = apply(gemm(96, 30, 48), TILE)
    compiled = Compiled(k)
    arrays = [rng.normal(size=s).astype(np.float32) for s in ((21, 30), (2, 30, 48), (96,), (21, 96))]
    results = []
    for workers in (1, 2, 3, 7, 50):
        mine = [a.copy() for a in arrays]
        compiled(mine, {"m": 21}, workers)
        results.append(mine[3].tobytes())
    assert len(set(results)) == 1


def test_illegal_moves_say_why() -> None:
    k = gemm(48, 8)
    cases: list[tuple[tuple[Move, ...], str]] = [
        ((Split("z", 2),), "no axis is called 'z'"),
        ((Split("i", 0),), "by 0"),
        ((Chunk("i", 0),), "chunks of 0"),
        ((Chunk("k", 3),), "reduced over"),
        ((Split("j", 5), Chunk("j.i", 3)), "guarded"),
        ((Split("k", 3, CLAMP),), "cannot be computed twice"),
        ((Tag("j", PARALLEL),), "K4"),
        ((Tag("i", UNROLL),), "K5"),
        ((Tag("i", VECTOR),), "K6"),
        ((Tag("k", VECTOR),), "16 lanes is part of the result"),
        ((Prefetch("D", 8),), "no such parameter"),
        ((Prefetch("C", 8),), "written here"),
        ((Prefetch("B", 0),), "0 elements"),
        ((Prefetch("B", 8, "i", -1),), "-1 elements"),
        ((Prefetch("B", 8, "z"),), "no axis is called 'z'"),
        ((Prefetch("B", 8, "k"),), "not a loop around"),
        ((Stage("i"),), "no UNROLL loop"),
        ((*TILE, Stage("k")), "no UNROLL loop"),
        ((Collapse(("j", "i")),), "not directly nested"),
        ((Reorder(("i", "k")),), "perfect nest"),
        ((Walk("i", 4),), "not the innermost PARALLEL loop"),
        ((Tag("i", PARALLEL), Tag("j", PARALLEL), Walk("i", 4)), "not the innermost PARALLEL loop"),
        ((Tag("i", PARALLEL), Tag("j", PARALLEL), Walk("j", 0)), "0 programs"),
        ((Tag("i", PARALLEL), Tag("j", PARALLEL), Walk("j", 4), Tag("j.p", SEQ)), "K13"),
    ]
    for moves, reason in cases:
        with pytest.raises(ScheduleError, match=reason):
            apply(k, moves)


def test_a_stage_cuts_a_tile_in_two() -> None:
    """The sums in one tile, what is made of them in a loop over its rows."""
    text = print_kernel(apply(gemm(96, 20, 48), (*TILE, Stage("i.i"))))
    assert text.count("sums[") == 2 and text.index("sums[") < text.index("seq i.i.s < 8") < text.index("C[")
    i, j, y = Axis("i", 8, UNROLL), Axis("j", 16, VECTOR), Buffer("y", f32, (8, 32))
    zeros = [store(y, (i, j + 16 * n), const(0.0, f32)) for n in range(2)]
    for stores, reason in ((zeros, "more than one statement"), (zeros[:1], "made of 0 folds")):
        with pytest.raises(ScheduleError, match=reason):
            apply(kernel("k", [y], *nest([i, j], *stores)), (Stage("i"),))


def test_a_stage_sums_up_one_tile_after_the_other() -> None:
    i, j, m = Axis("i", Sym("m")), Axis("j", 48), Sym("m")
    a, y = Buffer("A", f32, (m, 20), readonly=True), Buffer("C", f32, (m, 48))
    b = [Buffer(name, f32, (1, 20, 48), readonly=True) for name in ("B", "D")]
    sums = [reduce("sum", k := Axis("k", 20), a[i, k] * w[j // 48, k, j % 48]) for w in b]
    naive = kernel("gated", [a, *b, y], *nest([i, j], store(y, (i, j), maximum(sums[0], 0.0) * sums[1])))
    staged = apply(naive, (*TILE, Stage("i.i")))
    text = print_kernel(staged)
    assert text.index("sums[") < text.index("sums1[") < text.index("seq i.i.s < 8") < text.index("C[")
    rng = np.random.default_rng(0)
    for rows in (1, 8, 13):
        arrays = [guarded(rng.normal(size=s).astype(np.float32)) for s in ((rows, 20), (1, 20, 48), (1, 20, 48), (rows, 48))]
        expected = [x.copy() for x in arrays]
        interpret(naive, expected, {"m": rows})
        Compiled(staged)(arrays, {"m": rows}, workers=2)
        np.testing.assert_array_equal(arrays[3].view(np.int32), expected[3].view(np.int32))


def test_in_place_loops_cannot_be_clamped_or_moved() -> None:
    n = Sym("n")
    x = Buffer("x", f32, (n, 4))
    i, j = Axis("i", n), Axis("j", 4)
    doubled = kernel("k", [x], *nest([i, j], store(x, (i, j), x[i, j] * 2.0)))
    with pytest.raises(ScheduleError, match="read before it is written"):
        apply(doubled, (Split("i", 8, CLAMP),))
    shifted = kernel("k", [x], *nest([i, j], store(x, (i, j), x[i, maximum(j - 1, 0)])))
    with pytest.raises(ScheduleError, match="read at another index"):
        apply(shifted, (Reorder(("j", "i")),))
    last = kernel("k", [x], For(i, (For(j, (store(x, (minimum(i, 0), j), x[i, j]),)),)))
    with pytest.raises(ScheduleError):
        apply(last, (Reorder(("j", "i")),))


def test_lanes_of_a_fold_cannot_be_split() -> None:
    x, y = Buffer("x", f32, (64,), readonly=True), Buffer("y", f32, (1,))
    k = kernel("k", [x, y], store(y, 0, reduce("sum", Axis("a", 64, VECTOR), x[Axis("q", 1)])))
    with pytest.raises(ScheduleError, match="16 lanes are part of the result"):
        apply(k, (Split("a", 16),))


def test_equal_kernels_have_equal_keys() -> None:
    assert gemm(48, 8).key() == gemm(48, 8).key()
    assert apply(gemm(48, 8, 48), TILE).key() == apply(gemm(48, 8, 48), TILE).key()
    assert gemm(48, 8).key() != gemm(48, 9).key()


def test_keys_and_text_are_the_same_in_every_process() -> None:
    program = (
        f"import sys, hashlib; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]\n"
        "from test_schedule import *\n"
        "k = apply(gemm(50, 8, 48), TILE)\n"
        "t = module_text([emit_kernel(k, ['m'], 'k'), emit_kernel(gemm(48, 8), ['m'], 'n')])\n"
        "print(k.key(), gemm(48, 8).key(), hashlib.sha256(t.encode()).hexdigest())"
    )
    outputs = set()
    for seed in ("0", "1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", program], check=False, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        outputs.add(run.stdout)
    assert len(outputs) == 1
