"""Stored figures, with which those of a run are compared: a JSON file that belongs into the repository, beside the pipeline.

Sizes and errors are compared wherever they were found. Times and memory are compared only with those of the same kind of CPU, as many threads
and the same sizes of dims: the file says for each which those were.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trustformers_ir.ir.atomic import write_text
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.machine import cpu_model
from trustformers_ir.ir.strict_json import no_key_twice

VERSION = 1


@dataclass(frozen=True)
class Conditions:
    """What times and memory depend on besides the file."""

    cpu: str
    threads: int
    dims: Mapping[str, int]

    @classmethod
    def here(cls, threads: int, dims: Mapping[str, int]) -> Conditions:
        return cls(cpu_model(), threads, dict(sorted(dims.items())))

    def unlike(self, other: Conditions) -> str:
        """In words what differs; empty when nothing does."""
        mine, theirs = asdict(self), asdict(other)
        return "; ".join(f"{name} is {_words(mine[name])} here and was {_words(theirs[name])}" for name in mine if mine[name] != theirs[name])


def _words(value: object) -> str:
    return (", ".join(f"{k} {v}" for k, v in value.items()) or "none") if isinstance(value, Mapping) else str(value)


@dataclass(frozen=True)
class Figures:
    """Of a file: bytes; the largest error of an output, by its largest magnitude (None: infinite, or not known); seconds of a call (the median) and
    bytes resident at most, under the conditions ``measured``; None where nothing was measured."""

    size_bytes: int
    relative_error: float | None = None
    latency_seconds: float | None = None
    memory_bytes: int | None = None
    measured: Conditions | None = None

    def of(self, gate: str) -> float | None:
        """The figure that a gate judges."""
        return {"accuracy": self.relative_error, "size": self.size_bytes, "latency": self.latency_seconds, "memory": self.memory_bytes}[gate]


@dataclass(frozen=True)
class Baseline:
    """Figures by model and file. ``found``: whether there is a file of them."""

    path: str
    figures: Mapping[tuple[str, str], Figures]
    found: bool

    def write(self, figures: Mapping[tuple[str, str], Figures]) -> None:
        """Replaces the file, whole or not at all. The same figures give the same bytes."""
        rows: dict[str, dict[str, Any]] = {}
        for (model, file), f in sorted(figures.items()):
            rows.setdefault(model, {})[file] = {k: v for k, v in asdict(f).items() if v is not None}
        write_text(self.path, json.dumps({"version": VERSION, "figures": rows}, indent=2, allow_nan=False) + "\n")


def read_baseline(path: str) -> Baseline:
    """What the file holds; no figures where there is none. Raises ``CompilerError`` for one that ``tfc ci --update-baseline`` did not write."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return Baseline(path, {}, False)
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(path, str(getattr(error, "strerror", None) or "it is not UTF-8")) from error
    try:
        whole = json.loads(text, object_pairs_hook=no_key_twice(lambda key: ValueError(f"the key '{key}' stands twice")))
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"it is no JSON: {error}") from error
    if not isinstance(whole, dict) or whole.get("version") != VERSION or not isinstance(whole.get("figures"), dict):
        raise _broken(path, f"it is no baseline of version {VERSION}")
    found: dict[tuple[str, str], Figures] = {}
    with Collector() as problems:
        for model, files in whole["figures"].items():
            if not isinstance(files, dict):
                problems.extend(_broken(path, f"the figures of '{model}' are no object").diagnostics)
                continue
            for file, row in files.items():
                try:
                    found[model, file] = _figures(row)
                except (TypeError, ValueError, KeyError) as error:
                    problems.extend(_broken(path, f"the figures of '{model}', '{file}' are broken: {error}").diagnostics)
    return Baseline(path, found, True)


def _figures(row: Any) -> Figures:
    if not isinstance(row, dict):
        raise ValueError("they are no object")
    if unknown := set(row) - {f.name for f in fields(Figures)}:
        raise ValueError(f"there is no figure '{min(unknown)}'")
    for name, value in row.items():
        if name != "measured" and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf):
            raise ValueError(f"{name} is {value!r}")
    if "size_bytes" not in row:
        raise ValueError("size_bytes is missing")
    measured = row.get("measured")
    if measured is None:
        return Figures(**row)
    if not isinstance(measured, dict) or set(measured) != {f.name for f in fields(Conditions)} or not isinstance(measured["dims"], dict):
        raise ValueError("measured does not say cpu, threads and dims")
    return Figures(**{**row, "measured": Conditions(str(measured["cpu"]), measured["threads"], measured["dims"])})


def _broken(path: str, reason: str) -> CompilerError:
    help = "take it from the repository again, or write it anew: `tfc ci PIPELINE --update-baseline` after deleting it"
    return CompilerError.of(Code.BASELINE, f"'{path}': {reason}", Where(file=path), help)
