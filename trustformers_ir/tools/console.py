"""What the command line shows: results on stdout, everything else (notes, progress, errors) on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence

from trustformers_ir.ir import env
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.progress import watching


def say(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    print(text, file=sys.stderr)


def print_json(data: object) -> None:
    """The only thing on stdout under ``--json``."""
    sys.stdout.write(as_json(data))
    sys.stdout.flush()


def as_json(data: object) -> str:
    """The text of a JSON file. Numbers that JSON lacks (NaN, infinities) become null."""
    return json.dumps(finite(data), indent=2, default=str, allow_nan=False) + "\n"


def finite(data: object) -> object:
    """The same without NaN and infinities, which JSON lacks: null stands for them."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    return [finite(value) for value in data] if isinstance(data, (list, tuple)) else data


def print_table(rows: Sequence[Sequence[object]], head: Sequence[str] = ()) -> None:
    """Left-aligned columns on stdout."""
    cells = [[str(c) for c in row] for row in ([head] if head else []) + list(rows)]
    widths = widths_of(cells)
    for row in cells:
        print_row(row, widths)


def widths_of(rows: Sequence[Sequence[str]]) -> list[int]:
    """The width of each column."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def print_row(row: Sequence[str], widths: Sequence[int]) -> None:
    """A row of a table on stdout, at once: tables that take minutes show what they have."""
    print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip(), flush=True)


def print_fields(fields: Mapping[str, object]) -> None:
    """``name  value`` lines on stdout."""
    print_table([(name, value) for name, value in fields.items()])


def quantity(count: float, unit: str = "B") -> str:
    """``91.2 MB``."""
    for prefix in ("", "k", "M", "G"):
        if abs(count) < 1000:
            return f"{count:.3g} {prefix}{unit}" if prefix else f"{count:g} {unit}"
        count /= 1000
    return f"{count:.4g} T{unit}"


def not_built(what: str, help: str = "") -> CompilerError:
    """The error of a request that the contract names and this version does not do."""
    return CompilerError.of(Code.NOT_BUILT, f"{what} is not built yet", help=help or "CHANGELOG.md lists what each version does")


def usage(message: str, help: str) -> CompilerError:
    return CompilerError.of(Code.USAGE, message, Where(), help)


@contextlib.contextmanager
def progress(title: str) -> Iterator[None]:
    """A progress bar on a terminal, fed by the notes of ``ir.progress``; silent elsewhere and in CI."""
    if not sys.stderr.isatty() or env.CI.get():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[stage]}"), TimeElapsedColumn())
    shared = sys.stdout.isatty()  # what is printed meanwhile goes above the bar
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=shared) as bar:
        task = bar.add_task(title, total=None, stage="")

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, stage=stage, completed=done, total=total or None)

        with watching(show):
            yield
