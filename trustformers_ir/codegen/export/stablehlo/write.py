"""StableHLO text, written from the beginning to the end: weights are made one after the other, on their way to the file.

A module with one function ``main``. Constants stand first, weights among them, under their names; then what is computed. Locations say where it comes
from: that of an operation is the line of the source, under the name of the operation of the graph that it is a part of (``12:linear``) or, where it
is a result of some, of those results (``12:linear.0``); that of an argument or a weight is its name.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from trustformers_ir.codegen.export.emitting import Stored
from trustformers_ir.codegen.export.stablehlo import rules_attention, rules_elementwise, rules_index, rules_nn, rules_quantized, rules_shape
from trustformers_ir.codegen.export.stablehlo.emitter import Emitter, Line, X
from trustformers_ir.codegen.export.stablehlo.text import dense, identifier, quoted, tensor
from trustformers_ir.codegen.export.written import Written
from trustformers_ir.ir.atomic import atomic_output
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.interpreter import argument_names, result_names
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.version import VERSION

assert rules_attention and rules_elementwise and rules_index and rules_nn and rules_quantized and rules_shape  # imported for their rules
NAME = "main"  # of the function


def write_stablehlo(path: str, module: Module) -> Written:
    """Writes the function ``main`` of ``module``. ``CompilerError`` with all ops that have no form; nothing is left half-written."""
    emitter = Emitter(module, module.main)
    outputs = emitter.run()
    read = _read(emitter.lines) | {x.name for x in outputs}
    stored = [s for s in emitter.stored.values() if s.name in read]
    with atomic_output(path) as file:
        for n, piece in enumerate(_text(module, emitter, outputs, stored)):
            if n % 64 == 0:
                note("writing")
            file.write(piece.encode())
    kinds = Counter(str(s.dtype) for s in stored if s.weight)
    return Written((path,), os.stat(path).st_size, dict(kinds.most_common()), len(emitter.lines))


def _read(lines: Sequence[Line]) -> set[str]:
    """Names of what is read."""
    found: set[str] = set()
    for line in lines:
        found |= set(line.operands)
        for region in line.regions:
            found |= _read(region.lines) | {x.name for x in region.results}
    return found


class _Places:
    """Locations, each written once at the end of the file, under a number."""

    def __init__(self, results: Mapping[str, Sequence[str]]) -> None:
        self._results = results
        self._texts: dict[str, int] = {}

    def _number(self, text: str) -> str:
        return f"#loc{self._texts.setdefault(text, len(self._texts) + 1)}"

    def of(self, line: Line) -> str:
        """`` loc(…)`` behind an operation, or nothing."""
        names = ";".join(",".join(self._results.get(r, ())) for r in line.results).strip(";") or line.operation
        if not names:
            return ""
        inner = f"({self._number(f'{quoted(line.file)}:{line.line}:0')})" if line.file else ""
        return f" loc({self._number(quoted(names) + inner)})"

    def texts(self) -> Iterator[str]:
        for text, number in self._texts.items():
            yield f"#loc{number} = loc({text})\n"


def _text(module: Module, e: Emitter, outputs: Sequence[X], stored: Sequence[Stored]) -> Iterator[str]:
    places = _Places(e.results())
    yield f"// trustformers_ir {VERSION}\n"
    for key, value in module.metadata.items():
        yield f"// {' '.join(f'{key}: {value}'.split())}\n"
    names, ends = argument_names(module.main), result_names(module.main)
    for name, v in (*zip(names, module.main.args, strict=True), *zip(ends, module.main.outputs, strict=True)):
        yield f"// {name}: {v.type}\n"
    given = ", ".join(f"{x}: {x.type} loc({quoted(name)})" for x, name in zip(e.inputs, names, strict=True))
    made = ", ".join(x.type for x in outputs)
    yield f"module @{identifier(module.name)} {{\n  func.func public @{NAME}({given}) -> ({made}) {{\n"
    for s in stored:
        yield f"    %{s.name} = stablehlo.constant "
        yield from dense(s.make(), s.dtype)
        yield f" : {tensor(s.dtype, s.shape)}" + (f" loc({quoted(s.weight)})\n" if s.weight else "\n")
    yield from _lines(e.lines, places, "    ")
    listed = f" {', '.join(map(str, outputs))} : {made}" if outputs else ""
    yield f"    return{listed} loc({quoted(', '.join(ends))})\n  }}\n}}\n"
    yield from places.texts()


def _lines(lines: Sequence[Line], places: _Places, indent: str) -> Iterator[str]:
    for line in lines:
        base = line.results[0].partition("#")[0]
        yield f"{indent}%{base}{f':{len(line.results)}' if '#' in line.results[0] else ''} = {line.head}"
        for number, region in enumerate(line.regions):
            given = ", ".join(f"{x}: {x.type}" for x in region.arguments)
            yield f"{', ' if number else ' ('}{{\n{indent}^bb0({given}):\n"
            yield from _lines(region.lines, places, indent + "  ")
            types = ", ".join(x.type for x in region.results)
            yield f"{indent}  stablehlo.return {', '.join(map(str, region.results))} : {types}\n{indent}}}"
        yield f"{')' if line.regions else ''}{line.tail}{places.of(line)}\n"
