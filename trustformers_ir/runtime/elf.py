"""Reading relocatable object files, ELF for x86-64, of unknown origin: whatever a number in one says is checked before it is used.

The format is that of the System V ABI, chapter 4, and of its AMD64 supplement, section 4.4. Read is what LLVM writes for code of the large
model; what is in order but of another kind is an ``UnknownForm``, so that another linker may be asked.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np

_HEADER = np.dtype(
    [
        ("magic", "V4"),
        *((name, "u1") for name in ("class", "order", "version")),
        ("rest", "V9"),
        *((name, "<u2") for name in ("type", "machine")),
        ("version2", "<u4"),
        *((name, "<u8") for name in ("entry", "phoff", "shoff")),
        ("flags", "<u4"),
        *((name, "<u2") for name in ("ehsize", "phentsize", "phnum", "shentsize", "shnum", "shstrndx")),
    ]
)
_SECTION = np.dtype(
    [
        *((name, "<u4") for name in ("name", "type")),
        *((name, "<u8") for name in ("flags", "address", "offset", "size")),
        *((name, "<u4") for name in ("link", "info")),
        *((name, "<u8") for name in ("alignment", "entry")),
    ]
)
_SYMBOL = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")])
_RELOCATION = np.dtype([("offset", "<u8"), ("kind", "<u4"), ("symbol", "<u4"), ("addend", "<u8")])

RELOCATABLE, X86_64 = 1, 62
NULL, PROGBITS, SYMTAB, STRTAB, RELA, NOTE, NOBITS, REL, SYMTAB_SHNDX = 0, 1, 2, 3, 4, 7, 8, 9, 18
UNWIND = 0x70000001
WRITE, ALLOC, EXECUTE, TLS, COMPRESSED = 1, 2, 4, 0x400, 0x800
UNDEFINED, RESERVED, ABSOLUTE = 0, 0xFF00, 0xFFF1
LOCAL, GLOBAL, WEAK = 0, 1, 2
PLAIN_TYPES = (0, 1, 2, 3, 4)  # of symbols: nothing in particular, object, function, section, file

#: The relocations of the large code model: S + A, S + A - P, S + A - GOT, GOT + A - P, G + A in the ABI's terms. Each is a field of 8 bytes.
R_64, R_PC64, R_GOTOFF64, R_GOTPC64, R_GOT64 = 1, 24, 25, 29, 27
KINDS = (R_64, R_PC64, R_GOTOFF64, R_GOTPC64, R_GOT64)
FIELD = 8
LAST_KIND = 42  # that the ABI defines

MAX_NAME = 4096
MAX_ZEROS = 1 << 28  # bytes of zeros that an object may ask for


class BadObject(ValueError):
    """The bytes are no object file, or one that contradicts itself."""


class UnknownForm(ValueError):
    """The object file uses what is not read here; it may be a good one."""


class Group(Enum):
    """What may be done with the memory of a section once it is in place."""

    CODE = "execute"
    CONSTANT = "read"
    DATA = "write"


@dataclass(frozen=True, eq=False)
class Section:
    """A section that is part of the program. ``content`` is ``u8[size]``, None for zeros; ``relocations`` are fields with ``offset``, ``kind``,
    ``symbol`` and ``addend``, each offset at least ``FIELD`` bytes before the end, each symbol one of the object's."""

    name: str
    group: Group
    size: int
    alignment: int
    content: np.ndarray | None
    relocations: np.ndarray


@dataclass(frozen=True, eq=False)
class ObjectFile:
    """``symbols`` are fields with ``section``, ``value`` and more; ``names`` those of the symbols that are not local, ``weak`` which of them give
    way. A symbol's section is a key of ``sections``, ``UNDEFINED`` or ``ABSOLUTE``, or one that is no part of the program."""

    sections: dict[int, Section]
    symbols: np.ndarray
    names: dict[int, str]
    weak: frozenset[int]


def read_object(image: bytes | memoryview) -> ObjectFile:
    """The object file in ``image``; what follows its last part is not read. ``BadObject``, ``UnknownForm``."""
    return _Reader(np.frombuffer(image, np.uint8)).read()


def _names_of(table: bytes, offsets: list[int], place: str) -> Iterator[str]:
    for offset in offsets:
        end = table.find(b"\0", offset, offset + MAX_NAME)
        if end < 0:
            raise BadObject(f"a name of {place} does not end")
        try:
            yield table[offset:end].decode("ascii")
        except UnicodeDecodeError:
            raise BadObject(f"a name of {place} is not in ASCII") from None


class _Reader:
    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.headers = self._header()

    def read(self) -> ObjectFile:
        tables = np.flatnonzero(self.headers["type"] == SYMTAB)
        if len(tables) > 1:
            raise BadObject("it has several tables of symbols")
        self.table = int(tables[0]) if len(tables) else 0
        symbols = self._rows(self.table, _SYMBOL) if self.table else np.zeros(0, _SYMBOL)
        sections = self._sections(len(symbols))
        names, weak = self._names(symbols)
        self._check_symbols(symbols, sections)
        return ObjectFile(sections, symbols, names, weak)

    def _header(self) -> np.ndarray:
        """The table of sections."""
        if len(self.image) < _HEADER.itemsize:
            raise BadObject(f"it has {len(self.image)} bytes, fewer than a header")
        header = self.image[: _HEADER.itemsize].view(_HEADER)[0]
        if bytes(self.image[:4]) != b"\x7fELF" or header["version"] != 1 or header["version2"] != 1:
            raise BadObject("it is no ELF file")
        if (header["class"], header["order"], header["machine"]) != (2, 1, X86_64):
            raise UnknownForm(f"it is for machine {header['machine']}")
        if header["type"] != RELOCATABLE:
            raise BadObject(f"it is no relocatable file, but of type {header['type']}")
        offset, count = int(header["shoff"]), int(header["shnum"])
        if header["shentsize"] != _SECTION.itemsize or count == 0 or offset + count * _SECTION.itemsize > len(self.image):
            raise BadObject("its table of sections is not in the file")
        self.names_at = int(header["shstrndx"])
        headers = self.image[offset : offset + count * _SECTION.itemsize].view(_SECTION)
        if headers[0]["type"] != NULL:
            raise BadObject("its first section is not the empty one")
        sizes = [int(n) for n in headers["size"][headers["type"] != NOBITS]]
        if sum(sizes) > len(self.image):
            raise BadObject("its sections are longer than the file")
        return headers

    def _bytes(self, number: int) -> np.ndarray:
        """``u8[size]`` of a section that is in the file."""
        header = self.headers[number]
        begin, size = int(header["offset"]), int(header["size"])
        if begin + size > len(self.image):
            raise BadObject(f"section {number} is not in the file")
        return self.image[begin : begin + size]

    def _rows(self, number: int, row: np.dtype[np.void]) -> np.ndarray:
        """The rows of a table."""
        data = self._bytes(number)
        if self.headers[number]["entry"] != row.itemsize or len(data) % row.itemsize:
            raise BadObject(f"section {number} has no whole number of rows of {row.itemsize} bytes")
        return data.view(row)

    def _text(self, number: int) -> bytes:
        """A table of names."""
        if not 0 < number < len(self.headers) or self.headers[number]["type"] != STRTAB:
            raise BadObject(f"section {number} is no table of names")
        return self._bytes(number).tobytes()

    def _sections(self, symbols: int) -> dict[int, Section]:
        relocations = self._relocations(symbols)
        texts = self._text(self.names_at)
        names = list(_names_of(texts, [int(n) for n in self.headers["name"]], "its sections"))
        found: dict[int, Section] = {}
        zeros = 0
        for number, header in enumerate(self.headers):
            type, flags, size = int(header["type"]), int(header["flags"]), int(header["size"])
            if type in (REL, SYMTAB_SHNDX):
                raise UnknownForm(f"section '{names[number]}' is of type {type}")
            if not flags & ALLOC:
                continue
            if type not in (PROGBITS, NOBITS, NOTE, UNWIND) or flags & (TLS | COMPRESSED):
                raise UnknownForm(f"section '{names[number]}' is of type {type}, with flags {flags:#x}")
            if flags & WRITE and flags & EXECUTE:
                raise BadObject(f"section '{names[number]}' could be written and executed")
            alignment = max(int(header["alignment"]), 1)
            if alignment & (alignment - 1):
                raise BadObject(f"section '{names[number]}' is aligned to {alignment} bytes")
            if alignment > mmap.PAGESIZE:
                raise UnknownForm(f"section '{names[number]}' is aligned to {alignment} bytes")
            zeros += size if type == NOBITS else 0
            if zeros > MAX_ZEROS:
                raise BadObject(f"it asks for more than {MAX_ZEROS} bytes of zeros")
            mine = relocations.pop(number, np.zeros(0, _RELOCATION))
            if len(mine) and (type == NOBITS or size < FIELD or int(mine["offset"].max()) > size - FIELD):
                raise BadObject(f"a relocation is not in section '{names[number]}'")
            group = Group.CODE if flags & EXECUTE else Group.DATA if flags & WRITE else Group.CONSTANT
            if names[number].startswith(".data.rel.ro"):  # written by nobody but the linker
                group = Group.CONSTANT
            found[number] = Section(names[number], group, size, alignment, None if type == NOBITS else self._bytes(number), mine)
        return found

    def _relocations(self, symbols: int) -> dict[int, np.ndarray]:
        """Those of each section; their offsets are not checked yet."""
        found: dict[int, np.ndarray] = {}
        for number in map(int, np.flatnonzero(self.headers["type"] == RELA)):
            header = self.headers[number]
            target = int(header["info"])
            if target >= len(self.headers) or target in found or header["link"] != self.table:
                raise BadObject(f"the relocations of section {number} are those of no section, or of none of the symbols")
            if not int(self.headers[target]["flags"]) & ALLOC:
                continue
            rows = self._rows(number, _RELOCATION)
            if len(rows) and int(rows["symbol"].max()) >= symbols:
                raise BadObject(f"a relocation of section {target} names a symbol that is not there")
            unknown = rows["kind"][~np.isin(rows["kind"], KINDS)]
            if len(unknown):
                raise (BadObject if unknown.max() > LAST_KIND else UnknownForm)(f"a relocation of section {target} is of kind {unknown[0]}")
            found[target] = rows
        return found

    def _names(self, symbols: np.ndarray) -> tuple[dict[int, str], frozenset[int]]:
        """The names of the symbols that are not local, and which are weak."""
        binding = symbols["info"] >> 4
        if len(symbols) and binding.max() > WEAK:
            raise UnknownForm(f"a symbol is of binding {binding.max()}")
        outside = [int(n) for n in np.flatnonzero(binding != LOCAL)]
        if not outside:
            return {}, frozenset()
        texts = self._text(int(self.headers[self.table]["link"]))
        names = _names_of(texts, symbols["name"][outside].tolist(), "its symbols")
        return dict(zip(outside, names, strict=True)), frozenset(n for n in outside if binding[n] == WEAK)

    def _check_symbols(self, symbols: np.ndarray, sections: dict[int, Section]) -> None:
        types = symbols["info"] & 0xF
        if not np.isin(types, PLAIN_TYPES).all():
            raise UnknownForm(f"a symbol is of type {types.max()}")
        places = symbols["section"]
        if ((places >= RESERVED) & (places != ABSOLUTE)).any():
            raise UnknownForm("a symbol lies in no section of its own")
        if (places[places < RESERVED] >= len(self.headers)).any():
            raise BadObject("a symbol lies in a section that is not there")
        last = np.full(1 << 16, np.iinfo(np.uint64).max, np.uint64)
        for number, section in sections.items():
            last[number] = section.size
        outside = np.flatnonzero(symbols["value"] > last[places])
        if len(outside):
            raise BadObject(f"a symbol lies outside of section '{sections[int(places[outside[0]])].name}'")
