"""Machine code of kernels, kept on the disk: ``<cache>/kernels/<key>.tfk``, a file for each.

The key is a digest of all that the code depends on: the text of the functions, their signature and launch, the target, which Triton made it and
how it was asked (``aot.py``, ``worker.py``). So an entry is never out of date; what was used longest ago goes when there is too much
(``MOST_BYTES``, or ``TFIR_CACHE_LIMIT`` where that is less). The rules of the compile cache (``runtime/cache.py``) hold here, too: the folder has to
belong to this user alone, files appear by renaming, an entry that is not what was written is removed and made again, and ``TFIR_CACHE=0`` keeps and
uses nothing.

    TFK1 | sha256 of the rest | the fields of ``Binary`` as JSON, code in base64, packed by zlib
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trustformers_ir.codegen.triton.binary import Binary
from trustformers_ir.ir import env
from trustformers_ir.ir.atomic import atomic_output
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.ir.keeping import drop_abandoned, package_identity, private_folders

MAGIC = b"TFK1"
MOST_BYTES = 512 << 20  # of all entries: some twenty thousand kernels
MOST_OF_ONE = 64 << 20  # unpacked


def key(job: Mapping[str, Any]) -> str:
    """The name of what Triton makes of a job."""
    text = json.dumps({"job": job, "triton": package_identity("triton"), "makers": _makers()}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@functools.cache
def _makers() -> str:
    """A digest of the files that ask Triton: with which options, in which environment."""
    files = [Path(__file__).with_name(name).read_bytes() for name in ("aot.py", "worker.py", "kept.py")]
    return hashlib.sha256(b"\0".join(files)).hexdigest()


@dataclass(frozen=True)
class Kept:
    """The kernels in a folder."""

    folder: Path
    limit: int

    def get(self, key: str) -> Binary | None:
        """The kernel of that key; None when there is none, or when it is broken: then it is removed."""
        path = self._path(key)
        try:
            with path.open("rb") as stream:
                data = stream.read(MOST_OF_ONE + 1)
            found = _decoded(data)
            os.utime(path)
        except OSError:
            return None
        except ValueError:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        return found

    def put(self, key: str, binary: Binary) -> None:
        """Keeps a kernel, unless the disk refuses."""
        with contextlib.suppress(OSError, CompilerError), atomic_output(self._path(key), durable=False) as stream:
            stream.write(_encoded(binary))

    def entries(self) -> list[tuple[Path, os.stat_result]]:
        """All entries, the one used longest ago first."""
        found = []
        for path in self.folder.glob("*.tfk"):
            with contextlib.suppress(OSError):
                found.append((path, path.stat()))
        return sorted(found, key=lambda entry: entry[1].st_mtime_ns)

    def trim(self) -> None:
        """Removes what was used longest ago until the rest fits, and leftovers of processes that died."""
        found = self.entries()
        total = sum(status.st_size for _, status in found)
        for path, status in found:
            if total <= self.limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= status.st_size
        drop_abandoned(self.folder)

    def clear(self) -> int:
        """Removes all entries; how many there were."""
        found = self.entries()
        for path, _ in found:
            path.unlink(missing_ok=True)
        return len(found)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.tfk"


def opened() -> Kept | None:
    """The kernels that are kept; None where nothing is: ``TFIR_CACHE`` is 0, or the folder cannot be used."""
    if not env.CACHE.get():
        return None
    base = Path(os.path.abspath(env.cache_folder()))
    try:
        private_folders(base, [base / "kernels"])
    except OSError:
        return None
    return Kept(base / "kernels", min(env.CACHE_LIMIT.get(), MOST_BYTES))


def _encoded(binary: Binary) -> bytes:
    row = {**dataclasses.asdict(binary), "code": base64.b64encode(binary.code).decode()}
    packed = zlib.compress(json.dumps(row).encode(), 1)
    return MAGIC + hashlib.sha256(packed).digest() + packed


def _decoded(data: bytes) -> Binary:
    """``ValueError`` for what was not written by ``_encoded``."""
    packed = data[len(MAGIC) + 32 :]
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(packed).digest() != data[len(MAGIC) : len(MAGIC) + 32]:
        raise ValueError("it is not what was written")
    try:
        unpacker = zlib.decompressobj()
        row = json.loads(unpacker.decompress(packed, MOST_OF_ONE))
    except (zlib.error, RecursionError) as error:
        raise ValueError(str(error)) from None
    kinds = {f.name: {"str": str, "bytes": str, "int": int}[str(f.type)] for f in dataclasses.fields(Binary)}
    if not isinstance(row, dict) or {name: type(value) for name, value in row.items()} != kinds:
        raise ValueError("its fields are not those of a kernel")
    return Binary(**{**row, "code": base64.b64decode(row["code"], validate=True)})
