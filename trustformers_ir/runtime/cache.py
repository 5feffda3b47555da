"""The compile cache: what a checkpoint or a GGUF file was compiled to, kept for the next process that asks for the same.

An entry is an artifact like any other, ``<folder>/compiled/<key>.tfc``, and is mapped as one. The key is a digest of all that the result
depends on: the bytes of the checkpoint's files (``identity.py``), the request, the machine, the compiler's own source files, and the
installed LLVM. So an entry is never out of date; one that nobody can ask for any more is at some point the one that was used longest ago, and goes.

* Files appear by renaming, so processes may store the same entry at once: one of them wins, both are right. An entry that goes while it is
  mapped stays until nobody maps it.
* An entry is checked like an artifact of unknown origin. Its weights are hashed when it is first used after a boot, and not again as long as the
  system says that the file is the same (``identity.py``). An entry that does not pass is removed, and made again.
* The code of an entry runs with all rights of this process, so the folder has to belong to this user alone, and the one around it must
  not be everybody's; else it is not used.
* Entries are written by a thread of their own, after the result is there, unless the checkpoint was changed meanwhile. The interpreter waits
  for it when it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trustformers_ir.ir import env
from trustformers_ir.ir.abi import ABI_VERSION
from trustformers_ir.ir.atomic import write_text
from trustformers_ir.ir.device import TRIPLES
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.ir.keeping import drop_abandoned, package_identity, private_folders
from trustformers_ir.runtime import artifact, container
from trustformers_ir.runtime.host import this_machine
from trustformers_ir.runtime.identity import GGUF, Memory, model_identity
from trustformers_ir.runtime.runnable import Runnable

PACKAGE = Path(__file__).resolve().parents[1]
MAX_NOTES = 4096  # remembered digests of files
MAX_REPORT = 16 << 20
CHECKED = "checked"  # is remembered of an entry in place of a digest: its weights are the ones that were written


@dataclass(frozen=True)
class Entry:
    """An artifact in the cache. ``used`` is the time of the last use, in seconds since 1970; ``bytes`` includes what lies beside it."""

    path: Path
    bytes: int
    used: float


@dataclass(frozen=True)
class Slot:
    """The place of a result that is asked for: where it is, or will be, and the files that it is made of, as they were when that was asked."""

    cache: Cache
    path: Path
    model: Path
    files: list[tuple[str, str]]

    def load(self, threads: int | None, parse: Callable[..., Any]) -> Runnable | None:
        """The executable that lies here; None when there is none, or a broken one."""
        return self.cache.load(self.path, threads, parse)

    def store(self, executable: Runnable) -> None:
        """Writes the executable here, on a thread of its own, unless the checkpoint was changed while it was compiled: nobody knows then which
        bytes were read. ``report()["cache"]`` says how that went."""
        self.cache.store(self.path, executable, self._unchanged)

    def _unchanged(self) -> bool:
        return model_identity(self.model, self.cache.memory) == self.files


class Cache:
    """The compiled checkpoints in a folder."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder / "compiled"
        self.limit = limit
        self.memory = Memory(folder / "digests")

    # -- what is there -----------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All entries, the one used longest ago first."""
        found = []
        for path in self._named("*.tfc"):
            with contextlib.suppress(OSError):
                status = path.stat()
                beside = [p.stat() for p in (_report(path), _used(path)) if p.exists()]
                used = _used(path).stat().st_mtime if _used(path).exists() else status.st_mtime
                found.append(Entry(path, status.st_size + sum(s.st_size for s in beside), used))
        return sorted(found, key=lambda e: e.used)

    def clear(self) -> int:
        """Removes all entries and remembered digests; how many entries there were."""
        found = self.entries()
        for e in found:
            self._remove(e.path)
        for note in self._notes():
            note.unlink(missing_ok=True)
        return len(found)

    # -- one entry ---------------------------------------------------------------------------------------------------

    def load(self, path: Path, threads: int | None, parse: Callable[..., Any]) -> Runnable | None:
        """The executable in an entry; None when there is none, or when it is broken: then it is removed."""
        try:
            status = path.stat()
            known = self.memory.recall(path, status)
            found = container.read(path)
            if known is None:
                found.check_weights()
            try:
                chosen = artifact.choose(found)
            except CompilerError:  # not for this machine, or there is no such target: whoever compiles says so
                if found.manifest.target.triple not in TRIPLES:
                    return None
                chosen = 0  # code for a GPU that is not here can still be saved
            executable = artifact.link(found, chosen, threads, parse)
        except OSError:
            return None
        except CompilerError:
            if path.exists():
                self._remove(path)
            return None
        if known is None:
            self.memory.remember(path, status, CHECKED)
        with contextlib.suppress(OSError):
            _used(path).touch()
        executable.annotate({**_read_report(_report(path)), "cache": {"state": "used", "file": str(path)}})
        return executable

    def store(self, path: Path, executable: Runnable, unchanged: Callable[[], bool]) -> None:
        """Writes an entry on a thread of its own; it appears when ``unchanged`` holds after all that it is made of was read."""
        state: dict[str, object] = {"state": "being stored", "file": str(path)}
        executable.annotate({"cache": state})
        size = sum(w.bytes for w in executable.manifest.weights)
        if size > self.limit:
            state.update(state="not stored", reason=f"{size} bytes of weights; TFIR_CACHE_LIMIT is {self.limit}")
            return

        def write() -> None:
            made = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.tmp")
            try:
                executable.save(made, durable=False)
                if not unchanged():
                    state.update(state="not stored", reason="the checkpoint changed while it was compiled")
                    return
                os.replace(made, path)
                report = {k: v for k, v in executable.compiled.report.items() if k != "cache"}
                write_text(_report(path), json.dumps(report), durable=False)
                self.memory.remember(path, path.stat(), CHECKED)
                state["state"] = "stored"
                self.evict(path)
            except (OSError, CompilerError, ValueError, MemoryError) as error:
                state.update(state="not stored", reason=str(error) or type(error).__name__)
            except BaseException as error:  # ours: it is shown, and the report is right
                state.update(state="not stored", reason=f"{type(error).__name__}: {error}")
                raise
            finally:
                with contextlib.suppress(OSError):
                    made.unlink(missing_ok=True)

        try:
            threading.Thread(target=write, name="tfir compile cache").start()
        except RuntimeError as error:  # as many threads as the system allows, or the interpreter ends
            state.update(state="not stored", reason=str(error))

    def evict(self, keep: Path) -> None:
        """Removes what was used longest ago until the rest fits; ``keep`` stays. Leftovers of processes that died go too."""
        found = self.entries()
        total = sum(e.bytes for e in found)
        for e in found:
            if total > self.limit and e.path != keep:
                self._remove(e.path)
                total -= e.bytes
        drop_abandoned(self.folder)
        notes = sorted(self._notes(), key=_age)
        for note in notes[: max(len(notes) - MAX_NOTES, 0)]:
            with contextlib.suppress(OSError):
                note.unlink()

    def _named(self, pattern: str) -> Iterator[Path]:
        return self.folder.glob(pattern)

    def _notes(self) -> list[Path]:
        return list(self.memory.folder.glob("[0-9a-f]*"))

    def _remove(self, path: Path) -> None:
        for p in (path, _report(path), _used(path)):
            with contextlib.suppress(OSError):
                p.unlink(missing_ok=True)


def _report(path: Path) -> Path:
    return path.with_suffix(".json")


def _used(path: Path) -> Path:
    """An empty file whose time is that of the last use. The artifact itself keeps its times: they say that it is unchanged."""
    return path.with_suffix(".used")


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read_report(path: Path) -> dict[str, object]:
    """What the compiler said when it made the entry; nothing when that is not there."""
    try:
        if path.stat().st_size > MAX_REPORT:
            return {}
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: found[k] for k in ("seconds", "passes", "schedules") if k in found} if isinstance(found, dict) else {}


# --- the cache of this user, and the key of a request ------------------------------------------------------------------------------------


def opened(folder: Path | None = None) -> Cache:
    """The cache in the folder of the environment, or in ``folder``. ``OSError`` when it cannot be used."""
    base = Path(os.path.abspath(folder or env.cache_folder()))  # wherever the program goes before an entry is written
    cache = Cache(base, env.CACHE_LIMIT.get())
    private_folders(base, (cache.folder, cache.memory.folder))
    return cache


def slot(model: Any, request: dict[str, object]) -> Slot | None:
    """The place of what ``request`` makes of the checkpoint folder or GGUF file ``model``; None where nothing is kept.

    That is the case for models of other kinds, for requests that hold more than names and numbers, while rewrites are counted or dumped, when
    ``TFIR_CACHE`` is 0, and when the folder of the cache cannot be used.
    """
    if not isinstance(model, (str, os.PathLike)) or not all(map(_plain, request.values())):
        return None
    if not os.path.isdir(model) and not (os.fspath(model).endswith(GGUF) and os.path.isfile(model)):
        return None
    if not env.CACHE.get() or env.STOP_AFTER.get() is not None or env.DUMP_DIR.get() is not None:
        return None
    try:
        cache = opened()
        place = Path(os.path.realpath(model)) if os.path.isdir(model) else Path(os.path.abspath(model))
        files = model_identity(place, cache.memory)
        llvm = package_identity("llvmlite")  # not its version: to be told that costs more than linking
        if files is None or source_identity() != _SOURCES:
            return None
    except OSError:
        return None
    facts: dict[str, object] = {"files": files, "name": place.name, "request": request, "machine": this_machine(), "compiler": _SOURCES}
    facts |= {"llvm": llvm, "abi": ABI_VERSION, "format": container.FORMAT_VERSION}
    text = json.dumps(facts, sort_keys=True)
    name = f"{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}.tfc"
    return Slot(cache, cache.folder / name, place, files)


def _plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int)) or (isinstance(value, (tuple, list)) and all(isinstance(v, str) for v in value))


def source_identity() -> str:
    """A digest of the names, sizes and times of the compiler's source files: a compiler that was changed makes its entries anew."""
    rows = []
    for folder, _, names in os.walk(PACKAGE):
        for name in names:
            if name.endswith(".py"):
                status = os.stat(os.path.join(folder, name))
                rows.append((os.path.join(folder, name), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(sorted(rows)).encode("utf-8", "surrogateescape")).hexdigest()


_SOURCES = source_identity()  # of now, when the compiler is about to be imported; sources that change later are not the ones that run
