"""What an architecture is called in GGUF files: its keys, the names of its tensors, and how their rows lie.

A row of the table maps both ways. ``fields`` says under which key (behind ``<architecture>.``) a field of the family's config stands; ``names`` pairs
tensors of files with parameters of ``models/``, ``{n}`` being the number of a layer (``blk.{n}.attn_q`` stands for its weight and its bias).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class GgufArchitecture:
    """``paired`` are the parameters (patterns) whose rows are, head by head, in the order in which llama.cpp turns pairs of them: 0 and 1, 2 and 3,
    …; here row i turns with row i + half. ``columns`` are parameters that hold a row for each input; files hold one for each output. ``settings``
    are fields that the architecture implies, ``refused`` are keys with which it is another one."""

    name: str
    model_type: str
    architecture: str
    fields: Mapping[str, str]
    names: tuple[tuple[str, str], ...]
    paired: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    refused: tuple[str, ...] = ()

    def parameter(self, tensor: str) -> str | None:
        """The name of the parameter that a tensor is; None for one that has no place."""
        return _renamed(tensor, self.names)

    def tensor(self, parameter: str) -> str | None:
        """The name of the tensor that a parameter is; the inverse of :meth:`parameter`."""
        return _renamed(parameter, [(mine, theirs) for theirs, mine in self.names])

    def is_paired(self, parameter: str) -> bool:
        """Whether the rows of a parameter turn in neighbouring pairs in a file."""
        return any(re.fullmatch(p, parameter) for p in self.paired)

    def is_turned(self, parameter: str) -> bool:
        """Whether the parameter is the transpose of what a file holds."""
        return any(re.fullmatch(p, parameter) for p in self.columns)


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    """The name with its stem, all before the last dot, replaced by that of the first pair that fits."""
    stem, _, kind = name.rpartition(".")
    for old, new in pairs:
        found = re.fullmatch(re.escape(old).replace(r"\{n\}", r"(\d+)"), stem)
        if found is not None:
            return f"{new.replace('{n}', found[1]) if found.groups() else new}.{kind}"
    return None


_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
}

LLAMA = GgufArchitecture(
    name="llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields=_SIZES
    | {
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "rope_theta": "rope.freq_base",
    },
    names=(
        ("token_embd", "embed_tokens"),
        ("output_norm", "norm"),
        ("output", "lm_head"),
        ("blk.{n}.attn_norm", "layers.{n}.input_layernorm"),
        ("blk.{n}.attn_q", "layers.{n}.self_attn.q_proj"),
        ("blk.{n}.attn_k", "layers.{n}.self_attn.k_proj"),
        ("blk.{n}.attn_v", "layers.{n}.self_attn.v_proj"),
        ("blk.{n}.attn_output", "layers.{n}.self_attn.o_proj"),
        ("blk.{n}.ffn_norm", "layers.{n}.post_attention_layernorm"),
        ("blk.{n}.ffn_gate", "layers.{n}.mlp.gate_proj"),
        ("blk.{n}.ffn_up", "layers.{n}.mlp.up_proj"),
        ("blk.{n}.ffn_down", "layers.{n}.mlp.down_proj"),
    ),
    paired=(r"layers\.\d+\.self_attn\.[qk]_proj\.(weight|bias)",),
    refused=("expert_count",),
)

GPT2 = GgufArchitecture(
    name="gpt2",
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    fields={
        "n_embd": "embedding_length",
        "n_layer": "block_count",
        "n_inner": "feed_forward_length",
        "n_head": "attention.head_count",
        "n_positions": "context_length",
        "vocab_size": "vocab_size",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
    },
    names=(
        ("token_embd", "wte"),
        ("position_embd", "wpe"),
        ("output_norm", "ln_f"),
        ("output", "lm_head"),
        ("blk.{n}.attn_norm", "h.{n}.ln_1"),
        ("blk.{n}.attn_qkv", "h.{n}.attn.c_attn"),
        ("blk.{n}.attn_output", "h.{n}.attn.c_proj"),
        ("blk.{n}.ffn_norm", "h.{n}.ln_2"),
        ("blk.{n}.ffn_up", "h.{n}.mlp.c_fc"),
        ("blk.{n}.ffn_down", "h.{n}.mlp.c_proj"),
    ),
    columns=(r"h\.\d+\.(attn|mlp)\.c_\w+\.weight",),
    settings={"activation_function": "gelu_new"},
)

ARCHITECTURES: Mapping[str, GgufArchitecture] = {a.name: a for a in (LLAMA, GPT2)}

