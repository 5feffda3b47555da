"""A process that reads files which somebody made wrong, and reports what a reader must never do.

``python fuzzing.py KIND ROUNDS SEED FOLDER [FILE]`` reads that many mutated files of a kind, or one file again. A file is read or refused with
errors of ours, within ``SECONDS``; no other exception, no warning of numpy, no file opened outside of the model's folder, no memory beyond
``ALLOWED`` and ``PER_BYTE`` times the bytes of the file, and the process may map no more than ``ROOM`` beyond what it begins with. What went wrong
is kept in FOLDER, and told as JSON. A sample of what was read is compiled and run, each in a fork.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

SECONDS = 5.0  # of the processor, and
PATIENCE = 60.0  # by the clock, which runs on while others have the processor
LATER = 60.0  # to compile and run what was read
ALLOWED = 96 << 20  # bytes that the process may hold beyond what it begins with, and
PER_BYTE = 64  # times the bytes of the file
ROOM = 1 << 30  # bytes of address space
TRACED = 50  # of so many files one is measured by tracemalloc
MOST_KEPT = 40
HERE = Path(__file__).resolve()


@dataclass(frozen=True)
class Kind:
    """A kind of file: how a wrong one is made, and how it is read; a reader gives what it read, or raises ``CompilerError``."""

    suffix: str
    prepare: Callable[[Path], None]
    make: Callable[[random.Random], tuple[bytes, str]]
    read: Callable[[Path, str], Any]
    after: Callable[[Any], None] | None = None  # of a sample of what was read
    every: int = 0
    warm: Callable[[random.Random], tuple[bytes, str]] | None = None  # files that load what is loaded once; like the others where this is None


@dataclass
class Report:
    """What happened to the files."""

    files: int = 0
    read: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    traced: int = 0  # the most that tracemalloc saw for one file
    peak: int = 0  # resident bytes beyond those at the beginning
    codes: dict[str, int] = field(default_factory=dict)
    how: dict[str, int] = field(default_factory=dict)  # for how many files of each mutation
    unnamed: dict[str, int] = field(default_factory=dict)  # refusals that only say what Python said
    later: int = 0  # how many were compiled and run as well
    wrong: list[dict[str, str]] = field(default_factory=list)


class TooLong(BaseException):
    """A file took longer than it may."""


def _late(number: int, frame: FrameType | None) -> None:
    raise TooLong


class _Doors:
    """Which files are opened: none but those of the model's folder, and Python's own modules."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.resolve()) + os.sep
        self.watching = False
        self.outside: list[str] = []
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: Any) -> None:
        if not self.watching or event != "open" or not isinstance(arguments[0], (str, bytes)):
            return
        name = os.path.realpath(os.fsdecode(arguments[0]))
        if not name.startswith(self.folder) and not name.endswith((".py", ".pyc", ".so", os.sep + "__pycache__")):
            self.outside.append(name)


def fuzz(kind: Kind, rounds: int, seed: int, folder: Path) -> Report:
    """Reads mutated files in this process, whose limits it changes."""
    from trustformers_ir.ir.diagnostics import CompilerError

    model, kept = folder / "model", folder / "kept"
    for f in (model, kept):
        f.mkdir(parents=True, exist_ok=True)
    kind.prepare(model)
    path = model / f"x{kind.suffix}"
    rng, report, codes, how = random.Random(seed), Report(), Counter[str](), Counter[str]()
    unnamed = Counter[str]()
    doors = _Doors(model)
    said: list[str] = []
    warnings.showwarning = lambda message, category, file, line, *_: said.append(f"{category.__name__}: {message} ({file}:{line})")  # type: ignore[assignment]
    warnings.simplefilter("always")
    signal.signal(signal.SIGALRM, _late)
    signal.signal(signal.SIGPROF, _late)
    warm = random.Random(0)
    start, began = 0, time.monotonic()
    for number in range(-min(300, 20 + rounds // 5), rounds):
        if number == 0:  # what is imported and cached once is there
            codes.clear()
            unnamed.clear()
            start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            _limit_address_space()
            began = time.monotonic()
        content, name = kind.make(rng) if number >= 0 else (kind.warm or kind.make)(warm)
        path.write_bytes(content)
        del said[:], doors.outside[:]
        traced = number >= 0 and number % TRACED == 0
        if traced:
            tracemalloc.start()
        problem, result = "", None
        since = time.process_time()
        _alarm(SECONDS * (5 if traced else 1), PATIENCE)  # tracemalloc slows Python down several times
        doors.watching = True
        try:
            result = kind.read(path, name)
        except CompilerError as error:
            for d in error.diagnostics:
                codes[d.code.id] += 1
                if d.code.number >= 9000 or not (d.help or d.code.advice):
                    problem = f"{d.code.id} {d.message}"
                if "cannot be read: " in d.message:
                    unnamed[f"{d.where.op} {d.message.split('cannot be read: ', 1)[1]}".split("\n")[0][:100]] += 1
        except TooLong:
            problem = "it takes too long\n" + traceback.format_exc(limit=-8)
        except BaseException as error:
            problem = f"{type(error).__name__}: {str(error)[:300]}\n" + traceback.format_exc(limit=-8)
        finally:
            _alarm(0.0, 0.0)
            doors.watching = False
        took = time.process_time() - since
        if traced:
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            report.traced = max(report.traced, most)
            if most > ALLOWED + PER_BYTE * len(content):
                problem = problem or f"{most} bytes are allocated for {len(content)}"
        if number < 0:
            continue
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start
        if held > ALLOWED + PER_BYTE * len(content) and held > report.peak + (1 << 20):
            problem = problem or f"{held} bytes are held after a file of {len(content)}"
        if doors.outside:
            problem = problem or f"it opens {doors.outside[0]}"
        if said:
            problem = problem or f"warning {said[0]}"
        if result is not None and not problem and kind.after is not None and report.read % kind.every == 0:
            problem = _apart(kind.after, result)
            report.later += 1
        report.files += 1
        report.read += result is not None
        report.slowest, report.peak = max(report.slowest, 0.0 if traced else took), max(report.peak, held)
        how[name] += 1
        if problem and len(report.wrong) < MOST_KEPT:
            (kept / f"{seed}_{number}{kind.suffix}").write_bytes(content)
            report.wrong.append({"file": f"{seed}_{number}{kind.suffix}", "how": name, "problem": problem})
    report.seconds = time.monotonic() - began
    report.codes, report.how, report.unnamed = dict(codes), dict(how), dict(unnamed.most_common(60))
    return report


def _apart(after: Callable[[Any], None], result: Any) -> str:
    """What goes wrong with what was read, in a fork: its memory and its crashes are not ours."""
    from trustformers_ir.ir.diagnostics import CompilerError

    back, there = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            _alarm(LATER, 4 * LATER)
            after(result)
        except CompilerError as error:
            bad = next((d for d in error.diagnostics if d.code.number >= 9000), None)
            said = f"later {bad.code.id} {bad.message}" if bad else ""
        except BaseException as error:
            said = f"later {type(error).__name__}: {str(error)[:300]}\n" + traceback.format_exc(limit=-8)
        os.write(there, said.encode()[:4000])
        os._exit(0)
    os.close(there)
    with os.fdopen(back, "rb") as stream:
        problem = stream.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return f"later: the process dies of {status}" if status else problem


def _alarm(busy: float, patience: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, busy)
    signal.setitimer(signal.ITIMER_REAL, patience)


def _limit_address_space() -> None:
    with open("/proc/self/statm") as stream:
        pages = int(stream.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, resource.RLIM_INFINITY))


def run(kind: str, rounds: int, seed: int, folder: Path, timeout: float) -> Report:
    """The same in a process of its own; a crash or a hang in native code is the test's failure."""
    command = [sys.executable, str(HERE), kind, str(rounds), str(seed), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{kind}: exit code {done.returncode}\n{done.stderr[-4000:]}"
    return Report(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    import fuzzing_kinds

    name, rounds, seed, folder = sys.argv[1:5]
    kind = fuzzing_kinds.MAKERS[name]()
    if len(sys.argv) > 5:  # one file that was kept, again
        content = Path(sys.argv[5]).read_bytes()
        kind = replace(kind, make=lambda rng: (content, "again"), warm=kind.warm or kind.make)
    print(json.dumps(asdict(fuzz(kind, int(rounds), int(seed), Path(folder)))))


if __name__ == "__main__":
    main()
