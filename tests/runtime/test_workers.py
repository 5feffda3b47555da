"""Threads of both kinds: workers inside a call, Python threads that call at once; forks, exits, and how many workers there are."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_harness import QUOTAS, add, encoder, encoder_inputs, same

from trustformers_ir.ir import machine
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.runtime import executable, workers
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.runtime.workers import thread_count

HERE = Path(__file__).parent

pytestmark = pytest.mark.usefixtures("all_calls_use_all_workers")


def native_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_any_number_of_workers_gives_the_same_bits() -> None:
    inputs = [encoder_inputs(b, s, b) for b, s in ((1, 1), (2, 7), (5, 33), (64, 128))]
    want = [Executable(encoder(), 1)(*i) for i in inputs]
    for threads in (2, 3, 5):
        exe = Executable(encoder(), threads)
        for i, w in zip(inputs, want, strict=True):
            assert same(exe(*i), w)


def test_small_calls_stay_on_the_calling_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable, "ALONE_BELOW", 100_000)
    before = native_threads()
    exe = Executable(encoder(), 4)
    small = exe(*encoder_inputs(1, 2))
    assert native_threads() == before
    exe(*encoder_inputs(64, 128))
    assert native_threads() == before + 3
    assert same(exe(*encoder_inputs(1, 2)), small)


def test_many_python_threads_call_one_executable() -> None:
    exe = Executable(encoder(), 2)
    inputs = [encoder_inputs(1 + i % 4, 3 + i, i) for i in range(8)]
    want = [Executable(encoder(), 1)(*i) for i in inputs]
    wrong: list[int] = []

    def work(n: int) -> None:
        for turn in range(60):
            i = (n + turn) % 8
            try:
                if not same(exe(*inputs[i]), want[i]):
                    wrong.append(i)
            except BaseException:
                wrong.append(-1)
                raise

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
        assert not t.is_alive()
    assert not wrong


def test_errors_and_results_do_not_mix_between_threads() -> None:
    exe = Executable(encoder(), 2)
    good = encoder_inputs(2, 5)
    bad = (good[0].copy(), good[1])
    bad[0][0, 0] = 1000
    want = exe(*good)
    outcomes: dict[bool, list[bool]] = {True: [], False: []}

    def work(fails: bool) -> None:
        for _ in range(50):
            try:
                outcomes[fails].append(same(exe(*(bad if fails else good)), want) and not fails)
            except CompilerError as error:
                outcomes[fails].append(fails and error.codes == (Code.INDEX_OUT_OF_RANGE,))

    threads = [threading.Thread(target=work, args=(n % 2 == 0,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert outcomes == {True: [True] * 100, False: [True] * 100}


def test_several_executables_at_once() -> None:
    executables = [Executable(encoder(), 2) for _ in range(3)]
    inputs = encoder_inputs(4, 20)
    want = executables[0](*inputs)
    results: list[bool] = []

    def work(exe: Executable) -> None:
        results.extend(same(exe(*inputs), want) for _ in range(40))

    threads = [threading.Thread(target=work, args=(e,)) for e in executables]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert results == [True] * 120


def test_threads_end_with_the_executable() -> None:
    gc.collect()  # executables of earlier tests end their threads here, not in between
    before = native_threads()
    exe = Executable(add(), 4)
    x = np.ones((2, 2), np.float32)
    exe(x, x)
    assert native_threads() == before + 3
    exe.close()
    assert native_threads() == before
    exe(x, x)
    assert native_threads() == before + 3
    del exe
    gc.collect()
    assert native_threads() == before


# --- forks -------------------------------------------------------------------------------------------------------------------------


def in_child(work: Any, seconds: float = 60) -> int:
    """The exit status of a forked child that runs ``work``; a child that hangs is ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 3
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def test_a_forked_child_starts_its_own_threads() -> None:
    exe = Executable(encoder(), 3)
    inputs = encoder_inputs(3, 9)
    want = exe(*inputs)

    def work() -> bool:
        alone = native_threads() == 1
        return same(exe(*inputs), want) and alone and native_threads() == 3 and in_child(lambda: same(exe(*inputs), want)) == 0

    assert in_child(work) == 0
    assert same(exe(*inputs), want)


def test_fork_while_another_thread_is_inside_a_call() -> None:
    exe = Executable(encoder(), 2)
    inputs = encoder_inputs(64, 128)
    want = exe(*inputs)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            exe(*inputs)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            assert in_child(lambda: same(exe(*inputs), want)) == 0
    finally:
        stop.set()
        thread.join()


def test_fork_before_the_first_call() -> None:
    exe = Executable(encoder(), 2)
    assert in_child(lambda: exe(*encoder_inputs())[0].shape == (3, 11, 40)) == 0
    exe(*encoder_inputs())


def test_a_dropped_executable_in_a_child_leaves_the_parent_alone() -> None:
    exe = Executable(encoder(), 2)
    want = exe(*encoder_inputs())

    def work() -> bool:
        nonlocal exe
        del exe
        gc.collect()
        return True

    assert in_child(work) == 0
    assert same(exe(*encoder_inputs()), want)


_shared: list[Executable] = []


def _call(seed: int) -> bytes:
    out: np.ndarray = _shared[0](*encoder_inputs(2, 6, seed))[0]
    return out.tobytes()


def test_multiprocessing() -> None:
    _shared[:] = [Executable(encoder(), 2)]
    want = [_call(n) for n in range(6)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_call, range(6)).get(60) == want
    _shared.clear()


# --- exits -------------------------------------------------------------------------------------------------------------------------

PROGRAM = """
import atexit, gc
def dropped():
    if {early}:
        global exe
        del exe
        gc.collect()
        print('done')
atexit.register(dropped)
import sys; sys.path.insert(0, {here!r})
import os, threading, numpy as np
from runtime_harness import *
from trustformers_ir.runtime import executable
executable.ALONE_BELOW = 0
exe = executable.Executable(encoder(), 3)
inputs = encoder_inputs(64, 128)
exe(*inputs)
{end}
"""
ENDS = {
    "after a call": "exe(*inputs); print('done')",
    "by exit": "exe(*inputs); print('done'); sys.exit(0)",
    "with calls at exit": "import atexit; atexit.register(lambda: print('done' if exe(*inputs) else ''))",
    "with a daemon inside a call": """
def work():
    while True: exe(*inputs)
threading.Thread(target=work, daemon=True).start()
print('done')
""",
    "by exit in a thread during a call of another": """
def work():
    while True: exe(*inputs)
threading.Thread(target=work, daemon=True).start()
print('done')
sys.exit(0)
""",
    "by _exit during a call": """
def work():
    while True: exe(*inputs)
threading.Thread(target=work, daemon=True).start()
print('done', flush=True)
os._exit(0)
""",
    "after it was dropped at exit": """
import atexit, gc
def drop():
    global exe
    del exe
    gc.collect()
    print('done')
atexit.register(drop)
""",
    "by an exit function that was registered before all others": "",
    "with threads that still poll": "exe.close(); os.environ['TFIR_SPIN_US'] = '10000000'; exe(*inputs); print('done')",
    "in a forked child": """
pid = os.fork()
exe(*inputs)
if pid: print('done' if os.waitpid(pid, 0)[1] == 0 else 'failed')
""",
}


@pytest.mark.parametrize("end", ENDS)
def test_the_interpreter_exits_cleanly(end: str) -> None:
    program = PROGRAM.format(here=str(HERE), end=ENDS[end], early=not ENDS[end])
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stdout.strip() == "done" and not run.stderr, run.stderr


# --- how many ----------------------------------------------------------------------------------------------------------------------


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TFIR_THREADS", raising=False)
    monkeypatch.setattr(workers, "cpus", lambda: 5)
    assert thread_count(None) == 5 and thread_count(2) == 2
    monkeypatch.setenv("TFIR_THREADS", "3")
    assert thread_count(None) == 3 and thread_count(2) == 2 and Executable(add()).threads == 3
    for wrong in (0, -1, 1025, True, 2.0, "2"):
        with pytest.raises(CompilerError) as caught:
            thread_count(wrong)  # type: ignore[arg-type]
        assert caught.value.codes == (Code.USAGE,)


def test_a_process_bound_to_one_cpu_uses_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TFIR_THREADS", raising=False)

    def work() -> bool:
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        return Executable(add()).threads == 1

    assert in_child(work) == 0


def test_more_workers_than_cpus_give_the_same_bits() -> None:
    inputs = encoder_inputs(64, 128)
    want, exe = Executable(encoder(), 1)(*inputs), Executable(encoder(), 64)

    def work() -> bool:
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        return all(same(exe(*inputs), want) for _ in range(200))

    assert in_child(work) == 0  # 64 threads on one CPU


@pytest.mark.parametrize(("files", "expected"), QUOTAS)
def test_cpus_of_a_cgroup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_own_group", lambda: "/box/pod")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert machine.cpus() == expected


def test_memory_of_a_cgroup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_own_group", lambda: "/")
    machine.memory.cache_clear()
    whole = machine.memory()
    (tmp_path / "memory.max").write_text("max\n")
    machine.memory.cache_clear()
    assert machine.memory() == whole > 1 << 20
    (tmp_path / "memory.max").write_text("1048576\n")
    machine.memory.cache_clear()
    assert machine.memory() == 1 << 20
    monkeypatch.undo()
    machine.memory.cache_clear()
    assert machine.memory() > 1 << 20
