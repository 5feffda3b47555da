"""Calls from inside a call: a signal handler or a ``__del__`` that runs on a thread which is calling the same executable."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runtime_harness import encoder, encoder_inputs, same

from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.runtime import executable, workers
from trustformers_ir.runtime.executable import Executable

HERE = Path(__file__).parent

pytestmark = pytest.mark.usefixtures("all_calls_use_all_workers")


def interrupted(exe: Executable, what: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> tuple[list[CompilerError], Any]:
    """Calls ``exe`` and, while it holds the workers, does ``what`` on the same thread, as a signal handler or a ``__del__`` would. What that
    raised, and what the call gave."""
    raised: list[CompilerError] = []
    real = workers.Workers.run

    def run(self: workers.Workers, *args: Any) -> None:
        try:
            what()
        except CompilerError as error:
            raised.append(error)
        real(self, *args)

    results: list[Any] = []
    monkeypatch.setattr(workers.Workers, "run", run)
    thread = threading.Thread(target=lambda: results.append(exe(*encoder_inputs(2, 3))), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "the call waits for itself"
    monkeypatch.setattr(workers.Workers, "run", real)
    return raised, results[0]


@pytest.mark.parametrize("what", ["call", "entry", "profile", "prepare", "weight", "close"])
def test_a_call_that_interrupts_a_call_of_its_thread_is_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exe = Executable(encoder(), 2)
    want = exe(*encoder_inputs(2, 3))
    inner = {
        "call": lambda: exe(*encoder_inputs(64, 128)),
        "entry": lambda: exe.run(*encoder_inputs(1, 1), entry="main"),
        "profile": lambda: exe.profile(*encoder_inputs(1, 1)),
        "prepare": exe.prepare,
        "weight": lambda: exe.weight("bias"),
        "close": exe.close,
    }
    raised, got = interrupted(exe, inner[what], monkeypatch)
    if what in ("prepare", "weight"):  # all is there: nothing to wait for
        assert not raised
    else:
        assert [e.codes for e in raised] == [(Code.CALL_IN_CALL,)]
        assert "signal handler" in str(raised[0])
    assert same(got, want)
    assert same(exe(*encoder_inputs(2, 3)), want)


def test_an_interrupted_call_may_call_another_executable(monkeypatch: pytest.MonkeyPatch) -> None:
    exe, other = Executable(encoder(), 2), Executable(encoder(), 2)
    want = exe(*encoder_inputs(5, 9))
    found: list[Any] = []
    inside = threading.Event()

    def call_other() -> None:
        if not inside.is_set():
            inside.set()
            found.append(other(*encoder_inputs(5, 9)))

    raised, _ = interrupted(exe, call_other, monkeypatch)
    assert not raised
    assert same(found[0], want)


def test_a_call_that_interrupts_linking_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    exe = Executable(encoder(), 2)
    raised: list[CompilerError] = []
    real = executable.link

    def linking(*args: Any) -> Any:
        try:
            exe(*encoder_inputs(1, 1))
        except CompilerError as error:
            raised.append(error)
        return real(*args)

    monkeypatch.setattr(executable, "link", linking)
    thread = threading.Thread(target=exe.prepare, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "the executable waits for itself"
    assert [e.codes for e in raised] == [(Code.CALL_IN_CALL,)]
    exe(*encoder_inputs(1, 1))


HANDLERS = """
import signal, sys
sys.path.insert(0, {here!r})
from runtime_harness import encoder, encoder_inputs
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.runtime.executable import Executable

exe = Executable(encoder(), 2)
small, large = encoder_inputs(1, 2), encoder_inputs(8, 32)
want = [a.tobytes() for a in exe(*small)], [a.tobytes() for a in exe(*large)]
counts = {{"refused": 0, "ran": 0}}

def handler(*_):
    try:
        assert [a.tobytes() for a in exe(*small)] == want[0]
        counts["ran"] += 1
    except CompilerError:
        counts["refused"] += 1

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
calls = 0
while counts["refused"] < 20:
    assert [a.tobytes() for a in exe(*large)] == want[1]
    calls += 1
signal.setitimer(signal.ITIMER_REAL, 0)
exe(*small)
print(counts["refused"])
"""


def test_a_signal_handler_that_calls_the_executable_it_interrupts() -> None:
    """Real signals, at any place of a call. Where they find it outside of the native code's turn they are served."""
    done = subprocess.run([sys.executable, "-c", HANDLERS.format(here=str(HERE))], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20


def test_a_child_that_is_forked_inside_a_call_may_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the threads that were inside, the child has its own alone."""
    exe = Executable(encoder(), 2)
    want = exe(*encoder_inputs(2, 3))
    exe._inside.update({1, threading.get_ident()})
    exe.after_fork()
    assert exe._inside == {threading.get_ident()}
    exe._inside.clear()
    assert same(exe(*encoder_inputs(2, 3)), want)
