"""What quantization learns by running a model: ranges of activations, and the error of every quantized product.

Both add results to a copy of the graph, compile it for this machine, and feed it examples; nothing is kept but sums and histograms. A batch
whose results would fill more than ``MOST_BYTES`` is run in pieces along the first dim, where all inputs begin with the same symbol.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trustformers_ir.codegen import build as building
from trustformers_ir.ir.abi import QUANTIZATION_KEY, RECIPE_KEY
from trustformers_ir.ir.binding import Shaped, bind_dims
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError
from trustformers_ir.ir.dims import Facts, evaluate
from trustformers_ir.ir.interpreter import result_names
from trustformers_ir.ir.progress import note
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.calibration import Observed
from trustformers_ir.passes.int8_error import Deviation, ErrorReport, ProductError
from trustformers_ir.passes.linears import products
from trustformers_ir.passes.manager import Pass, PassManager
from trustformers_ir.passes.merge_linears import MergeLinears
from trustformers_ir.passes.observe_activations import ObserveActivations
from trustformers_ir.passes.quantize_int8 import QuantizeInt8
from trustformers_ir.passes.read_blocks import ReadBlocks
from trustformers_ir.passes.recipes import NOTHING, Calibrated, Int8, Recipe
from trustformers_ir.passes.smoothing import Matrix, Sample, Smoothing, smoothed
from trustformers_ir.passes.weights import rows_of
from trustformers_ir.runtime.executable import Executable

MOST_BYTES = 256 << 20  # of results at a time
MASK = "attention_mask"  # an input of ones for tokens and zeros for padding: what stands beside padding is not looked at

Batch = Mapping[str, np.ndarray]


class Probe:
    """A copy of a module with more results, compiled for this machine. ``rows`` is what its pass wrote into its table. ``merged``: see
    :func:`learnt`."""

    def __init__(self, module: Module, looking: Pass, threads: int | None, merged: bool = True) -> None:
        copy = clone_module(module)
        target = building.find_target("cpu")
        passes = _passes(looking, merged, building.machine_shape(target).panel)
        report = PassManager(passes).run(copy)
        self.rows: list[dict[str, Any]] = report.passes[passes.index(looking)].log.rows
        self.executable = Executable(building.build(copy, target), threads)

    def run(self, piece: Batch) -> list[np.ndarray]:
        """All results, rows of padding left out."""
        results = self.executable(**piece)
        mask = piece.get(MASK)
        return [_real(r, mask) for r in (results if isinstance(results, tuple) else (results,))]

    def pieces(self, batch: Batch) -> Iterator[Batch]:
        """The batch, cut so that the results of each piece are not too large."""
        ports = {p.name: p.type for p in self.executable.inputs}
        known = {name: np.asarray(array) for name, array in batch.items()}
        leading = {t.shape[0] if t.rank else 0 for t in ports.values()}
        lengths = {a.shape[0] if a.ndim else 0 for a in known.values()}
        (rows,) = lengths if len(lengths) == 1 else (1,)
        at_once = rows
        if len(leading) == 1 and not isinstance(next(iter(leading)), int) and rows > 1 and set(known) <= set(ports):
            dims = bind_dims([Shaped(n, ports[n].shape, a.shape) for n, a in known.items()], Facts(dict(self.executable.manifest.symbols)))
            need = sum(evaluate(p.type.bytes, dims) for p in self.executable.outputs)
            at_once = max(1, rows * MOST_BYTES // max(need, MOST_BYTES))
        if at_once >= rows:
            yield known
            return
        for start in range(0, rows, at_once):
            yield {name: a[start : start + at_once] for name, a in known.items()}


def _real(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The rows of real tokens, where the array has a row per token; the array as it is, example by example, where all are real."""
    if mask is None or array.ndim <= mask.ndim or array.shape[: mask.ndim] != mask.shape or np.all(mask):
        return array
    return np.asarray(array[np.asarray(mask) != 0])


def _passes(looking: Pass, merged: bool, panel: int = 48) -> list[Pass]:
    found = pipelines.cpu(panel, looking)
    return found if merged else [p for p in found if not isinstance(p, MergeLinears | ReadBlocks)]


def learnt(module: Module, recipe: Recipe, batches: Callable[[Any], Iterable[Batch]], threads: int | None = None, merged: bool = True) -> Calibrated:
    """What the recipe has to know of activations, by running the model on its examples, which ``batches`` makes inputs of. ``merged``: products are
    those that native code has, several in one; or else those of the model, each by itself. ``CALIBRATION`` where it has no examples."""
    if not isinstance(recipe, Int8) or not recipe.calibrated:
        return NOTHING
    if recipe.calibration is None:
        what = "static activations need examples to find their ranges from" if recipe.static else "smoothing needs examples to find outliers in"
        raise CompilerError.of(Code.CALIBRATION, what)
    return calibrate(module, recipe, batches(recipe.calibration), threads, merged)


def calibrate(module: Module, recipe: Int8, batches: Iterable[Batch], threads: int | None = None, merged: bool = True) -> Calibrated:
    """What the examples show of the activation of every product that the recipe may quantize. ``CALIBRATION`` when they show none."""
    probe = Probe(module, ObserveActivations(**recipe.sensitive), threads, merged)
    seen = {int(row["result"]): Observed() for row in probe.rows}
    samples = {result: Sample() for result in seen} if recipe.smooths else {}
    examples = list(batches)
    for number, batch in enumerate(examples):
        note("calibrating", number, len(examples))
        for piece in probe.pieces(batch):
            results = probe.run(piece)
            for result, observed in seen.items():
                observed.see(results[result])
            for result, sample in samples.items():
                sample.see(results[result])
    problems = Collector()
    for row in probe.rows:
        observed = seen[int(row["result"])]
        if observed.lost or not observed.values:
            what = f"{observed.lost} of its values are not finite" if observed.lost else "no values came"
            problems.add(Code.CALIBRATION, f"the activation of '{row['name']}' cannot be calibrated: {what}", help="look at the examples")
    problems.check()
    ranges = {result: observed.range(recipe.method, recipe.percentile) for result, observed in seen.items()}
    smoothings: dict[str, Smoothing] = {}
    if samples:
        weights = _weights(module, merged)
        for number, (result, sample) in enumerate(samples.items()):
            note("smoothing", number, len(samples))
            names = [str(row["name"]) for row in probe.rows if row["result"] == result]
            found = smoothed(sample, [weights[name] for name in names], per_row=not recipe.static)
            if found is not None:
                smoothings |= dict.fromkeys(names, found[0])
                ranges[result] = found[1]
    by_name = {str(row["name"]): ranges[int(row["result"])] for row in probe.rows}
    return Calibrated(by_name if recipe.static else None, smoothings)


def _weights(module: Module, merged: bool) -> dict[str, Matrix]:
    """What gives the weight of each product that the passes in front of quantization leave, by name."""
    copy = clone_module(module)
    looking = ObserveActivations()
    passes = _passes(looking, merged)
    PassManager(passes[: passes.index(looking)]).run(copy)
    return {p.name: rows_of(p.weight, p.transposed) for p in products(copy) if p.weight is not None}


def measure(
    module: Module,
    recipe: Recipe,
    known: Calibrated,
    batches: Sequence[Batch],
    threads: int | None = None,
) -> ErrorReport:
    """The error of every product that the recipe quantizes, on the examples. ``NOTHING_QUANTIZED`` when there is none."""
    wanted, quantized = (Probe(module, recipe.comparison(known, instead=instead), threads) for instead in (False, True))
    check_quantized(wanted.rows, recipe)
    pairs = [(a, b) for a, b in zip(wanted.rows, quantized.rows, strict=True) if a[recipe.name]]
    errors = [ProductError(a["name"], a["location"], known.smoothings.get(a["name"])) for a, _ in pairs]
    names = result_names(module.main)
    outputs = {name: Deviation() for name in names}
    for number, batch in enumerate(batches):
        note("measuring", number, len(batches))
        for piece in wanted.pieces(batch):
            want, have = wanted.run(piece), quantized.run(piece)
            for i, deviation in enumerate(outputs.values()):
                deviation.see(want[i], have[i])
            for error, (a, b) in zip(errors, pairs, strict=True):
                error.own.see(want[a["wanted"]], want[a["result"]])
                error.arrived.see(want[a["wanted"]], have[b["result"]])
    kept = {row["name"]: row["reason"] for row in wanted.rows if not row[recipe.name]}
    return ErrorReport(str(recipe), sorted(errors, key=lambda e: e.own.sqnr), outputs, kept, len(batches))


def check_quantized(rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> None:
    """``NOTHING_QUANTIZED``, with the reasons, when no row is that of a quantized product."""
    if any(row[recipe.name] for row in rows):
        return
    reasons = dict.fromkeys(f"{row['name']}: {row['reason']}" for row in rows)
    shown = "; ".join(list(reasons)[:4]) + (f"; and {len(reasons) - 4} more" if len(reasons) > 4 else "")
    raise CompilerError.of(Code.NOTHING_QUANTIZED, f"nothing of the model is quantized: {shown or 'it has no products with known weights'}")


def told(recipe: Recipe, quantizer: Pass, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What files say of how they are quantized: the recipe, and as JSON what its pass decided about every product, ``report()["quantization"]`` of
    who compiled and of who loads. ``rows`` are those of the pass. ``NOTHING_QUANTIZED`` when each has a reason to stay as it is."""
    check_quantized(rows, recipe)
    if isinstance(quantizer, QuantizeInt8):
        owners: dict[int, str] = {}  # whose name the vector of factors has, which products of one activation share
        for row in (row for row in rows if row["int8"]):
            if quantizer.ranges is not None:
                known = quantizer.ranges[str(row["name"])]
                row["activation"] = {"low": known.low, "high": known.high, "scale": float(known.scale), "zero": known.zero}
            if (s := quantizer.smoothings.get(str(row["name"]))) is not None:
                row["smoothing"] = {**s.as_dict(), "of": owners.setdefault(id(s), str(row["name"]))}
    found = {"recipe": str(recipe), recipe.name: sum(bool(row[recipe.name]) for row in rows), "products": rows}
    return {RECIPE_KEY: str(recipe), QUANTIZATION_KEY: json.dumps(found, sort_keys=True, separators=(",", ":"))}
