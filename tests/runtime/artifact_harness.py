"""Takes ``*.tfc`` files apart and puts them together again, with right checksums and anything else wrong."""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime_harness import encoder, encoder_module

from trustformers_ir.runtime import artifact
from trustformers_ir.runtime.container import ALIGNMENTS, FORMAT_VERSION, HEADER_BYTES, MAGIC, SECTIONS
from trustformers_ir.runtime.executable import Executable

Document = dict[str, Any]


@functools.cache
def good_file() -> bytes:
    """The artifact of the encoder."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.tfc"
        artifact.save(encoder(), path)
        return path.read_bytes()


@functools.cache
def good_fat_file() -> bytes:
    """An artifact with code for two machines, which read the same weights. Between the codes there is a gap, whatever their length."""
    import tempfile

    family = [encoder_module(target) for target in ("cpu:avx512", "cpu:avx2")]
    family = [replace(m, code=m.code + b"\0" * (len(m.code) % 64 == 0)) for m in family]  # linkers do not read what comes after an object
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.tfc"
        Executable(family[0], family=family).save(path)
        return path.read_bytes()


def rows(data: bytes) -> list[tuple[int, int]]:
    """``(offset, length)`` of each section."""
    return [struct.unpack_from("<QQ", data, 32 + 48 * i) for i in range(len(SECTIONS))]  # type: ignore[misc]


def parts(data: bytes) -> list[bytes]:
    return [data[offset : offset + length] for offset, length in rows(data)]


def document(data: bytes) -> Document:
    """The manifest as it stands in the file."""
    out: Document = json.loads(parts(data)[0])
    return out


def seal(data: bytes) -> bytes:
    """The same bytes with the checksum of the header put right."""
    return data[: HEADER_BYTES - 32] + hashlib.sha256(data[: HEADER_BYTES - 32]).digest() + data[HEADER_BYTES:]


def patched(offset: int, layout: str, *values: Any, data: bytes | None = None) -> bytes:
    """The good file with a field of the header replaced and the header sealed."""
    out = bytearray(data or good_file())
    struct.pack_into(layout, out, offset, *values)
    return seal(bytes(out))


def packed(
    manifest: bytes | Document | None = None,
    graph: bytes | None = None,
    code: bytes | None = None,
    weights: bytes | None = None,
    base: bytes | None = None,
) -> bytes:
    """A file of these sections (those of the good file, or of ``base``, where none is given), every checksum right."""
    old = parts(base or good_file())
    lengths = {"graph": graph, "code": code}
    if manifest is None and any(new is not None and len(new) != len(o) for new, o in zip(lengths.values(), old[1:3], strict=True)):
        manifest = json.loads(old[0])
        for name, new in lengths.items():
            if new is not None:
                manifest["variants"][-1][name]["length"] = len(new)
    if isinstance(manifest, dict):
        manifest = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    sections = [o if n is None else n for o, n in zip(old, (manifest, graph, code, weights), strict=True)]
    out = bytearray(HEADER_BYTES)
    table = b""
    for i, (section, alignment) in enumerate(zip(sections, ALIGNMENTS, strict=True)):
        out += bytes(-len(out) % alignment)
        digest = hashlib.sha256(_digests(sections[0]) if i == 3 else section).digest()
        table += struct.pack("<QQ32s", len(out), len(section), digest)
        out += section
    head = struct.pack("<8sIIQQ", MAGIC, FORMAT_VERSION, HEADER_BYTES, len(out), 0) + table
    out[: HEADER_BYTES - 32] = head
    return seal(bytes(out))


def _digests(manifest: bytes) -> bytes:
    """The digests of the weights in their order, as far as the manifest has any."""
    try:
        whole = json.loads(manifest)
        return b"".join(bytes.fromhex(whole["digests"][w["name"]]) for w in whole["variants"][0]["manifest"]["weights"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return b""


def with_manifest(change: Any, base: bytes | None = None) -> bytes:
    """The good file, or ``base``, with a change made to its document."""
    whole = document(base or good_file())
    change(whole)
    return packed(whole, base=base)
