"""Reads GGUF files by mapping them: metadata, and tensors that are views of the file. Nothing in the file is trusted before it is checked.

The format (github.com/ggml-org/ggml, docs/gguf.md; versions 2 and 3, little endian): the header (magic, version, how many tensors, how many
keys), the keys with their values, the descriptions of the tensors (name, sizes from the innermost on, type, offset), and the data, which begins at a
multiple of ``general.alignment``. A model may lie in several files, ``name-00001-of-00003.gguf``; the first names their number.

Every length is compared with what is left of the file before anything is made of it. Tensors may not overlap, and begin at multiples of the
alignment; that they follow each other without holes is not asked for.
"""

from __future__ import annotations

import itertools
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from trustformers_ir.frontend.gguf.kinds import KINDS, TensorKind
from trustformers_ir.frontend.gguf.metadata import HELP, MAX_KEY, TRUNCATED_HELP, Reader, Value
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.mapped import map_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_NAME = 64  # bytes, by the specification
MAX_RANK = 4
MAX_KEYS = 65_536
MAX_TENSORS = 262_144
MAX_SPLITS = 9999
MAX_REPORTED = 50
_LEAST_KEY, _LEAST_TENSOR = 8 + 1 + 4 + 1, 8 + 1 + 4 + 4 + 8  # bytes of the shortest key and of the shortest description of a tensor
_SPLIT_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufTensor:
    """A tensor: ``shape`` outermost first, as in numpy, and its bytes ``begin .. end`` in ``file``."""

    name: str
    kind: TensorKind
    shape: tuple[int, ...]
    begin: int
    end: int
    data: mmap.mmap
    file: str

    def __str__(self) -> str:
        return f"{self.kind.name}[{', '.join(map(str, self.shape))}]"

    @property
    def where(self) -> Where:
        return Where(file=self.file, tensor=self.name, offset=self.begin)

    def blocks(self) -> np.ndarray:
        """A read-only view ``u8[rows, bytes]`` with the bytes of each row (what the last axis runs over) as they are in the file."""
        flat = np.frombuffer(self.data, np.uint8, self.end - self.begin, self.begin) if self.end > self.begin else np.zeros(0, np.uint8)
        rows = prod(self.shape[:-1])
        return flat.reshape(rows, -1) if rows else flat.reshape(0, 0)

    def array(self) -> np.ndarray:
        """A read-only view of a tensor that is made of numbers of a dtype. ``ValueError`` for one in blocks."""
        if self.kind.dtype is None:
            raise ValueError(f"'{self.name}' is {self.kind.name}: it lies in blocks")
        return self.blocks().reshape(-1).view(self.kind.dtype.numpy).reshape(self.shape)


class GgufFile(Mapping[str, GgufTensor]):
    """A model that has been checked and mapped: its tensors by name, in the order of the files. ``metadata`` is that of the first file, ``types`` the
    numbers of the types of its values."""

    def __init__(
        self, path: Path, version: int, metadata: Mapping[str, Value], tensors: Mapping[str, GgufTensor], types: Mapping[str, int] | None = None
    ) -> None:
        self.path = path
        self.version = version
        self.metadata = metadata
        self.types = types or {}
        self._tensors = tensors

    def __str__(self) -> str:
        return str(self.path)

    def __getitem__(self, name: str) -> GgufTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class _Part:
    version: int
    metadata: dict[str, Value]
    types: dict[str, int]
    tensors: dict[str, GgufTensor]

    def whole(self, key: str, missing: int) -> int:
        found = self.metadata.get(key, missing)
        return found if isinstance(found, int) and not isinstance(found, bool) else -1


def open_gguf(path: str | Path) -> GgufFile:
    """The checked model in that file, or in all the files of which it is the first. Raises ``CompilerError`` with everything that is wrong with the
    tensors, or with the first thing that is wrong with the bytes, each with its place."""
    path = Path(path)
    first = _part(path)
    count = first.whole("split.count", 1)
    if count == 1 or "split.count" not in first.metadata:
        return GgufFile(path, first.version, first.metadata, first.tensors, first.types)
    return GgufFile(path, first.version, first.metadata, _all_parts(path, first, count), first.types)


# --- several files -------------------------------------------------------------------------------------------------------


def _all_parts(path: Path, first: _Part, count: int) -> dict[str, GgufTensor]:
    def wrong(message: str, help: str, file: Path = path) -> CompilerError:
        return CompilerError.of(Code.GGUF_SPLIT, message, Where(file=str(file)), help)

    together = "the files of one model belong together: fetch them again"
    if not 1 <= count <= MAX_SPLITS:
        raise wrong(f"split.count is {first.metadata['split.count']!r}", together)
    named = _SPLIT_NAME.search(path.name)
    if first.whole("split.no", 0) != 0:
        if named is not None:
            raise wrong("this is not the first file of its model", f"give '{path.name[: named.start()]}-00001-of-{named[2]}.gguf'")
        raise wrong("this is not the first file of its model", "give the first one")
    if named is None or int(named[2]) != count or int(named[1]) != 1:
        raise wrong(f"this is the first of {count} files, but is not called …-00001-of-{count:05}.gguf", "give it its name back")
    tensors = dict(first.tensors)
    problems = Collector()
    for n in range(1, count):
        other = path.with_name(f"{path.name[: named.start()]}-{n + 1:05}-of-{count:05}.gguf")
        try:
            part = _part(other)
        except CompilerError as error:
            problems.extend(error.diagnostics)
            continue
        if part.whole("split.no", -1) != n or part.whole("split.count", -1) != count:
            problems.add(Code.GGUF_SPLIT, f"the file says that it is another one than number {n} of {count}", Where(file=str(other)), together)
        for name, tensor in part.tensors.items():
            if tensors.setdefault(name, tensor) is not tensor:
                problems.add(Code.GGUF_SPLIT, f"'{name}' is in '{Path(tensors[name].file).name}' as well", tensor.where, together)
    total = first.whole("split.tensors.count", len(tensors))
    if not problems and total != len(tensors):
        problems.add(Code.GGUF_SPLIT, f"the files hold {len(tensors)} tensors, not the {total} that they announce", Where(file=str(path)), together)
    problems.check()
    return tensors


# --- one file ------------------------------------------------------------------------------------------------------------


def _part(path: Path) -> _Part:
    place = str(path)

    def short(size: int) -> CompilerError:
        message = f"the file has {size} bytes, too few for a header"
        return CompilerError.of(Code.GGUF_TRUNCATED, message, Where(file=place, offset=size), TRUNCATED_HELP)

    r = Reader(map_file(path, place, ".gguf", 24, short), place)
    version = _version(r)
    tensors, keys = r.whole("Q", "the number of tensors"), r.whole("Q", "the number of keys")
    for count, least, most, what, at in ((tensors, _LEAST_TENSOR, MAX_TENSORS, "tensors", 8), (keys, _LEAST_KEY, MAX_KEYS, "keys", 16)):
        if count * least > r.left:
            message = f"the file is said to hold {count} {what}, and has {r.left} more bytes"
            raise CompilerError.of(Code.GGUF_TRUNCATED, message, Where(file=place, offset=at), TRUNCATED_HELP)
        if count > most:
            raise r.error(f"the file is said to hold {count} {what}, more than {most}", at)
    metadata, types = _metadata(r, keys)
    return _Part(version, metadata, types, _tensors(r, tensors, _alignment(r, metadata)))


def _version(r: Reader) -> int:
    magic = r.data[r.take(4, "the magic") : 4]
    if magic != MAGIC:
        message = f"the file begins with {magic!r}, not with {MAGIC!r}"
        raise CompilerError.of(Code.GGUF_HEADER, message, Where(file=r.place, offset=0), "is it a GGUF file?")
    version = r.whole("I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        message = "the file is big-endian" if swapped else f"the version is {version}; versions 2 and 3 are read"
        raise CompilerError.of(Code.GGUF_HEADER, message, Where(file=r.place, offset=4), "write it anew with a current converter")
    return version


def _metadata(r: Reader, count: int) -> tuple[dict[str, Value], dict[str, int]]:
    """The values, and the numbers of their types."""
    out: dict[str, Value] = {}
    types: dict[str, int] = {}
    for _ in range(count):
        at = r.at
        key = r.text("a key", MAX_KEY)
        if not key or key in out:
            raise r.error(f"the key '{key}' is there twice" if key else "a key is empty", at)
        types[key] = r.whole("I", f"the type of '{key}'")
        out[key] = r.value(types[key], f"'{key}'")
    return out, types


def _alignment(r: Reader, metadata: Mapping[str, Value]) -> int:
    found = metadata.get("general.alignment", ALIGNMENT)
    if isinstance(found, bool) or not isinstance(found, int) or not 8 <= found <= MAX_ALIGNMENT or found & (found - 1):
        message = f"general.alignment is {found!r}, which is no power of two from 8 to {MAX_ALIGNMENT}"
        raise CompilerError.of(Code.GGUF_METADATA, message, Where(file=r.place), HELP)
    return found


@dataclass(frozen=True)
class _Described:
    at: int
    name: str
    kind: TensorKind
    shape: tuple[int, ...]
    offset: int
    size: int


def _tensors(r: Reader, count: int, alignment: int) -> dict[str, GgufTensor]:
    problems = Collector()
    rows = [row for row in (_described(r, problems) for _ in range(count)) if row is not None]
    problems.check()
    start = -(-r.at // alignment) * alignment
    room = max(len(r.data) - start, 0)
    out: dict[str, GgufTensor] = {}

    def wrong(code: Code, message: str, row: _Described, help: str = HELP) -> None:
        if len(problems) < MAX_REPORTED:
            problems.add(code, message, Where(file=r.place, tensor=row.name, offset=row.at), help)

    for row in rows:
        if row.name in out:
            wrong(Code.GGUF_TENSOR, f"'{row.name}' is there twice", row)
        if row.offset % alignment:
            wrong(Code.GGUF_TENSOR, f"'{row.name}' begins at {row.offset}, which is no multiple of {alignment}", row)
        elif row.offset + row.size > room:
            message = f"'{row.name}' ends at byte {start + row.offset + row.size}, the file at {len(r.data)}"
            wrong(Code.GGUF_TRUNCATED, message, row, TRUNCATED_HELP)
        begin = start + row.offset
        out[row.name] = GgufTensor(row.name, row.kind, row.shape, begin, begin + row.size, r.data, r.place)
    ordered = sorted((row for row in rows if row.size), key=lambda row: row.offset)
    for a, b in itertools.pairwise(ordered):
        if a.offset + a.size > b.offset:
            wrong(Code.GGUF_TENSOR, f"'{b.name}' begins inside '{a.name}'", b)
    problems.check()
    return out


def _described(r: Reader, problems: Collector) -> _Described | None:
    """One description; what its bytes cannot mean raises, what they mean and is wrong is collected."""
    at = r.at
    name = r.text("the name of a tensor", MAX_NAME)
    rank = r.whole("I", f"the rank of '{name}'")
    if rank > MAX_RANK:
        raise r.error(f"'{name}' has {rank} axes, more than {MAX_RANK}", at, Code.GGUF_TENSOR)
    sizes = [r.whole("Q", f"a size of '{name}'") for _ in range(rank)]
    number, offset = r.whole("I", f"the type of '{name}'"), r.whole("Q", f"the offset of '{name}'")
    kind = KINDS.get(number)
    if kind is None:
        if len(problems) < MAX_REPORTED:
            where = Where(file=r.place, tensor=name, offset=at)
            problems.add(Code.GGUF_TENSOR, f"'{name}' has the unknown type {number}", where, "a newer converter wrote it; use q8_0 or f16")
        return None
    if not name or any(s > 1 << 62 for s in sizes):
        raise r.error(f"'{name}' has the sizes {sizes}" if name else "a tensor has no name", at, Code.GGUF_TENSOR)
    inner = sizes[0] if sizes else 1
    if inner % kind.elements:
        raise r.error(f"rows of '{name}' have {inner} elements, no multiple of the {kind.elements} of a block of {kind.name}", at, Code.GGUF_TENSOR)
    return _Described(at, name, kind, tuple(reversed(sizes)), offset, inner // kind.elements * kind.bytes * prod(sizes[1:]))
