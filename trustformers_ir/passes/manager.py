"""Passes, and the manager that runs a list of them, checks their contracts and reports what they did.

A pass is a frozen dataclass whose fields are its command-line options::

    @dataclass(frozen=True)
    class Fuse(Pass):
        '''Groups operations into regions that become one kernel each.'''

        max_ops: int = 64

        name = "fuse"
        summary = "group operations into kernels"
        requires = frozenset({"canonical"})
        ensures = frozenset({"fused"})

        def run(self, module, log):
            ...

    report = PassManager([Canonicalize(), Fuse(max_ops=8)]).run(module)

``requires``, ``ensures`` and ``breaks`` name properties of a module; the manager follows them from pass to pass before anything runs.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from trustformers_ir.ir import env, progress, rewriting
from trustformers_ir.ir.atomic import write_text
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Diagnostic, DiagnosticError, InternalError
from trustformers_ir.ir.text import print_module
from trustformers_ir.ir.verifier import Proven, check_module, verify_module
from trustformers_ir.passes.options import nearest, options_text, parse_options


@dataclass
class PassLog:
    """What a pass has to say: notes in order, counts by name, near misses (what almost happened, and the reason why it did not), and a table
    of what was decided, item by item, for who reads the report as data."""

    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    misses: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: list[dict[str, object]] = field(default_factory=list)

    def note(self, text: str) -> None:
        """A line for a person to read."""
        self.notes.append(text)

    def count(self, what: str, times: int = 1) -> None:
        """``what`` happened so many more times."""
        self.counts[what] += times

    def miss(self, what: str, reason: str) -> None:
        """``what`` was possible but for ``reason``."""
        self.misses[what, reason] += 1

    def row(self, **fields: object) -> None:
        """A row of the table: plain data."""
        self.rows.append(fields)


@dataclass(frozen=True)
class Pass:
    """Base of all passes. The fields of a subclass are its options."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    requires: ClassVar[frozenset[str]] = frozenset()
    ensures: ClassVar[frozenset[str]] = frozenset()
    breaks: ClassVar[frozenset[str]] = frozenset()

    def run(self, module: Module, log: PassLog) -> None:
        """Changes the module in place."""
        raise NotImplementedError(self.name)

    def __str__(self) -> str:
        """The text that ``parse_pipeline`` reads: the name and the options that differ from their defaults."""
        return self.name + options_text(self)


@dataclass(frozen=True)
class PassReport:
    """What one pass did."""

    name: str
    seconds: float
    ops_before: int
    ops_after: int
    rewrites: int
    log: PassLog
    text: str = ""  # with its options, as ``parse_pipeline`` reads it

    @property
    def notes(self) -> list[str]:
        return self.log.notes


@dataclass
class Report:
    """What a run of passes did, pass by pass. ``str`` is a table with the notes and near misses below the row of their pass."""

    passes: list[PassReport] = field(default_factory=list)

    @property
    def rewrites(self) -> int:
        """All rewrites: the range over which ``TFIR_STOP_AFTER`` can be bisected."""
        return sum(p.rewrites for p in self.passes)

    @property
    def seconds(self) -> float:
        return sum(p.seconds for p in self.passes)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        rows = []
        for p in self.passes:
            misses = [{"what": what, "reason": reason, "times": n} for (what, reason), n in p.log.misses.items()]
            row = {k: v for k, v in vars(p).items() if k != "log"}
            rows.append(row | {"notes": p.notes, "counts": dict(p.log.counts), "misses": misses})
        return {"seconds": self.seconds, "rewrites": self.rewrites, "passes": rows}

    def __str__(self) -> str:
        lines = [f"{'pass':<24} {'ms':>9} {'ops before':>10} {'after':>7} {'rewrites':>8}"]
        for p in self.passes:
            lines.append(f"{p.name:<24} {p.seconds * 1e3:>9.1f} {p.ops_before:>10} {p.ops_after:>7} {p.rewrites:>8}")
            lines += [f"    {what}: {n}" for what, n in p.log.counts.most_common()]
            lines += [f"    {note}" for note in p.notes]
            lines += [f"    not {what}: {reason}" + (f" ({n} times)" if n > 1 else "") for (what, reason), n in p.log.misses.most_common()]
        return "\n".join(lines)


FLAT = "flat"  # the property of having no regions


def properties(module: Module) -> frozenset[str]:
    """What can be seen from the module itself: it is ``flat`` when no operation has a body."""
    return frozenset() if any(o.body is not None for o in module.walk()) else frozenset({FLAT})


class PassManager:
    """Runs passes in order.

    ``verify`` runs the verifier on the module and after every pass, ``dump_dir`` receives the text of the module whenever a pass changed it;
    both default to the environment. ``given`` are properties that the module has from the start.
    """

    def __init__(
        self, passes: Iterable[Pass], *, verify: bool | None = None, dump_dir: Path | None = None, given: Iterable[str] = ()
    ) -> None:
        self.passes: tuple[Pass, ...] = tuple(passes)
        self.verify = env.VERIFY.get() if verify is None else verify
        self.dump_dir = env.DUMP_DIR.get() if dump_dir is None else dump_dir
        self.given = frozenset(given)

    def check(self, module: Module | None = None) -> None:
        """Raises ``CompilerError`` with every property that a pass requires and neither the module has nor an earlier pass ensures.

        Without a module one that no pass has touched is meant.
        """
        problems = Collector()
        have = self.given | (frozenset({FLAT}) if module is None else properties(module))
        broken_by: dict[str, str] = {}
        for p in self.passes:
            for missing in sorted(p.requires - have):
                reason = f"'{broken_by[missing]}' breaks that before it" if missing in broken_by else "no pass before it ensures that"
                able = sorted(other.name for other in _all_passes(Pass) if missing in other.ensures)
                help = f"run {' or '.join(able)} before it" if able else "no pass ensures that: the module has to come with it"
                problems.add(Code.PASS_CONTRACT, f"the pass '{p.name}' requires that the module is {missing}, and {reason}", help=help)
            for broken in p.breaks & have:
                broken_by[broken] = p.name
            have = (have - p.breaks) | p.ensures
        problems.check()

    def run(self, module: Module) -> Report:
        """Changes the module in place. Raises ``InternalError`` naming the pass when a pass fails or leaves an invalid module."""
        self.check(module)
        proven = Proven()
        if self.verify:
            check_module(module, proven)
        report = Report()
        dumped = self._dump(module, 0, "input", None)
        with rewriting.counting() as counter:
            for number, p in enumerate(self.passes, 1):
                progress.note(p.name, number - 1, len(self.passes))
                log, made, before = PassLog(), counter.made, _count(module)
                start = time.perf_counter()
                self._apply(p, module, log)
                seconds = time.perf_counter() - start
                report.passes.append(PassReport(p.name, seconds, before, _count(module), counter.made - made, log, str(p)))
                dumped = self._dump(module, number, p.name, dumped)
                if self.verify:
                    _check_after(p, module, proven)
        return report

    def _apply(self, p: Pass, module: Module, log: PassLog) -> None:
        try:
            p.run(module, log)
        except CompilerError as error:
            if set(error.codes) <= _VERIFIER:  # the pass checked its own work
                raise _broken(p, error.diagnostics) from error
            raise
        except DiagnosticError:
            raise
        except Exception as error:
            raise InternalError.of(Code.INTERNAL, f"the pass '{p}' failed: {type(error).__name__}: {error}") from error

    def _dump(self, module: Module, number: int, name: str, previous: str | None) -> str | None:
        """Writes ``NN-name.tfir`` unless the text is that of the previous dump; the text."""
        if self.dump_dir is None:
            return None
        text = print_module(module)
        if text != previous:
            self.dump_dir.mkdir(parents=True, exist_ok=True)
            write_text(self.dump_dir / f"{number:02}-{name}.tfir", text)
        return text


def _check_after(p: Pass, module: Module, proven: Proven) -> None:
    violations = verify_module(module, proven=proven)
    if violations:
        raise _broken(p, [v.diagnostic for v in violations])


def _broken(p: Pass, diagnostics: Iterable[Diagnostic]) -> InternalError:
    return InternalError(Diagnostic(Code.PASS_BROKE_MODULE, f"the pass '{p}' broke the module"), *diagnostics)


_VERIFIER = frozenset({Code.VERIFY, Code.CONSTRAINT, Code.TYPE_MISMATCH})


def _count(module: Module) -> int:
    return sum(1 for _ in module.walk())


def _all_passes(base: type[Pass]) -> Iterator[type[Pass]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _all_passes(kind)


# --- the text of a pipeline --------------------------------------------------------------------------------------------------------

_ITEM = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(?:\{([^{}]*)\})?\s*(,|$)")


def parse_pipeline(text: str, registry: Mapping[str, type[Pass]]) -> list[Pass]:
    """The passes of ``"a,b{k=1,flag=true}"``: names of the registry, with options. All problems are raised together."""
    problems = Collector()
    passes: list[Pass] = []
    position = 0
    while position < len(text.rstrip()):
        match = _ITEM.match(text, position)
        if match is None or (match[3] == "," and not text[match.end() :].strip()):
            help = "pipelines look like: name,name{option=value,option=value}"
            problems.add(Code.USAGE, f"'{text}' is not a list of passes: it cannot be read from '{text[position:].strip()}' on", help=help)
            break
        position = match.end()
        kind = registry.get(match[1])
        if kind is None:
            names = ", ".join(sorted(registry)) or "none"
            problems.add(Code.UNKNOWN_PASS, f"there is no pass '{match[1]}'", help=nearest(match[1], registry, f"the passes are {names}"))
            continue
        before = len(problems)
        options = parse_options(kind, f"pass '{kind.name}'", match[2] or "", problems)
        if len(problems) == before:
            try:
                passes.append(kind(**options))
            except (ValueError, TypeError) as error:  # from a check in __post_init__, or a missing option
                problems.add(Code.PASS_OPTION, f"'{match[1]}': {error}")
    problems.check()
    return passes
