"""Arrays on their way to a file, a few megabytes at a time. Pieces that are all zero become holes: a file with holes reads the same, and needs no
room on the disk where they are. Of a mapped file the pages that were read go at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import numpy as np

from trustformers_ir.ir.mapped import backing, let_go

ROWS = 4 << 20  # bytes of rows that are copied at once, where an array is not contiguous
PIECE = 1 << 20  # bytes of which it is looked whether all are zero
TAIL = 4096  # bytes at the end that are always written, so that the file has its length


def write_array(stream: IO[bytes], array: np.ndarray) -> None:
    """The bytes of ``array`` in the order of its rows, where the stream stands."""
    file = backing(array) if array.flags.c_contiguous else None  # of a transposed array every piece lies in all pages
    sparse, left = stream.seekable(), array.nbytes
    for rows in rows_of(array):
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        for at in range(0, data.size, PIECE):
            part = data[at : at + PIECE]
            left -= part.size
            skipped = 0
            if sparse and _is_zero(part):
                skipped = part.size if left else max(part.size - TAIL, 0)
                stream.seek(skipped, 1)
            if skipped < part.size:
                stream.write(part[skipped:].data)
        if file is not None:
            let_go((file,))


def rows_of(array: np.ndarray) -> Iterator[np.ndarray]:
    """As many rows at a time as are a few megabytes: a transposed view is copied piece by piece."""
    if array.ndim == 0 or array.nbytes <= ROWS:
        yield array
        return
    count = max(1, ROWS // max(1, array.nbytes // len(array)))
    for n in range(0, len(array), count):
        yield array[n : n + count]


def _is_zero(part: np.ndarray) -> bool:
    if part[0] or part[-1]:  # most pieces are done with here
        return False
    words = part.size // 8 * 8
    return not part[:words].view(np.uint64).any() and not part[words:].any()
