"""LLaMA checkpoints of any size that need no room: their weights are holes."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

SIZES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Sizes:
    """Of a LLaMA. ``shard``: bytes above which another file begins."""

    hidden: int
    inner: int
    layers: int
    vocab: int
    heads: int
    shard: int
    dtype: str = "BF16"

    @property
    def tensors(self) -> dict[str, list[int]]:
        """Shapes by the names of a checkpoint."""
        square, norm = [self.hidden, self.hidden], [self.hidden]
        out = {"model.embed_tokens.weight": [self.vocab, self.hidden]}
        for n in range(self.layers):
            p = f"model.layers.{n}."
            out |= {f"{p}self_attn.{x}_proj.weight": square for x in "qkvo"}
            out |= {f"{p}mlp.{x}_proj.weight": [self.inner, self.hidden] for x in ("gate", "up")}
            out |= {f"{p}mlp.down_proj.weight": [self.hidden, self.inner]}
            out |= {f"{p}{x}_layernorm.weight": norm for x in ("input", "post_attention")}
        return out | {"model.norm.weight": norm, "lm_head.weight": [self.vocab, self.hidden]}

    def bytes(self, shape: list[int]) -> int:
        return prod(shape) * SIZES[self.dtype]

    @property
    def total(self) -> int:
        return sum(map(self.bytes, self.tensors.values()))

    @property
    def largest(self) -> int:
        return max(map(self.bytes, self.tensors.values()))

    def write(self, folder: Path) -> Path:
        """The checkpoint in several files, as ``save_pretrained`` names them."""
        folder.mkdir()
        config = {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": self.hidden, "intermediate_size": self.inner,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.heads, "vocab_size": self.vocab,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        shards: list[dict[str, list[int]]] = [{}]
        for name, shape in self.tensors.items():
            if shards[-1] and sum(map(self.bytes, shards[-1].values())) + self.bytes(shape) > self.shard:
                shards.append({})
            shards[-1][name] = shape
        places = {}
        for n, shard in enumerate(shards, 1):
            file = f"model-{n:05}-of-{len(shards):05}.safetensors"
            header, at = {}, 0
            for name, shape in shard.items():
                header[name] = {"dtype": self.dtype, "shape": shape, "data_offsets": [at, at + self.bytes(shape)]}
                at += self.bytes(shape)
                places[name] = file
            text = json.dumps(header).encode()
            with (folder / file).open("wb") as stream:
                stream.write(struct.pack("<Q", len(text)) + text)
                stream.truncate(8 + len(text) + at)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": self.total}, "weight_map": places}))
        return folder
