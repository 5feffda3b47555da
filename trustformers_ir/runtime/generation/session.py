"""The texts of a batch while they are read and written: their caches, how long each is, and calls of the two entries that know them.

An executable of a language model has the entries ``prefill`` and ``decode``; ``frontend/generation.py`` says what they take. Everything that does not
change from token to token is prepared once: a step writes ids and lengths into arrays that are known, and makes one native call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trustformers_ir.ir.abi import DECODE, PREFILL
from trustformers_ir.ir.diagnostics import Code, CompilerError

if TYPE_CHECKING:
    from trustformers_ir.runtime.generation.caches import Caches
    from trustformers_ir.runtime.runnable import Runnable

CHUNK = 512  # tokens that are read at once
STEP = 64  # places by which a cache grows


class Session:
    """``batch`` texts. ``lengths[b]`` tokens of text b are in the caches; more are read by :meth:`read`, one of each by :meth:`step`."""

    def __init__(self, executable: Runnable, batch: int, capacity: int = 0) -> None:
        """``capacity``: how many tokens are sure to come. ``NO_GENERATION`` for a model that cannot write."""
        if PREFILL not in executable.entries or DECODE not in executable.entries:
            message = f"'{executable.manifest.name}' cannot write text: its entries are {', '.join(executable.entries)}"
            help = "compile a checkpoint or a GGUF file of a language model, with all of its dims dynamic"
            raise CompilerError.of(Code.NO_GENERATION, message, help=help)
        self.executable = executable
        self._prefill, self._decode = executable.called(PREFILL), executable.called(DECODE)
        entry = self._decode.entry
        self.longest = executable.symbols["seq"].high
        vocabulary = entry.outputs[0].type.shape[-1]
        assert isinstance(vocabulary, int)
        self.vocabulary = vocabulary
        self.batch = batch
        self.lengths = np.zeros(batch, np.int64)
        self.caches: Caches = executable.caches(entry.inputs[2:])
        self.capacity = 0
        self._ids = np.zeros((batch, 1), np.int64)
        self._call: Callable[[], None] | None = None
        self._version = -1  # of the caches that the call knows
        self._scores = np.zeros(0)
        if capacity:
            self.reserve(capacity)

    def reserve(self, capacity: int) -> None:
        """Room for so many tokens of each text. ``CACHE_FULL`` when the model has no positions for them."""
        if self.longest is not None and capacity > self.longest:
            message = f"{capacity} tokens of text are more than the {self.longest} that the model has positions for"
            raise CompilerError.of(Code.CACHE_FULL, message, help="give a shorter prompt, or ask for fewer tokens")
        if capacity <= self.capacity:
            return
        capacity = -(-capacity // STEP) * STEP
        self.capacity = capacity if self.longest is None else min(capacity, self.longest)
        self.caches.grow(self.batch, self.capacity)

    def read(self, pieces: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """Reads the next tokens of each text, at least one; the scores ``[batch, vocab]`` after the last token of each."""
        arrays = [np.asarray(p, np.int64).reshape(-1) for p in pieces]
        counts = np.array([len(a) for a in arrays], np.int64)
        if len(arrays) != self.batch or not counts.all():
            message = f"{len(arrays)} pieces of text for {self.batch} texts, of {counts.tolist()} tokens"
            raise CompilerError.of(Code.USAGE, message, help="give each text some")
        self.reserve(int((self.lengths + counts).max()))
        scores = np.zeros((self.batch, self.vocabulary), np.float32)
        if (counts == counts[0]).all():
            self._read(slice(None), np.stack(arrays), scores)
        else:  # without padding: each text by itself
            for row, tokens in enumerate(arrays):
                self._read(slice(row, row + 1), tokens[None], scores)
        self.lengths += counts
        return scores

    def _read(self, rows: slice, ids: np.ndarray, scores: np.ndarray) -> None:
        """Reads as many tokens of each of these texts; puts the scores after the last ones into ``scores``."""
        whole = self.lengths[rows] + ids.shape[1]
        for first in range(0, ids.shape[1], CHUNK):
            part = np.ascontiguousarray(ids[:, first : first + CHUNK])
            start, last = self.lengths[rows] + first, np.full(len(part), part.shape[1] - 1, np.int64)
            self.caches.extend(rows, start, part.shape[1])
            found = self._prefill((part, start, last, whole, *self.caches.of(rows)), {})
        scores[rows] = found

    def step(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Reads one token of each text; the scores ``[batch, vocab]`` after it, in an array that the next step overwrites."""
        self._ids[:, 0] = tokens
        longest = int(self.lengths.max()) + 1
        if longest > self.capacity:
            self.reserve(longest)
        self.caches.extend(slice(None), self.lengths, 1)
        if self._call is None or self._version != self.caches.version:
            self._version = self.caches.version
            (self._scores,), self._call = self._decode.fixed([self._ids, self.lengths, *self.caches.of(slice(None))])
        self._call()
        self.lengths += 1
        return self._scores

    def repeated(self, times: int) -> Session:
        """A session with each text so many times."""
        other = Session(self.executable, self.batch * times)
        other.caches, other.capacity = self.caches.repeated(times), self.capacity
        other.lengths = np.repeat(self.lengths, times)
        return other

    def reorder(self, rows: Sequence[int] | np.ndarray) -> None:
        """Text b goes on as what text ``rows[b]`` was."""
        rows = np.asarray(rows, np.int64)
        if (rows == np.arange(self.batch)).all():
            return
        self.caches.reorder(rows, int(self.lengths.max()))
        self.lengths[:] = self.lengths[rows]
