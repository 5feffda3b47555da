"""What the machine can do at best: fused multiply-adds per second with every operand in a register, on each thread at once."""

from __future__ import annotations

import ctypes
import threading
import time

from trustformers_ir.codegen.llvm.compile import compile_object
from trustformers_ir.codegen.llvm.target import host
from trustformers_ir.runtime.native import link

CHAINS = 24  # independent accumulators: two FMA units with four cycles of latency need eight
LANES = 16
TURNS = 200_000
FLOPS = 2 * CHAINS * LANES * TURNS


def _text() -> str:
    vector = f"<{LANES} x float>"
    names = range(CHAINS)
    lines = [
        f"declare {vector} @llvm.fma.v{LANES}f32({vector}, {vector}, {vector})",
        "define float @tfir_fma_peak(i64 %turns) #0 {",
        "entry:",
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [ 0, %entry ], [ %n, %loop ]",
        *(f"  %a{c} = phi {vector} [ splat (float {1.0 + c}), %entry ], [ %b{c}, %loop ]" for c in names),
        *(f"  %b{c} = call {vector} @llvm.fma.v{LANES}f32({vector} %a{c}, {vector} splat (float 0.5), {vector} splat (float 1.0))" for c in names),
        "  %n = add i64 %i, 1",
        "  %again = icmp slt i64 %n, %turns",
        "  br i1 %again, label %loop, label %done",
        "done:",
        *(f"  %s{c} = fadd {vector} {f'%s{c - 1}' if c else 'zeroinitializer'}, %b{c}" for c in names),
        f"  %r = extractelement {vector} %s{CHAINS - 1}, i64 0",
        "  ret float %r",
        "}",
        'attributes #0 = { nounwind "prefer-vector-width"="512" }',
    ]
    return "\n".join(lines) + "\n"


def fma_peak(threads: int, rounds: int = 8) -> float:
    """The best GFLOP/s of ``rounds`` measurements with f32 FMAs on ``threads`` threads together."""
    library = link([compile_object(_text(), host())], ["tfir_fma_peak"])
    function = library.function("tfir_fma_peak", ctypes.c_float, ctypes.c_int64)
    best = 0.0
    for _ in range(rounds):
        others = [threading.Thread(target=function, args=(TURNS,)) for _ in range(threads - 1)]
        started = time.perf_counter()
        for t in others:
            t.start()
        function(TURNS)
        for t in others:
            t.join()
        best = max(best, threads * FLOPS / (time.perf_counter() - started) / 1e9)
    return best
