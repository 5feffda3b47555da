"""SHA-256 of files, as ``sha256sum`` prints it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

CHUNK = 4 << 20


def file_digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of the bytes of a file, hexadecimal. ``OSError``"""
    made, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            made.update(buffer[:count])
    return made.hexdigest()


def tree_files(path: str | os.PathLike[str]) -> list[Path]:
    """A file itself, or all files in a folder and below it, sorted by their names relative to it."""
    whole = Path(path)
    if not whole.is_dir():
        return [whole]
    return sorted((p for p in whole.rglob("*") if p.is_file()), key=lambda p: p.relative_to(whole).as_posix())
