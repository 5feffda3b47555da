"""Contestants take turns: each is asked for one call to wake up and then for a few in a row, round after round; medians count.

Every contestant has a process of its own (see ``contestant.py``). While one runs the others wait on a pipe; the pause before each turn is longer than
their threads spin for new work.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.ir.progress import note
from trustformers_ir.tools.bench.contestant import write_job
from trustformers_ir.tools.bench.rivals.job import Job

PAUSE = 0.02  # seconds: worker threads of all peers spin for less than that
LINES = 3  # of a failure, shown


@dataclass
class Outcome:
    """What one contestant did. Times in seconds; ``failure`` says why it did not run, and then the rest is empty.

    ``first`` are the calls after a pause, ``seconds`` those that follow one another. ``build`` is the time to the first result,
    ``memory`` the peak of the process until then, in bytes.
    """

    name: str
    failure: str = ""
    missing: str = ""
    build: float = math.nan
    memory: int = 0
    first: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    outputs: list[np.ndarray] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def best(self) -> float:
        return min(self.seconds, default=math.nan)

    @property
    def after_pause(self) -> float:
        return statistics.median(self.first) if self.first else math.nan


class Process:
    """A contestant's process, from its first message on."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.outcome = Outcome(name)
        self._log = (folder / f"{name}.log").open("w+b")
        command = [sys.executable, "-m", "trustformers_ir.tools.bench.contestant", name, str(folder)]
        command = ["env", f"OMP_NUM_THREADS={threads}", "TFIR_CACHE=0", *command]  # everyone compiles
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True)
        told = self._read()
        if "ready" in told:
            self.outcome.build, self.outcome.memory = told["ready"], told["memory"]
        else:
            self.outcome.missing = told.get("missing", "")
            self.outcome.failure = told.get("failed") or f"the package '{self.outcome.missing}' is not installed"
            self.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"failed": self._last_words()}
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"failed": self._last_words()}

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with code {code}: " + " / ".join(lines[-LINES:])

    def dismiss(self) -> None:
        """Lets the process end; ``close`` waits for that."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def close(self) -> None:
        self.dismiss()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@contextlib.contextmanager
def contestants(names: Sequence[str], job: Job) -> Iterator[list[Process]]:
    """The processes of the contestants, made one after the other."""
    write_job(job, job.work)
    running: list[Process] = []
    try:
        for name in names:
            note(f"preparing {name}", len(running), len(names))
            running.append(Process(name, job.work, job.threads))
        yield running
    finally:
        for process in running:
            process.dismiss()
        for process in running:
            process.close()


def compete(names: Sequence[str], job: Job, seconds: float, calls: int = 0) -> Mapping[str, Outcome]:
    """The outcome of each contestant. A turn is one call after a pause and about 100 ms of calls; turns go round until everyone had ``seconds``,
    or ``calls`` timed calls where that is given: everyone has as many."""
    with contestants(names, job) as processes:
        alive = [p for p in processes if not p.outcome.failure]
        turn = {}
        for process in list(alive):
            path = str(job.work / f"{process.outcome.name}.npz")
            told = process.ask(save=path)
            if "failed" in told:
                process.outcome.failure = told["failed"]
                alive.remove(process)
                continue
            with np.load(path) as saved:
                process.outcome.outputs = [saved[key] for key in saved.files]
            warm = process.ask(run=2).get("seconds", [math.inf])
            turn[process.outcome.name] = max(1, min(20, round(0.1 / min(warm))))
        rounds = 0
        while alive and not _done(alive, seconds, calls):
            for process in alive[rounds % len(alive) :] + alive[: rounds % len(alive)]:
                time.sleep(PAUSE)
                wanted = calls - len(process.outcome.seconds) if calls else 1 << 30
                told = process.ask(run=min(turn[process.outcome.name], wanted))
                if "failed" in told:
                    process.outcome.failure = told["failed"]
                    continue
                process.outcome.first.append(told["first"])
                process.outcome.seconds += told["seconds"]
            alive = [p for p in alive if not p.outcome.failure]
            rounds += 1
            note("timing", rounds)
        return {p.outcome.name: p.outcome for p in processes}


def _done(alive: Sequence[Process], seconds: float, calls: int) -> bool:
    if calls:
        return all(len(p.outcome.seconds) >= calls for p in alive)
    return all(sum(p.outcome.seconds) >= seconds for p in alive)
