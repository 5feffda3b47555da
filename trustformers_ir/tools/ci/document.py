"""A YAML file as nodes that know their lines; what is wrong with it is gathered, not raised one by one.

Only the syntax of YAML is used (``yaml.compose``): nothing is constructed, so no tag can make an object, and a scalar is the text that stands in the
file. That keeps the surprises of YAML 1.1 out: ``1e-3`` is a number here, ``on`` no truth, ``1:30`` no 90.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.passes.options import nearest

T = TypeVar("T")
LIMIT = 1 << 20  # bytes of a file
_MERGE, _NULL = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:null"
_PLAIN = tuple(f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "null", "str", "timestamp", "value", "map", "seq", "merge"))


@dataclass(frozen=True)
class Node:
    """A value in the file and its place, from 1. What it turns out not to be is added to ``problems``."""

    path: str
    line: int
    column: int
    raw: Any
    problems: Collector

    @property
    def where(self) -> Where:
        return Where(file=self.path, line=self.line, column=self.column)

    @property
    def kind(self) -> str:
        return {"scalar": "a text", "sequence": "a list", "mapping": "a mapping"}[self.raw.id] if not self.empty else "nothing"

    @property
    def empty(self) -> bool:
        """Whether it says null."""
        return bool(self.raw.id == "scalar" and self.raw.tag == _NULL)

    def wrong(self, message: str, help: str = "") -> None:
        self.problems.add(Code.PIPELINE, message, self.where, help)

    def _at(self, raw: Any) -> Node:
        return Node(self.path, raw.start_mark.line + 1, raw.start_mark.column + 1, raw, self.problems)

    # -- what it may be ------------------------------------------------------------------------------------------------

    def text(self, what: str) -> str | None:
        """Its text; None, and a problem, where it has none."""
        if self.raw.id != "scalar" or self.empty or not self.raw.value.strip():
            self.wrong(f"{what} is {self.kind if self.raw.id != 'scalar' or self.empty else 'empty'}, not a text")
            return None
        return str(self.raw.value)

    def parsed(self, what: str, parse: Callable[[str], T]) -> T | None:
        """What ``parse`` makes of its text. A ``ValueError`` of it says what is taken ("a number") or asks ("did you mean …?"), a ``CompilerError``
        says all."""
        text = self.text(what)
        if text is None:
            return None
        try:
            return parse(text.strip())
        except ValueError as error:
            self.wrong(f"{what} is '{text}'", str(error) if str(error).endswith("?") else f"give {error}")
        except CompilerError as error:
            for d in error.diagnostics:
                self.problems.add(d.code, d.message, self.where, d.help)
        return None

    def whole(self, what: str, low: int, high: int) -> int | None:
        """A whole number within bounds."""

        def parse(text: str) -> int:
            if not (text.isascii() and text.isdigit() and len(text) <= 20 and low <= int(text) <= high):
                raise ValueError(f"a whole number from {low} to {high}")
            return int(text)

        return self.parsed(what, parse)

    def list(self, what: str) -> Sequence[Node]:
        """Its items; none, and a problem, where it is no list."""
        if self.raw.id != "sequence":
            self.wrong(f"{what} is {self.kind}, not a list")
            return ()
        return [self._at(item) for item in self.raw.value]

    def mapping(self, what: str, known: Iterable[str] | None = None) -> Mapping[str, Node]:
        """Its values by key; those that are not ``known`` (None: all are) and those that stand twice are problems."""
        if self.raw.id != "mapping":
            self.wrong(f"{what} is {self.kind}, not a mapping")
            return {}
        found: dict[str, Node] = {}
        for key, value in self._pairs(self.raw, set()):
            name = key.raw.value
            if name in found:  # merged, and said anew by the mapping itself
                continue
            if known is not None and name not in known:
                key.wrong(f"{what} has no key '{name}'", nearest(name, known, f"the keys are {', '.join(known)}"))
            found[name] = value
        return found

    def _pairs(self, raw: Any, seen: set[int]) -> Iterator[tuple[Node, Node]]:
        """Keys with their values; those of the mapping itself come before what ``<<`` brings, and win. Nothing is merged twice."""
        seen.add(id(raw))
        merged: list[Any] = []
        lines: dict[str, int] = {}
        for k, v in raw.value:
            key = self._at(k)
            if k.tag == _MERGE:
                merged += v.value if v.id == "sequence" else [v]
            elif k.id != "scalar":
                key.wrong(f"a key is {key.kind}, not a text")
            elif k.value in lines:
                key.wrong(f"the key '{k.value}' stands twice, first in line {lines[k.value]}", "leave one of them")
            else:
                lines[k.value] = key.line
                yield key, self._at(v)
        for m in merged:
            if m.id != "mapping":
                self._at(m).wrong("<< takes a mapping, or a list of mappings", "name one by its anchor: <<: *name")
            elif id(m) not in seen:
                yield from self._pairs(m, seen)


def read(path: str, problems: Collector) -> Node | None:
    """The root of a file, of which the first problems are raised at once: it does not exist, or is no YAML. None for an empty one."""
    yaml = _package()
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CompilerError.of(Code.of_reading(error), f"'{path}': {error.strerror}", Where(file=path), "look at the path") from error
    if len(data) > LIMIT:
        raise CompilerError.of(Code.PIPELINE, f"'{path}' has {len(data)} bytes, more than {LIMIT}", Where(file=path), "is it a pipeline file?")
    try:
        raw = yaml.compose(data.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise CompilerError.of(Code.PIPELINE, f"'{path}' is not UTF-8", Where(file=path, offset=error.start), "save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = Where(file=path) if mark is None else Where(file=path, line=mark.line + 1, column=mark.column + 1)
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise CompilerError.of(Code.PIPELINE, f"it is no YAML: {said}", where, "look at the indentation, and at quotes and brackets") from error
    except RecursionError:
        raise CompilerError.of(Code.PIPELINE, "it is nested too deeply", Where(file=path), "is it a pipeline file?") from None
    if raw is None:
        problems.add(Code.PIPELINE, f"'{path}' is empty", Where(file=path), "docs/ci.md has an example")
        return None
    root = Node(path, raw.start_mark.line + 1, raw.start_mark.column + 1, raw, problems)
    for tagged in _tagged(raw):
        root._at(tagged).wrong(f"the tag {tagged.tag} says nothing here", "leave it out")
    return root


def _tagged(raw: Any) -> Iterator[Any]:
    """Nodes with tags of their own."""
    seen: set[int] = set()
    left = [raw]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.tag not in _PLAIN:
            yield node
        if node.id == "sequence":
            left += node.value
        elif node.id == "mapping":
            left += [n for pair in node.value for n in pair]


def _package() -> Any:
    try:
        import yaml
    except ImportError as error:
        message = "reading pipeline files needs the package PyYAML, which is not installed"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, message, help="pip install 'trustformers_ir[ci]'") from error
    return yaml
