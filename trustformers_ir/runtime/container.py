"""The ``*.tfc`` file: writing it, and reading it without believing it. ``docs/artifact.md`` gives the format byte by byte.

    header (256 bytes) | manifest | graph | code | weights

The header holds the place, the length and a SHA-256 of each section, and one of itself; what lies between sections is zero. So each byte
of the file is covered by a check, and the bytes depend on nothing but the compiled module.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from trustformers_ir.ir.abi import ABI_VERSION, ALIGNMENT, WEIGHT_ALIGNMENT, CompiledModule, Manifest, StoredWeight
from trustformers_ir.ir.atomic import atomic_output
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, InternalError, Where, printable
from trustformers_ir.ir.holes import write_array
from trustformers_ir.ir.machine import cpus
from trustformers_ir.ir.mapped import map_file
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.types import TensorType
from trustformers_ir.runtime.manifest import Span, Variant, check_spans, decode, encode, joined_weights
from trustformers_ir.runtime.memory import section_bytes, stored_view, typed_view, weight_bytes
from trustformers_ir.runtime.records import Broken

MAGIC = b"\x89TFC\r\n\x1a\n"  # as in PNG: a transfer that changes line ends or cuts the eighth bit is noticed
FORMAT_VERSION = 3
SECTIONS = ("manifest", "graph", "code", "weights")
ALIGNMENTS = (64, 64, 64, WEIGHT_ALIGNMENT)
HEADER_BYTES = 256
MAX_MANIFEST = 1 << 28

_HEAD = struct.Struct("<8sIIQQ")  # magic, format version, bytes of the header, bytes of the file, 0
_ROW = struct.Struct("<QQ32s")  # offset, length, SHA-256
_AGAIN = "compile the model again, or copy the file again"


@dataclass(frozen=True)
class Section:
    """A part of the file: its first byte, its length, and the SHA-256 that the header gives for it, in hexadecimal."""

    offset: int
    length: int
    digest: str

    @property
    def end(self) -> int:
        return self.offset + self.length


class Artifact:
    """A mapped file whose manifest, graphs and codes are as they were written. Nothing is linked; ``check_weights`` verifies the rest.

    ``variants`` has a row per target, best first. What is asked of the file as a whole is answered for the first.
    """

    def __init__(
        self, path: str, data: mmap.mmap, sections: Mapping[str, Section], variants: tuple[Variant, ...], digests: Mapping[str, str]
    ) -> None:
        self.path = path
        self.file_bytes = len(data)
        self.sections = sections
        self.variants = variants
        self.stored = joined_weights([v.manifest for v in variants])
        self.digests = digests
        self._data = data

    @property
    def manifest(self) -> Manifest:
        """The manifest of the first variant."""
        return self.variants[0].manifest

    @property
    def graph(self) -> str:
        """The text of the optimised graph."""
        return self.graph_of(self.variants[0])

    @property
    def code(self) -> bytes:
        """The object code."""
        return self.code_of(self.variants[0])

    def graph_of(self, variant: Variant) -> str:
        """The text of a variant's graph."""
        return self._part("graph", variant.graph).decode("utf-8")

    def code_of(self, variant: Variant) -> bytes:
        """The object code of a variant."""
        return self._part("code", variant.code)

    @property
    def weights(self) -> np.ndarray:
        """The weights section, ``u8[bytes]``, a read-only view of the file that begins at a page."""
        section = self.sections["weights"]
        return np.frombuffer(self._data, np.uint8)[section.offset : section.end]

    def weight(self, name: str) -> np.ndarray:
        """A weight in the shape of its storage, a read-only view of the file. ``KeyError`` for an unknown name."""
        stored = next((w for w in self.stored if w.name == name), None)
        if stored is None:
            raise KeyError(name)
        return stored_view(self.weights, stored)

    def weight_of_digest(self, digest: str) -> np.ndarray:
        """The weight with the digest ``sha256:<hex>`` that the graph's text names. ``KeyError`` when there is none."""
        wanted = digest.removeprefix("sha256:")
        return self.weight(next((name for name, d in self.digests.items() if d == wanted), digest))

    def resolve(self, digest: str, type: TensorType) -> np.ndarray | None:
        """The array of a weight that the graph's text names, as the parser of texts asks for it; None when it is not here."""
        name = next((name for name, d in self.digests.items() if f"sha256:{d}" == digest), None)
        return None if name is None else typed_view(self.weight(name).reshape(-1).view(np.uint8), type)

    def check_weights(self, variant: Variant | None = None) -> None:
        """``ARTIFACT_CORRUPT`` naming every weight (of one variant, if one is given) whose bytes are not the ones that were written."""
        base, section = self.sections["weights"].offset, self.weights
        stored = self.stored if variant is None else variant.manifest.weights
        found = _digests([section[w.offset : w.offset + w.bytes] for w in stored], "checking weights")
        with Collector() as problems:
            for w, digest in zip(stored, found, strict=True):
                if digest != self.digests[w.name]:
                    where = Where(file=self.path, tensor=w.name, offset=base + w.offset)
                    problems.add(Code.ARTIFACT_CORRUPT, f"the bytes of weight '{printable(w.name)}' have changed", where, _AGAIN)
            end = 0
            for w in self.stored if len(stored) == len(self.stored) else ():
                if section[end : w.offset].any():
                    where = Where(file=self.path, offset=base + end)
                    problems.add(Code.ARTIFACT_CORRUPT, "bytes between two weights are not zero", where, _AGAIN)
                end = w.offset + w.bytes

    def compiled(self, variant: Variant | None = None) -> CompiledModule:
        """The module as the compiler made it, for the first target or for another; its weights are views of the file."""
        chosen = variant or self.variants[0]
        makers = {w.name: functools.partial(stored_view, self.weights, w) for w in chosen.manifest.weights}
        printer = functools.partial(self.graph_of, chosen)
        return CompiledModule(chosen.manifest, self.code_of(chosen), printer, makers, lambda name: f"sha256:{self.digests[name]}")

    def _part(self, name: str, span: Span) -> bytes:
        begin = self.sections[name].offset + span.offset
        return self._data[begin : begin + span.length]


# --- writing -----------------------------------------------------------------------------------------------------------------------


def write(
    family: Sequence[CompiledModule], path: str | os.PathLike[str], weights: Mapping[str, Callable[[], np.ndarray]], durable: bool = True
) -> None:
    """Writes the file, whole or not at all, asking for one weight after the other. Equal modules give equal bytes. ``family`` is the module
    for each of its targets, best first; graphs and codes that are equal are written once. ``durable`` waits for the disk."""
    graphs, graph_spans = _packed([m.graph.encode("utf-8") for m in family])
    codes, code_spans = _packed([m.code for m in family])
    variants = [Variant(m.manifest, graph, code) for m, graph, code in zip(family, graph_spans, code_spans, strict=True)]
    stored = _joined(variants)
    blank = _encoded(variants, {w.name: "0" * 64 for w in stored})
    parts = (blank, graphs, codes)
    offsets: list[int] = []
    end = HEADER_BYTES
    for length, alignment in zip([*map(len, parts), section_bytes(stored)], ALIGNMENTS, strict=True):
        offsets.append(-(-end // alignment) * alignment)
        end = offsets[-1] + length
    with atomic_output(path, durable) as stream:
        if not stream.seekable():
            raise CompilerError.of(Code.UNWRITABLE, "an artifact cannot be written to a pipe", Where(file=os.fspath(path)), "name a file")
        known = {w.name: m.digest for m in family for w in m.manifest.weights}
        digests = _write_weights(stream, offsets[3], stored, weights, known)
        sections = (_encoded(variants, digests), *parts[1:])
        assert len(sections[0]) == len(blank)
        for offset, part in zip(offsets, sections, strict=False):
            stream.seek(offset)
            stream.write(part)
        rows = [(offset, len(part), hashlib.sha256(part).digest()) for offset, part in zip(offsets, sections, strict=False)]
        rows.append((offsets[3], section_bytes(stored), _root(stored, digests)))
        head = _HEAD.pack(MAGIC, FORMAT_VERSION, HEADER_BYTES, end, 0) + b"".join(_ROW.pack(*row) for row in rows)
        stream.seek(0)
        stream.write(head + hashlib.sha256(head).digest())
        stream.truncate(end)


def _packed(texts: Sequence[bytes]) -> tuple[bytes, list[Span]]:
    """A section of the distinct texts, each at a multiple of ``ALIGNMENT``, and where each text lies in it."""
    out = bytearray()
    spans: dict[bytes, Span] = {}
    for text in dict.fromkeys(texts):
        out += bytes(-len(out) % ALIGNMENT)
        spans[text] = Span(len(out), len(text))
        out += text
    return bytes(out), [spans[text] for text in texts]


def _encoded(variants: Sequence[Variant], digests: Mapping[str, str]) -> bytes:
    try:
        return encode(variants, digests)
    except Broken as error:
        raise _refused(error) from None


def _joined(variants: Sequence[Variant]) -> tuple[StoredWeight, ...]:
    try:
        return joined_weights([v.manifest for v in variants])
    except Broken as error:
        raise _refused(error) from None


def _refused(error: Broken) -> InternalError:
    return InternalError.of(Code.INTERNAL, f"the compiler made a manifest that no runtime would take: {error}")


def _write_weights(
    stream: BinaryIO,
    base: int,
    stored: tuple[StoredWeight, ...],
    makers: Mapping[str, Callable[[], np.ndarray]],
    known: Mapping[str, Callable[[str], str]],
) -> dict[str, str]:
    """Writes every weight at its place; gives the digests, which are ``known`` since the graph was printed. Gaps are left as holes,
    which read as zero."""
    digests: dict[str, str] = {}
    for done, w in enumerate(stored):
        note("writing weights", done, len(stored))
        data = weight_bytes(w, makers[w.name])
        stream.seek(base + w.offset)
        write_array(stream, data)
        digests[w.name] = known[w.name](w.name).removeprefix("sha256:")
    return digests


def _root(stored: tuple[StoredWeight, ...], digests: Mapping[str, str]) -> bytes:
    """What the header holds for the weights: the SHA-256 of the weights' digests, in their order in the file."""
    return hashlib.sha256(b"".join(bytes.fromhex(digests[w.name]) for w in stored)).digest()


# --- reading -----------------------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> Artifact:
    """The file, mapped, with all checked that is not a weight's bytes. Raises ``CompilerError``; allocates no more than a few times the
    bytes of the sections that it reads."""
    place = os.fspath(path)
    data = map_file(Path(path), place, ".tfc", 1, lambda size: _not_an_artifact(place))
    sections = _sections(data, place)
    for name in SECTIONS[:3]:
        section = sections[name]
        if hashlib.sha256(memoryview(data)[section.offset : section.end]).hexdigest() != section.digest:
            _corrupt(f"the checksum of the {name} does not match", place, section.offset)
    where = Where(file=place, offset=sections["manifest"].offset)
    try:
        variants, digests = decode(data[where.offset : sections["manifest"].end])
        check_spans([v.graph for v in variants], sections["graph"].length, "graph")
        check_spans([v.code for v in variants], sections["code"].length, "code")
    except Broken as error:
        where = Where(file=place, offset=sections["manifest"].offset + error.offset)
        raise CompilerError.of(Code.ARTIFACT_MANIFEST, f"the manifest is broken: {error}", where, _AGAIN) from None
    manifest, stored = variants[0].manifest, _joined(variants)
    if manifest.abi != ABI_VERSION:
        message = f"the code follows version {manifest.abi} of the calling convention, this runtime version {ABI_VERSION}"
        help = f"compile the model again; the file was made by trustformers_ir {printable(manifest.compiler)[:40]}"
        raise CompilerError.of(Code.ARTIFACT_VERSION, message, where, help)
    length = sections["weights"].length
    if section_bytes(stored) != length:
        message = f"the manifest is broken: M6: the weights end at byte {section_bytes(stored)} of a section of {length}"
        raise CompilerError.of(Code.ARTIFACT_MANIFEST, message, where, _AGAIN)
    if _root(stored, digests).hex() != sections["weights"].digest:
        _corrupt("the digests of the weights do not match the header", place, sections["weights"].offset)
    for name in ("graph", "code"):
        _check_gaps(data, sections[name], [getattr(v, name) for v in variants], name, place)
    for begin, span in ((sections["graph"].offset + v.graph.offset, v.graph) for v in variants):
        try:
            data[begin : begin + span.length].decode("utf-8")
        except UnicodeDecodeError as error:
            where = Where(file=place, offset=begin + error.start)
            raise CompilerError.of(Code.ARTIFACT_MANIFEST, "the graph is not UTF-8 text", where, _AGAIN) from None
    return Artifact(place, data, sections, variants, digests)


def _check_gaps(data: mmap.mmap, section: Section, spans: Sequence[Span], name: str, place: str) -> None:
    """Between the parts of a section lie zeros."""
    end = section.offset
    for span in dict.fromkeys(spans):
        if any(data[end : section.offset + span.offset]):
            _corrupt(f"the bytes between two parts of the {name} are not zero", place, end)
        end = section.offset + span.offset + span.length


def _sections(data: mmap.mmap, place: str) -> dict[str, Section]:
    """The rows of the header, all checked: they lie where the writer puts them, inside the file, with zeros between."""
    size = len(data)
    if data[: len(MAGIC)] != MAGIC[:size]:
        raise _not_an_artifact(place)
    if size < HEADER_BYTES:
        _truncated(f"the file has {size} bytes; the header alone has {HEADER_BYTES}", place, size)
    _, version, header, length, reserved = _HEAD.unpack_from(data)
    if version != FORMAT_VERSION:
        message = f"the file has version {version} of the format; this runtime reads version {FORMAT_VERSION}"
        raise CompilerError.of(
            Code.ARTIFACT_VERSION, message, Where(file=place, offset=8), "compile the model with this version of trustformers_ir, or update it"
        )
    if hashlib.sha256(data[: HEADER_BYTES - 32]).digest() != data[HEADER_BYTES - 32 : HEADER_BYTES]:
        _corrupt("the checksum of the header does not match", place, 0)
    if header != HEADER_BYTES or reserved:
        _corrupt(f"the header is said to have {header} bytes, and its reserved word is {reserved}", place, 12)
    if length > size:
        _truncated(f"the file has {size} bytes, {length} were written", place, size)
    if length < size:
        _corrupt(f"{size - length} bytes follow the end of the artifact", place, length)
    sections: dict[str, Section] = {}
    end = HEADER_BYTES
    for i, (name, alignment) in enumerate(zip(SECTIONS, ALIGNMENTS, strict=True)):
        at = _HEAD.size + i * _ROW.size
        offset, count, digest = _ROW.unpack_from(data, at)
        if offset != -(-end // alignment) * alignment:
            _corrupt(f"the {name} should begin at byte {-(-end // alignment) * alignment}, not at {offset}", place, at)
        if count > length - offset:
            _corrupt(f"the {name} is said to have {count} bytes, which reach beyond the end of the file", place, at + 8)
        if any(data[end:offset]):
            _corrupt(f"the bytes before the {name} are not zero", place, end)
        sections[name] = Section(offset, count, digest.hex())
        end = offset + count
    if end != length:
        _corrupt(f"{length - end} bytes belong to no section", place, end)
    if sections["manifest"].length > MAX_MANIFEST:
        _corrupt(f"a manifest of {sections['manifest'].length} bytes", place, _HEAD.size + 8)
    return sections


def _digests(parts: list[np.ndarray], stage: str) -> list[str]:
    """The SHA-256 of each part, by several threads."""

    def digest(part: np.ndarray) -> str:
        return hashlib.sha256(part.data).hexdigest()

    out: list[str] = []
    with ThreadPoolExecutor(min(cpus(), 8)) as pool:
        for done, value in enumerate(pool.map(digest, parts)):
            note(stage, done + 1, len(parts))
            out.append(value)
    return out


def _not_an_artifact(place: str) -> CompilerError:
    message = f"'{place}' is not an artifact: it does not begin as one"
    return CompilerError.of(Code.NOT_AN_ARTIFACT, message, Where(file=place, offset=0), "make one: tfc compile MODEL -o FILE.tfc")


def _truncated(message: str, place: str, offset: int) -> NoReturn:
    raise CompilerError.of(Code.ARTIFACT_TRUNCATED, message, Where(file=place, offset=offset), "the copy was cut off: copy the file again")


def _corrupt(message: str, place: str, offset: int) -> NoReturn:
    raise CompilerError.of(Code.ARTIFACT_CORRUPT, message, Where(file=place, offset=offset), _AGAIN)
