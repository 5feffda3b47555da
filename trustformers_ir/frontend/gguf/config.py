"""What the metadata of a GGUF file, and which tensors it holds, say of a model: the config of its family, as a ``config.json`` would have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from trustformers_ir.frontend.gguf.architectures import GgufArchitecture
from trustformers_ir.frontend.gguf.container import GgufFile, GgufTensor
from trustformers_ir.ir.diagnostics import Code, Collector, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.models.config import Fields
from trustformers_ir.models.family import Family

FACTORS = "rope_freqs.weight"  # by what each frequency is divided
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"  # the same, for texts of the two lengths
NO_PARAMETERS = (FACTORS, SHORT, LONG)
FITS = "is the file complete, and written by a current converter?"


def read_config(file: GgufFile, architecture: GgufArchitecture, family: Family, problems: Collector) -> Any:
    """The config of the family. Raises ``CompilerError`` with all problems of the keys; what is wrong with factors goes to ``problems``."""
    raw = _Raw(file, architecture, problems).fields()
    config = family.read_config(_Keys(raw, problems, file, architecture))
    problems.check()
    return _with_factors(config, file, problems)


class _Keys(Fields):
    """Fields of a config, reported under the keys that they come from."""

    def __init__(self, raw: Mapping[str, Any], problems: Collector, file: GgufFile, architecture: GgufArchitecture) -> None:
        super().__init__(raw, problems, lambda name: Where(file=str(file.path)), Code.GGUF_METADATA)
        self.architecture = architecture

    def shown(self, name: str) -> str:
        key = self.architecture.fields.get(name)
        return name if key is None else f"{self.architecture.name}.{key}"


class _Raw:
    """The fields of a config, one group of keys after the other."""

    def __init__(self, file: GgufFile, architecture: GgufArchitecture, problems: Collector) -> None:
        self.file, self.architecture, self.problems = file, architecture, problems

    def unsupported(self, key: str, what: str) -> None:
        message = f"{self.architecture.name}.{key} is {what}, which is not supported"
        self.problems.add(Code.UNSUPPORTED_CONFIG, message, Where(file=str(self.file.path)), "")

    def value(self, key: str, missing: Any = None) -> Any:
        return self.file.metadata.get(f"{self.architecture.name}.{key}", missing)

    def fields(self) -> dict[str, Any]:
        for key in self.architecture.refused:
            if self.value(key, 0) != 0:
                self.unsupported(key, f"{self.value(key)!r}")
        raw = self.named() | dict(self.architecture.settings)
        for name, value in self.architecture.constant.items():
            if self.value(name, value) != value:
                self.unsupported(name, f"{self.value(name)!r}")
        for name, tensor in self.architecture.counted.items():
            found = self.file.get(tensor)
            if found is not None and len(found.shape) == 2:
                raw.setdefault(name, found.shape[0])
        raw["tie_word_embeddings"] = "output.weight" not in self.file
        raw |= {name: tensor in self.file for name, tensor in self.architecture.present.items()}
        features = self.features(raw)
        if self.value("attention.value_length", features) != features:
            self.unsupported("attention.value_length", f"{self.value('attention.value_length')!r} where heads have {features} features")
        return raw | self.turning(features) | self.queries(raw, features) | self.scaling()

    def named(self) -> dict[str, Any]:
        """The fields that stand under a key of their own."""
        raw: dict[str, Any] = {}
        for name, key in self.architecture.fields.items():
            value = self.value(key)
            if isinstance(value, np.ndarray):  # one number for each layer
                if len(value) == 0 or (value != value[0]).any():
                    self.unsupported(key, "another one in each layer")
                    continue
                value = value[0].item()
            if value is not None:
                raw[name] = value
        return raw

    @staticmethod
    def features(raw: Mapping[str, Any]) -> Any:
        """Of a head; None where the keys do not say so."""
        width, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
        known = width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else None
        return raw.get("head_dim", known)

    def turning(self, features: Any) -> dict[str, Any]:
        """Which part of each head turns."""
        key = "rope.dimension_count"
        turned = self.value(key, features)
        if self.architecture.partial and isinstance(turned, int) and isinstance(features, int) and 0 < turned <= features:
            return {"partial_rotary_factor": turned / features}
        if turned != features:
            self.unsupported(key, f"{turned!r} where heads have {features} features")
        return {}

    def queries(self, raw: Mapping[str, Any], features: Any) -> dict[str, Any]:
        """By what queries are scaled, where the config of the family says so."""
        if self.architecture.wide is None or not isinstance(features, int):
            return {}
        wide = raw.get("num_hidden_layers") == self.architecture.wide
        return {"query_pre_attn_scalar": raw["hidden_size"] // raw["num_attention_heads"] if wide else features}

    def scaling(self) -> dict[str, Any]:
        """How rotary positions are stretched."""
        short, long = (self.divisors(name) for name in (SHORT, LONG))
        if short is not None or long is not None:
            factors = {"short_factor": short, "long_factor": long, "attention_factor": self.value("rope.scaling.attn_factor")}
            return {"rope_scaling": {"rope_type": "longrope", **factors}}
        kind = self.value("rope.scaling.type", "none")
        if kind == "none":
            return {}
        if kind not in ("linear", "yarn"):
            self.unsupported("rope.scaling.type", f"{kind!r}")
            return {}
        found = {"rope_type": kind, "factor": self.value("rope.scaling.factor", 1.0)}
        if kind == "yarn":
            names = {"original_max_position_embeddings": "original_context_length", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
            found |= {name: self.value(f"rope.scaling.{key}") for name, key in names.items()}
            if self.value("rope.scaling.attn_factor", 1.0) != 1:
                self.unsupported("rope.scaling.attn_factor", f"{self.value('rope.scaling.attn_factor')!r}")
        return {"rope_scaling": found}

    def divisors(self, name: str) -> list[float] | None:
        """The numbers of a tensor; None where there is none."""
        tensor = self.file.get(name)
        if tensor is None:
            return None
        if tensor.kind.dtype is not DType.f32 or len(tensor.shape) != 1:
            self.problems.add(Code.WEIGHT_SHAPE, f"'{name}' is {tensor}, not F32 with one axis", tensor.where, FITS)
            return None
        return [float(v) for v in tensor.array()]


def _with_factors(config: Any, file: GgufFile, problems: Collector) -> Any:
    """The config with the divisors of its rotary frequencies, where the file has some."""
    tensor: GgufTensor | None = file.get(FACTORS)
    if tensor is None or not hasattr(config, "rotary"):
        return config
    if tensor.kind.dtype is not DType.f32 or tensor.shape != (config.rotary.features // 2,):
        problems.add(Code.WEIGHT_SHAPE, f"'{FACTORS}' is {tensor}, not F32[{config.rotary.features // 2}]", tensor.where, FITS)
        return config
    divisors = tensor.array()
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        problems.add(Code.GGUF_TENSOR, f"'{FACTORS}' holds a number that nothing can be divided by", tensor.where, FITS)
        return config
    return replace(config, rotary=replace(config.rotary, kind="divided", divisors=tuple(float(d) for d in divisors)))
