"""What a file holds, as a digest of its bytes; of a large file that has not changed since, without reading it again.

A digest is always one of all bytes. As a short cut, the digest of a large file is remembered under what the system says of it: device,
inode, size, the times of the last change of its bytes and of its inode, and the boot of the machine. Programs can set the first of these times
back, but not the second, so a file that was overwritten or replaced is read again. Two cases would escape, and are met:

* a change within the same tick of the clock as the digest: nothing is remembered of a file that changed less than ``SETTLED`` seconds
  before it was read (git calls such entries racily clean);
* a power failure that leaves other bytes than were written: after the next boot everything is read again.

Bytes written through a shared mapping change the times only when the system writes them back; who edits weights in place that way has to
touch the file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trustformers_ir.ir.atomic import write_text
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.ir.machine import cpus

CHUNK = 8 << 20
SMALL = 1 << 20  # files up to this size are read every time
SETTLED = 2.0  # seconds
MAX_FILES = 10_000  # of a folder that has an identity
GGUF = ".gguf"
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf\Z")
READ = (".json", ".safetensors")  # what reading a checkpoint folder can depend on


class Memory:
    """The digests that are remembered, one small file each, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def digest(self, path: Path) -> str:
        """The digest of a file's bytes, hexadecimal. ``OSError`` when it cannot be read or changes meanwhile."""
        before = os.stat(path)
        if before.st_size > SMALL and (known := self.recall(path, before)) is not None:
            return known
        started = time.time()
        found = content_digest(path)
        after = os.stat(path)
        if state_of(after) != state_of(before):
            raise OSError(f"'{path}' changed while it was read")
        if before.st_size > SMALL and max(before.st_mtime, before.st_ctime) < started - SETTLED:
            self.remember(path, after, found)
        return found

    def recall(self, path: Path, status: os.stat_result) -> str | None:
        """What is remembered of a file in this state. A note that is broken counts as none."""
        note = self._note(path, status)
        try:
            text = note.read_text("ascii")
        except (OSError, ValueError):
            return None
        digest, _, check = text.partition(" ")
        return digest if check == _check(note.name, digest) else None

    def remember(self, path: Path, status: os.stat_result, digest: str) -> None:
        """Notes the digest of a file in this state; a folder that cannot be written remembers nothing."""
        note = self._note(path, status)
        with contextlib.suppress(OSError, CompilerError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(note, f"{digest} {_check(note.name, digest)}", durable=False)

    def _note(self, path: Path, status: os.stat_result) -> Path:
        text = f"{os.path.realpath(path)}\n{state_of(status)}\n{_boot()}"
        return self.folder / hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def state_of(s: os.stat_result) -> tuple[int, ...]:
    """What changes when a file does."""
    return (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


def _check(name: str, digest: str) -> str:
    return hashlib.sha256(f"{name} {digest}".encode()).hexdigest()


@functools.cache
def _boot() -> str:
    """A name of the machine's current boot; where there is none, one of this process, so that nothing is remembered for others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{os.getpid()} {time.time_ns()}"


def content_digest(path: Path) -> str:
    """SHA-256 over the SHA-256 of each chunk of 8 MiB: several threads share the work. The file is read, not mapped: one that is cut meanwhile
    is an error and no signal."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"'{path}' is not an ordinary file")
        size = status.st_size

        def chunk(offset: int) -> bytes:
            data = os.pread(descriptor, CHUNK, offset)
            if len(data) != min(CHUNK, size - offset):
                raise OSError(f"'{path}' changed while it was read")
            return hashlib.sha256(data).digest()

        offsets = range(0, size, CHUNK)
        if len(offsets) < 2:
            parts = [chunk(o) for o in offsets]
        else:
            with ThreadPoolExecutor(min(cpus(), 8)) as pool:
                parts = list(pool.map(chunk, offsets))
    finally:
        os.close(descriptor)
    return hashlib.sha256(size.to_bytes(8, "little") + b"".join(parts)).hexdigest()


def model_identity(model: Path, memory: Memory) -> list[tuple[str, str]] | None:
    """The name and digest of every file that reading a checkpoint folder, or a GGUF file, can depend on, sorted. None where nothing is said of it."""
    return folder_identity(model, memory) if model.is_dir() else gguf_identity(model, memory)


def gguf_identity(path: Path, memory: Memory) -> list[tuple[str, str]] | None:
    """That of a GGUF file, and of all files of its model where it is the first of several."""
    names = gguf_parts(path.name)
    if len(names) > MAX_FILES:
        return None
    try:
        return [(name, memory.digest(path.with_name(name))) for name in names]
    except OSError:
        return None


def gguf_parts(name: str) -> list[str]:
    """The names of all files of a model of which a GGUF file has this name, sorted."""
    parts = _PART.search(name)
    if parts is None:
        return [name]
    return sorted({name, *(f"{name[: parts.start()]}-{n:05}-of-{parts[2]}{GGUF}" for n in range(1, int(parts[2]) + 1))})


def folder_identity(folder: Path, memory: Memory) -> list[tuple[str, str]] | None:
    """The name and digest of every file that reading a checkpoint from this folder can depend on, sorted.

    These are all ``*.json`` and ``*.safetensors`` in the folder and below it. None for a folder that is not plain (a link to another folder in it,
    too many files, something unreadable): nothing is said of it then.
    """
    out: list[tuple[str, str]] = []
    try:
        for name in checkpoint_files(folder):
            if len(out) == MAX_FILES:
                return None
            out.append((name, memory.digest(folder / name)))
    except OSError:
        return None
    return sorted(out)


def checkpoint_files(folder: Path, endings: tuple[str, ...] = READ) -> Iterator[str]:
    """Relative names of the files that end so, in no order. ``OSError`` for a linked folder."""
    waiting = [""]
    seen = 0
    while waiting:
        inside = waiting.pop()
        with os.scandir(folder / inside) as entries:
            for e in entries:
                seen += 1
                if seen > MAX_FILES:
                    raise OSError("too many files")
                name = f"{inside}{e.name}"
                if e.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                elif e.is_symlink() and e.is_dir():
                    raise OSError(f"'{name}' is a link to a folder")
                elif e.name.endswith(endings):
                    yield name
