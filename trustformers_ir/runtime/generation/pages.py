"""Caches in pages: the texts of a session share pools of memory, a table says which pages each has, and none is kept that nobody looks at any more.

Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023. Memory grows with what has been read and not
with the longest text; texts that begin alike (beams) share the pages of what they have in common, and a page is copied when one of them is about to
write to it; layers that see a window of tokens give pages behind it back, so that a text may be as long as it likes (Beltagy et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trustformers_ir.ir.abi import PAGES, POOL, Port
from trustformers_ir.ir.dims import symbols_of
from trustformers_ir.runtime import memory


def is_table(port: Port) -> bool:
    """Whether an input says which pages texts have."""
    return PAGES.matches(port.name) and port.type.rank == 2


class Pool:
    """Pages of the caches of some layers: the same pages of each. ``owners`` counts in how many tables a page stands."""

    def __init__(self, ports: Sequence[Port]) -> None:
        self.ports = ports
        length = ports[0].type.shape[2]
        assert isinstance(length, int)
        self.length = length  # places of a page
        self.version = 0  # how often the arrays were replaced
        self.arrays = [self._empty(p, 1) for p in ports]
        self.owners = [1]  # page 0 belongs to nobody: it stands where there is none, or none any more
        self.free: list[int] = []
        self.used = 1  # pages from here on are zeros that nobody has had yet

    def _empty(self, port: Port, pages: int) -> np.ndarray:
        _, heads, length, features = port.type.shape
        return np.zeros((pages, heads, length, features), port.type.dtype.numpy)  # type: ignore[arg-type]

    def room(self, pages: int) -> None:
        """Makes sure that so many more can be taken. ``OUT_OF_MEMORY``"""
        wanted = self.used + pages - len(self.free)
        if wanted <= len(self.owners):
            return
        count = max(wanted, 2 * len(self.owners))
        memory.check_size(sum(a.nbytes // len(a) for a in self.arrays) * count, "the cache")
        grown = [self._empty(p, count) for p in self.ports]
        for new, old in zip(grown, self.arrays, strict=True):
            new[: len(old)] = old
        self.arrays, self.owners = grown, [*self.owners, *[0] * (count - len(self.owners))]
        self.version += 1

    def take(self) -> int:
        """A page of zeros."""
        self.room(1)
        if self.free:
            page = self.free.pop()
            for a in self.arrays:
                a[page] = 0  # what is left of another text may be infinite
        else:
            page, self.used = self.used, self.used + 1
        self.owners[page] = 1
        return page

    def give_back(self, page: int) -> None:
        self.owners[page] -= 1
        if not self.owners[page]:
            self.free.append(page)

    def apart(self, page: int) -> int:
        """A page with the same content that has one owner: itself, or a copy for one of its owners."""
        if self.owners[page] == 1:
            return page
        self.give_back(page)
        copy = self.take()
        for a in self.arrays:
            a[copy] = a[page]
        return copy


class Table:
    """Which pages of a pool each text has: those from ``first`` on, up to ``count``."""

    def __init__(self, pool: Pool, window: int | None, batch: int) -> None:
        self.pool, self.window = pool, window
        self.entries = np.zeros((batch, 1), np.int32)
        self.first, self.count = np.zeros(batch, np.int64), np.zeros(batch, np.int64)

    def widen(self, columns: int) -> None:
        wider = np.zeros((len(self.entries), columns), np.int32)
        wider[:, : self.entries.shape[1]] = self.entries
        self.entries = wider

    def extend(self, text: int, length: int, end: int) -> None:
        """Pages for the places from ``length`` to ``end`` of a text, which nobody else writes to; those that no token from ``length`` on sees go."""
        row, size = self.entries[text], self.pool.length
        if self.window is not None:
            while self.first[text] < self.count[text] and (self.first[text] + 1) * size <= length - self.window + 1:
                self.pool.give_back(int(row[self.first[text]]))
                row[self.first[text]] = 0
                self.first[text] += 1
        begun = length // size
        if begun < self.count[text]:
            row[begun] = self.pool.apart(int(row[begun]))
        wanted = -(-end // size)
        self.pool.room(int(wanted - self.count[text]))
        while self.count[text] < wanted:
            row[self.count[text]] = self.pool.take()
            self.count[text] += 1

    def repeated(self, rows: np.ndarray) -> Table:
        """Text b has what text ``rows[b]`` has here."""
        other = Table(self.pool, self.window, len(rows))
        other.entries, other.first, other.count = self._taken(rows)
        return other

    def reorder(self, rows: np.ndarray) -> None:
        """The same in this table, whose entries stay where a call looks for them."""
        entries, first, count = self._taken(rows)
        self.close()
        self.entries[:], self.first, self.count = entries, first, count

    def _taken(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        entries = self.entries[rows]
        for page in self._pages(entries):
            self.pool.owners[page] += 1
        return entries, self.first[rows], self.count[rows]

    def close(self) -> None:
        for page in self._pages(self.entries):
            self.pool.give_back(page)
        self.entries[:] = 0

    @staticmethod
    def _pages(entries: np.ndarray) -> list[int]:
        pages: list[int] = entries[entries > 0].tolist()
        return pages


class PagedCaches:
    """States of texts in pages, with a table for each kind of layer. ``ports``: tables, then states."""

    def __init__(self, ports: Sequence[Port], tables: Sequence[Table] = ()) -> None:
        self.ports = ports
        self.table_ports = [p for p in ports if is_table(p)]
        self.states = ports[len(self.table_ports) :]
        windows = [PAGES.window(p.name) for p in self.table_ports]
        #: for each state, the table of its layer
        self.kinds = [windows.index(POOL.window(*symbols_of(p.type.shape[0]))) for p in self.states]
        self.tables = list(tables) or [
            Table(Pool([p for p, kind in zip(self.states, self.kinds, strict=True) if kind == n]), w, 0) for n, w in enumerate(windows)
        ]
        self.covered = np.zeros(len(self.tables[0].entries), np.int64)  # places of each text that can be written to
        self._tables_version = 0

    @property
    def version(self) -> int:
        return self._tables_version + sum(t.pool.version for t in self.tables)

    @property
    def arrays(self) -> list[np.ndarray]:
        """The states in the order of their ports."""
        left = [iter(t.pool.arrays) for t in self.tables]
        return [next(left[kind]) for kind in self.kinds]

    def grow(self, batch: int, capacity: int) -> None:
        """Room in the tables. Pages are taken when they are written to."""
        if not len(self.covered):
            self.tables = [Table(t.pool, t.window, batch) for t in self.tables]
            self.covered = np.zeros(batch, np.int64)
        for t in self.tables:
            t.widen(-(-capacity // t.pool.length))
        self._tables_version += 1

    def extend(self, rows: slice, lengths: np.ndarray, count: int) -> None:
        """Memory for ``count`` tokens behind the ``lengths`` of these texts. ``OUT_OF_MEMORY``"""
        ends = lengths + count
        if (ends <= self.covered[rows]).all():
            return
        for text, length, end in zip(range(*rows.indices(len(self.covered))), lengths.tolist(), ends.tolist(), strict=True):
            for t in self.tables:
                t.extend(text, length, end)
            self.covered[text] = min(int(t.count[text]) * t.pool.length for t in self.tables)

    def of(self, rows: slice) -> list[np.ndarray]:
        return [*(t.entries[rows] for t in self.tables), *self.arrays]

    def repeated(self, times: int) -> PagedCaches:
        rows = np.repeat(np.arange(len(self.covered)), times)
        return PagedCaches(self.ports, [t.repeated(rows) for t in self.tables])

    def reorder(self, rows: np.ndarray, used: int) -> None:
        for t in self.tables:
            t.reorder(rows)
        self.covered[:] = 0  # pages may have several owners now

    def __del__(self) -> None:
        for t in getattr(self, "tables", ()):
            t.close()
