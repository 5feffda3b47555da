"""What kernels ask memory for before its turn. The calls of ``llvm.prefetch`` are replaced by calls that write the addresses down."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

from trustformers_ir.codegen.kernel_ir.kernel import Kernel, kernel, nest, store
from trustformers_ir.codegen.kernel_ir.nodes import Axis, Buffer, Sym, reduce
from trustformers_ir.codegen.kernel_ir.schedule import Prefetch, apply
from trustformers_ir.codegen.llvm.compile import compile_object
from trustformers_ir.codegen.llvm.emit import emit_kernel, module_text
from trustformers_ir.codegen.llvm.target import host
from trustformers_ir.codegen.lower.schedules import gemm_schedule
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import TileChoice
from trustformers_ir.runtime.native import link

LINE, PANELS, DEPTH, WIDTH = 64, 3, 20, 48
PANEL = DEPTH * WIDTH * 4 // LINE  # lines of a panel
NOTEBOOK = """
@notebook = internal global [100000 x ptr] zeroinitializer
@count = internal global i64 0
define internal void @note(ptr %p) noinline {
  %n = load i64, ptr @count
  %slot = getelementptr ptr, ptr @notebook, i64 %n
  store ptr %p, ptr %slot
  %more = add i64 %n, 1
  store i64 %more, ptr @count
  ret void
}
define i64 @notes(ptr %into) {
  %n = load i64, ptr @count
  %bytes = mul i64 %n, 8
  call void @llvm.memcpy.p0.p0.i64(ptr %into, ptr @notebook, i64 %bytes, i1 false)
  ret i64 %n
}
"""


def product() -> Kernel:
    """C = A B with B in panels, scheduled as the products of a model are."""
    m, n, k = Axis("m", Sym("rows")), Axis("n", PANELS * WIDTH), Axis("k", DEPTH)
    a, c = Buffer("A", DType.f32, (Sym("rows"), DEPTH), readonly=True), Buffer("C", DType.f32, (Sym("rows"), PANELS * WIDTH))
    b = Buffer("B", DType.f32, (PANELS, DEPTH, WIDTH), readonly=True)
    naive = kernel("product", [a, b, c], *nest([m, n], store(c, (m, n), reduce("sum", k, a[m, k] * b[n // WIDTH, k, n % WIDTH]))))
    return apply(naive, gemm_schedule(TileChoice(8, WIDTH, 128)))


def lines_asked_for(k: Kernel, rows: int) -> list[int]:
    """The cache lines that one call asks for, as lines from the beginning of B, in order."""
    text = module_text([emit_kernel(k, ["rows"], "k", {"rows": (1, None, 1)})], NOTEBOOK, ["declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)"])
    lines = [x for x in text.splitlines() if not x.startswith("declare void @llvm.prefetch")]
    text = "\n".join(x.replace("@llvm.prefetch.p0(", "@note(").replace(", i32 0, i32 2, i32 1)", ")") for x in lines)
    library = link([compile_object(text, host())], ["k", "notes"])
    pointer, word = ctypes.c_void_p, ctypes.c_int64
    shapes = ((rows, DEPTH), (PANELS * PANEL + 1, 16), (rows, PANELS * WIDTH))
    arrays = [np.zeros(s, np.float32) for s in shapes]
    begin = arrays[1].ctypes.data + -arrays[1].ctypes.data % LINE
    addresses = (pointer * 3)(arrays[0].ctypes.data, begin, arrays[2].ctypes.data)
    status, found = np.zeros(2, np.int64), np.zeros(100_000, np.int64)
    library.function("k", None, pointer, pointer, word, word, pointer, pointer)(addresses, (word * 1)(rows), 0, 1, None, status.ctypes.data)
    count = library.function("notes", word, pointer)(found.ctypes.data)
    return [int(line) for line in (found[:count] - begin) // LINE]


@pytest.mark.parametrize("rows", [1, 8, 9, 17, 33, 77, 128])
def test_the_tiles_of_a_panel_ask_for_the_whole_next_one_each_for_its_part(rows: int) -> None:
    tiles = -(-rows // 8)
    asked = lines_asked_for(apply(product(), (Prefetch("B", DEPTH * WIDTH, "m.o.i"),)), rows)
    each = DEPTH * WIDTH // 16
    assert len(asked) == PANELS * tiles * each  # one with each vector that is read
    for panel in range(PANELS):
        here = asked[panel * tiles * each : (panel + 1) * tiles * each]
        assert set(here) >= set(range((panel + 1) * PANEL, (panel + 2) * PANEL))
        assert max(here) <= (panel + 2) * PANEL + tiles  # and hardly more
        parts = [set(here[t * each : (t + 1) * each]) for t in range(tiles)]
        assert max(map(len, parts)) <= -(-PANEL // tiles) + -(-64 // tiles) + PANEL // 16
        assert all(max(a) <= min(b) for a, b in itertools.pairwise(parts))


def test_a_single_tile_asks_for_what_lies_nearer() -> None:
    k = apply(product(), (Prefetch("B", DEPTH * WIDTH, "m.o.i", 160),))
    assert lines_asked_for(k, 8) == [n + 10 for n in range(PANELS * PANEL)]
    assert lines_asked_for(k, 9)[0] == PANEL
