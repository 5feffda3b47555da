"""Checks a module against numbered rules, which errors and tests cite:

V1   An operand is an argument of its block, or a result of an operation above it in that block: bodies see nothing from outside.
V2   The use lists of values and the operand lists of operations say the same, both ways.
V3   The op accepts its operands: its own constraints (``softmax.C1``) and its operand declarations (``softmax.O1`` …).
V4   Results have the types that the op infers.
V5   A block ends in its only terminator: ``return`` in a function, ``yield`` in a body.
V6   An operation has a body when its op says so; the body takes the operands' types and yields the results' types.
V7   Every symbol in a type or an attribute is declared.
V8   The op ``weight`` names a weight of the module and has its type.
V9   Names of functions and symbols are identifiers, weights have names, tables agree with names, arguments have different names.
V10  Links are consistent: operations with their blocks and neighbours, values with their producers, blocks with their parents.
V11  A weight has a static type and a digest ``sha256:<64 hex digits>``, or bytes of that type.
V12  Attributes have their declared kinds.
V13  Every dim of a type is provably not negative, by the facts of its symbols.
V14  A function has at least as many arguments and results as states, and the next value of a state has its type.

``verify_module`` lists violations, ``check_module`` raises them. Rules that others rest on come first: where the links of a function are
broken nothing else is said about it, and an operation with an attribute of the wrong kind is not asked to infer its types.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.core import Block, Function, Location, Module, Operation, Value, Weight
from trustformers_ir.ir.diagnostics import Code, CompilerError, Diagnostic, Where
from trustformers_ir.ir.dims import RESERVED, SYMBOL_NAME, Facts, SymbolFact, SymExpr, UndecidedDim, symbols_of
from trustformers_ir.ir.ops.data import WeightOp
from trustformers_ir.ir.ops.region import Return, Yield
from trustformers_ir.ir.schema import ConstraintError, infer_types
from trustformers_ir.ir.text.attributes import codec
from trustformers_ir.ir.text.printer import Names, print_operation
from trustformers_ir.ir.types import TensorType

LIMIT = 20
AROUND = 3  # operations shown before and after the one that is wrong
SHOWN = 200  # characters of an operation shown
DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True)
class Violation:
    """One rule that does not hold at one place. ``cites`` is the op's own rule (``softmax.C1``) when the rule is V3."""

    rule: str
    message: str
    code: Code = Code.VERIFY
    cites: str = ""
    function: str = ""
    index: int | None = None  # of the operation in its block
    operation: str = ""  # its text
    loc: Location | None = None
    context: str = ""  # the IR around the operation, with the message under it
    help: str = ""
    subjects: tuple[Any, ...] = ()  # the objects concerned, innermost first

    @property
    def place(self) -> str:
        parts = [f"in @{self.function}"] if self.function else ["in the module"]
        if self.index is not None:
            parts.append(f"operation {self.index}")
        return ", ".join(parts) + (f", from {self.loc}" if self.loc is not None else "")

    def __str__(self) -> str:
        head = f"{self.rule} {self.place}"
        return f"{head}\n{self.context}" if self.context else f"{head}: {self.message}"

    @property
    def diagnostic(self) -> Diagnostic:
        op = self.operation.split(" ", 1)[0] if not self.operation.startswith("%") else ""
        where = Where(op=op or None) if self.loc is None else Where(self.loc.file, self.loc.line)
        return Diagnostic(self.code, f"{self.rule} does not hold {self.place}: {self.message}\n{self.context}".rstrip(), where, self.help)


class Proven:
    """What inference has confirmed already: an op on operands of these types gives results of those, under the facts of a module.

    Layers of a model repeat each other, and a pass leaves most of a module as it was: kept from one verification to the next, this makes
    verifying after every pass four times as fast.
    """

    def __init__(self) -> None:
        self._facts: dict[str, SymbolFact] = {}
        self._known: set[Hashable] = set()

    def under(self, facts: Facts) -> set[Hashable]:
        """What is proven under these facts; nothing once they have changed."""
        if facts.symbols != self._facts:
            self._facts, self._known = dict(facts.symbols), set()
        return self._known


def verify_module(module: Module, limit: int = LIMIT, proven: Proven | None = None) -> list[Violation]:
    """The violations of a module, at most ``limit`` of them; empty when it is valid. ``proven`` carries proofs over to the next verification."""
    verifier = _Verifier(module, limit, proven or Proven())
    with contextlib.suppress(_Enough):
        verifier.run()
    return verifier.violations


def check_module(module: Module, proven: Proven | None = None) -> None:
    """Raises ``CompilerError`` with the violations of a module."""
    violations = verify_module(module, proven=proven)
    if violations:
        raise CompilerError(*(v.diagnostic for v in violations))


def same_type(a: TensorType, b: TensorType, facts: Facts) -> bool:
    """Whether two types are the same: dims may be written differently when they are provably equal."""
    if a == b:
        return True
    if a.dtype is not b.dtype or a.layout != b.layout or a.rank != b.rank:
        return False
    return all(x == y or facts.is_equal(x, y) for x, y in zip(a.shape, b.shape, strict=True))


class _Enough(Exception):
    pass


class _Verifier:
    def __init__(self, module: Module, limit: int, proven: Proven) -> None:
        self.module = module
        self.limit = limit
        self.proven = proven.under(module.facts)
        self.violations: list[Violation] = []
        self.seen: set[int] = set()  # blocks and operations whose links were looked at
        self.operations: set[int] = set()
        self.names: dict[int, Names] = {}  # of functions that can be printed
        self.types: dict[TensorType, tuple[str, str, str] | None] = {}  # what V7 and V13 say of a type

    def run(self) -> None:
        self._module_names()
        for weight in self.module.weights.values():
            self._weight(weight)
        for function in self.module.functions.values():
            self._structure(function)
        for function in self.module.functions.values():
            if id(function) in self.names:
                self._function(function)

    # --- reporting ---

    def _add(self, rule: str, message: str, *subjects: Any, code: Code = Code.VERIFY, help: str = "", cites: str = "") -> None:
        self.violations.append(Violation(rule, message, code, cites, help=help, subjects=subjects))
        if len(self.violations) >= self.limit:
            raise _Enough

    def _at(self, rule: str, message: str, function: Function, operation: Operation | None = None, index: int | None = None, **more: Any) -> None:
        """A violation inside a function, at an operation unless that is None."""
        text = context = ""
        if operation is not None:
            names = self._names(function)
            text = _cut(print_operation(operation, names, loc=False))
            context = self._context(operation, names, message) if names is not None else f"    {text}\n    ^ {message}"
        loc = operation.loc if operation is not None else None
        subjects = (function,) if operation is None else (operation, function)
        self.violations.append(Violation(rule, message, function=function.name, index=index, operation=text, loc=loc, context=context,
                                         subjects=subjects, **more))  # fmt: skip
        if len(self.violations) >= self.limit:
            raise _Enough

    def _names(self, function: Function) -> Names | None:
        """The printed names of a function whose links are good."""
        return self.names.get(id(function))

    def _context(self, operation: Operation, names: Names, message: str) -> str:
        before: list[Operation] = []
        current = operation.previous
        while current is not None and len(before) < AROUND:
            before.insert(0, current)
            current = current.previous
        lines = [f"    {_cut(print_operation(o, names, loc=False))}" for o in [*before, operation]]
        lines.append(f"    ^ {message}")
        current = operation.next
        for _ in range(AROUND):
            if current is None:
                break
            lines.append(f"    {_cut(print_operation(current, names, loc=False))}")
            current = current.next
        return "\n".join(lines)

    # --- the tables of the module ---

    def _module_names(self) -> None:
        for name in self.module.facts.symbols:
            if not SYMBOL_NAME.match(name) or name in RESERVED:
                self._add("V9", f"{name!r} is not the name of a symbol")
        for key, weight in self.module.weights.items():
            if key != weight.name:
                self._add("V9", f"the table of weights calls {weight.name!r} {key!r}", weight)
            elif not key:
                self._add("V9", "a weight without a name", weight)
        for key, function in self.module.functions.items():
            if key != function.name:
                self._add("V9", f"the table of functions calls {function.name!r} {key!r}", function)
            elif not FUNCTION_NAME.match(key):
                self._add("V9", f"{key!r} is not the name of a function", function, help="letters, digits and _, not beginning with a digit")

    def _weight(self, weight: Weight) -> None:
        if not weight.type.is_static:
            self._add("V11", f"the weight '{weight.name}' has the type {weight.type}, whose size is not known", weight)
            return
        if weight.has_data and weight._digest is None:  # hashed when it is asked for; here only the type is looked at
            if isinstance(weight._data, np.ndarray):
                shape = weight.type.stored.shape
                if weight._data.dtype != weight.type.dtype.numpy or weight._data.shape != shape:
                    found = f"{weight._data.dtype}{list(weight._data.shape)}"
                    self._add("V11", f"the bytes of weight '{weight.name}' are {found}, its type is {weight.type}", weight)
        elif not DIGEST.match(weight._digest or ""):
            self._add("V11", f"{weight._digest!r} is not the digest of a weight", weight, help="a digest is sha256: and 64 hex digits")

    # --- functions ---

    def _structure(self, function: Function) -> None:
        """V10; a function that passes gets its printed names and is looked at further."""
        found = len(self.violations)
        if function.body.parent is not function:
            self._at("V10", "the body of the function belongs to something else", function)
        self._links(function, function.body)
        if len(self.violations) == found:
            self.names[id(function)] = Names(function)

    def _function(self, function: Function) -> None:
        seen: set[str] = set()
        for i, a in enumerate(function.args):
            name = a.name or f"arg{i}"  # what callers call it
            if name in seen:
                self._at("V9", f"two arguments are called '{name}'", function)
            seen.add(name)
        self._uses(function, function.body)
        self._block(function, function.body, None)
        self._states(function)

    def _states(self, function: Function) -> None:
        """V14; a function that ends in no ``return`` has had its say."""
        last = function.body._last
        if not function.states or last is None or not last.op.terminator:
            return
        args, results = function.args, last.inputs
        if not 0 < function.states <= min(len(args), len(results)):
            message = f"the function has {function.states} states, {len(args)} arguments and {len(results)} results"
            self._at("V14", message, function)
            return
        for old, new in zip(args[-function.states :], results[-function.states :], strict=True):
            if old.type != new.type:
                self._at("V14", f"the state '{old.name}' is {old.type}, its next value {new.type}", function)

    def _links(self, function: Function, block: Block) -> None:
        """V10 for a block and the bodies in it."""
        if id(block) in self.seen:
            self._at("V10", "a block is the body of two things", function)
            return
        self.seen.add(id(block))
        for i, a in enumerate(block.args):
            if a.block is not block or a.index != i or a.producer is not None:
                self._at("V10", f"argument {i} of a block does not know its block", function)
        before: Operation | None = None
        current = block._first
        index = 0
        while current is not None:
            if id(current) in self.seen:
                self._at("V10", f"a '{current.op.mnemonic}' stands at two places", function)
                return
            self.seen.add(id(current))
            self.operations.add(id(current))
            self._link(function, block, before, current, index)
            if current.body is not None:
                if current.body.parent is not current:
                    self._at("V10", "the body belongs to something else", function, current, index)
                self._links(function, current.body)
            before, current, index = current, current._next, index + 1
        if block._last is not before:
            self._at("V10", "the last operation is not the one that the block calls its last", function)

    def _link(self, function: Function, block: Block, before: Operation | None, operation: Operation, index: int) -> None:
        if operation.block is not block:
            self._at("V10", "the operation does not know its block", function, operation, index)
        if operation._prev is not before:
            self._at("V10", "the operation does not know the one before it", function, operation, index)
        for i, r in enumerate(operation.results):
            if r.producer is not operation or r.index != i or r.block is not None:
                self._at("V10", f"result {i} does not know its operation", function, operation, index)

    def _uses(self, function: Function, block: Block) -> None:
        """V2, both ways."""
        for a in block.args:
            self._use_list(function, a, None, None)
        for index, operation in enumerate(block):
            for i, v in enumerate(operation._operands):
                if v is not None and v._uses.get((id(operation), i)) != (operation, i):
                    message = f"operand {i} ({self.names[id(function)][v]}) does not list this use"
                    self._at("V2", message, function, operation, index)
            for r in operation.results:
                self._use_list(function, r, operation, index)
            if operation.body is not None:
                self._uses(function, operation.body)

    def _use_list(self, function: Function, value: Value, owner: Operation | None, index: int | None) -> None:
        for key, (user, i) in value._uses.items():
            if key != (id(user), i) or id(user) not in self.operations or user._operands[i : i + 1] != [value]:
                message = f"{self.names[id(function)][value]} lists a use as operand {i} of a '{user.op.mnemonic}' that is none"
                self._at("V2", message, function, owner, index)

    # --- blocks and operations ---

    def _block(self, function: Function, block: Block, owner: Operation | None) -> None:
        kind = Return if owner is None else Yield
        what = "the function" if owner is None else "the body"
        defined: set[int] = set()
        for i, a in enumerate(block.args):
            defined.add(id(a))
            self._type(a.type, f"argument {i} of {what}", function, owner, None)
        last = block._last
        if last is None or not last.op.terminator:
            self._at("V5", f"{what} does not end in '{kind.mnemonic}'", function, last or owner, None)
        for index, operation in enumerate(block):
            self._operands(function, block, operation, index, defined)
            if operation.op.terminator and operation is not last:
                self._at("V5", f"'{operation.op.mnemonic}' is not the last operation", function, operation, index)
            elif operation.op.terminator and type(operation.op) is not kind:
                self._at("V5", f"{what} ends in '{operation.op.mnemonic}', not in '{kind.mnemonic}'", function, operation, index)
            self._operation(function, operation, index)
            defined.update(id(r) for r in operation.results)

    def _operands(self, function: Function, block: Block, operation: Operation, index: int, defined: set[int]) -> None:
        for i, v in enumerate(operation.operands):
            if v is None or id(v) in defined:
                continue
            home = v.producer.block if v.producer is not None else v.block
            where = "is defined below" if home is block else "is not defined in this block; a body sees its own arguments only"
            self._at("V1", f"operand {i} ({self.names[id(function)][v]}) {where}", function, operation, index)

    def _operation(self, function: Function, operation: Operation, index: int) -> None:
        op, found = operation.op, len(self.violations)
        for attribute in op.attributes():
            value = getattr(op, attribute.name)
            inner = codec(attribute.hint)
            if not inner.accepts(value):
                self._at("V12", f"the attribute '{attribute.name}' is {inner.what}, not {value!r:.100}", function, operation, index)
                continue
            missing = sorted(_symbols_in(value) - set(self.module.facts.symbols)) if _symbols_in(value) else []
            for name in missing:
                help = f"declare it: facts.declare({name!r})"
                self._at("V7", f"the symbol '{name}' in '{attribute.name}' is not declared", function, operation, index, help=help)
        for i, r in enumerate(operation.results):
            self._type(r.type, f"result {i}", function, operation, index)
        if (operation.body is not None) != op.has_body:
            self._at("V6", f"'{op.mnemonic}' {'needs a body' if op.has_body else 'has no body'}", function, operation, index)
        if len(self.violations) > found:
            return
        if operation.body is not None:
            self._body(function, operation, operation.body, index)
        elif isinstance(op, WeightOp):
            self._weight_op(function, operation, op, index)
        else:
            self._inference(function, operation, index)

    def _type(self, type: TensorType, what: str, function: Function, operation: Operation | None, index: int | None) -> None:
        """V7 and V13 for a type."""
        if type not in self.types:
            self.types[type] = self._judge(type)
        judgement = self.types[type]
        if judgement is not None:
            rule, message, help = judgement
            self._at(rule, f"{what} is {type}: {message}", function, operation, index, help=help)

    def _judge(self, type: TensorType) -> tuple[str, str, str] | None:
        facts = self.module.facts
        missing = sorted(type.symbols - set(facts.symbols))
        if missing:
            return ("V7", f"the symbol '{missing[0]}' is not declared", f"declare it: facts.declare({missing[0]!r})")
        for d in type.shape:
            if not isinstance(d, int):
                low, high = facts.bounds(d)
                if low < 0:
                    known = "it is negative" if high < 0 else f"its lower bound is {low}"
                    return ("V13", f"the dim '{d}' is not known to be at least 0; {known}", "record a fact that settles it")
        return None

    def _body(self, function: Function, operation: Operation, body: Block, index: int) -> None:
        op, facts = operation.op, self.module.facts
        given, taken = operation.operand_types, [a.type for a in body.args]
        if len(given) != len(taken):
            self._at("V6", f"{len(given)} operands for the {len(taken)} arguments of the body", function, operation, index)
        else:
            for i, (a, b) in enumerate(zip(given, taken, strict=True)):
                if a is None or not same_type(a, b, facts):
                    self._at("V6", f"operand {i} is {a}, argument {i} of the body {b}", function, operation, index)
        last = body._last
        if last is not None and isinstance(last.op, Yield):
            handed, results = last.operand_types, [r.type for r in operation.results]
            if len(handed) != len(results):
                message = f"the body yields {len(handed)} values for the {len(results)} results of '{op.mnemonic}'"
                self._at("V6", message, function, operation, index)
            else:
                for i, (h, r) in enumerate(zip(handed, results, strict=True)):
                    if h is None or not same_type(h, r, facts):
                        self._at("V6", f"the body yields {h} for result {i}, which is {r}", function, operation, index)
        self._block(function, body, operation)

    def _weight_op(self, function: Function, operation: Operation, op: WeightOp, index: int) -> None:
        weight = self.module.weights.get(op.name)
        types = [r.type for r in operation.results]
        if weight is None:
            self._at("V8", f"the module has no weight '{op.name}'", function, operation, index)
        elif operation.operands or len(types) != 1 or types[0] != weight.type:
            self._at("V8", f"the weight '{op.name}' is {weight.type}", function, operation, index)

    def _inference(self, function: Function, operation: Operation, index: int) -> None:
        op = operation.op
        types = [r.type for r in operation.results]
        fact = (op, tuple(operation.operand_types), tuple(types))
        if fact in self.proven:
            return
        try:
            inferred = infer_types(op, operation.operand_types, self.module.infer_context)
        except ConstraintError as error:
            self._at("V3", str(error), function, operation, index, code=Code.CONSTRAINT, cites=error.rule)
            return
        except UndecidedDim as error:
            self._at("V3", str(error), function, operation, index, code=Code.UNDECIDED_DIM)
            return
        except (ValueError, TypeError, ArithmeticError, LookupError) as error:
            message = f"'{op.mnemonic}' refuses its operands: {error}"
            self._at("V3", message, function, operation, index, code=Code.CONSTRAINT)
            return
        if len(types) != len(inferred):
            message = f"'{op.mnemonic}' has {len(inferred)} results, the operation {len(types)}"
            self._at("V4", message, function, operation, index, code=Code.TYPE_MISMATCH)
            return
        found = len(self.violations)
        for i, (t, right) in enumerate(zip(types, inferred, strict=True)):
            if not same_type(t, right, self.module.facts):
                self._at("V4", f"result {i} is {t}, inferred is {right}", function, operation, index, code=Code.TYPE_MISMATCH)
        if len(self.violations) == found:
            self.proven.add(fact)


def _symbols_in(value: Any) -> set[str]:
    """The symbols of the dims and types in an attribute value."""
    if isinstance(value, SymExpr):
        return symbols_of(value)
    if isinstance(value, TensorType):
        return value.symbols
    if isinstance(value, tuple):
        return set().union(*map(_symbols_in, value)) if value else set()
    return set()


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
