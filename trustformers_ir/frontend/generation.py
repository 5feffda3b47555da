"""What a language model needs to write text, beside its scores: two more functions over the same weights, which keep what was read.

    prefill(input_ids[batch, seq], start[batch], last[batch], whole[batch], key_0, value_0, …)   reads a piece of each text
    decode(input_ids[batch, 1], start[batch], key_0, value_0, …)                                 reads one token of each text

Both give ``logits[batch, vocab]``, the scores of the token after the last one that was read; ``last`` counts it from the first of the piece.
``start`` is how many tokens of each text were read before, ``whole`` how many there are when pieces that belong together, a prompt, have been read:
some rotary positions depend on it. ``key_i`` and ``value_i``, ``[batch, heads, capacity, features]``, are states: the cache of layer i. Where a cache
is kept in codes, ``key_scale_i`` and ``value_scale_i`` stand beside them; where it is kept in pages, ``[pool, heads, 64, features]``, there is an
input ``pages[batch, table]`` before the states, and one ``pages_w`` for the layers that see w tokens alone.

Where a cache has so many places for good (``CacheForm.places``), one function takes the place of both:

    step(input_ids[1, piece], start[1], key_0, value_0, …)     reads the next tokens of one text
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trustformers_ir.frontend.folder import Folder
from trustformers_ir.frontend.gguf.container import GgufFile
from trustformers_ir.frontend.trace import trace_into
from trustformers_ir.ir import ops
from trustformers_ir.ir.abi import DECODE, PAGES, PIECE, POOL, PREFILL, START, STEP
from trustformers_ir.ir.core import Function, Module, Weight
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.dims import SymbolFact, symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.types import TensorType
from trustformers_ir.models.cached import PAGE, CachedText, CacheForm
from trustformers_ir.models.decoder import LanguageModel


def add_generation(module: Module, model: object, weights: Mapping[str, Weight], form: CacheForm) -> None:
    """Gives the module of a language model its ``prefill`` and ``decode``; one of another model stays as it is."""
    if not isinstance(model, LanguageModel):
        return
    if form.places is not None and model.longest is not None:
        form = replace(form, places=min(form.places, model.longest))
    caches: dict[str, TensorType] = {}
    windows: list[int | None] = []
    for layer, o in enumerate(o for o in module.main.body if isinstance(o.op, ops.Attention)):
        assert isinstance(o.op, ops.Attention)
        windows.append(o.op.window)
        for name, kept in zip(("key", "value"), o.inputs[1:3], strict=True):
            caches |= {f"{part}_{layer}": type for part, type in form.states(name, kept.type, o.op.window).items()}
    tables = form.tables(windows, symbol("batch"))
    named = {PAGES.of(window): type for window, type in tables.items()}
    ids, one, many = DType.i64["batch", "seq"], DType.i64["batch", 1], DType.i64["batch"]

    def read(input_ids: Tensor, start: Tensor, last: Tensor | None, whole: Tensor, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        pages = {window: kept.pop(PAGES.of(window)) for window in tables}
        text = CachedText(input_ids.shape[1], start, whole, list(kept.values()), form, pages)
        scores = model.read_on(input_ids, text, last)
        return {"logits": scores, **{f"{name}_next": cache for name, cache in zip(kept, text.caches, strict=True)}}

    def prefill(input_ids: Tensor, start: Tensor, last: Tensor, whole: Tensor, **kept: Tensor) -> dict[str, Tensor]:
        return read(input_ids, start, last, whole, kept)

    def decode(input_ids: Tensor, start: Tensor, **kept: Tensor) -> dict[str, Tensor]:
        return read(input_ids, start, None, start + 1, kept)

    if form.places is not None:

        def step(input_ids: Tensor, start: Tensor, **kept: Tensor) -> dict[str, Tensor]:
            return read(input_ids, start, None, start + input_ids.shape[1], kept)

        specs: dict[str, Any] = {"input_ids": DType.i64[1, PIECE], START: DType.i64[1], **caches}
        trace_into(module, STEP, step, facts={PIECE: SymbolFact(1, form.places)}, weights=weights, states=len(caches), **specs)
        return
    texts: dict[str, Any] = {"input_ids": ids, "start": many, "last": many, "whole": many, **named, **caches}
    tokens: dict[str, Any] = {"input_ids": one, "start": many, **named, **caches}
    facts = {"capacity": SymbolFact(1, model.longest)}
    if form.paged:
        longest = None if model.longest is None else -(-model.longest // PAGE)
        facts = {"table": SymbolFact(1, longest), **{POOL.of(window): SymbolFact(1) for window in tables}}
    for name, function, specs in ((PREFILL, prefill, texts), (DECODE, decode, tokens)):
        trace_into(module, name, function, facts=facts, weights=weights, states=len(caches), **specs)


def fixed_cache(places: int) -> CacheForm:
    """A cache in f16 for one text of so many tokens, or of as many as the model has positions for where those are fewer."""
    return CacheForm(DType.f16, places=places)


def only_step(module: Module) -> Module:
    """The module of a language model with a fixed cache, changed so that reading on is all that it does, as ``main``."""
    step = module.functions[STEP]
    module.functions = {"main": Function("main", step.body, step.states)}
    module.metadata = {key: text for key, text in module.metadata.items() if not key.startswith("default.")}  # of inputs that it has no more
    return module


def end_tokens(source: Any) -> list[int]:
    """The tokens that end a text, as a GGUF file, or a checkpoint folder (``generation_config.json``, else ``config.json``), names them."""
    if isinstance(source, GgufFile):
        found = [source.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    elif isinstance(source, (str, Path)) and Path(source).is_dir():
        found = _configured(Folder(source))
    else:
        found = []
    return sorted({n for n in found if isinstance(n, int) and not isinstance(n, bool) and n >= 0})


def _configured(folder: Folder) -> list[Any]:
    for name in ("generation_config.json", "config.json"):
        if folder.has(name):
            raw, _ = folder.json(name, Code.CONFIG_INVALID)
            value = raw.get("eos_token_id") if isinstance(raw, dict) else None
            if value is not None:
                return value if isinstance(value, list) else [value]
    return []
