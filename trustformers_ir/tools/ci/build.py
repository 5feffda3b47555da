"""A source to its graph and to files: the steps of a pipeline that make something."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustformers_ir as tfir
from trustformers_ir.exporter import FORMATS
from trustformers_ir.frontend.factory import is_factory
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, Collector, Where
from trustformers_ir.passes.options import nearest
from trustformers_ir.reader import opened, to_module
from trustformers_ir.tools.agreement.readers import open_source
from trustformers_ir.tools.ci.outcome import Made
from trustformers_ir.tools.ci.pipeline import NATIVE, FilePlan, ModelPlan

USUAL = 128  # of the last dim (a length), where nobody says what to measure with


@dataclass(frozen=True)
class Source:
    """A model that was read: ``graph`` is the truth, ``model`` what files are made of, with ``examples`` where it needs some."""

    graph: Module
    model: Any
    examples: Any = None


def open_model(plan: ModelPlan) -> Source:
    """Reads the source. Raises ``CompilerError``."""
    if not is_factory(plan.source):
        return Source(open_source(plan.source), plan.source)
    model, examples = opened(plan.source)
    return Source(to_module(model, examples), model, examples)


def make(source: Source, file: FilePlan, path: str) -> Made:
    """Writes a file, whole or not at all. Where that fails, a file of an earlier run is gone too: nobody is to take it for this one's."""
    started = time.perf_counter()
    try:
        if file.kind == NATIVE:
            made = _compile(source, file, path)
            return Made(*made, time.perf_counter() - started)
        options = dict(file.options)
        calibration = options.pop("calibrate", None)
        examples = source.examples if _takes_examples(file) else None
        written = tfir.export(source.model, path, example_inputs=examples, calibration=calibration, **options)
    except BaseException:
        forget(path)
        raise
    return Made(written.bytes, dict(written.kinds), time.perf_counter() - started)


def _takes_examples(file: FilePlan) -> bool:
    return "example_inputs" in FORMATS[file.ending].options


def _compile(source: Source, file: FilePlan, path: str) -> tuple[int, dict[str, int]]:
    options = dict(file.options)
    calibration = options.pop("calibrate", None)
    executable = tfir.compile(source.model, source.examples, calibration=calibration, **options)
    try:
        executable.save(path)
        kinds = Counter(str(w.type.dtype) for w in executable.manifest.weights)
    finally:
        executable.close()
    return os.stat(path).st_size, kinds


def forget(path: str) -> None:
    """Removes what an earlier run left there, if it is of that kind."""
    marker = FORMATS[Path(path).suffix].marker if Path(path).suffix in FORMATS else None
    if marker is not None and (Path(path) / marker).is_file():
        shutil.rmtree(path, ignore_errors=True)
    elif marker is None and not Path(path).is_dir():
        for name in (path, f"{path}.data") if path.endswith(".onnx") else (path,):  # weights of more than a gigabyte lie beside it
            with contextlib.suppress(OSError):
                os.unlink(name)


def sizes(graph: Module, plan: ModelPlan, pipeline: str) -> dict[str, int]:
    """A size for every open dim: what the pipeline says; else as small as the model takes, and the last one 128. Raises ``CompilerError`` with all
    that the model does not take."""
    symbols = graph.facts.symbols
    problems = Collector()
    for name, (size, line) in plan.dims.items():
        where = Where(file=pipeline, line=line)
        if name not in symbols:
            known = f"its dims are {', '.join(symbols)}" if symbols else "all of its dims have fixed sizes"
            problems.add(Code.PIPELINE, f"model '{plan.name}' has no dim '{name}'", where, nearest(name, symbols, known))
        elif not symbols[name].admits(size):
            problems.add(Code.DIM_RANGE, f"the dim '{name}' of model '{plan.name}' is {size}, and it takes {symbols[name]}", where)
    problems.check()
    found = {name: -(-max(f.low, 1) // f.divisor) * f.divisor for name, f in symbols.items()}
    if len(symbols) > 1:
        last = next(reversed(symbols))
        most = symbols[last].high
        length = min(USUAL, USUAL if most is None else most)
        found[last] = max(found[last], length // symbols[last].divisor * symbols[last].divisor)
    return found | _given(plan.dims)


def _given(dims: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    return {name: size for name, (size, _) in dims.items()}
