"""Parses the text form. Nothing in a text is trusted: every number, length and depth is checked before anything is made from it.

A line is a statement, and a problem in one does not end the parse: the line is left out (with the body that it opens), values that it would
have defined are remembered as broken so that their uses are not reported as well, and all problems of the text are raised together, the first
``MAX_PROBLEMS`` of them. A text without problems of its own is given to the verifier, whose violations are placed on the lines they come from.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import trustformers_ir.ir.ops  # noqa: F401  (declares every op)
from trustformers_ir.ir.core import Block, Function, Location, Module, Operation, Value, Weight
from trustformers_ir.ir.diagnostics import Code, CompilerError, Diagnostic, Where
from trustformers_ir.ir.dims import SymbolFact, UndecidedDim
from trustformers_ir.ir.mapped import read_most
from trustformers_ir.ir.ops.data import WeightOp
from trustformers_ir.ir.schema import OPS, ConstraintError, Op, infer_types
from trustformers_ir.ir.text.attributes import Reader, codec, parse_type, type_text
from trustformers_ir.ir.text.dimtext import MAX_COEFFICIENT
from trustformers_ir.ir.text.lexer import MAX_NAME, MAX_TEXT, TextProblem, Token, shorten
from trustformers_ir.ir.types import TensorType
from trustformers_ir.ir.verifier import Violation, same_type, verify_module

Resolve = Callable[[str, TensorType], "np.ndarray | None"]

VERSION = 1
MAX_PROBLEMS = 20
MAX_DEPTH = 64  # bodies within bodies
MAX_OPERATIONS = 1 << 18
MAX_OPERANDS = 1 << 14
MAX_RESULTS = 1 << 12
SHOWN_TYPE = 200  # characters of a type in a message
SHOWN_LINE = 1 << 16  # longer lines are not repeated in messages

_MODULE_ITEM = re.compile(r"[ \t]*(?:(?:func|symbol|weight|metadata)\b[ \t]*[@\"A-Za-z_]|\}[ \t\r]*$)")


def parse_module(text: str | bytes, *, file: str = "<text>", resolve: Resolve | None = None, verify: bool = True) -> Module:
    """The module of a text. Raises ``CompilerError`` with every problem found and its place in ``file``.

    ``resolve(digest, type)`` gives the bytes of a weight as an array in the storage shape of its type, or None: then the weight is known by
    its digest only. That the bytes have the digest is up to ``resolve``. ``verify=False`` leaves out the verifier, for texts that are
    verified later anyway; type inference is always checked.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CompilerError.of(Code.TEXT_ENCODING, f"the text is not UTF-8: {error.reason}", Where(file=file, offset=error.start)) from None
    if len(text) > MAX_TEXT:
        raise CompilerError.of(Code.TEXT_LIMIT, f"a text of {len(text)} characters; {MAX_TEXT} are the most", Where(file=file))
    return _Parser(text, file, resolve).run(verify)


def read_module(path: str | os.PathLike[str], *, resolve: Resolve | None = None, verify: bool = True) -> Module:
    """The module of a ``.tfir`` file; see :func:`parse_module`."""
    name = os.fspath(path)
    try:
        size = os.stat(name).st_size
        if size > 4 * MAX_TEXT:
            raise CompilerError.of(Code.TEXT_LIMIT, f"a file of {size} bytes; {4 * MAX_TEXT} are the most", Where(file=name))
        with open(name, "rb") as stream:
            data = read_most(stream, 4 * MAX_TEXT)
    except FileNotFoundError:
        raise CompilerError.of(Code.FILE_NOT_FOUND, "the file does not exist", Where(file=name)) from None
    except OSError as error:
        raise CompilerError.of(Code.UNREADABLE, f"the file cannot be read: {error.strerror}", Where(file=name)) from None
    return parse_module(data, file=name, resolve=resolve, verify=verify)


class _Broken(Exception):
    """A statement uses a value whose definition was reported already."""


class _Stop(Exception):
    """Enough problems were found."""


@dataclass
class _Scope:
    """The values of one function; ``broken`` are those whose definition had a problem."""

    values: dict[str, Value] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)  # the line of each definition
    broken: set[str] = field(default_factory=set)


class _Parser:
    def __init__(self, text: str, file: str, resolve: Resolve | None) -> None:
        self.module = Module()
        self.reader = Reader(text, self.module.facts.symbols)
        self.file = file
        self.resolve = resolve
        self.problems: list[Diagnostic] = []
        self.operations = 0
        self.places: dict[int, Token] = {}  # of operations, functions and weights, by id
        self.broken_weights: set[str] = set()  # their declarations have problems

    def run(self, verify: bool) -> Module:
        try:
            self._module()
            if verify and not self.problems:
                for violation in verify_module(self.module, limit=MAX_PROBLEMS):
                    self._report_violation(violation)
        except _Stop:
            pass
        if self.problems:
            raise CompilerError(*self.problems)
        return self.module

    # --- problems ---

    def _report(self, code: Code, message: str, line: int, column: int, help: str = "") -> None:
        self.problems.append(Diagnostic(code, message, Where(self.file, line, column), help, self._source(line)))
        if len(self.problems) == MAX_PROBLEMS:
            raise _Stop

    def _report_problem(self, problem: TextProblem) -> None:
        self._report(problem.code, problem.message, problem.line, problem.column, problem.help)

    def _report_violation(self, violation: Violation) -> None:
        place = next((self.places[id(s)] for s in violation.subjects if id(s) in self.places), None)
        line, column = (place.line, place.column) if place is not None else (1, 1)
        self._report(violation.code, f"{violation.rule}: {violation.message}", line, column, violation.help)

    def _source(self, line: int) -> str:
        """The text of a line; called at most ``MAX_PROBLEMS`` times."""
        text, start = self.reader.text, 0
        for _ in range(line - 1):
            start = text.find("\n", start) + 1
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        return text[start:end] if end - start <= SHOWN_LINE else " "

    def _recover(self) -> None:
        """Leave out the line, and the body that it opens."""
        self._skip_body(_opens(self.reader.recover()))

    def _skip_body(self, depth: int) -> None:
        """Leave out lines until that many braces are closed."""
        while depth > 0 and not self.reader.finished:
            line = self.reader.recover()
            depth += _opens(line) - line.lstrip().startswith("}")

    def _recover_header(self) -> None:
        """Leave out a function whose header is broken: what follows up to the next function or declaration."""
        line = self.reader.recover()
        while not _opens(line) and not self.reader.finished and not _MODULE_ITEM.match(self._line_ahead()):
            line = self.reader.recover()
        self._skip_body(_opens(line))

    def _line_ahead(self) -> str:
        text, start = self.reader.text, self.reader.position
        end = text.find("\n", start)
        return text[start : len(text) if end < 0 else end][:200]

    # --- the module ---

    def _module(self) -> None:
        reader = self.reader
        try:
            reader.skip_newlines()
            if reader.accept("tfir"):
                token = reader.peek()
                version = reader.integer("the version of the text form", 0)
                if version != VERSION:
                    reader.fail(f"the text form has version {version}", token, Code.TEXT_VERSION, f"this program reads version {VERSION}")
                reader.end_line()
            reader.expect("module", " at the beginning of the text")
            self.module.name = self._global_name("a module name")
            reader.expect("{")
            reader.end_line()
        except TextProblem as problem:
            self._report_problem(problem)
            return
        while True:
            start = self.reader.finished
            try:
                reader.skip_newlines()
                if reader.accept("}"):
                    reader.skip_newlines()
                    if reader.peek().kind != "eof":
                        reader.fail(f"expected the end of the text after the module, found {reader.peek()}")
                    return
                if reader.peek().kind == "eof":
                    reader.fail("the module is not closed by '}'")
                self._item()
            except TextProblem as problem:
                self._report_problem(problem)
                self._recover()
                if start or reader.finished:
                    return

    def _item(self) -> None:
        reader = self.reader
        match reader.peek().text if reader.peek().kind == "name" else "":
            case "symbol":
                self._symbol()
            case "weight":
                self._weight()
            case "metadata":
                self._metadata()
            case "func":
                self._function()
            case _:
                reader.fail(f"expected symbol, weight, metadata, func or '}}', found {reader.peek()}")

    def _global_name(self, what: str) -> str:
        return self.reader.expect_kind("global", f"{what} such as @main").text

    def _symbol(self) -> None:
        reader = self.reader
        reader.take()
        name = reader.expect_kind("name", "the name of a symbol")
        if name.text in self.module.facts.symbols:
            reader.fail(f"the symbol '{shorten(name.text)}' is declared twice", name, Code.REDEFINED_NAME)
        self.module.facts.symbols[name.text] = SymbolFact()  # stands in if the rest of the line is broken
        reader.expect(":")
        low_token = reader.expect("[")
        low = reader.integer("the lower bound", 0, MAX_COEFFICIENT)
        reader.expect(",")
        high = None if reader.accept("inf") else reader.integer("the upper bound, or inf,", 0, MAX_COEFFICIENT)
        reader.expect("]")
        percent = reader.peek()
        if percent.kind == "value":  # written without a blank, as in %8
            reader.jump(percent.start + 1)
        divisor = reader.integer("the divisor", 1, MAX_COEFFICIENT) if percent.kind == "value" or reader.accept("%") else 1
        try:
            self.module.facts.declare(name.text, SymbolFact(low, high, divisor))
        except ValueError as error:
            reader.fail(str(error), low_token if "impossible" in str(error) else name)
        reader.end_line()

    def _weight(self) -> None:
        reader = self.reader
        reader.take()
        place = reader.peek()
        name = self._global_name("the name of a weight")
        if name in self.module.weights:
            reader.fail(f"the weight '{shorten(name)}' is declared twice", place, Code.REDEFINED_NAME)
        self.broken_weights.add(name)
        reader.expect(":")
        type = parse_type(reader)
        reader.expect("=")
        digest = reader.word("a digest")
        weight = Weight(name, type, self._bytes(name, type, digest), digest.text)
        self.places[id(weight)] = place
        self.module.add_weight(weight)
        self.broken_weights.discard(name)
        reader.end_line()

    def _bytes(self, name: str, type: TensorType, digest: Token) -> Any:
        data = None if self.resolve is None else self.resolve(digest.text, type)
        if data is not None:
            shape = type.stored.shape
            if data.dtype != type.dtype.numpy or data.shape != shape:
                message = f"the bytes of weight '{shorten(name)}' are {data.dtype}{list(data.shape)} where {_shown(type)} is stored as {list(shape)}"
                self.reader.fail(message, digest, Code.BAD_DIGEST)
        return data

    def _metadata(self) -> None:
        reader = self.reader
        reader.take()
        place = reader.peek()
        key = reader.string("a key")
        if key in self.module.metadata:
            reader.fail(f'the key "{shorten(key)}" stands twice', place, Code.REDEFINED_NAME)
        reader.expect("=")
        self.module.metadata[key] = reader.string("the text", limit=None)
        reader.end_line()

    # --- functions ---

    def _function(self) -> None:
        reader = self.reader
        scope, block = _Scope(), Block()
        try:
            reader.take()
            place = reader.peek()
            name = self._global_name("the name of a function")
            if name in self.module.functions:
                reader.fail(f"the function '{shorten(name)}' is defined twice", place, Code.REDEFINED_NAME)
            reader.listed("(", ")", functools.partial(self._argument, block, scope), MAX_OPERANDS)
            reader.expect("->")
            types = reader.listed("(", ")", lambda: (reader.peek(), parse_type(reader)), MAX_OPERANDS)
            states = reader.integer("the number of states", 1, MAX_OPERANDS) if reader.accept("states") else 0
            reader.expect("{")
            reader.end_line()
        except TextProblem as problem:
            self._report_problem(problem)
            self._recover_header()
            return
        function = self.module.add_function(Function(name, block, states))
        self.places[id(function)] = place
        if self._statements(block, scope, 0):
            self._check_outputs(block, types, place)

    def _check_outputs(self, block: Block, types: list[tuple[Token, TensorType]], place: Token) -> None:
        """The result types written in the header against those of what is returned."""
        last = next(reversed(block), None)
        if last is None or not last.op.terminator:
            return  # V5
        if len(last.operands) != len(types):
            message = f"the function announces {len(types)} results and returns {len(last.operands)}"
            self._report(Code.TYPE_MISMATCH, message, place.line, place.column)
            return
        for (token, written), value in zip(types, last.operands, strict=True):
            if value is not None and not same_type(written, value.type, self.module.facts):
                message = f"{_shown(written)} is announced, {_shown(value.type)} is returned"
                self._report(Code.TYPE_MISMATCH, message, token.line, token.column)

    def _argument(self, block: Block, scope: _Scope) -> None:
        token = self.reader.expect_kind("value", "an argument such as %x")
        self.reader.expect(":")
        self._define(scope, token, block.add_arg(parse_type(self.reader)))

    def _define(self, scope: _Scope, token: Token, value: Value) -> None:
        if token.text in scope.values or token.text in scope.broken:
            help = f"the first is on line {scope.places[token.text]}" if token.text in scope.places else ""
            self.reader.fail(f"the value {token} is defined twice", token, Code.REDEFINED_NAME, help)
        value.name = "" if token.text.isdigit() else token.text
        scope.values[token.text] = value
        scope.places[token.text] = token.line

    def _statements(self, block: Block, scope: _Scope, depth: int) -> bool:
        """The operations up to the closing brace. False when one of them had a problem."""
        reader = self.reader
        good = True
        while True:
            results: list[Token] = []
            try:
                reader.skip_newlines()
                if reader.accept("}"):
                    return self._end_statement() and good
                if reader.peek().kind == "eof":
                    reader.fail("the text ends before the closing '}'")
                good &= self._operation(block, scope, depth, results)
            except (_Broken, TextProblem) as problem:
                good = False
                scope.broken.update(t.text for t in results if t.text not in scope.values)
                if isinstance(problem, TextProblem):
                    self._report_problem(problem)
                ended = reader.finished
                self._recover()
                if ended:
                    raise _Stop from None

    def _end_statement(self) -> bool:
        """The end of the line after a closing brace; False when something else stands there, which is left out."""
        try:
            self.reader.end_line()
        except TextProblem as problem:
            self._report_problem(problem)
            self._recover()
            return False
        return True

    # --- operations ---

    def _operation(self, block: Block, scope: _Scope, depth: int, results: list[Token]) -> bool:
        reader = self.reader
        while reader.peek().kind == "value":
            results.append(reader.take())
            if len(results) > MAX_RESULTS:
                reader.fail(f"more than {MAX_RESULTS} results", code=Code.TEXT_LIMIT)
            if not reader.accept(","):
                break
            if reader.peek().kind != "value":
                reader.fail(f"expected a value such as %x, found {reader.peek()}")
        if results:
            reader.expect("=")
        place = reader.expect_kind("name", "an operation")
        kind = OPS.get(place.text)
        if kind is None:
            near = difflib.get_close_matches(place.text[:64], OPS, 1)
            reader.fail(f"there is no op {place}", place, Code.UNKNOWN_OP, f"do you mean {near[0]}?" if near else "")
        operands = self._operands(kind, scope)
        op = self._attributes(kind, place)
        written: list[tuple[Token, TensorType]] = []
        if reader.accept(":"):
            written.append((reader.peek(), parse_type(reader)))
            while reader.accept(","):
                written.append((reader.peek(), parse_type(reader)))
                if len(written) > MAX_RESULTS:
                    reader.fail(f"more than {MAX_RESULTS} types", code=Code.TEXT_LIMIT)
        if len(written) != len(results):
            reader.fail(f"{len(results)} values and {len(written)} types", results[0] if results else place, Code.TYPE_MISMATCH)
        loc = self._location()
        if kind.has_body != reader.at("{"):
            reader.fail(f"'{kind.mnemonic}' needs a body" if kind.has_body else f"'{kind.mnemonic}' has no body")
        self.operations += 1
        if self.operations > MAX_OPERATIONS:
            reader.fail(f"more than {MAX_OPERATIONS} operations", place, Code.TEXT_LIMIT)
        if not kind.has_body:
            self._check_types(op, operands, written, place)
        operation = Operation(op, operands, [t for _, t in written], loc)
        for token, value in zip(results, operation.results, strict=True):
            self._define(scope, token, value)
        self.places[id(operation)] = place
        block.append(operation)
        if kind.has_body:
            return self._body(operation, depth)
        reader.end_line()
        return True

    def _operands(self, kind: type[Op], scope: _Scope) -> list[Value | None]:
        reader = self.reader
        if kind.terminator:
            out: list[Value | None] = []
            while out or reader.peek().kind == "value" or reader.at("none"):
                out.append(self._operand(scope))
                if len(out) > MAX_OPERANDS:
                    reader.fail(f"more than {MAX_OPERANDS} operands", code=Code.TEXT_LIMIT)
                if not reader.accept(","):
                    break
            return out
        if not kind.operands and not reader.at("("):
            return []
        return reader.listed("(", ")", functools.partial(self._operand, scope), MAX_OPERANDS)

    def _operand(self, scope: _Scope) -> Value | None:
        if self.reader.accept("none"):
            return None
        token = self.reader.expect_kind("value", "a value such as %x")
        if token.text in scope.broken:
            raise _Broken
        if token.text not in scope.values:
            self.reader.fail(f"the value {token} is not defined above", token, Code.UNKNOWN_NAME)
        return scope.values[token.text]

    def _attributes(self, kind: type[Op], place: Token) -> Op:
        reader = self.reader
        declared = {a.name: a for a in kind.attributes()}
        values: dict[str, Any] = {}

        def entry() -> None:
            token = reader.expect_kind("name", "the name of an attribute")
            if token.text not in declared:
                known = ", ".join(declared) or "none"
                reader.fail(f"'{kind.mnemonic}' has no attribute {token}", token, Code.BAD_ATTRIBUTE, f"it has: {known}")
            if token.text in values:
                reader.fail(f"the attribute {token} stands twice", token, Code.BAD_ATTRIBUTE)
            reader.expect("=")
            values[token.text] = codec(declared[token.text].hint).parse(reader)

        if reader.at("{") and reader.peek2().kind != "newline":
            reader.listed("{", "}", entry)
        missing = [name for name, a in declared.items() if a.required and name not in values]
        if missing:
            reader.fail(f"'{kind.mnemonic}' needs the attribute '{missing[0]}'", place, Code.BAD_ATTRIBUTE)
        try:
            return kind(**values)
        except (ValueError, TypeError) as error:
            reader.fail(f"'{kind.mnemonic}' refuses its attributes: {error}", place, Code.BAD_ATTRIBUTE)

    def _location(self) -> Location | None:
        reader = self.reader
        if not reader.accept("loc"):
            return None
        reader.expect("(")
        file = reader.string("a file name", MAX_NAME * 4)
        reader.expect(":")
        line = reader.integer("a line number", 0, (1 << 31) - 1)
        function = reader.string("the name of a function", MAX_NAME * 4) if reader.accept("in") else ""
        reader.expect(")")
        return Location(file, line, function)

    def _check_types(self, op: Op, operands: list[Value | None], written: list[tuple[Token, TensorType]], place: Token) -> None:
        """The types written against inference."""
        fail = self.reader.fail
        try:
            inferred = infer_types(op, [None if v is None else v.type for v in operands], self.module.infer_context)
        except ConstraintError as error:
            if isinstance(op, WeightOp) and op.name in self.broken_weights:
                raise _Broken from None
            fail(str(error), place, Code.CONSTRAINT)
        except UndecidedDim as error:
            fail(str(error), place, Code.UNDECIDED_DIM, "declare what is known of the symbol: symbol n : [low, high] % divisor")
        except (ValueError, TypeError, ArithmeticError, LookupError) as error:
            fail(f"'{op.mnemonic}' refuses its operands: {error}", place, Code.CONSTRAINT)
        if len(inferred) != len(written):
            fail(f"'{op.mnemonic}' has {len(inferred)} results, {len(written)} are written", place, Code.TYPE_MISMATCH)
        for (token, type), right in zip(written, inferred, strict=True):
            if not same_type(type, right, self.module.facts):
                fail(f"'{op.mnemonic}' gives {_shown(right)}, not {_shown(type)}", token, Code.TYPE_MISMATCH)

    def _body(self, operation: Operation, depth: int) -> bool:
        """The body of a region; its values are its own."""
        reader = self.reader
        if depth == MAX_DEPTH:
            reader.fail(f"bodies nested deeper than {MAX_DEPTH}", code=Code.TEXT_LIMIT)
        reader.expect("{")
        reader.end_line()
        scope, block = _Scope(), Block()
        operation.body = block
        block.parent = operation
        try:
            reader.expect("^", " and the arguments of the body")
            reader.listed("(", ")", functools.partial(self._argument, block, scope), MAX_OPERANDS)
            reader.expect(":")
            reader.end_line()
        except TextProblem as problem:
            self._report_problem(problem)
            self._skip_body(1)
            return False
        return self._statements(block, scope, depth + 1)


def _shown(type: TensorType) -> str:
    return shorten(type_text(type), SHOWN_TYPE)


def _opens(line: str) -> bool:
    """Whether a line ends in an opening brace, a comment aside."""
    stripped = line.rstrip()
    if "//" in stripped and not stripped.endswith("{"):
        stripped = stripped[: stripped.rfind("//")].rstrip()
    return stripped.endswith("{")
