"""The config of a family as keys of a GGUF file: the way of ``config.py`` backwards.

What keys cannot say would be lost without a word, a window in a file of the architecture ``llama``, for instance. So the keys are read again as a
reader of the file would read them, and each field that then differs is an error with its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from trustformers_ir.frontend.gguf.architectures import GgufArchitecture
from trustformers_ir.frontend.gguf.config import FACTORS, LONG, SHORT, read_config
from trustformers_ir.frontend.gguf.container import GgufFile, GgufTensor
from trustformers_ir.frontend.gguf.kinds import KINDS
from trustformers_ir.ir.diagnostics import Code, Collector, Where
from trustformers_ir.ir.gguf_content import ContentTensor, Key
from trustformers_ir.models.registry import find_family
from trustformers_ir.models.rotary import Rotary

#: where the config of a family calls a field of config.json otherwise
ATTRIBUTES = {
    "rms_norm_eps": "norm_eps",
    "layer_norm_eps": "norm_eps",
    "attn_logit_softcapping": "softcap",
    "final_logit_softcapping": "logit_softcap",
    "use_parallel_residual": "parallel",
    "num_local_experts": "experts",
    "num_experts_per_tok": "chosen",
}
_CLOSE = 1e-6  # relatively: frequencies that are divided by a number in f32


def checked_keys(config: Any, table: GgufArchitecture, tensors: Sequence[ContentTensor], place: Where) -> dict[str, Key]:
    """The keys of a config. ``CANNOT_EXPORT`` with each field that a reader would take for another one; ``tensors`` are those of the file."""
    keys = {f"{table.name}.{name}": Key.of(value) for name, value in _said(config, table).items()}
    told = {"general.architecture": table.name, **{name: key.read for name, key in keys.items()}}
    kinds = {kind.name: kind for kind in KINDS.values()}
    seen = {t.name: GgufTensor(t.name, kinds[t.kind], t.shape, 0, 0, cast(Any, b""), str(place.file)) for t in tensors}
    for t in tensors:
        if t.name in (FACTORS, SHORT, LONG):
            data = t.data().tobytes()
            seen[t.name] = GgufTensor(t.name, kinds[t.kind], t.shape, 0, len(data), cast(Any, data), str(place.file))
    problems = Collector()
    back = read_config(GgufFile(Path(str(place.file)), 3, told, seen), table, find_family(table.model_type), problems)
    problems.check()
    for name, mine, theirs in _differences(config, back):
        if name in table.unsaid:
            continue
        message = f"a file of the architecture {table.name} cannot say that {name} is {mine!r}: who reads it takes {theirs!r}"
        problems.add(Code.CANNOT_EXPORT, message, place, "the model would mean something else")
    problems.check()
    return keys


def factor_tensors(config: Any) -> list[ContentTensor]:
    """The numbers by which rotary frequencies are divided, where the config has some."""
    rotary = getattr(config, "rotary", None)
    if not isinstance(rotary, Rotary):
        return []
    if rotary.kind == "longrope":
        return [_numbers(SHORT, np.array(rotary.divisors, np.float32)), _numbers(LONG, np.array(rotary.long, np.float32))]
    if rotary.kind in ("llama3", "divided"):
        return [_numbers(FACTORS, _divisors(rotary))]
    return []


def _numbers(name: str, array: np.ndarray) -> ContentTensor:
    return ContentTensor(name, "F32", array.shape, lambda: array.view(np.uint8).reshape(1, -1))


def _divisors(rotary: Rotary) -> np.ndarray:
    """``f32[features / 2]``: what plain frequencies are divided by. Of the neighbours of a quotient the one that gives the very frequency is taken,
    where one does."""
    if rotary.kind == "divided":
        return np.array(rotary.divisors, np.float32)
    plain, want = Rotary(rotary.features, rotary.theta).frequencies, rotary.frequencies
    found = plain / want
    for other in (np.nextafter(found, np.float32(0)), np.nextafter(found, np.float32(np.inf))):
        found = np.where((plain / found != want) & (plain / other == want), other, found)
    return np.asarray(found, np.float32)


def _said(config: Any, table: GgufArchitecture) -> dict[str, bool | int | float | str]:
    """What stands under which key, without the name of the architecture."""
    rotary: Rotary | None = getattr(config, "rotary", None)
    windows = [w for w in getattr(config, "windows", ()) if w is not None]
    out: dict[str, bool | int | float | str] = dict(table.constant)
    for name, key in table.fields.items():
        if name == "rope_theta":
            value = None if rotary is None else float(rotary.theta)
        elif name == "sliding_window":
            value = windows[0] if windows else None
        elif name == "original_max_position_embeddings":
            value = rotary.original if rotary is not None and rotary.kind == "longrope" else None
        else:
            value = getattr(config, name, getattr(config, ATTRIBUTES.get(name, name), None))
        if value is not None:
            out[key] = value
    if "head_dim" in table.fields:
        out["attention.value_length"] = config.head_dim
    return out if rotary is None else out | _turning(rotary)


def _turning(rotary: Rotary) -> dict[str, int | float | str]:
    """How positions turn, and how they are stretched."""
    out: dict[str, int | float | str] = {"rope.dimension_count": rotary.features}
    if rotary.kind in ("linear", "yarn"):
        out |= {"rope.scaling.type": rotary.kind, "rope.scaling.factor": float(rotary.factor)}
    if rotary.kind == "yarn":
        betas = {"rope.scaling.yarn_beta_fast": float(rotary.high), "rope.scaling.yarn_beta_slow": float(rotary.low)}
        out |= {"rope.scaling.original_context_length": rotary.original, **betas}
    if rotary.kind == "longrope":
        out["rope.scaling.attn_factor"] = float(rotary.scale)
    return out


# --- is it the same --------------------------------------------------------------------------------------------------------


def _differences(config: Any, back: Any) -> list[tuple[str, Any, Any]]:
    """The fields that differ, with both values; numbers are compared as files hold them, in f32."""
    out = []
    for field in fields(config):
        mine, theirs = getattr(config, field.name), getattr(back, field.name, None)
        if isinstance(mine, Rotary) and isinstance(theirs, Rotary):
            out += _rotary_differences(field.name, mine, theirs)
        elif not _same(mine, theirs):
            out.append((field.name, mine, theirs))
    return out


def _rotary_differences(name: str, mine: Rotary, theirs: Rotary) -> list[tuple[str, Any, Any]]:
    if (mine.kind, theirs.kind) == ("llama3", "divided"):  # the rule is gone, its numbers are there
        alike = np.allclose(mine.frequencies, theirs.frequencies, rtol=_CLOSE, atol=0)
        alone: Sequence[str] = ("features", "scale", "interleaved") if alike else ("kind",)
    else:
        numbers = {"factor"} if mine.kind == "longrope" else set()  # it has made its scale
        alone = [f.name for f in fields(mine) if f.name not in numbers]
    pairs = [(f"{name}.{n}", getattr(mine, n), getattr(theirs, n)) for n in alone]
    return [(n, a, b) for n, a, b in pairs if not _same(a, b)]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)):
        return bool(np.float32(a) == np.float32(b))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if is_dataclass(a) and is_dataclass(b):
        return all(_same(getattr(a, f.name), getattr(b, f.name, None)) for f in fields(a))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return bool(a == b)
