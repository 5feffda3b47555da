"""How a model is called that takes and gives nests of tensors: tuples, lists, dicts, and classes of whoever wrote it.

Compiled code has a flat list of inputs and outputs. A :class:`Calling` says where each of them stands in what users pass and get. As plain data
it travels in artifacts; there a class of somebody else's is a dict (or a tuple), because nothing is imported on behalf of a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.strict_json import no_key_twice

KINDS = ("leaf", "constant", "tuple", "list", "dict", "object")
MAX_DEPTH = 64  # of a nest that an artifact describes
_ABSENT = object()


@dataclass(frozen=True)
class Nest:
    """One level: a tensor (``leaf``), what never changes (``constant``), or children under keys. Of an ``object`` the class is only a name;
    ``apart`` and ``together`` take it apart into its children and make it of them, where the class is at hand."""

    kind: str
    children: tuple[Nest, ...] = ()
    keys: tuple[str, ...] = ()
    value: Any = None
    name: str = ""
    apart: Callable[[Any], Sequence[Any]] | None = field(default=None, compare=False, repr=False)
    together: Callable[[Sequence[Any]], Any] | None = field(default=None, compare=False, repr=False)

    @property
    def leaves(self) -> Iterator[str]:
        """Names of the tensors, in order."""
        if self.kind == "leaf":
            yield self.name
        for child in self.children:
            yield from child.leaves

    def flat(self, value: Any, path: str, problems: list[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
        """The tensors in ``value`` by name. What does not fit goes into ``problems``: the path, and what is wrong there."""
        if self.kind == "leaf":
            if value is None:
                problems.append((path, "is None, and a tensor is taken"))
            yield self.name, value
        elif self.kind == "constant":
            if value is not _ABSENT and not _same(value, self.value):
                problems.append((path, f"is {value!r:.60}, and the model was compiled for {self.value!r:.60}"))
        else:
            found = self._children(value, path, problems)
            if found is not None:
                for key, child, part in zip(self._labels, self.children, found, strict=True):
                    yield from child.flat(part, f"{path}{key}", problems)

    @property
    def _labels(self) -> Sequence[str]:
        return [f"[{k!r}]" for k in self.keys] or [f"[{i}]" for i in range(len(self.children))]

    def _children(self, value: Any, path: str, problems: list[tuple[str, str]]) -> Sequence[Any] | None:
        count = len(self.children)
        if self.kind == "dict" or (self.keys and isinstance(value, Mapping)):
            if not isinstance(value, Mapping) or set(value) != set(self.keys):
                given = f"has the keys {', '.join(map(repr, value))}" if isinstance(value, Mapping) else f"is a {type(value).__name__}"
                problems.append((path, f"{given}, and a dict of {', '.join(map(repr, self.keys))} is taken"))
                return None
            return [value[k] for k in self.keys]
        if self.kind == "object" and self.apart is not None and not isinstance(value, (tuple, list)):
            value = self.apart(value)
        if not isinstance(value, (tuple, list)) or len(value) != count:
            given = f"holds {len(value)}" if isinstance(value, (tuple, list)) else f"is a {type(value).__name__}"
            problems.append((path, f"{given}, and {count} values are taken"))
            return None
        return value

    def build(self, leaves: Iterator[Any]) -> Any:
        """The nest with tensors in it, taken from ``leaves`` in order."""
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "constant":
            return self.value
        parts = [child.build(leaves) for child in self.children]
        if self.kind == "object" and self.together is not None:
            return self.together(parts)
        if self.keys:
            return dict(zip(self.keys, parts, strict=True))
        return parts if self.kind == "list" else tuple(parts)

    def plain(self) -> Any:
        """As data for JSON."""
        if self.kind == "leaf":
            return {"leaf": self.name}
        if self.kind == "constant":
            return {"constant": self.value if isinstance(self.value, (bool, int, float, str)) else None}
        row: dict[str, Any] = {self.kind: [c.plain() for c in self.children]}
        return row | ({"keys": list(self.keys)} if self.keys else {}) | ({"name": self.name} if self.name else {})

    @classmethod
    def read(cls, row: Any, depth: int = 0) -> Nest:
        """The inverse of :meth:`plain`. ``ValueError`` for anything else."""
        if not isinstance(row, dict) or depth > MAX_DEPTH:
            raise ValueError("not a nest")
        if "leaf" in row:
            return cls("leaf", name=str(row["leaf"]))
        if "constant" in row:
            return cls("constant", value=row["constant"])
        kind = next((k for k in KINDS[2:] if k in row), "")
        if not kind or not isinstance(row[kind], list):
            raise ValueError("not a nest")
        keys = tuple(map(str, row.get("keys", ())))
        children = tuple(cls.read(c, depth + 1) for c in row[kind])
        if (keys or kind == "dict") and len(keys) != len(children):
            raise ValueError("a nest whose keys are not as many as its children")
        return cls(kind, children, keys, name=str(row.get("name", "")))


def _same(a: Any, b: Any) -> bool:
    try:
        return type(a) is type(b) and bool(a == b)
    except (TypeError, ValueError):
        return False


@dataclass(frozen=True)
class Calling:
    """The parameters of a call, in order, each with its nest; and the nest of what it gives."""

    parameters: tuple[tuple[str, Nest], ...]
    result: Nest

    def arguments(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors of a call by the names of the inputs. Inputs inside of nests may be given by their own names as well."""
        problems: list[tuple[str, str]] = []
        known = dict(self.parameters)
        inputs = {leaf for _, nest in self.parameters for leaf in nest.leaves}
        if len(given) > len(self.parameters):
            message = f"{len(given)} arguments were given, {len(self.parameters)} are taken"
            raise CompilerError.of(Code.INPUT_COUNT, message, help=self._takes)
        found: dict[str, Any] = {}
        values = dict(zip(known, given, strict=False))
        for name, value in named.items():
            if name in values:
                raise CompilerError.of(Code.INPUT_NAME, f"'{name}' is given twice, by position and by name", Where(tensor=name), self._takes)
            if name in known:
                values[name] = value
            elif name in inputs:
                found[name] = value
            else:
                message = f"there is no input '{name}'; the model was compiled without it"
                raise CompilerError.of(Code.INPUT_NAME, message, Where(tensor=name), self._takes)
        for name, nest in self.parameters:
            if name in values:
                found.update(nest.flat(values[name], name, problems))
        if problems:
            raise CompilerError.of(Code.INPUT_COUNT, "\n".join(f"{path} {what}" for path, what in problems), help=self._takes)
        return found

    @property
    def _takes(self) -> str:
        return f"the model takes {', '.join(name for name, nest in self.parameters if any(True for _ in nest.leaves)) or 'nothing'}"

    def results(self, outputs: Any) -> Any:
        """What the call gives, of the outputs of the code."""
        return self.result.build(iter(outputs if isinstance(outputs, tuple) else (outputs,)))

    @property
    def text(self) -> str:
        """As JSON, for artifacts."""
        return json.dumps({"parameters": [[name, nest.plain()] for name, nest in self.parameters], "result": self.result.plain()})

    @classmethod
    def of(cls, text: str) -> Calling | None:
        """The inverse of ``text``; None for a text that is none."""
        try:
            found = json.loads(text, object_pairs_hook=no_key_twice(ValueError))
            parameters = tuple((str(name), Nest.read(row)) for name, row in found["parameters"])
            return cls(parameters, Nest.read(found["result"]))
        except (ValueError, KeyError, TypeError):
            return None
