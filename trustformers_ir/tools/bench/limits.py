"""What the machine can do at best, on so many threads at once: multiply-adds with every operand in a register, and reads from memory."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trustformers_ir.codegen.llvm.compile import compile_object
from trustformers_ir.codegen.llvm.target import host
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.runtime.native import link
from trustformers_ir.runtime.prediction import Rates, keep_rates

CHAINS = 24  # independent accumulators: two FMA units with four cycles of latency need eight
LANES = 16
TURNS = 200_000
STREAM = 256 << 20  # bytes that one thread reads: past every cache
ROUNDS = 3  # the best counts: a moment that others used is no limit


@dataclass(frozen=True)
class Limits:
    """f32 GFLOP/s, int8 GOP/s (0 where there is no VNNI) and GB/s, on ``threads`` threads."""

    threads: int
    fma: float
    vnni: float
    memory: float


def measure(threads: int) -> Limits:
    """Also kept for predictions (``runtime/prediction.py``), where the cache folder can be written."""
    rounds = [(fma_peak(threads), vnni_peak(threads), memory_bandwidth(threads)) for _ in range(ROUNDS)]
    found = Limits(threads, *(max(column) for column in zip(*rounds, strict=True)))
    with contextlib.suppress(OSError, CompilerError):
        keep_rates(Rates(threads, found.fma, found.vnni, found.memory))
    return found


def _loop(name: str, vector: str, declaration: str, step: Callable[[str], str], start: Callable[[int], str]) -> str:
    """A function ``i64 turns -> void`` around ``CHAINS`` steps that do not wait for each other."""
    names = range(CHAINS)
    lines = [
        declaration,
        f"define void @{name}(i64 %turns, ptr %sink) #0 {{",
        "entry:",
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [ 0, %entry ], [ %n, %loop ]",
        *(f"  %a{c} = phi {vector} [ {start(c)}, %entry ], [ %b{c}, %loop ]" for c in names),
        *(f"  %b{c} = {step(f'%a{c}')}" for c in names),
        "  %n = add i64 %i, 1",
        "  %again = icmp slt i64 %n, %turns",
        "  br i1 %again, label %loop, label %done",
        "done:",
        *(f"  store volatile {vector} %b{c}, ptr %sink" for c in names),
        "  ret void",
        "}",
        'attributes #0 = { nounwind "prefer-vector-width"="512" }',
    ]
    return "\n".join(lines) + "\n"


def fma_peak(threads: int, rounds: int = 8) -> float:
    """The best GFLOP/s of ``rounds`` measurements with f32 FMAs on ``threads`` threads together."""
    vector, fma = f"<{LANES} x float>", f"@llvm.fma.v{LANES}f32"
    text = _loop(
        "tfir_fma_peak",
        vector,
        f"declare {vector} {fma}({vector}, {vector}, {vector})",
        lambda a: f"call {vector} {fma}({vector} {a}, {vector} splat (float 0.5), {vector} splat (float 1.0))",
        lambda c: f"splat (float {1.0 + c})",
    )
    return _rate("tfir_fma_peak", text, 2 * CHAINS * LANES * TURNS, threads, rounds)


def vnni_peak(threads: int, rounds: int = 8) -> float:
    """The same for products of u8 and i8 summed in i32 (``vpdpbusd`` on 512 bits), in 10⁹ multiplications and additions; 0 where it is missing."""
    if "avx512vnni" not in host().features:
        return 0.0
    sums, bytes_ = f"<{LANES} x i32>", f"<{4 * LANES} x i8>"
    dot = "@llvm.x86.avx512.vpdpbusd.512"
    text = _loop(
        "tfir_vnni_peak",
        sums,
        f"declare {sums} {dot}({sums}, {bytes_}, {bytes_})",
        lambda a: f"call {sums} {dot}({sums} {a}, {bytes_} splat (i8 3), {bytes_} splat (i8 5))",
        lambda c: f"splat (i32 {c})",
    )
    return _rate("tfir_vnni_peak", text, 2 * CHAINS * 4 * LANES * TURNS, threads, rounds)


def memory_bandwidth(threads: int, rounds: int = 4) -> float:
    """The best GB/s of reading ``STREAM`` bytes per thread, each its own."""
    arrays = [np.ones(STREAM // 8) for _ in range(threads)]
    return max(_together([a.max for a in arrays], STREAM * threads) for _ in range(rounds))  # numpy's max releases the GIL and reads in vectors


def _rate(name: str, text: str, operations: int, threads: int, rounds: int) -> float:
    library = link([compile_object(text, host())], [name])
    function = library.function(name, None, ctypes.c_int64, ctypes.c_void_p)
    sinks = [(ctypes.c_char * 128)() for _ in range(threads)]
    addresses = [(ctypes.addressof(s) + 63) // 64 * 64 for s in sinks]
    calls = [lambda a=a: function(TURNS, a) for a in addresses]
    return max(_together(calls, threads * operations) for _ in range(rounds))


def _together(calls: Sequence[Callable[[], object]], amount: int) -> float:
    """``amount`` per nanosecond when the calls run at once, each on a thread."""
    others = [threading.Thread(target=call) for call in calls[1:]]
    started = time.perf_counter()
    for t in others:
        t.start()
    calls[0]()
    for t in others:
        t.join()
    return amount / (time.perf_counter() - started) / 1e9
