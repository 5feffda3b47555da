"""Values of dim symbols from the shapes of actual arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.dims import Dim, Facts, evaluate, substitute, symbols_of


@dataclass(frozen=True)
class Shaped:
    """A tensor's name, the dims it was declared with and the shape it has."""

    name: str
    declared: tuple[Dim, ...]
    actual: tuple[int, ...]


def bind_dims(tensors: Sequence[Shaped], facts: Facts, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """The values of the symbols that the shapes determine; every declared dim is checked against the actual size.

    Raises ``CompilerError`` with every contradiction. Each dim is an equation. Those with one unknown symbol that occurs linearly are solved
    until none is left; the others are then checked.
    """
    env: dict[str, int] = dict(given or {})
    problems = Collector()
    pending: list[tuple[Shaped, int]] = []
    for t in tensors:
        if len(t.declared) == len(t.actual):
            pending.extend((t, axis) for axis in range(len(t.declared)))
        else:
            message = f"has rank {len(t.declared)}, {_text(t.declared)}; an array of shape {_text(t.actual)} was given"
            problems.extend(_error(Code.INPUT_SHAPE, t, message).diagnostics)
    learned: dict[str, tuple[Shaped, int]] = {}  # where the value of a symbol comes from
    while pending:
        rest: list[tuple[Shaped, int]] = []
        for t, axis in pending:
            known = len(env)
            try:
                settled = _settle(t, axis, env)
            except CompilerError as error:
                problems.extend(error.diagnostics)
                settled = True
            if not settled:
                rest.append((t, axis))
            elif len(env) > known:
                learned[next(reversed(env))] = (t, axis)
        if len(rest) == len(pending):
            problems.check()  # what is wrong elsewhere may be why nothing more is known
            t, axis = rest[0]
            unknown = ", ".join(sorted(symbols_of(t.declared[axis]) - env.keys()))
            raise _error(Code.INPUT_SHAPE, t, f"axis {axis} is {t.declared[axis]}, from which {unknown} cannot be computed")
        pending = rest
    _check_facts(env, facts, learned, problems)
    problems.check()
    return env


def _check_facts(env: Mapping[str, int], facts: Facts, learned: Mapping[str, tuple[Shaped, int]], problems: Collector) -> None:
    """``DIM_RANGE`` for every value that contradicts what the module declares of its symbol."""
    for name, value in env.items():
        fact = facts.symbols.get(name)
        if value < 0 or (fact is not None and not fact.admits(value)):
            place, where = "", Where()
            if name in learned:
                t, axis = learned[name]
                place, where = f" by axis {axis} of input '{t.name}'", Where(tensor=t.name)
            problems.add(Code.DIM_RANGE, f"the dim '{name}' is {value}{place}; it was declared as {fact or 'not negative'}", where)


def _settle(t: Shaped, axis: int, env: dict[str, int]) -> bool:
    """Solve or check one equation; False when it has to wait."""
    dim, size = t.declared[axis], t.actual[axis]
    unknown = symbols_of(dim) - env.keys()
    if not unknown:
        value = evaluate(dim, env)
        if value != size:
            if isinstance(dim, int):
                raise _error(Code.INPUT_SHAPE, t, f"axis {axis} has size {dim}; an array of shape {_text(t.actual)} was given")
            raise _error(
                Code.DIM_CONFLICT, t, f"axis {axis} is {dim} = {value} by other sizes; an array of shape {_text(t.actual)} was given"
            )
        return True
    if len(unknown) > 1:
        return False
    name = unknown.pop()
    remainder = substitute(dim, env)
    slope, offset = 0, 0
    for monomial, coefficient in () if isinstance(remainder, int) else remainder.terms:
        if monomial == ():
            offset = coefficient
        elif len(monomial) == 1 and monomial[0][1] == 1 and monomial[0][0].kind == "sym":
            slope = coefficient
        else:
            return False
    if slope == 0:
        return False
    value, left = divmod(size - offset, slope)
    if left or value < 0:
        raise _error(Code.INPUT_SHAPE, t, f"axis {axis} is {dim}, which is {size} for no {name}")
    env[name] = value
    return True


def _error(code: Code, t: Shaped, message: str) -> CompilerError:
    return CompilerError.of(code, f"input '{t.name}': {message}", Where(tensor=t.name), f"it is declared as {_text(t.declared)}")


def _text(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"
