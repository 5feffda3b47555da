"""Every environment variable that is read, with its type, default and meaning. Nothing else reads ``os.environ``.

A variable is read when it is asked for, never at import: ``env.THREADS.get()``. ``docs/environment.md`` is written from this table.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where

T = TypeVar("T")


@dataclass(frozen=True)
class Variable(Generic[T]):
    """One environment variable. An empty value counts as unset."""

    name: str
    takes: str
    read: Callable[[str], T]
    default: T
    meaning: str
    default_text: str = ""

    def get(self) -> T:
        """The value of now; raises ``TFC6012`` when it is not one that the variable takes."""
        text = os.environ.get(self.name, "").strip()
        if not text:
            return self.default
        try:
            return self.read(text)
        except ValueError:
            message = f"the environment variable {self.name} takes {self.takes}, not '{text}'"
            raise CompilerError.of(Code.BAD_ENVIRONMENT, message, Where(), f"unset {self.name}, or correct it: {self.meaning}") from None


def _flag(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in values:
        raise ValueError(text)
    return values[text.lower()]


def _count(text: str) -> int:
    if (value := int(text)) < 0:
        raise ValueError(text)
    return value


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _size(text: str) -> int:
    unit = "KMGT".find(text[-1:].upper()) + 1
    return _count(text[:-1] if unit else text) << 10 * unit


def _interpreter(text: str) -> str:
    if text != "interpreter":
        raise ValueError(text)
    return text


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # unlike Path.expanduser, leaves `~` alone where there is no home


STOP_AFTER: Variable[int | None] = Variable(
    "TFIR_STOP_AFTER",
    "a number",
    _count,
    None,
    "apply only the first N rewrites of a compilation; bisect over N to find the one at fault",
    "all",
)
DUMP_DIR: Variable[Path | None] = Variable(
    "TFIR_DUMP_DIR", "a folder", _path, None, "write the module there after every pass that changed it, numbered in order", "no dumps"
)
VERIFY: Variable[bool] = Variable("TFIR_VERIFY", "0 or 1", _flag, True, "run the verifier after every pass")
THREADS: Variable[int | None] = Variable(
    "TFIR_THREADS", "a positive number", _positive, None, "how many threads execute a compiled model", "the CPUs this process may use"
)
TARGET: Variable[str | None] = Variable(
    "TFIR_TARGET",
    "the name of a target",
    str,
    None,
    "of an artifact with code for several targets, execute that of this one",
    "the best that the machine runs",
)
SPIN: Variable[int] = Variable(
    "TFIR_SPIN_US",
    "microseconds",
    _count,
    100,
    "how long the threads of a compiled model poll for the next call before they sleep; more makes calls with pauses between them faster, and "
    "costs the CPU time of every thread but one for as long",
)
CC: Variable[str] = Variable("CC", "a command", str, "cc", "the C compiler that makes shared libraries", "cc")
CACHE_DIR: Variable[Path | None] = Variable(
    "TFIR_CACHE_DIR",
    "a folder",
    _path,
    None,
    "where compiled checkpoints, downloads and tuned schedules are kept",
    "trustformers_ir in $XDG_CACHE_HOME, or in ~/.cache",
)
SCHEDULES: Variable[str | None] = Variable(
    "TFIR_SCHEDULES",
    "a file, or 0",
    str,
    None,
    "the table of tuned schedules that code is compiled with (`tfc tune`); 0: none",
    "those in the folder `schedules` of the cache",
)
CACHE: Variable[bool] = Variable("TFIR_CACHE", "0 or 1", _flag, True, "keep compiled checkpoints and kernels of GPUs, and use those that are kept")
CACHE_LIMIT: Variable[int] = Variable(
    "TFIR_CACHE_LIMIT", "a number of bytes, or one with K, M, G or T", _size, 8 << 30, "the most that is kept; what was used longest ago goes", "8G"
)
GPU: Variable[str | None] = Variable(
    "TFIR_GPU",
    "interpreter",
    _interpreter,
    None,
    "run code for GPUs through Triton's interpreter, on the CPU: slow, for debugging (`docs/triton.md`)",
    "the GPU of the machine",
)
GPU_GRAPHS: Variable[bool] = Variable(
    "TFIR_GPU_GRAPHS", "0 or 1", _flag, True, "a GPU repeats the launches of a call as one graph from the second call of its shapes on"
)
XDG_CACHE_HOME: Variable[Path | None] = Variable(
    "XDG_CACHE_HOME", "a folder", _path, None, "where programs keep what they can make again (freedesktop.org)", "~/.cache"
)
DEBUG: Variable[bool] = Variable("TFIR_DEBUG", "0 or 1", _flag, False, "`tfc` shows the Python traceback of an error, as `--debug` does")

SOURCE_DATE: Variable[int | None] = Variable(
    "SOURCE_DATE_EPOCH",
    "seconds since 1970",
    _count,
    None,
    "the time that is written into bills of materials (reproducible-builds.org)",
    "no time is written",
)

CI: Variable[bool] = Variable("CI", "anything", bool, False, "set by most CI services: no progress bars")


@contextlib.contextmanager
def replaced(values: Mapping[Variable[Any], str | None]) -> Iterator[None]:
    """Variables with other values, or unset, while the block runs, also for the processes that it starts."""
    before = {v.name: os.environ.get(v.name) for v in values}

    def put(name: str, value: str | None) -> None:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

    try:
        for variable, value in values.items():
            put(variable.name, value)
        yield
    finally:
        for name, value in before.items():
            put(name, value)


def interpret_triton() -> None:
    """Tells Triton, which asks when it is imported, to interpret functions."""
    os.environ.setdefault("TRITON_INTERPRET", "1")


def cache_folder() -> Path:
    """Where files are kept that can be made again. A relative ``XDG_CACHE_HOME`` does not count, as its specification wants."""
    chosen, home = CACHE_DIR.get(), XDG_CACHE_HOME.get()
    return chosen or (home if home is not None and home.is_absolute() else _path("~/.cache")) / "trustformers_ir"


VARIABLES: tuple[Variable[object], ...] = tuple(v for v in list(globals().values()) if isinstance(v, Variable))
