"""Writing files so that nothing is ever left half-written.

The bytes go to a temporary file in the folder of the output, are flushed to the disk, and the file is renamed over the output. Whoever
looks at the output sees the old file, or the new one, whole; after a failure the old one is untouched and the temporary file is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # what writing inside the block can meet


@contextlib.contextmanager
def atomic_output(path: str | os.PathLike[str], durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file whose content becomes ``path`` when the block ends without an exception; ``TFC6004`` when that cannot be.

    A link is followed; a device such as ``/dev/null`` is written in place. Without ``durable`` nobody waits for the disk: after a power
    failure the file may be there with other content.
    """
    target = Path(os.path.realpath(path))
    check_writable(path)
    if target.exists() and not target.is_file():
        with _reporting(path), target.open("wb") as device:
            yield device
        return
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.tmp")
    with _reporting(path, everything=True):
        stream = os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666), "w+b")
    try:
        with stream:
            with _reporting(path):
                yield stream
            with _reporting(path, everything=True):
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
        with _reporting(path, everything=True):
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        _sync_folder(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], marker: str) -> Iterator[Path]:
    """An empty folder that becomes ``path`` when the block ends without an exception; ``TFC6004`` when that cannot be.

    A folder that is there already is replaced if it holds a file ``marker``, so that nothing but an older output is. It is put aside for that:
    between two renames, ``path`` is not there.
    """
    check_writable(path, marker)
    target = Path(os.path.realpath(path))
    stem = f".{target.name[:200]}.{secrets.token_hex(6)}"
    made, old = target.with_name(f"{stem}.tmp"), target.with_name(f"{stem}.old")
    with _reporting(path, everything=True):
        made.mkdir()
    try:
        with _reporting(path):
            yield made
        with _reporting(path, everything=True):
            if target.exists():
                target.rename(old)
            try:
                made.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    _sync_folder(target.parent)


def write_text(path: str | os.PathLike[str], text: str, durable: bool = True) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with atomic_output(path, durable) as stream:
        stream.write(text.encode("utf-8", "surrogatepass"))


def check_writable(path: str | os.PathLike[str], marker: str | None = None) -> None:
    """Raises ``TFC6004`` when ``path`` can be seen to be unwritable already, before the work whose result goes there begins. ``marker``: it will be a
    folder, and may replace one that has a file of this name."""
    target = Path(os.path.realpath(path))
    if marker is not None and target.exists() and not (target / marker).is_file():
        raise _unwritable(path, "something else is there" if target.is_dir() else "it is a file")
    if marker is None and target.is_dir():
        raise _unwritable(path, "it is a folder")
    if not target.parent.is_dir():
        raise _unwritable(path, f"the folder '{target.parent}' does not exist")
    if not os.access(target if target.exists() and not target.is_file() and marker is None else target.parent, os.W_OK):
        raise _unwritable(path, "permission denied")


@contextlib.contextmanager
def _reporting(path: str | os.PathLike[str], everything: bool = False) -> Iterator[None]:
    """Turns the errors of the disk into a diagnostic. Inside the user's block only those count that writing alone can raise."""
    try:
        yield
    except OSError as error:
        if everything or error.errno in _FULL:
            raise _unwritable(path, os.strerror(error.errno) if error.errno else str(error)) from error
        raise


def _unwritable(path: str | os.PathLike[str], reason: str) -> CompilerError:
    message = f"cannot write '{os.fspath(path)}': {reason}"
    return CompilerError.of(
        Code.UNWRITABLE, message, Where(file=os.fspath(path)), "name an output in a folder that exists, is writable and has room"
    )


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself last; not every file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
