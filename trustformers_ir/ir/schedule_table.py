"""Schedules as data: which kernel runs in which tiles, and the tables of tuned ones that lie on the disk.

The code generator asks for a :class:`Choice` by the :class:`ScheduleKey` of a kernel. Its heuristic has an answer for every key
(``codegen/lower/schedules.py``); a :class:`ScheduleTable` has better ones for some, as measured by ``tfc tune`` on one kind of machine. On CPUs no
choice changes a bit of a result; on GPUs it says in which order sums are added up. So a table can only make code slower, never wrong.

A table is a JSON file::

    {
      "format": 1,
      "target": "znver5-avx512vnni",
      "entries": [
        {
          "template": "linear", "dtype": "f32", "n": 768, "k": 3072, "rows": null, "panel": 48,
          "choice": {"rows": 9, "columns": 48, "block": 128, "ahead": 16384},
          "measured": "0.95 of the time: bert-base, batch 1, seq 128, 2 threads"
        }
      ]
    }

``find_tables`` says which tables count: one that is given, the one that ``TFIR_SCHEDULES`` names, or all that ``tfc tune`` left in the folder
``schedules`` of the cache, a file for each kind of machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from trustformers_ir.ir import env
from trustformers_ir.ir.atomic import write_text
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.strict_json import no_key_twice

FORMAT = 1
MAX_BYTES = 4 << 20  # of a file: a table of a thousand entries has a tenth of it
HELP = "`tfc tune` writes tables that are right; docs/kernels.md says what the fields mean"

LANES = 16
MOST_COLUMNS = 64  # of a register tile: wider ones run in strips
MOST_ROWS = 32
MOST_BLOCK = 1 << 20
MOST_AHEAD = 16 << 20
MOST_VECTORS = 4  # of queries in a tile of attention
MOST_ATTENTION_ROWS = 16


def tile_registers(rows: int, vectors: int) -> int:
    """Vector registers that a step of a tile holds: ``rows`` of sums, a row of vectors of the right side, one broadcast of the left."""
    return rows * vectors + vectors + 1


def most_rows(registers: int, vectors: int) -> int:
    """The rows of the highest tile so many ``vectors`` wide that so many vector registers hold."""
    return (registers - vectors - 1) // vectors


@dataclass(frozen=True)
class TileChoice:
    """How a matrix product runs.

    ``rows`` x ``columns`` are the register tile, whole vectors of 16 columns; at most ``block`` rows are worked on while the panels of the right
    side go by; weights are fetched ``ahead`` bytes before their turn (0: not at all; exactly one panel: the tiles share the work). ``ValueError``
    when that is no tile of any machine.
    """

    rows: int
    columns: int
    block: int
    ahead: int = 0

    def __post_init__(self) -> None:
        _within("rows", self.rows, 1, MOST_ROWS)
        _within("columns", self.columns, LANES, MOST_COLUMNS)
        _within("block", self.block, 1, MOST_BLOCK)
        _within("ahead", self.ahead, 0, MOST_AHEAD)
        if self.columns % LANES:
            raise ValueError(f"columns is {self.columns}: a register tile has whole vectors of {LANES} columns")

    def __str__(self) -> str:
        return f"{self.tile} block {self.block} ahead {self.ahead}"

    @property
    def tile(self) -> str:
        return f"{self.rows}x{self.columns}"

    @property
    def registers(self) -> int:
        """Vector registers that a step of the tile holds."""
        return tile_registers(self.rows, self.columns // LANES)


@dataclass(frozen=True)
class AttentionChoice:
    """How attention runs: ``vectors`` of 16 queries side by side, and tiles of ``rows`` keys, then features of v. ``ValueError`` when that is no
    tile of any machine."""

    vectors: int
    rows: int

    def __post_init__(self) -> None:
        _within("vectors", self.vectors, 1, MOST_VECTORS)
        _within("rows", self.rows, 1, MOST_ATTENTION_ROWS)

    def __str__(self) -> str:
        return self.tile

    @property
    def tile(self) -> str:
        return f"{self.rows}x{self.vectors * LANES}"

    @property
    def registers(self) -> int:
        """Vector registers that a step of the tile holds."""
        return tile_registers(self.rows, self.vectors)


@dataclass(frozen=True)
class BlockChoice:
    """How a matrix product runs on a GPU.

    A program makes ``rows`` x ``columns`` elements, ``terms`` of their sums at a time (powers of two); with one row it is a product of a matrix and a
    vector, without matrix instructions. The sums are cut into ``parts``, which a second kernel adds up in order. Programs take ``group`` blocks
    of rows before they move to the next columns; there are at most so many ``programs``, each of which makes one tile after the other (0: one for
    each tile). ``warps`` work on a program, whose loop fetches ``stages`` - 1 turns ahead. ``ValueError`` when that fits no GPU.
    """

    rows: int
    columns: int
    terms: int
    warps: int
    stages: int
    group: int = 8
    parts: int = 1
    programs: int = 0

    def __post_init__(self) -> None:
        for name, most in (("rows", 512), ("columns", 4096), ("terms", 4096), ("warps", 32)):
            _power_of_two(name, getattr(self, name), most)
        _within("stages", self.stages, 1, 8)
        _within("group", self.group, 1, 64)
        _within("parts", self.parts, 1, 64)
        _within("programs", self.programs, 0, 1 << 16)

    def __str__(self) -> str:
        parts = f" parts {self.parts}" * (self.parts > 1) + f" programs {self.programs}" * (self.programs > 0)
        return f"{self.tile} warps {self.warps} stages {self.stages} group {self.group}{parts}"

    @property
    def tile(self) -> str:
        return f"{self.rows}x{self.columns}x{self.terms}"


@dataclass(frozen=True)
class FlashChoice:
    """How attention runs on a GPU: a program has a block of ``queries`` rows and goes through the keys ``keys`` at a time (powers of two), with so
    many ``warps``, fetching ``stages`` - 1 blocks ahead. ``ValueError`` when that fits no GPU."""

    queries: int
    keys: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        for name, most in (("queries", 512), ("keys", 512), ("warps", 32)):
            _power_of_two(name, getattr(self, name), most)
        _within("stages", self.stages, 1, 8)

    def __str__(self) -> str:
        return f"{self.tile} warps {self.warps} stages {self.stages}"

    @property
    def tile(self) -> str:
        return f"{self.queries}x{self.keys}"


Choice = TileChoice | AttentionChoice | BlockChoice | FlashChoice

#: What can be chosen, by the op at the heart of a kernel.
TEMPLATES: Mapping[str, type[TileChoice] | type[AttentionChoice] | type[BlockChoice] | type[FlashChoice]] = {
    "linear": TileChoice,
    "linear_int8": TileChoice,
    "linear_blocks_int8": TileChoice,
    "matmul": TileChoice,
    "attention": AttentionChoice,
    "gpu_linear": BlockChoice,
    "gpu_linear_int8": BlockChoice,
    "gpu_linear_f8": BlockChoice,
    "gpu_matmul": BlockChoice,
    "gpu_linear_blocks": BlockChoice,
    "gpu_attention": FlashChoice,
}


@dataclass(frozen=True)
class ScheduleKey:
    """What a choice is made for. Kernels of one key share it, whatever is fused to them.

    ``template`` is the op, ``dtype`` that of the right side (of q for attention). A product has ``n`` columns and sums ``k`` terms; attention has
    ``n`` features of q and k, and ``k`` of v. ``rows`` are the rows of the product, the queries of attention. None: known only when it runs. On a GPU
    a product whose rows are known only then has several kernels, each for up to so many ``rows``, the last one for more (None).
    ``panel`` is the width of the panels that the right side is packed in, 0 where it is read as it lies; on a GPU the terms that share a scale, and
    the heads whose rows attention takes together where queries are few: then ``rows`` are those of all of them.
    """

    template: str
    dtype: DType
    n: int | None
    k: int | None
    rows: int | None = None
    panel: int = 0

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise ValueError(f"there is no template '{self.template}'; there are {', '.join(TEMPLATES)}")
        for name in ("n", "k", "rows"):
            if (value := getattr(self, name)) is not None:
                _within(name, value, 0, 1 << 48)
        _within("panel", self.panel, 0, 1 << 16)

    def __str__(self) -> str:
        n, k, rows = ("?" if v is None else str(v) for v in (self.n, self.k, self.rows))
        return f"{self.template} {self.dtype.name} {rows} x {n} x {k}"


def _power_of_two(name: str, value: int, most: int) -> None:
    _within(name, value, 1, most)
    if value & (value - 1):
        raise ValueError(f"{name} is {value}: it is a power of two")


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}: it lies between {low} and {high}")


@dataclass(frozen=True)
class Chosen:
    """A choice that was made for a kernel, and who made it."""

    key: ScheduleKey
    choice: Choice
    origin: str  # HEURISTIC or TABLE


HEURISTIC, TABLE = "heuristic", "table"


@dataclass(frozen=True)
class TunedEntry:
    """A line of a table. ``measured`` is for people."""

    key: ScheduleKey
    choice: Choice
    measured: str = ""


@dataclass(frozen=True)
class ScheduleTable:
    """Choices for one kind of machine: ``target`` is its ``Target.kind``, or the chip of a GPU, ``sm_90``. ``file`` is where the table comes from,
    for messages."""

    target: str
    entries: tuple[TunedEntry, ...] = ()
    file: str | None = field(default=None, compare=False)

    @property
    def choices(self) -> dict[ScheduleKey, Choice]:
        return {e.key: e.choice for e in self.entries}

    @property
    def text(self) -> str:
        """The JSON of the table: equal tables have equal texts."""
        rows = []
        for e in sorted(self.entries, key=lambda e: [-1 if v is None else v for v in _plain(e.key).values()]):
            rows.append({**_plain(e.key), "choice": asdict(e.choice), **({"measured": e.measured} if e.measured else {})})
        return json.dumps({"format": FORMAT, "target": self.target, "entries": rows}, indent=2, ensure_ascii=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, whole or not at all. ``UNWRITABLE``."""
        write_text(path, self.text)

    def updated(self, tried: Sequence[ScheduleKey], entries: Sequence[TunedEntry]) -> ScheduleTable:
        """The table in which all keys of ``tried`` have what ``entries`` says, or nothing; the others stay."""
        kept = tuple(e for e in self.entries if e.key not in set(tried))
        return ScheduleTable(self.target, (*kept, *entries), self.file)


def key_row(chosen: Chosen) -> dict[str, object]:
    """A choice as plain data, for reports."""
    return {**_plain(chosen.key), "choice": asdict(chosen.choice), "from": chosen.origin}


def row_key(row: Mapping[str, Any]) -> ScheduleKey:
    """The key in a row of a report."""
    return ScheduleKey(**{f.name: row[f.name] for f in fields(ScheduleKey) if f.name != "dtype"}, dtype=DType[row["dtype"]])


def row_choice(row: Mapping[str, Any]) -> Choice:
    """The choice in a row of a report."""
    return TEMPLATES[row["template"]](**row["choice"])


def _plain(key: ScheduleKey) -> dict[str, object]:
    return {f.name: key.dtype.name if f.name == "dtype" else getattr(key, f.name) for f in fields(key)}


# --- reading -----------------------------------------------------------------------------------------------------------------------


class _Bad(Exception):
    """What is wrong with a part of a table."""


_ONCE = no_key_twice(lambda key: _Bad(f"the field '{key}' occurs twice in an object"))


def read_table(path: str | os.PathLike[str]) -> ScheduleTable:
    """The table in a file. ``FILE_NOT_FOUND``, ``UNREADABLE``, or ``SCHEDULE_TABLE`` with everything that is wrong with it."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CompilerError.of(Code.FILE_NOT_FOUND, f"'{name}' does not exist", Where(file=name), "look at the path") from None
    except OSError as error:
        raise CompilerError.of(Code.UNREADABLE, f"cannot read '{name}': {error.strerror}", Where(file=name)) from error
    if len(data) > MAX_BYTES:
        raise CompilerError.of(Code.SCHEDULE_TABLE, f"the file is larger than any table ({MAX_BYTES} bytes)", Where(file=name), HELP)
    try:
        return parse_table(data.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise CompilerError.of(Code.SCHEDULE_TABLE, "it is not UTF-8 text", Where(file=name, offset=error.start), HELP) from None


def parse_table(text: str, file: str | None = None) -> ScheduleTable:
    """The table of a text. ``SCHEDULE_TABLE`` with everything that is wrong with it."""
    problems = Collector()

    def wrong(message: str, line: int | None = None) -> None:
        problems.add(Code.SCHEDULE_TABLE, message, Where(file=file, line=line), HELP)

    try:
        top = json.loads(text, object_pairs_hook=_ONCE, parse_constant=_refused)
        target, rows = _top(top)
    except json.JSONDecodeError as error:
        raise CompilerError.of(Code.SCHEDULE_TABLE, f"it is not JSON: {error.msg}", Where(file=file, line=error.lineno), HELP) from None
    except RecursionError:
        raise CompilerError.of(Code.SCHEDULE_TABLE, "it is nested too deeply", Where(file=file), HELP) from None
    except _Bad as error:
        raise CompilerError.of(Code.SCHEDULE_TABLE, str(error), Where(file=file), HELP) from None
    entries: dict[ScheduleKey, TunedEntry] = {}
    for number, row in enumerate(rows):
        try:
            entry = _entry(row)
        except (_Bad, ValueError) as error:
            wrong(f"entry {number}: {error}")
            continue
        if entry.key in entries:
            wrong(f"entry {number}: {entry.key} has an entry already")
        entries[entry.key] = entry
    problems.check()
    return ScheduleTable(target, tuple(entries.values()), file)


def _refused(text: str) -> NoReturn:
    raise _Bad(f"{text} is no number of JSON")


def _top(top: object) -> tuple[str, list[object]]:
    if isinstance(top, dict) and "format" in top and (type(top["format"]) is not int or top["format"] != FORMAT):
        raise _Bad(f"the table has format {_shown(top['format'])}; this version reads format {FORMAT}: tune again")
    found = _object(top, {"format", "target", "entries"}, set(), "the table")
    target, entries = found["target"], found["entries"]
    if not isinstance(target, str) or not target or len(target) > 200 or not target.isprintable():
        raise _Bad("target is no name of a kind of machine")
    if not isinstance(entries, list):
        raise _Bad("entries is no list")
    return target, entries


def _entry(row: object) -> TunedEntry:
    names = {f.name for f in fields(ScheduleKey)}
    found = _object(row, names | {"choice"}, {"measured"}, "it")
    template, dtype, measured = found["template"], found["dtype"], found.get("measured", "")
    if not isinstance(template, str) or template not in TEMPLATES:
        raise _Bad(f"there is no template {_shown(template)}; there are {', '.join(TEMPLATES)}")
    if not isinstance(dtype, str) or dtype not in DType.__members__:
        raise _Bad(f"there is no dtype {_shown(dtype)}")
    if not isinstance(measured, str):
        raise _Bad("measured is no text")
    sizes = {name: _integer(found[name], name, none=name != "panel") for name in ("n", "k", "rows", "panel")}
    kind = TEMPLATES[template]
    chosen = _object(found["choice"], {f.name for f in fields(kind)}, set(), "choice")
    choice = kind(**{name: _integer(value, name) for name, value in chosen.items()})
    return TunedEntry(ScheduleKey(template, DType[dtype], **sizes), choice, measured)


def _object(value: object, wanted: set[str], optional: set[str], what: str) -> dict[str, Any]:
    """An object of exactly these fields."""
    if not isinstance(value, dict):
        raise _Bad(f"{what} is no object")
    for name in sorted(wanted - value.keys()):
        raise _Bad(f"{what} has no '{name}'")
    for name in sorted(value.keys() - wanted - optional):
        raise _Bad(f"{what} has an unknown field: {_shown(name)}; its fields are {', '.join(sorted(wanted | optional))}")
    return value


def _integer(value: object, name: str, none: bool = False) -> Any:
    if value is None and none:
        return None
    if type(value) is not int:
        raise _Bad(f"{name} is {_shown(value)}, which is no whole number")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


# --- which tables there are --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tables:
    """The tables that count for a compilation. ``asked``: somebody named one, so that it is an error when it fits no target."""

    tables: tuple[ScheduleTable, ...] = ()
    asked: bool = False

    @property
    def identity(self) -> str | None:
        """A digest of all of them, None when there is none: results that rest on other tables are kept apart."""
        if not any(t.entries for t in self.tables):
            return None
        return hashlib.sha256("\n".join(sorted(t.text for t in self.tables)).encode("utf-8", "surrogatepass")).hexdigest()

    def of(self, kind: str) -> ScheduleTable:
        """The table for that kind of machine; an empty one when there is none."""
        return next((t for t in self.tables if t.target == kind), ScheduleTable(kind))

    def check(self, kinds: Sequence[str]) -> None:
        """``SCHEDULE_TARGET`` when a table was named that is for none of these kinds of machines."""
        for table in self.tables if self.asked else ():
            if table.target not in kinds:
                message = f"the schedules are for {table.target}, and the code is for {', '.join(dict.fromkeys(kinds))}"
                help = "compile for the machine that they were tuned for, or leave them out; `tfc tune` makes some for this target"
                raise CompilerError.of(Code.SCHEDULE_TARGET, message, Where(file=table.file), help)


def find_tables(given: object = None) -> Tables:
    """The tables that count: ``given`` (a path or a table), else what ``TFIR_SCHEDULES`` says, else those in the cache folder.

    ``USAGE`` for something else, and the errors of :func:`read_table`.
    """
    if isinstance(given, ScheduleTable):
        return Tables((given,), asked=True)
    if isinstance(given, (str, os.PathLike)):
        return Tables((read_table(given),), asked=True)
    if given is not None:
        message = f"schedules is a {type(given).__name__}, neither a path nor a table"
        raise CompilerError.of(Code.USAGE, message, help='schedules="table.json", as `tfc tune` writes it')
    named = env.SCHEDULES.get()
    if named is not None:
        return Tables() if named == "0" else Tables((read_table(os.path.expanduser(named)),), asked=True)
    return Tables(tuple(read_table(path) for path in sorted(_folder().glob("*.json"))))


def default_place(kind: str) -> Path:
    """Where ``tfc tune`` keeps the table for a kind of machine."""
    return _folder() / f"{kind}.json"


def _folder() -> Path:
    return env.cache_folder() / "schedules"
