"""The worker pool: many calls, several pools, the order that the barrier promises, more workers than cores."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from trustformers_ir.codegen.llvm.compile import compile_object
from trustformers_ir.codegen.llvm.emit import module_text
from trustformers_ir.codegen.llvm.pool import pool_declarations, pool_text
from trustformers_ir.codegen.llvm.target import host
from trustformers_ir.ir.abi import POOL_SYMBOLS
from trustformers_ir.runtime.native import NativeLibrary, link

# Two intervals. In the first each share raises its own counter; in the second it checks the counter of its neighbour, and the worker that executes
# it counts it in its scratch. data: counters[64], wrong, expected
ENTRY = """
define void @work(ptr %call, i64 %w, i64 %n, ptr %pool, ptr %scratch, i64 %first) {
entry:
  %d = load ptr, ptr %call
  br label %turn
turn:
  %claim = phi i64 [ %first, %entry ], [ %next, %done ]
  %share = and i64 %claim, 65535
  %interval = lshr i64 %claim, 16
  %checks = icmp ne i64 %interval, 0
  br i1 %checks, label %check, label %count
count:
  %p = getelementptr i64, ptr %d, i64 %share
  %v = load i64, ptr %p
  %v1 = add i64 %v, 1
  store i64 %v1, ptr %p
  br label %done
check:
  %own = getelementptr i64, ptr %d, i64 %share
  %o = add i64 %share, 1
  %m = urem i64 %o, %n
  %q = getelementptr i64, ptr %d, i64 %m
  %u = load i64, ptr %q
  %t = load i64, ptr %own
  %ne = icmp ne i64 %u, %t
  %z = zext i1 %ne to i64
  %e = getelementptr i64, ptr %d, i64 64
  %x = atomicrmw add ptr %e, i64 %z monotonic
  %s = load i64, ptr %scratch
  %s1 = add i64 %s, 1
  store i64 %s1, ptr %scratch
  br label %done
done:
  %next = call i64 @tfir_pool_next(ptr %pool, i64 %w, i64 %claim, i64 2)
  %again = icmp sge i64 %next, 0
  br i1 %again, label %turn, label %out
out:
  ret void
}
"""


class Pool:
    def __init__(self, library: NativeLibrary, workers: int) -> None:
        pointer, word = ctypes.c_void_p, ctypes.c_int64
        self.workers = workers
        self.entry = library.address("work")
        self._run = library.function("tfir_pool_run", None, pointer, pointer, pointer, pointer, word)
        self._destroy = library.function("tfir_pool_destroy", None, pointer)
        self.handle = library.function("tfir_pool_create", pointer, word)(workers)
        assert self.handle
        self.counters = np.zeros(128, np.int64)
        self.scratch = np.zeros((workers, 8), np.int64)
        self.call = (ctypes.c_void_p * 1)(self.counters.ctypes.data)

    def run(self, times: int) -> None:
        for _ in range(times):
            self._run(self.handle, self.entry, ctypes.addressof(self.call), self.scratch.ctypes.data, 64)

    def check(self, times: int) -> None:
        assert (self.counters[: self.workers] == times).all()
        assert self.counters[64] == 0, "a worker passed the barrier before its neighbour arrived"
        assert self.scratch[:, 0].sum() == times * self.workers, "every share is done once"

    def close(self) -> None:
        self._destroy(self.handle)


@pytest.fixture(scope="module")
def library() -> NativeLibrary:
    target = host()
    text = module_text([], pool_text(target) + ENTRY, pool_declarations(target))
    return link([compile_object(text, target)], [*POOL_SYMBOLS, "work"])


@pytest.mark.parametrize(("workers", "times"), [(1, 10_000), (2, 10_000), (3, 300), (7, 60)])
def test_many_calls(library: NativeLibrary, workers: int, times: int) -> None:
    pool = Pool(library, workers)
    pool.run(times)
    pool.check(times)
    pool.close()


def test_workers_that_parked_wake_up(library: NativeLibrary) -> None:
    pool = Pool(library, 2)
    for _ in range(20):
        pool.run(1)
        time.sleep(0.003)
    pool.check(20)
    pool.close()


def test_idle_pools_use_no_time(library: NativeLibrary) -> None:
    pool = Pool(library, 3)
    pool.run(1)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1
    pool.close()


def test_several_pools_at_once(library: NativeLibrary) -> None:
    pools = [Pool(library, 2) for _ in range(3)]
    threads = [threading.Thread(target=p.run, args=(200,)) for p in pools]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for p in pools:
        p.check(200)
        p.close()


def test_pools_come_and_go(library: NativeLibrary) -> None:
    for _ in range(50):
        pool = Pool(library, 4)
        pool.close()


def test_interpreter_exits_cleanly_with_a_live_pool() -> None:
    """Nobody destroys the pool; its workers are parked or spinning in linked code when the process ends."""
    here, root = Path(__file__).parent, Path(__file__).parents[2]
    program = (
        f"import sys; sys.path[:0] = [{str(here)!r}, {str(root)!r}]\n"
        "from test_pool import *\n"
        "t = host(); text = module_text([], pool_text(t) + ENTRY, pool_declarations(t))\n"
        "p = Pool(link([compile_object(text, t)], [*POOL_SYMBOLS, 'work']), 2)\n"
        "p.run(100); p.check(100); print('done')\n"
    )
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "done" in run.stdout, run.stderr
