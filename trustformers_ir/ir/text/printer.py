"""Prints modules as text. Everything comes from the declarations of the ops; see ``docs/ir.md`` for the syntax.

Value names are the hints made unique in order of appearance (``%x``, ``%x_1``), numbers where there is no hint. Printing what was parsed from
printed text gives the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from trustformers_ir.ir.core import Block, Function, Location, Module, Operation, Value
from trustformers_ir.ir.schema import Op
from trustformers_ir.ir.text.attributes import Writer, codec, type_text
from trustformers_ir.ir.text.lexer import MAX_NAME
from trustformers_ir.ir.text.scalars import NAME, global_name, quote
from trustformers_ir.ir.types import TensorType

INDENT = "  "
WIDTH = 140  # a longer function header is written with one argument per line


def print_module(module: Module, *, loc: bool = True) -> str:
    """The module as text; ``loc=False`` leaves the source locations out. Weights without a known digest are hashed."""
    return "".join(line + "\n" for line in _module_lines(module, loc, Writer()))


def print_function(function: Function, *, loc: bool = True) -> str:
    """One function as text, as it stands in its module."""
    return "".join(line + "\n" for line in _function_lines(function, "", loc, Writer()))


def print_operation(operation: Operation, names: Names | None = None, *, loc: bool = True) -> str:
    """The first line of an operation (its body is left out). Works for broken graphs too: values without a name print as ``%?``."""
    return operation_head(operation, names or Names(), loc, Writer())


class Names:
    """The printed names of the values of one function."""

    def __init__(self, function: Function | None = None) -> None:
        self._names: dict[int, str] = {}
        self._taken: set[str] = set()
        self._following: dict[str, int] = {}
        self._unnamed = 0
        if function is not None:
            self.add_block(function.body)

    def __getitem__(self, value: Value) -> str:
        return self._names.get(id(value), "%?")

    def add_block(self, block: Block) -> None:
        """Name the block's arguments and results, those of bodies included, in order of appearance."""
        for value in block.args:
            self.add(value)
        for operation in block:
            for value in operation.results:
                self.add(value)
            if operation.body is not None:
                self.add_block(operation.body)

    def add(self, value: Value) -> None:
        hint = _tidy(value.name)
        if not hint:
            self._names[id(value)] = f"%{self._unnamed}"
            self._unnamed += 1
            return
        name = hint
        while name in self._taken:
            number = self._following.get(hint, 1)
            self._following[hint] = number + 1
            name = f"{hint}_{number}"
        self._taken.add(name)
        self._names[id(value)] = f"%{name}"


def _tidy(hint: str) -> str:
    """The hint with characters that may not stand in a name replaced; empty when nothing is left of it."""
    if not hint or (len(hint) <= MAX_NAME and NAME.match(hint)):
        return hint
    tidied = re.sub(r"[^A-Za-z0-9_.$]+", "_", hint[: MAX_NAME // 2])
    return tidied if NAME.match(tidied) else f"_{tidied}"


def _module_lines(module: Module, loc: bool, writer: Writer) -> Iterator[str]:
    yield f"module {global_name(module.name)} {{"
    for name, fact in module.facts.symbols.items():
        yield f"{INDENT}symbol {name} : {fact}"
    for weight in module.weights.values():
        yield f"{INDENT}weight {global_name(weight.name)} : {type_text(weight.type)} = {weight.digest}"
    for key, text in module.metadata.items():
        yield f"{INDENT}metadata {quote(key)} = {quote(text)}"
    for function in module.functions.values():
        yield from _function_lines(function, INDENT, loc, writer)
    yield "}"


def _function_lines(function: Function, indent: str, loc: bool, writer: Writer) -> Iterator[str]:
    names = Names(function)
    arguments = [f"{names[a]}: {type_text(a.type)}" for a in function.args]
    states = f" states {function.states}" if function.states else ""
    results = f"-> ({', '.join(type_text(t) for t in _output_types(function.body))}){states} {{"
    head = f"{indent}func {global_name(function.name)}"
    line = f"{head}({', '.join(arguments)}) {results}"
    if len(line) <= WIDTH or not arguments:
        yield line
    else:
        yield f"{head}("
        for argument in arguments:
            yield f"{indent}{INDENT}{argument},"
        yield f"{indent}) {results}"
    yield from _block_lines(function.body, indent + INDENT, names, loc, writer)
    yield indent + "}"


def _output_types(block: Block) -> list[TensorType]:
    last = next(reversed(block), None)
    return [v.type for v in last.inputs] if last is not None and last.op.terminator else []


def _block_lines(block: Block, indent: str, names: Names, loc: bool, writer: Writer) -> Iterator[str]:
    for operation in block:
        yield indent + operation_head(operation, names, loc, writer)
        if operation.body is not None:
            body = operation.body
            yield f"{indent}{INDENT}^({', '.join(f'{names[a]}: {type_text(a.type)}' for a in body.args)}):"
            yield from _block_lines(body, indent + INDENT, names, loc, writer)
            yield indent + "}"


def operation_head(operation: Operation, names: Names, loc: bool, writer: Writer) -> str:
    """``%y = op(%a, %b) {attribute = value} : type loc(…)``, with ``{`` at the end when a body follows."""
    op = operation.op
    operands = ["none" if v is None else names[v] for v in operation.operands]
    text = op.mnemonic
    if op.terminator:
        text += "".join(f"{',' if i else ''} {name}" for i, name in enumerate(operands))
    elif op.operands or operands:
        text += f"({', '.join(operands)})"
    text += attributes_text(op, writer)
    if operation.results:
        text = f"{', '.join(names[r] for r in operation.results)} = {text} : {', '.join(type_text(r.type) for r in operation.results)}"
    if loc and operation.loc is not None:
        text += f" {location_text(operation.loc)}"
    return text + (" {" if operation.body is not None else "")


def attributes_text(op: Op, writer: Writer) -> str:
    """`` {name = value, …}``, without the attributes that have their default value; empty when none is left."""
    shown = []
    for attribute in op.attributes():
        value = getattr(op, attribute.name)
        known = codec(attribute.hint)
        text = known.text(value, writer) if known.accepts(value) else repr(value)  # V12 is about the latter
        if attribute.required or text != known.text(attribute.default, Writer()):
            shown.append(f"{attribute.name} = {text}")
    return f" {{{', '.join(shown)}}}" if shown else ""


def location_text(loc: Location) -> str:
    """``loc("models/bert.py":42 in "embed")``."""
    return f"loc({quote(loc.file)}:{loc.line}" + (f" in {quote(loc.function)})" if loc.function else ")")
