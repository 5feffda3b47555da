"""Model types of transformers with tiny random configs, compiled through torch.export and compared with eager at sizes other than the example's.

``python tests/frontend/torch_zoo.py [names]`` runs them, one process each, and prints a row of JSON for each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 1e-4  # relative to the largest magnitude of the output
VOCABULARY = 99


@dataclass(frozen=True)
class Case:
    """A model type: the class of transformers that is made, how its config differs from the tiny default, and what it is fed with."""

    name: str
    family: str
    auto: str = "AutoModel"
    inputs: str = "text"
    config: Mapping[str, Any] = field(default_factory=dict)
    model_type: str = ""
    sizes: tuple[tuple[int, int], ...] = ((3, 7), (1, 12))  # batch, sequence; the example has (2, 9)
    prepare: Callable[[Any], None] | None = None


TEXT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": VOCABULARY,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DECODER = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32, "patch_size": 8,
    "num_channels": 3,
}  # fmt: skip
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
AUDIO = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 32, "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
CLIP_TEXT = {**TEXT, "projection_dim": 16}
CLIP_VISION = {**VISION, "projection_dim": 16}


def text(name: str, **config: Any) -> Case:
    return Case(name, "encoder", config={**TEXT, **config})


def decoder(name: str, **config: Any) -> Case:
    return Case(name, "decoder", "AutoModelForCausalLM", config={**DECODER, **config})


def vision(name: str, **config: Any) -> Case:
    return Case(name, "vision", inputs="image", config={**VISION, **config}, sizes=((3, 0), (1, 0)))


def seq2seq(name: str, **config: Any) -> Case:
    return Case(name, "encoder-decoder", "AutoModelForSeq2SeqLM", "seq2seq", {**SEQ2SEQ, **config})


def audio(name: str, **config: Any) -> Case:
    return Case(name, "audio", inputs="wave", config={**AUDIO, **config}, sizes=((3, 700), (1, 1200)))


LOOPED = ((3, 9), (1, 9))  # a Python loop over the tokens fixes their number, which a note says
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY, "decoder_start_token_id": 0, "pad_token_id": 0}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_channels": 3}

CASES: tuple[Case, ...] = (
    # encoders
    text("bert"),
    text("roberta", pad_token_id=1),
    text("albert", embedding_size=16),
    Case("distilbert", "encoder", config={"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": VOCABULARY}),
    text("electra", embedding_size=16),
    Case("deberta", "encoder", config={**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, sizes=LOOPED),
    text("deberta-v2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True),
    text("camembert", pad_token_id=1),
    text("xlm-roberta", pad_token_id=1),
    text("mpnet"),
    text("ernie"),
    text("convbert", embedding_size=32, head_ratio=2, conv_kernel_size=3),
    text("mobilebert", embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
    text("squeezebert", embedding_size=32),
    Case("fnet", "encoder", inputs="ids", config=TEXT),
    text("roformer", embedding_size=32),
    Case("nystromformer", "encoder", config={**TEXT, "num_landmarks": 9, "segment_means_seq_len": 9}, sizes=((3, 9), (1, 9))),
    text("rembert", input_embedding_size=16, output_embedding_size=16),
    text("esm", pad_token_id=1, mask_token_id=5),
    text("modernbert", global_attn_every_n_layers=2, local_attention=8, cls_token_id=1, sep_token_id=2),
    text("layoutlm"),
    text("megatron-bert"),
    Case("xlnet", "encoder", config={"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "vocab_size": VOCABULARY}),
    # decoders without a cache
    Case("gpt2", "decoder", "AutoModelForCausalLM",
         config={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}),
    Case("gpt_neo", "decoder", "AutoModelForCausalLM", config={**TEXT, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
         "window_size": 4}),
    Case("gptj", "decoder", "AutoModelForCausalLM",
         config={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY, "rotary_dim": 4}),
    decoder("gpt_neox"),
    decoder("llama"),
    decoder("mistral", sliding_window=4),
    decoder("mixtral", num_local_experts=4, num_experts_per_tok=2),
    decoder("gemma"),
    decoder("gemma2", sliding_window=4, query_pre_attn_scalar=8),
    decoder("gemma3_text", sliding_window=4, query_pre_attn_scalar=8),
    decoder("qwen2"),
    decoder("qwen3"),
    decoder("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    decoder("phi"),
    decoder("phi3"),
    Case("falcon", "decoder", "AutoModelForCausalLM", config={**TEXT, "new_decoder_architecture": True, "num_kv_heads": 2}),
    decoder("stablelm"),
    decoder("cohere"),
    Case("opt", "decoder", "AutoModelForCausalLM", config={**TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    Case("bloom", "decoder", "AutoModelForCausalLM", config={"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY}),
    decoder("olmo2"),
    Case("mpt", "decoder", "AutoModelForCausalLM", config={"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": VOCABULARY, "max_seq_len": 64}),
    decoder("granite"),
    # decoders with a cache
    Case("llama with a cache", "decoder, cache", "AutoModelForCausalLM", "cached", DECODER, "llama", ((3, 5), (1, 8))),
    Case("gpt2 with a cache", "decoder, cache", "AutoModelForCausalLM", "cached",
         {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}, "gpt2", ((3, 5), (1, 8))),
    Case("qwen2 with a cache", "decoder, cache", "AutoModelForCausalLM", "cached", DECODER, "qwen2", ((3, 5), (1, 8))),
    # encoder-decoders
    Case("t5", "encoder-decoder", "AutoModelForSeq2SeqLM", "seq2seq", T5),
    Case("mt5", "encoder-decoder", "AutoModelForSeq2SeqLM", "seq2seq", T5),
    seq2seq("bart"),
    seq2seq("mbart"),
    seq2seq("pegasus"),
    seq2seq("marian"),
    seq2seq("m2m_100"),
    seq2seq("blenderbot"),
    # vision
    vision("vit"),
    vision("deit"),
    vision("beit"),
    vision("dinov2"),
    Case("swin", "vision", inputs="image", config={"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 4,
         "image_size": 32}, sizes=((3, 0), (1, 0))),
    Case("convnext", "vision", inputs="image", config=STAGES, sizes=((3, 0), (1, 0))),
    Case("resnet", "vision", inputs="image", config={"embedding_size": 8, **STAGES}, sizes=((3, 0), (1, 0))),
    Case("segformer", "vision", inputs="image", config={"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
         sizes=((3, 0), (1, 0))),
    Case("poolformer", "vision", inputs="image", config={"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, sizes=((3, 0), (1, 0))),
    Case("mobilenet_v2", "vision", inputs="image", config={"depth_multiplier": 0.35}, sizes=((3, 0), (1, 0))),
    # CLIP-like
    Case("clip", "CLIP-like", inputs="pair", config={"text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 16}),
    Case("siglip", "CLIP-like", inputs="pair", config={"text_config": {**TEXT, "projection_size": 32}, "vision_config": VISION}),
    Case("chinese_clip", "CLIP-like", inputs="pair", config={"text_config": TEXT, "vision_config": CLIP_VISION, "projection_dim": 16}),
    # audio
    audio("wav2vec2"),
    audio("hubert"),
    audio("wavlm"),
    Case("whisper", "audio", "AutoModelForSpeechSeq2Seq", "speech",
         {**SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 32}),
    Case("audio-spectrogram-transformer", "audio", inputs="spectrogram",
         config={**VISION, "num_mel_bins": 16, "max_length": 32, "patch_size": 8, "frequency_stride": 4, "time_stride": 4}, sizes=((3, 0), (1, 0))),
    # state space
    Case("mamba", "state space", "AutoModelForCausalLM", "ids",
         {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "use_cache": False},
         sizes=LOOPED),
    Case("mamba2", "state space", "AutoModelForCausalLM", "ids",
         {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "head_dim": 16, "num_heads": 4, "n_groups": 2,
          "chunk_size": 4, "use_cache": False}, sizes=LOOPED),
    Case("rwkv", "state space", "AutoModelForCausalLM", "ids",
         {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "attention_hidden_size": 32, "use_cache": False,
          "rescale_every": 0},
         sizes=LOOPED),
)  # fmt: skip


# Why those of CASES that do not agree do not; docs/torch.md has the list.
KNOWN: dict[str, str] = {}


def build(case: Case) -> Any:
    """The model, with weights that are not too small to matter."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(case.model_type or case.name, **case.config)
    model = getattr(transformers, case.auto).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model


def inputs(case: Case, model: Any, batch: int, length: int) -> dict[str, Any]:
    """What the model is fed with."""
    import torch

    def ids(n: int = length) -> Any:
        return torch.randint(3, VOCABULARY, (batch, n))

    def mask() -> Any:
        found = torch.ones(batch, length, dtype=torch.long)
        found[-1, length - 2 :] = 0
        return found

    if case.inputs == "ids":
        return {"input_ids": ids()}
    if case.inputs == "image":
        size = getattr(model.config, "image_size", 32)
        return {"pixel_values": torch.randn(batch, 3, size, size)}
    if case.inputs == "seq2seq":
        return {"input_ids": ids(), "attention_mask": mask(), "decoder_input_ids": ids(length + 2), "use_cache": False}
    if case.inputs == "pair":
        return {"input_ids": ids(), "attention_mask": mask(), "pixel_values": torch.randn(batch + 1, 3, 32, 32)}
    if case.inputs == "wave":
        return {"input_values": torch.randn(batch, length)}
    if case.inputs == "speech":
        frames = 2 * model.config.max_source_positions
        return {"input_features": torch.randn(batch, 16, frames), "decoder_input_ids": ids(), "use_cache": False}
    if case.inputs == "spectrogram":
        return {"input_values": torch.randn(batch, 32, 16)}
    if case.inputs == "cached":
        import transformers

        cache = transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids(length), past_key_values=cache)
        seen = torch.ones(batch, length + 3, dtype=torch.long)
        return {"input_ids": ids(3), "attention_mask": seen, "past_key_values": cache}
    plain = {"input_ids": ids(), "attention_mask": mask()}
    return plain | ({"use_cache": False} if case.family.startswith("decoder") else {})


def leaves(tree: Any) -> list[Any]:
    import torch
    import torch.utils._pytree as pytree

    return [x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def distance(case: Case, model: Any, exe: Any, batch: int, length: int) -> float:
    """How far the compiled model is from eager: the largest difference, relative to the largest magnitude of the output."""
    import copy

    import torch

    torch.manual_seed(batch * 1000 + length)
    given = inputs(case, model, batch, length)
    with torch.no_grad():
        wanted = leaves(model(**copy.deepcopy(given)))
    got = leaves(exe(**given))
    assert [tuple(t.shape) for t in got] == [tuple(t.shape) for t in wanted], "the outputs have other shapes than those of eager"
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype, f"{a.dtype} where eager has {b.dtype}"
        if b.numel():
            a, b = a.double(), b.double()
            same = (a == b) | (a.isnan() & b.isnan())
            gap = torch.where(same, 0.0, (a - b).abs())
            worst = max(worst, float(gap.max() / max(float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0, 1e-3)))
    return worst if worst == worst else float("inf")


def check(case: Case) -> dict[str, Any]:
    """Compiles and compares; a row of what came out."""
    import warnings

    import trustformers_ir as tfir

    row: dict[str, Any] = {"name": case.name, "family": case.family}
    model = build(case)
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        exe = tfir.compile(model, inputs(case, model, 2, {"wave": 900}.get(case.inputs, 9)))
    row["notes"] = [str(n.message) for n in notes if n.category.__name__ == "TorchNote"]
    row["seconds"] = round(time.perf_counter() - started, 1)
    row["dims"] = list(exe.symbols)
    row["distance"] = max(distance(case, model, exe, b, n) for b, n in case.sizes)
    row["agrees"] = row["distance"] <= TOLERANCE
    return row


def check_apart(case: Case, timeout: float = 600.0) -> dict[str, Any]:
    """``check`` in a process of its own."""
    made = subprocess.run([sys.executable, __file__, "--inside", case.name], capture_output=True, text=True, timeout=timeout, check=False)
    if made.returncode == 0:
        row: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
        return row
    lines = [line for line in made.stderr.splitlines() if line.strip()]
    return {"name": case.name, "family": case.family, "agrees": False, "error": "\n".join(lines[-14:])}


def main(names: list[str]) -> None:
    by_name = {c.name: c for c in CASES}
    if names[:1] == ["--inside"]:
        print(json.dumps(check(by_name[names[1]])))
        return
    good = 0
    chosen = [by_name[n] for n in names] or list(CASES)
    for case in chosen:
        row = check_apart(case)
        good += bool(row["agrees"])
        print(json.dumps(row), flush=True)
    print(f"{good} of {len(chosen)} agree", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
