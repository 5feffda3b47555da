"""The threads that execute a compiled module: the native pool of its object code, and what becomes of it after a fork.

A pool is started by the first run. Its threads poll for the next run for a moment (``TFIR_SPIN_US``) and then park; no run waits for a thread
that is not awake (see ``codegen/llvm/pool.py``, where the native side is described). A forked child has none of its parent's threads, so it
forgets the pool and starts its own when it first runs something.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Any, Protocol

from trustformers_ir.ir import env
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.machine import cpus
from trustformers_ir.runtime.native import NativeLibrary

MAX_THREADS = 1024


class Forkable(Protocol):
    """Something that has to be told that it is now in a forked child."""

    def after_fork(self) -> None: ...


_forkables: weakref.WeakSet[Any] = weakref.WeakSet()


def survive_fork(thing: Forkable) -> None:
    """``thing.after_fork()`` is called in every child that is forked while it lives."""
    _forkables.add(thing)


def _after_fork() -> None:
    for thing in list(_forkables):
        thing.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def thread_count(threads: int | None) -> int:
    """The number of threads to use: ``threads``, or ``TFIR_THREADS``, or the CPUs of this process. ``USAGE`` for an impossible number."""
    if threads is None:
        threads = env.THREADS.get()
    if threads is None:
        return min(cpus(), MAX_THREADS)
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise CompilerError.of(Code.USAGE, f"threads is {threads!r}", help=f"give a whole number from 1 to {MAX_THREADS}, or None")
    return threads


class Workers:
    """``threads`` workers, the calling thread among them. Whoever runs something holds ``lock``: a pool does one run at a time."""

    def __init__(self, library: NativeLibrary, threads: int | None = None) -> None:
        self.threads = thread_count(threads)
        self.lock = threading.Lock()
        pointer, word = ctypes.c_void_p, ctypes.c_int64
        self._create = library.function("tfir_pool_create", pointer, word)
        self._run = library.function("tfir_pool_run", None, pointer, pointer, pointer, pointer, word)
        self._patience = library.function("tfir_pool_patience", None, pointer, word)
        self._destroy = library.function("tfir_pool_destroy", None, pointer)
        self._pools: dict[int, int] = {}  # by number of workers: all of them, or the caller alone
        self._ends: list[weakref.finalize[..., Any]] = []
        survive_fork(self)

    def run(self, entry: int, call: int, scratch: int, stride: int, alone: bool = False) -> None:
        """Runs the native ``entry`` (``ir/abi.py``) on every worker, each with ``stride`` bytes of ``scratch``; ``alone`` leaves everything to
        the calling thread, for work that is done before others are awake. The caller holds ``lock``."""
        workers = 1 if alone else self.threads
        self._run(self._pools.get(workers) or self._start(workers), entry, call, scratch, stride)

    def close(self) -> None:
        """Ends the threads; the next run starts new ones."""
        with self.lock:
            for end in self._ends:
                end()
            self._pools, self._ends = {}, []

    def after_fork(self) -> None:
        """In a child: the threads are gone, and nobody will ever release the lock if another thread held it."""
        self.lock = threading.Lock()
        for end in self._ends:
            end.detach()
        self._pools, self._ends = {}, []

    def _start(self, workers: int) -> int:
        spin = env.SPIN.get() * 1000
        pool = self._create(workers)
        if not pool:
            raise CompilerError.of(Code.OUT_OF_MEMORY, f"{workers} threads could not be started", help="use fewer: threads=, TFIR_THREADS")
        self._patience(pool, spin)
        self._pools[workers] = pool
        # At exit nothing is done: the process takes its parked threads with it. (The function keeps the code until the threads have ended.)
        end = weakref.finalize(self, self._destroy, pool)
        end.atexit = False
        self._ends.append(end)
        return int(pool)
