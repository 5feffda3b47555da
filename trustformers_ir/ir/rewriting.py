"""Rewriting: rules as values, a small pattern language, and the driver that applies rules until none applies any more.

A rule is a name, a pattern, a builder of the replacement and, where the pattern alone does not justify the rewrite, a check that answers
with the reason why not::

    x, y = var("x"), var("y")

    Rule(
        "sub_neg",
        "x - (-y) = x + y",
        node(Sub, x, node(Neg, y)),
        lambda m, b: b(Add(), m["x"], m["y"]),
    )
    Rule(
        "slice_full",
        "a slice of everything is x",
        node(Slice, x, name="slice"),
        lambda m, b: m["x"],
        check=lambda m: None if m.type == m["x"].type else "a part is left out",
    )

``var`` captures any value (twice the same name: twice the same value), ``node`` an operation by the class of its op, ``splat`` a constant all
of whose elements are equal. The operands of a commutative op match in either order. A pattern that matched while its check refused is a
*near miss*; the driver counts near misses with their reasons, so that a rule that does not apply says why.

``TFIR_STOP_AFTER=n`` lets only the first n rewrites of a compilation happen: bisecting over n finds the one that is at fault.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import numpy as np

from trustformers_ir.ir import env
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Value
from trustformers_ir.ir.diagnostics import Code, InternalError, Where
from trustformers_ir.ir.dims import Facts
from trustformers_ir.ir.dtypes import ANY, DType
from trustformers_ir.ir.ops.data import Constant, Literal
from trustformers_ir.ir.ops.shape import Expand, Reshape, Transpose
from trustformers_ir.ir.schema import Op
from trustformers_ir.ir.types import TensorType

# --- patterns ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Var:
    """Any value of one of the dtypes, remembered under ``name``; where the name is bound already, that same value."""

    name: str
    dtypes: frozenset[DType] = ANY


@dataclass(frozen=True)
class Splat:
    """A constant whose elements are all equal, seen through views and broadcasts; ``test`` says which scalars match."""

    test: Callable[[np.ndarray], bool]
    name: str = ""


@dataclass(frozen=True)
class Node:
    """An operation of one of the classes. ``operands`` is None when the operands do not matter; a None among them is an absent operand."""

    kinds: tuple[type[Op], ...]
    operands: tuple[Pattern | None, ...] | None
    name: str = ""
    one_use: bool = False
    ordered: bool = False
    where: Callable[[Operation], bool] | None = None


Pattern = Var | Splat | Node


def var(name: str, dtypes: frozenset[DType] = ANY) -> Var:
    """Any value, remembered as ``match[name]``."""
    return Var(name, dtypes)


def splat(test: Callable[[np.ndarray], bool], name: str = "") -> Splat:
    """A constant with one value everywhere that passes ``test``; ``match.scalar(name)`` is that value."""
    return Splat(test, name)


def node(
    kinds: type[Op] | tuple[type[Op], ...],
    *operands: Pattern | EllipsisType | None,
    name: str = "",
    one_use: bool = False,
    ordered: bool = False,
    where: Callable[[Operation], bool] | None = None,
) -> Node:
    """An operation whose op is one of ``kinds``; ``...`` as the only operand stands for whatever operands it has.

    ``match.operation(name)`` is the operation. ``one_use``: nobody else reads its result, so that it goes away with the rewrite.
    ``ordered``: the operands match in this order only, whatever the op. ``where``: what else the pattern asks of the operation; unlike the
    check of a rule it gives no reason, and a refusal is no near miss.
    """
    given = None if operands == (...,) else tuple(p for p in operands if p is not ...)
    if given is not None and len(given) != len(operands):
        raise ValueError("'...' stands for all operands, it cannot stand beside others")
    return Node(kinds if isinstance(kinds, tuple) else (kinds,), given, name, one_use, ordered, where)


@dataclass(frozen=True)
class Match:
    """What a pattern found: the root operation and everything that was given a name."""

    module: Module
    root: Operation
    bound: dict[str, Any]

    def __getitem__(self, name: str) -> Value:
        value: Value = self.bound[name]
        return value

    def operation(self, name: str) -> Operation:
        """The operation that a ``node`` found."""
        operation: Operation = self.bound[name]
        return operation

    def op(self, name: str = "") -> Any:
        """The op of a named node (with its attributes), or of the root."""
        return (self.operation(name) if name else self.root).op

    def scalar(self, name: str) -> np.ndarray:
        """The value of a ``splat``, as an array without axes."""
        scalar: np.ndarray = self.bound[name]
        return scalar

    @property
    def type(self) -> TensorType:
        """The type of the root's only result."""
        return self.root.result.type

    @property
    def facts(self) -> Facts:
        return self.module.facts


def splat_of(value: Value) -> np.ndarray | None:
    """The scalar that every element of ``value`` equals, when it comes from a constant through nothing but views and broadcasts."""
    operation = value.producer
    while operation is not None and isinstance(operation.op, (Expand, Reshape, Transpose)):
        operation = operation.inputs[0].producer
    if operation is None or not isinstance(operation.op, Constant):
        return None
    return _literal_splat(operation.op.value)


@functools.lru_cache(maxsize=4096)
def _literal_splat(literal: Literal) -> np.ndarray | None:
    size = literal.dtype.itemsize
    if not literal.data or literal.data != literal.data[:size] * (len(literal.data) // size):
        return None
    return np.frombuffer(literal.data[:size], literal.dtype.numpy).reshape(())


def constant_of(builder: Builder, scalar: Any, type: TensorType) -> Value:
    """A tensor with ``scalar`` everywhere: a constant without axes, broadcast where the type has axes."""
    value = builder(Constant(Literal.of(np.asarray(scalar).astype(type.dtype.numpy).reshape(()))))
    return fitted(builder, value, type)


def fitted(builder: Builder, value: Value, type: TensorType) -> Value:
    """``value``, broadcast to the shape of ``type`` if it does not have that type already."""
    return value if value.type == type else builder(Expand(type.shape), value)


def _bindings(pattern: Pattern | None, value: Value | None, bound: dict[str, Any]) -> Iterator[None]:
    """Yields once for every way in which the pattern matches; ``bound`` holds the names meanwhile."""
    if pattern is None or value is None:
        if pattern is None and value is None:
            yield
    elif isinstance(pattern, Node):
        if value.producer is not None and not (pattern.one_use and not value.has_one_use):
            yield from _operation_bindings(pattern, value.producer, bound)
    elif isinstance(pattern, Var):
        if pattern.name in bound:
            if bound[pattern.name] is value:
                yield
        elif value.type.dtype in pattern.dtypes:
            yield from _binding(pattern.name, value, bound)
    else:
        scalar = splat_of(value)
        if scalar is not None and pattern.test(scalar):
            yield from _binding(pattern.name, scalar, bound)


def _operation_bindings(pattern: Node, operation: Operation, bound: dict[str, Any]) -> Iterator[None]:
    if not isinstance(operation.op, pattern.kinds) or (pattern.where is not None and not pattern.where(operation)):
        return
    for _ in _binding(pattern.name, operation, bound):
        if pattern.operands is None:
            yield
            continue
        values = operation.operands
        if len(values) != len(pattern.operands):
            continue
        yield from _all_bindings(pattern.operands, values, bound)
        if operation.op.commutative and not pattern.ordered and len(values) == 2 and values[0] is not values[1]:
            yield from _all_bindings(pattern.operands, values[::-1], bound)


def _all_bindings(patterns: Sequence[Pattern | None], values: Sequence[Value | None], bound: dict[str, Any]) -> Iterator[None]:
    if not patterns:
        yield
        return
    for _ in _bindings(patterns[0], values[0], bound):
        yield from _all_bindings(patterns[1:], values[1:], bound)


def _binding(name: str, what: Any, bound: dict[str, Any]) -> Iterator[None]:
    if not name:
        yield
        return
    bound[name] = what
    yield
    del bound[name]


# --- rules -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A rewrite that keeps the value: ``says`` is the equation in a line, ``check`` gives the reason why a match must not be rewritten."""

    name: str
    says: str
    pattern: Node
    build: Callable[[Match, Builder], Value | Sequence[Value]]
    check: Callable[[Match], str | None] | None = None

    def find(self, module: Module, operation: Operation) -> tuple[Match | None, str | None]:
        """The first match at ``operation`` that the check accepts, or else the reason of the last refusal."""
        bound: dict[str, Any] = {}
        reason = None
        for _ in _operation_bindings(self.pattern, operation, bound):
            match = Match(module, operation, dict(bound))
            reason = self.check(match) if self.check is not None else None
            if reason is None:
                return match, None
        return None, reason


class RuleSet:
    """Rules, found by the class of the op at which their patterns begin. Earlier rules are tried first."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules: tuple[Rule, ...] = tuple(rules)
        names = Counter(r.name for r in self.rules)
        if repeated := sorted(name for name, n in names.items() if n > 1):
            raise ValueError(f"two rules are called {', '.join(repeated)}")
        self._by_op: dict[type[Op], tuple[Rule, ...]] = {}

    def of(self, kind: type[Op]) -> tuple[Rule, ...]:
        """The rules that may begin at an op of this class."""
        found = self._by_op.get(kind)
        if found is None:
            found = self._by_op[kind] = tuple(r for r in self.rules if issubclass(kind, r.pattern.kinds))
        return found


# --- the driver --------------------------------------------------------------------------------------------------------------------


@dataclass
class Applied:
    """How often each rule was applied, and how often it nearly was, by rule and reason."""

    applied: Counter[str] = field(default_factory=Counter)
    misses: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.applied.total()


def apply_rules(module: Module, rules: RuleSet | Iterable[Rule]) -> Applied:
    """Applies rules everywhere, bodies included, until none applies any more; operations that a rewrite left without users are erased.

    The worklist holds the operations at which something may have become possible: all at first, then those around each rewrite. New
    operations carry the location of the one they replace. Raises ``InternalError`` when a rule changes a type or when the rules do not end.
    """
    index = rules if isinstance(rules, RuleSet) else RuleSet(rules)
    result = Applied()
    refused: dict[tuple[Operation, str], str] = {}  # by operation and rule: a near miss counts once, however often the operation is visited
    worklist = deque(module.walk())
    waiting = set(worklist)
    budget = 1000 + 100 * len(worklist)
    with counting():
        while worklist:
            operation = worklist.popleft()
            waiting.discard(operation)
            if operation.block is None:
                continue
            for rule in index.of(type(operation.op)):
                match, reason = rule.find(module, operation)
                if reason is not None:
                    refused[operation, rule.name] = reason
                if match is None:
                    continue
                if not allowed():
                    worklist.clear()
                    break
                result.applied[rule.name] += 1
                if result.total > budget:
                    often = ", ".join(name for name, _ in result.applied.most_common(4))
                    raise InternalError.of(Code.INTERNAL, f"the rules do not come to an end; most applied: {often}")
                again = [o for o in dict.fromkeys(_rewrite(module, rule, match)) if o not in waiting]
                worklist.extend(again)
                waiting.update(again)
                break
    result.misses.update((name, reason) for (operation, name), reason in refused.items() if operation.block is not None)
    return result


def _rewrite(module: Module, rule: Rule, match: Match) -> list[Operation]:
    """Replaces the root of the match; the operations to look at again."""
    root = match.root
    assert root.block is not None
    before = root.previous
    built = rule.build(match, Builder.before(module, root))
    values = [built] if isinstance(built, Value) else list(built)
    have, wanted = [v.type for v in values], [r.type for r in root.results]
    if have != wanted:
        message = f"the rule '{rule.name}' replaces {', '.join(map(str, wanted))} by {', '.join(map(str, have))}"
        raise InternalError.of(Code.INTERNAL, message, Where(op=root.op.mnemonic))
    again: list[Operation] = []
    new = root.previous
    while new is not None and new is not before:
        again.append(new)
        new = new.previous
    again.reverse()
    orphans = [v.producer for v in root.inputs if v.producer is not None] + again
    again += [user for r in root.results for user in r.users]
    root.replace_with(values)
    again += [v.producer for v in values if v.producer is not None]
    return again + erase_dead(orphans)


def erase_dead(operations: Iterable[Operation]) -> list[Operation]:
    """Erases those of the operations that nobody uses, and what only they used. Returns the survivors that lost a user, and their users."""
    pending = list(operations)
    touched: dict[Operation, None] = {}
    while pending:
        operation = pending.pop()
        if operation.block is None:
            continue
        if operation.is_dead:
            pending += [v.producer for v in operation.inputs if v.producer is not None]
            operation.erase()
        else:
            touched[operation] = None
    alive = [o for o in touched if o.block is not None]
    return alive + [user for o in alive for r in o.results if r.has_one_use for user in r.users]


# --- the count ---------------------------------------------------------------------------------------------------------------------


@dataclass
class RewriteCounter:
    """Rewrites made so far and how many are allowed (None: any number)."""

    made: int = 0
    limit: int | None = None


_counter: contextvars.ContextVar[RewriteCounter | None] = contextvars.ContextVar("tfir_rewrites", default=None)


@contextlib.contextmanager
def counting(fresh: bool = False) -> Iterator[RewriteCounter]:
    """The block is one compilation: its rewrites are counted from 0. Inside such a block the count goes on, unless ``fresh`` is asked for."""
    outer = _counter.get()
    if outer is not None and not fresh:
        yield outer
        return
    counter = RewriteCounter(limit=env.STOP_AFTER.get())
    token = _counter.set(counter)
    try:
        yield counter
    finally:
        _counter.reset(token)


def allowed() -> bool:
    """Whether one more rewrite may happen; True counts it. Ask only when everything else says yes. Outside of ``counting()`` always True."""
    counter = _counter.get()
    if counter is None:
        return True
    if counter.limit is not None and counter.made >= counter.limit:
        return False
    counter.made += 1
    return True
