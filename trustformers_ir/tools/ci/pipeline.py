"""What a pipeline file asks for (docs/ci.md), read whole: all that is wrong with it is raised at once, with lines, before anything is made."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trustformers_ir.codegen.export.gguf.kinds import find_file_type, find_numbers
from trustformers_ir.exporter import FORMATS
from trustformers_ir.frontend.factory import is_factory
from trustformers_ir.frontend.random_model import PREFIX
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.models.cached import CacheForm
from trustformers_ir.passes.options import nearest
from trustformers_ir.passes.recipes import find_recipe
from trustformers_ir.reader import dtype_of
from trustformers_ir.runtime.workers import MAX_THREADS
from trustformers_ir.tools.agreement.readers import READERS
from trustformers_ir.tools.ci import amounts
from trustformers_ir.tools.ci.document import Node, read

VERSION = 1
NATIVE = "tfc"
MEASURED = (NATIVE, "onnx")  # what there is a process for that executes it
OFF = ("none", "off")
LARGEST = 1 << 40

#: what each gate judges: the key of its absolute bound, and what reads that
GATES: Mapping[str, tuple[str, Callable[[str], float]]] = {
    "accuracy": ("relative", amounts.number),
    "size": ("max", amounts.size),
    "latency": ("max", amounts.duration),
    "memory": ("max", amounts.size),
}
GROW = "grow"

KEYS = ("version", "output", "baseline", "threads", "models", "gates")
MODEL_KEYS = ("source", "probes", "seed", "dims", "calls", "formats", "gates")
OWN_KEYS = ("format", "name", "by", "gates")
NATIVE_OPTIONS = ("quantize", "calibrate", "dtype", "target", "cache")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*\Z")


@dataclass(frozen=True)
class Bound:
    """What a figure may be at most, or by how much it may exceed that of the baseline (0.25: a quarter); and the line that says so."""

    value: float
    line: int


Gates = Mapping[tuple[str, str], Bound]  # ("latency", "grow")


@dataclass(frozen=True)
class FilePlan:
    """A file that is to be made. ``name``: of the file, which is its name in reports and in the baseline. ``by``: what may execute it; empty: all."""

    kind: str
    name: str
    options: Mapping[str, Any]
    by: tuple[str, ...]
    gates: Gates
    line: int

    @property
    def ending(self) -> str:
        return f".{self.kind}"

    @property
    def measurable(self) -> bool:
        return self.kind in MEASURED


@dataclass(frozen=True)
class ModelPlan:
    """A model and its files. ``calls``: how many are timed; 0: as many as fit into a few seconds. ``dims``: sizes for measuring, with their lines."""

    name: str
    source: str
    probes: int
    seed: int
    dims: Mapping[str, tuple[int, int]]
    calls: int
    files: tuple[FilePlan, ...]
    line: int


@dataclass(frozen=True)
class Pipeline:
    """The whole file. Paths in it are relative to its folder, and here to the current one."""

    path: str
    output: str
    baseline: str | None
    threads: int | None
    models: tuple[ModelPlan, ...]

    def place(self, file: FilePlan) -> str:
        """Where a file goes."""
        return os.path.join(self.output, file.name)


def kinds() -> tuple[str, ...]:
    """The formats that a pipeline can ask for."""
    return (NATIVE, *(ending[1:] for ending in FORMATS))


def options_of(kind: str) -> tuple[str, ...]:
    """What a file of a format takes besides what all take."""
    if kind == NATIVE:
        return NATIVE_OPTIONS
    own = FORMATS[f".{kind}"].options
    return tuple(sorted(own - {"example_inputs", "calibration"} | ({"calibrate"} if "calibration" in own else set())))


def read_pipeline(path: str) -> Pipeline:
    """The pipeline of a file. Raises ``CompilerError`` with everything that is wrong with it, in the order of its lines."""
    problems = Collector()
    root = read(path, problems)
    found = None if root is None else _Reader(path, problems).pipeline(root)
    if found is None or problems:
        raise CompilerError(*sorted(problems, key=lambda d: (d.where.line or 0, d.where.column or 0)))
    return found


@dataclass
class _Reader:
    path: str
    problems: Collector
    names: dict[str, Node] = field(default_factory=dict)  # of files, in small letters

    def pipeline(self, root: Node) -> Pipeline | None:
        top = root.mapping("the pipeline", KEYS)
        if root.raw.id != "mapping":
            return None
        for key in ("version", "models"):
            if key not in top:
                root.wrong(f"the pipeline has no '{key}'", f"add {key}: {VERSION}" if key == "version" else "name one: docs/ci.md has an example")
        if "version" in top and (said := top["version"].whole("version", 0, 1 << 30)) not in (None, VERSION):
            top["version"].wrong(f"version is {said}", f"this tfc reads version {VERSION}")
        output = self._beside(top["output"].text("output")) if "output" in top else self._beside("build")
        baseline = self._beside(top["baseline"].text("baseline")) if "baseline" in top else None
        threads = top["threads"].whole("threads", 1, MAX_THREADS) if "threads" in top else None
        gates = self._gates(top["gates"]) if "gates" in top else {}
        output = output or ""
        models = top["models"].mapping("models") if "models" in top else {}
        if "models" in top and top["models"].raw.id == "mapping" and not models:
            top["models"].wrong("there is no model", "docs/ci.md has an example")
        made = [m for name, node in models.items() if (m := self._model(name, node, gates, output)) is not None]
        if "baseline" not in top:
            self._no_baseline({b.line for m in made for f in m.files for (_, key), b in f.gates.items() if key == GROW and math.isfinite(b.value)})
        return Pipeline(self.path, output, baseline, threads, tuple(made))

    def _no_baseline(self, lines: Iterable[int]) -> None:
        for line in sorted(lines):
            message = "grow compares with a baseline, and the pipeline names none"
            help = "add baseline: baseline.json, which `tfc ci --update-baseline` writes"
            self.problems.add(Code.PIPELINE, message, Where(file=self.path, line=line), help)

    def _beside(self, path: str | None) -> str | None:
        return None if path is None else os.path.normpath(os.path.join(os.path.dirname(self.path), os.path.expanduser(path)))

    def _model(self, name: str, node: Node, outer: Gates, output: str) -> ModelPlan | None:
        what = f"model '{name}'"
        if not _NAME.match(name):
            node.wrong(f"{what} cannot be the name of files", "take letters, digits, '.', '_', '-' and '+'")
        own = node.mapping(what, MODEL_KEYS)
        if node.raw.id != "mapping":
            return None
        for key in ("source", "formats"):
            if key not in own:
                node.wrong(f"{what} has no '{key}'", "source is what `tfc compile` takes" if key == "source" else "formats: [tfc, onnx]")
        source = self._source(own["source"]) if "source" in own else None
        whole = {
            key: own[key].whole(f"{key} of {what}", low, high) if key in own else None
            for key, low, high in (("probes", 1, 1000), ("seed", 0, 1 << 31), ("calls", 1, 1_000_000))
        }
        dims = {}
        for dim, value in (own["dims"].mapping(f"dims of {what}") if "dims" in own else {}).items():
            size = value.whole(f"the dim '{dim}'", 1, LARGEST)
            dims[dim] = (size or 1, value.line)
        gates = {**outer, **self._gates(own["gates"])} if "gates" in own else outer
        formats = own["formats"].list(f"formats of {what}") if "formats" in own else ()
        if "formats" in own and own["formats"].raw.id == "sequence" and not formats:
            own["formats"].wrong(f"{what} has no format", f"the formats are {', '.join(kinds())}")
        files = [f for item in formats if (f := self._file(name, item, gates, output, source)) is not None]
        return ModelPlan(
            name, source or "", 3 if whole["probes"] is None else whole["probes"], whole["seed"] or 0, dims, whole["calls"] or 0,
            tuple(files), node.line,
        )  # fmt: skip

    def _source(self, node: Node) -> str | None:
        """A path beside the file; ``random:`` and ``module:factory`` are names and no paths."""
        text = node.text("source")
        if text is None or text.startswith(PREFIX) or is_factory(text):
            return text
        path = self._beside(text)
        if path is not None and not os.path.exists(path):
            self.problems.add(Code.FILE_NOT_FOUND, f"'{path}' does not exist", node.where, "paths are relative to the folder of the pipeline file")
        return path

    def _file(self, model: str, node: Node, outer: Gates, output: str, source: str | None) -> FilePlan | None:
        """``onnx``, or a mapping with ``format: onnx`` and options."""
        short = node.raw.id == "scalar" and not node.empty
        every = tuple(dict.fromkeys(o for k in kinds() for o in options_of(k)))
        own = {"format": node} if short else node.mapping("a format", (*OWN_KEYS, *every))
        if not short and node.raw.id != "mapping":
            return None
        if "format" not in own:
            node.wrong("a format does not say which", f"format: {NATIVE}; the formats are {', '.join(kinds())}")
            return None
        kind = own["format"].parsed("the format", self._kind)
        if kind is None:
            return None
        for key in own:
            if key in every and key not in options_of(kind):
                takers = ", ".join(k for k in kinds() if key in options_of(k))
                own[key].wrong(f"{key} says nothing of {kind} files: it is for {takers}", "leave it out")
        options = {key: self._option(kind, key, own[key]) for key in options_of(kind) if key in own}
        runners = next((r.by for r in READERS if r.ending == f".{kind}"), ())
        by = [b.parsed("by", _one_of(runners, "it is executed by")) for b in own["by"].list("by")] if "by" in own else []
        name = self._name(model, kind, own.get("name"), options, node)
        gates = {**outer, **self._gates(own["gates"], kind)} if "gates" in own else outer
        plan = FilePlan(kind, name, options, tuple(b for b in by if b is not None), gates, node.line)
        place = os.path.join(output, name)
        if source and os.path.exists(source) and os.path.exists(place) and os.path.samefile(source, place):
            node.wrong(f"'{place}' is what is read", "give the file another name, or another output")
        return plan

    def _kind(self, text: str) -> str:
        name = text.removeprefix(".")
        if name not in kinds():
            raise ValueError(nearest(name, kinds(), f"one of {', '.join(kinds())}"))
        return name

    def _name(self, model: str, kind: str, given: Node | None, options: Mapping[str, Any], node: Node) -> str:
        """The file's name: as it is given, or the model's with what the file is asked for. Each file has its own."""
        asked = [re.sub(r"[^A-Za-z0-9._+]+", "-", str(options[key])).strip("-") for key in ("quantize", "dtype") if options.get(key)]
        stem = given.text("name") if given is not None else "-".join([model, *asked])
        name = f"{(stem or model).removesuffix(f'.{kind}')}.{kind}"
        if given is not None and not _NAME.match(name):
            given.wrong(f"'{name}' cannot be the name of a file", "take letters, digits, '.', '_', '-' and '+', and no folder")
        first = self.names.setdefault(name.lower(), given or node)
        if first is not (given or node):
            (given or node).wrong(f"two files are called '{name}', the first in line {first.line}", "give one of them a name of its own: name: …")
        return name

    def _option(self, kind: str, key: str, node: Node) -> Any:
        """The value of an option of a file, checked as far as that can be done without the model."""
        what = f"{key} of {kind}"
        if key == "calibrate":
            items = [node] if node.raw.id == "scalar" else node.list(what)
            paths = [self._beside(i.text(what)) for i in items]
            for item, path in zip(items, paths, strict=True):
                if path is not None and not os.path.exists(path):
                    self.problems.add(Code.FILE_NOT_FOUND, f"'{path}' does not exist", item.where, "paths are relative to the pipeline file")
            return [Path(p) for p in paths if p is not None]
        if key == "opset":
            return node.whole(what, 1, 1000)
        return node.parsed(what, _checked(_CHECKS.get((kind, key), _CHECKS.get(("", key), str))))

    # -- gates -----------------------------------------------------------------------------------------------------------

    def _gates(self, node: Node, kind: str | None = None) -> dict[tuple[str, str], Bound]:
        """Bounds by gate and key. ``none`` takes away what is said further out, which an endless bound stands for."""
        found: dict[tuple[str, str], Bound] = {}
        for gate, value in node.mapping("gates", GATES).items():
            key, parse = GATES.get(gate, ("", amounts.number))
            if gate not in GATES:
                continue
            if kind is not None and gate in ("latency", "memory") and kind not in MEASURED:
                value.wrong(f"{gate} of {kind} files is not measured: it is of {' and '.join(MEASURED)}", "leave it out")
            if value.raw.id == "scalar" and (value.empty or value.raw.value in OFF):
                if gate == "accuracy":
                    value.wrong("accuracy cannot be left out: that files agree is what the rest rests on", "accuracy: {relative: 0.1}")
                found |= {(gate, k): Bound(float("inf"), value.line) for k in (key, GROW)}
                continue
            for name, bound in value.mapping(f"gate '{gate}'", (key, GROW)).items():
                if name not in (key, GROW):
                    continue
                if bound.raw.id == "scalar" and (bound.empty or bound.raw.value in OFF):
                    if (gate, name) == ("accuracy", key):
                        bound.wrong("accuracy cannot be left out", "give a number, or leave out the key for what dtype and depth allow")
                    found[gate, name] = Bound(float("inf"), bound.line)
                elif (read := bound.parsed(f"{gate}.{name}", amounts.percent if name == GROW else parse)) is not None:
                    found[gate, name] = Bound(read, bound.line)
        return found


def _one_of(known: Sequence[str], words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in known:
            raise ValueError(nearest(text, known, f"another one: {words} {', '.join(known)}"))
        return text

    return parse


def _checked(check: Callable[[str], Any]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        check(text)
        return text

    return parse


def _cache(text: str) -> CacheForm:
    try:
        return CacheForm.parse(text)
    except ValueError as error:
        raise CompilerError.of(Code.PIPELINE, f"cache is '{text}'", help=str(error)) from error


#: what says whether an option of a file has a value that it takes, by format ('' where it is any) and option
_CHECKS: Mapping[tuple[str, str], Callable[[str], Any]] = {
    (NATIVE, "quantize"): find_recipe,
    ("onnx", "quantize"): find_recipe,
    (NATIVE, "cache"): _cache,
    ("gguf", "quantize"): find_file_type,
    ("gguf", "dtype"): find_numbers,
    ("", "dtype"): dtype_of,
}
