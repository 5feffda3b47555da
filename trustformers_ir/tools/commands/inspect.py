"""``tfc inspect``: what is in a file."""

from __future__ import annotations

import os
from collections import Counter
from typing import Annotated

import typer

import trustformers_ir as tfir
from trustformers_ir.ir.abi import RECIPE_KEY, Manifest
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.device import TRIPLES
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.ir.interpreter import argument_names, result_names
from trustformers_ir.runtime import artifact
from trustformers_ir.runtime.container import Artifact
from trustformers_ir.runtime.gpu.executable import device_module
from trustformers_ir.runtime.manifest import quantization, recipe_name
from trustformers_ir.runtime.prediction import known_rates, predict
from trustformers_ir.runtime.workers import thread_count
from trustformers_ir.tools import console
from trustformers_ir.tools.commands.options import Json

SIZES = ((1, 8), (1, 32), (1, 128), (1, 512), (8, 128), (32, 128))  # batch and seq of predictions


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An artifact, a .tfir file or a checkpoint folder.", show_default=False)],
    text: Annotated[bool, typer.Option("--text", help="Print the graph itself.")] = False,
    json: Json = False,
) -> None:
    """Show what a file holds: inputs, outputs, weights, ops, kernels."""
    if not os.path.exists(file) and ":" not in file:
        raise CompilerError.of(Code.FILE_NOT_FOUND, f"'{file}' does not exist", Where(file=file), "look at the path")
    if text and json:
        raise console.usage("--text and --json cannot both go to stdout", "choose one")
    if file.endswith(".tfc"):
        found = artifact.inspect(file)  # not loaded: the code may be for another machine
        if text:
            print(found.graph)
            return
        description = _of_artifact(found)
    else:
        module = tfir.api.to_module(file)
        if text:
            print(module)
            return
        description = _of_module(module)
    if json:
        if file.endswith(".tfc"):
            description["predictions"] = predictions(found.manifest, thread_count(None))
        console.print_json({"file": file} | description)
    else:
        console.print_fields({"file": file} | {name: _flat(value) for name, value in description.items()})


def _of_artifact(found: Artifact) -> dict[str, object]:
    manifest = found.manifest
    main = manifest.entries[0]
    return {
        "name": manifest.name,
        "compiler": manifest.compiler,
        "abi": manifest.abi,
        "target": manifest.target.name,
        "cpu": manifest.target.cpu,
        "features": list(manifest.target.features),
        **_of_variants(found),
        **({"quantize": manifest.metadata[RECIPE_KEY]} if RECIPE_KEY in manifest.metadata else {}),
        **_quantized(manifest),
        "dims": {name: str(fact) for name, fact in manifest.symbols},
        "inputs": {p.name: str(p.type) for p in main.inputs},
        "outputs": {p.name: str(p.type) for p in main.outputs},
        "weights": len(found.stored),
        "weight bytes": sum(w.bytes for w in found.stored),
        **_of_device(found),
        "kernels": {e.name: len(e.kernels) for e in manifest.entries},
        "arena bytes": {e.name: str(e.arena_bytes) for e in manifest.entries},
        "sections": {name: f"{section.length} B" for name, section in found.sections.items()},
    }


def _of_device(found: Artifact) -> dict[str, object]:
    """What there is for each GPU: kernels, how many of them have code for indices of 64 bits as well, and the most that one wants."""
    rows: dict[str, object] = {}
    for variant in found.variants:
        target = variant.manifest.target
        if target.triple in TRIPLES:
            kernels = device_module(found.code_of(variant), variant.manifest, Where(file=found.path)).kernels
            codes = [k.narrow for k in kernels if k.narrow is not None]
            registers, shared = max((c.registers for c in codes), default=0), max((c.shared for c in codes), default=0)
            most = f", at most {registers} registers and {shared} B shared" if codes else ", as text alone"
            wide = sum(k.wide is not None for k in kernels)
            rows[target.name] = f"{len(kernels)} kernels, {wide} of them with 64-bit indices as well{most}"
    return {"device": rows} if rows else {}


def _quantized(manifest: Manifest) -> dict[str, object]:
    """How many products the recipe took."""
    told = quantization(manifest.metadata)
    return {} if told is None else {"quantized": f"{told[recipe_name(told)]} of {len(told['products'])} products"}


def predictions(manifest: Manifest, threads: int) -> list[dict[str, object]]:
    """What calls of a few usual sizes need, as ``report(batch=…, seq=…)`` says it; none for a model with other dims."""
    facts, main, rates = dict(manifest.symbols), manifest.entries[0], known_rates(threads)
    gpu = manifest.target.triple in TRIPLES  # what a GPU takes is not predicted yet
    if not set(facts) <= {"batch", "seq"}:
        return []
    rows: list[dict[str, object]] = []
    for batch, seq in SIZES:
        dims = {name: size for name, size in (("batch", batch), ("seq", seq)) if name in facts}
        if any(not facts[name].admits(size) for name, size in dims.items()) or any(row["dims"] == dims for row in rows):
            continue
        time = None if rates is None or gpu else sum(r.seconds for r in predict(main, dims, rates)) * 1e3
        rows.append({"dims": dims, "threads": threads, "arena_bytes": evaluate(main.arena_bytes, dims), "predicted_ms": time})
    return rows


def _of_variants(found: Artifact) -> dict[str, object]:
    """What a file with code for several targets has for each of them, best first."""
    if len(found.variants) == 1:
        return {}
    lists = [{w.name for w in v.manifest.weights} for v in found.variants]
    shared = set.intersection(*lists)
    rows = {}
    for variant, names in zip(found.variants, lists, strict=True):
        own = len(names) - len(shared)
        rows[variant.manifest.target.name] = f"{variant.code.length} B of code, {own or 'no'} weights of its own"
    return {"targets": rows, "shared": f"{len(shared)} weights, {'one graph' if len({v.graph for v in found.variants}) == 1 else 'no graph'}"}


def _of_module(module: Module) -> dict[str, object]:
    ops = Counter(o.op.mnemonic for o in module.walk())
    main = module.main
    return {
        "name": module.name,
        "functions": list(module.functions),
        "dims": {name: str(fact) for name, fact in module.facts.symbols.items()},
        "inputs": {name: str(a.type) for name, a in zip(argument_names(main), main.args, strict=True)},
        "outputs": {name: str(v.type) for name, v in zip(result_names(main), main.outputs, strict=True)},
        "weights": len(module.weights),
        "weight bytes": sum(evaluate(w.type.bytes, {}) for w in module.weights.values()),
        "ops": dict(ops.most_common()),
    }


def _flat(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value
