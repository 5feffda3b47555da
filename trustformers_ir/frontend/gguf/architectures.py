"""What an architecture is called in GGUF files: its keys, the names of its tensors, and how their rows lie.

A row of the table maps both ways. ``fields`` says under which key (behind ``<architecture>.``) a field of the family's config stands; ``names`` pairs
tensors of files with parameters of ``models/``, ``{n}`` being the number of a layer (``blk.{n}.attn_q`` stands for its weight and its bias).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class GgufArchitecture:
    """``paired`` are the parameters (patterns) whose rows are, head by head, in the order in which llama.cpp turns pairs of them: 0 and 1, 2 and 3,
    …; here row i turns with row i + half. ``parted`` hold queries, keys and values of each group of heads; files hold those of all heads one behind
    the other. ``columns`` are parameters that hold a row for each input; files hold one for each output. ``raised`` are scales of norms to which
    files have added 1.

    ``settings`` are fields that the architecture implies, ``present`` are fields that are true where there is that tensor, ``counted`` are fields
    that are the number of a tensor's rows, ``unsaid`` are fields of which files need say nothing, since no parameter and no result depends on them.
    ``refused`` are keys with which it is another one, ``constant`` are keys that have one value. ``partial``: only some features of a head may turn.
    ``wide`` is the number of layers of the one size whose queries are scaled by ``hidden_size / num_attention_heads`` (0: none), where the config
    says by what and files do not."""

    name: str
    model_type: str
    architecture: str
    fields: Mapping[str, str]
    names: tuple[tuple[str, str], ...]
    paired: tuple[str, ...] = ()
    parted: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    raised: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    present: Mapping[str, str] = field(default_factory=dict)
    counted: Mapping[str, str] = field(default_factory=lambda: {"vocab_size": "token_embd.weight"})
    unsaid: tuple[str, ...] = ()
    constant: Mapping[str, bool] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    partial: bool = False
    wide: int | None = None

    @property
    def encodes(self) -> bool:
        """Whether it makes hidden states of texts, or a vector of each, and no text."""
        return self.constant.get("attention.causal") is False

    def parameter(self, tensor: str) -> str | None:
        """The name of the parameter that a tensor is; None for one that has no place."""
        return _renamed(tensor, self.names)

    def tensor(self, parameter: str) -> str | None:
        """The name of the tensor that a parameter is; the inverse of :meth:`parameter`."""
        return _renamed(parameter, [(mine, theirs) for theirs, mine in self.names])


def fits(parameter: str, patterns: Iterable[str]) -> bool:
    """Whether the name of a parameter is one of those."""
    return any(re.fullmatch(p, parameter) for p in patterns)


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

_GROUPED = _SIZES | {"num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length", "rope_theta": "rope.freq_base"}
_RMS = {"rms_norm_eps": "attention.layer_norm_rms_epsilon"}
_LAYER_NORM = {"layer_norm_eps": "attention.layer_norm_epsilon"}

_OUTER = (("token_embd", "embed_tokens"), ("output_norm", "norm"), ("output", "lm_head"))
_ATTENTION = (
    ("blk.{n}.attn_norm", "layers.{n}.input_layernorm"),
    ("blk.{n}.attn_q", "layers.{n}.self_attn.q_proj"),
    ("blk.{n}.attn_k", "layers.{n}.self_attn.k_proj"),
    ("blk.{n}.attn_v", "layers.{n}.self_attn.v_proj"),
    ("blk.{n}.attn_output", "layers.{n}.self_attn.o_proj"),
)
_HEAD_NORMS = (("blk.{n}.attn_q_norm", "layers.{n}.self_attn.q_norm"), ("blk.{n}.attn_k_norm", "layers.{n}.self_attn.k_norm"))
_NETWORK = (
    ("blk.{n}.ffn_gate", "layers.{n}.mlp.gate_proj"),
    ("blk.{n}.ffn_up", "layers.{n}.mlp.up_proj"),
    ("blk.{n}.ffn_down", "layers.{n}.mlp.down_proj"),
)
_DECODER = (*_OUTER, *_ATTENTION, ("blk.{n}.ffn_norm", "layers.{n}.post_attention_layernorm"), *_NETWORK)
_BETWEEN_NORMS = (
    *_OUTER,
    *_ATTENTION,
    ("blk.{n}.post_attention_norm", "layers.{n}.post_attention_layernorm"),
    ("blk.{n}.ffn_norm", "layers.{n}.pre_feedforward_layernorm"),
    ("blk.{n}.post_ffw_norm", "layers.{n}.post_feedforward_layernorm"),
    *_NETWORK,
)
_BIASES = {"attention_bias": "blk.0.attn_q.bias"}
_NORMS = (r"norm\.weight", r"layers\.\d+\.(\w+_layernorm|self_attn\.[qk]_norm)\.weight")

LLAMA = GgufArchitecture(
    name="llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields=_GROUPED | _RMS,
    names=_DECODER,
    paired=(r"layers\.\d+\.self_attn\.[qk]_proj\.(weight|bias)",),
    present=_BIASES | {"mlp_bias": "blk.0.ffn_gate.bias"},
    refused=("expert_count",),
)

MIXTRAL = GgufArchitecture(
    name="llama",
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    fields=_GROUPED | _RMS | {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
    names=(
        *(pair for pair in _DECODER if pair not in _NETWORK),
        ("blk.{n}.ffn_gate_inp", "layers.{n}.block_sparse_moe.gate"),
        ("blk.{n}.ffn_gate_exps", "layers.{n}.block_sparse_moe.experts.w1"),
        ("blk.{n}.ffn_down_exps", "layers.{n}.block_sparse_moe.experts.w2"),
        ("blk.{n}.ffn_up_exps", "layers.{n}.block_sparse_moe.experts.w3"),
    ),
    paired=LLAMA.paired,
)

QWEN2 = GgufArchitecture("qwen2", "qwen2", "Qwen2ForCausalLM", _GROUPED | _RMS, _DECODER)

QWEN3 = GgufArchitecture("qwen3", "qwen3", "Qwen3ForCausalLM", _GROUPED | _RMS, (*_DECODER, *_HEAD_NORMS), present=_BIASES)

PHI3 = GgufArchitecture(
    name="phi3",
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    fields=_GROUPED
    | _RMS
    | {"sliding_window": "attention.sliding_window", "original_max_position_embeddings": "rope.scaling.original_context_length"},
    names=(
        *_OUTER,
        ("blk.{n}.attn_norm", "layers.{n}.input_layernorm"),
        ("blk.{n}.attn_qkv", "layers.{n}.self_attn.qkv_proj"),
        ("blk.{n}.attn_output", "layers.{n}.self_attn.o_proj"),
        ("blk.{n}.ffn_norm", "layers.{n}.post_attention_layernorm"),
        ("blk.{n}.ffn_up", "layers.{n}.mlp.gate_up_proj"),
        ("blk.{n}.ffn_down", "layers.{n}.mlp.down_proj"),
    ),
    partial=True,
)

GEMMA = GgufArchitecture("gemma", "gemma", "GemmaForCausalLM", _GROUPED | _RMS, _DECODER, raised=_NORMS)

_BOUNDED = {"sliding_window": "attention.sliding_window", "final_logit_softcapping": "final_logit_softcapping"}

GEMMA2 = GgufArchitecture(
    name="gemma2",
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    fields=_GROUPED | _RMS | _BOUNDED | {"attn_logit_softcapping": "attn_logit_softcapping"},
    names=_BETWEEN_NORMS,
    raised=_NORMS,
    wide=46,
)

GEMMA3 = GgufArchitecture(
    name="gemma3",
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    fields=_GROUPED | _RMS | _BOUNDED,
    names=(*_BETWEEN_NORMS, *_HEAD_NORMS),
    raised=_NORMS,
    wide=62,
)

GPT_NEOX = GgufArchitecture(
    name="gptneox",
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    fields=_SIZES | _LAYER_NORM | {"use_parallel_residual": "use_parallel_residual", "rope_theta": "rope.freq_base"},
    names=(
        ("token_embd", "embed_in"),
        ("output_norm", "final_layer_norm"),
        ("output", "lm_head"),
        ("blk.{n}.attn_norm", "layers.{n}.input_layernorm"),
        ("blk.{n}.attn_qkv", "layers.{n}.attention.query_key_value"),
        ("blk.{n}.attn_output", "layers.{n}.attention.dense"),
        ("blk.{n}.ffn_norm", "layers.{n}.post_attention_layernorm"),
        ("blk.{n}.ffn_up", "layers.{n}.mlp.dense_h_to_4h"),
        ("blk.{n}.ffn_down", "layers.{n}.mlp.dense_4h_to_h"),
    ),
    parted=(r"layers\.\d+\.attention\.query_key_value\.(weight|bias)",),
    present={"attention_bias": "blk.0.attn_qkv.bias"},
    partial=True,
)

FALCON = GgufArchitecture(
    name="falcon",
    model_type="falcon",
    architecture="FalconForCausalLM",
    fields=_SIZES
    | {
        "ffn_hidden_size": "feed_forward_length",
        "num_kv_heads": "attention.head_count_kv",
        "layer_norm_epsilon": "attention.layer_norm_epsilon",
        "rope_theta": "rope.freq_base",
    },
    names=(
        ("token_embd", "word_embeddings"),
        ("output_norm", "ln_f"),
        ("output", "lm_head"),
        ("blk.{n}.attn_norm", "h.{n}.input_layernorm"),
        ("blk.{n}.attn_qkv", "h.{n}.self_attention.query_key_value"),
        ("blk.{n}.attn_output", "h.{n}.self_attention.dense"),
        ("blk.{n}.ffn_up", "h.{n}.mlp.dense_h_to_4h"),
        ("blk.{n}.ffn_down", "h.{n}.mlp.dense_4h_to_h"),
    ),
    parted=(r"h\.\d+\.self_attention\.query_key_value\.(weight|bias)",),
    settings={"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    present={"bias": "blk.0.attn_qkv.bias"},
)

FALCON_TWO_NORMS = replace(
    FALCON,
    names=(
        *(pair for pair in FALCON.names if pair[0] != "blk.{n}.attn_norm"),
        ("blk.{n}.attn_norm", "h.{n}.ln_mlp"),
        ("blk.{n}.attn_norm_2", "h.{n}.ln_attn"),
    ),
    settings={"new_decoder_architecture": True},
)

STABLELM = GgufArchitecture(
    name="stablelm",
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    fields=_GROUPED | _LAYER_NORM | {"use_parallel_residual": "use_parallel_residual"},
    names=(*_DECODER, *_HEAD_NORMS),
    present={"use_qkv_bias": "blk.0.attn_q.bias", "qk_layernorm": "blk.0.attn_q_norm.weight"},
    partial=True,
)

COMMAND_R = GgufArchitecture(
    name="command-r",
    model_type="cohere",
    architecture="CohereForCausalLM",
    fields=_GROUPED | _LAYER_NORM | {"logit_scale": "logit_scale"},
    names=(*_DECODER, *_HEAD_NORMS),
    present=_BIASES | {"use_qk_norm": "blk.0.attn_q_norm.weight"},
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

BERT = GgufArchitecture(
    name="bert",
    model_type="bert",
    architecture="BertModel",
    fields=_SIZES | _LAYER_NORM,
    names=(
        ("token_embd", "embeddings.word_embeddings"),
        ("position_embd", "embeddings.position_embeddings"),
        ("token_types", "embeddings.token_type_embeddings"),
        ("token_embd_norm", "embeddings.LayerNorm"),
        ("blk.{n}.attn_q", "encoder.layer.{n}.attention.self.query"),
        ("blk.{n}.attn_k", "encoder.layer.{n}.attention.self.key"),
        ("blk.{n}.attn_v", "encoder.layer.{n}.attention.self.value"),
        ("blk.{n}.attn_output", "encoder.layer.{n}.attention.output.dense"),
        ("blk.{n}.attn_output_norm", "encoder.layer.{n}.attention.output.LayerNorm"),
        ("blk.{n}.ffn_up", "encoder.layer.{n}.intermediate.dense"),
        ("blk.{n}.ffn_down", "encoder.layer.{n}.output.dense"),
        ("blk.{n}.layer_output_norm", "encoder.layer.{n}.output.LayerNorm"),
        ("cls", "pooler.dense"),
    ),
    counted={"vocab_size": "token_embd.weight", "type_vocab_size": "token_types.weight"},
    unsaid=("num_labels", "tie_word_embeddings"),
    constant={"attention.causal": False},
)

ARCHITECTURES: Mapping[str, GgufArchitecture] = {
    a.name: a for a in (LLAMA, GPT2, QWEN2, QWEN3, PHI3, GEMMA, GEMMA2, GEMMA3, GPT_NEOX, FALCON, STABLELM, COMMAND_R, BERT)
}


def architecture_of(name: str, tensors: Container[str]) -> GgufArchitecture:
    """The row of that name, for a model of these tensors: a LLaMA with experts is a Mixtral; the larger Falcons have two norms in each layer, and
    call them otherwise."""
    found = ARCHITECTURES[name]
    if found is LLAMA and "blk.0.ffn_gate_exps.weight" in tensors:
        return MIXTRAL
    return FALCON_TWO_NORMS if found is FALCON and "blk.0.attn_norm_2.weight" in tensors else found
