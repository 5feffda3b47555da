"""Folders in which a program keeps what it can make again for the next one: compiled models, machine code of kernels."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

ABANDONED = 3600  # seconds after which a temporary file is nobody's any more


def private_folders(base: Path, places: Iterable[Path]) -> None:
    """Makes ``base`` and the ``places`` in it. What lies there runs with all rights of this process, so ``OSError`` when they do not belong to this
    user alone, or when ``base`` is everybody's."""
    base.parent.mkdir(parents=True, exist_ok=True)
    base.mkdir(mode=0o700, exist_ok=True)
    status = base.stat()
    if status.st_mode & 0o002 and not status.st_mode & stat.S_ISVTX:  # unlike in /tmp, anybody could put other folders into the place of ours
        raise OSError(f"'{base}' can be written by everybody")
    for place in places:
        place.mkdir(mode=0o700, exist_ok=True)
        status = place.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise OSError(f"'{place}' can be written by others")


def drop_abandoned(folder: Path) -> None:
    """Removes temporary files (``ir/atomic.py``) of processes that died."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - ABANDONED:
                path.unlink()


def package_identity(name: str) -> str | None:
    """Which version of a package is installed, without importing it: place and time of its first file. None when there is none."""
    found = importlib.util.find_spec(name)
    return None if found is None or found.origin is None else f"{found.origin} {os.stat(found.origin).st_mtime_ns}"
