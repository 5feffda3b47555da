"""What is LLaMA's own, against ``transformers``: heads, biases, rotary positions and their scaling, refusals. See test_decoders.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_harness import CONFIGS, compare, draw, refused, saved
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import trustformers_ir as tfir
from trustformers_ir.frontend.checkpoint import load_checkpoint, open_checkpoint
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError
from trustformers_ir.models.config import Fields
from trustformers_ir.models.llama import LlamaConfig as OurConfig

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "factor": 4.0,
    "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 5.5],
    "original_max_position_embeddings": 8,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "multi-head": {"num_key_value_heads": 6},
    "default heads": {"num_key_value_heads": None},
    "multi-query": {"num_key_value_heads": 1},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "wide heads": {"head_dim": 20},
    "narrow heads": {"head_dim": 2},
    "heads of 14": {"head_dim": 14, "num_key_value_heads": 3},
    "attention bias": {"attention_bias": True},
    "all biases": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    "other gate": {"hidden_act": "gelu_pytorch_tanh"},
    "large eps": {"rms_norm_eps": 0.1},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 37.5}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}},
    "llama3": {"rope_parameters": LLAMA3 | {"rope_theta": 20.0}, "head_dim": 16},
    "dynamic, short": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 3.0}},
    "dynamic, long": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 3.0}, "max_position_embeddings": 8, "head_dim": 8},
    "yarn": {"rope_parameters": YARN | {"rope_theta": 100.0}, "head_dim": 16},
    "yarn, all fields": {
        "rope_parameters": YARN | {"rope_theta": 100.0, "beta_fast": 5.0, "beta_slow": 0.5, "attention_factor": 1.3, "truncate": False},
        "head_dim": 16,
    },
    "yarn, scales": {"rope_parameters": YARN | {"rope_theta": 100.0, "mscale": 1.5, "mscale_all_dim": 0.5}, "head_dim": 16},
    "longrope": {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 16}},
    "longrope, long": {"rope_parameters": LONGROPE},
    "no layer": {"num_hidden_layers": 0},
    "one unit": {"intermediate_size": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, "llama", **OPTIONS[name])
    compare(load_checkpoint(tmp_path), model, draw(length=14))


@pytest.mark.parametrize("seed", range(6))
def test_random_configs(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    key_heads, group = int(random.integers(1, 4)), int(random.integers(1, 4))
    heads = key_heads * group
    features = 2 * int(random.integers(1, 8))
    model = saved(
        tmp_path,
        "llama",
        head=seed % 2 == 0,
        hidden_size=heads * int(random.integers(2, 9)),
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=features,
        num_hidden_layers=int(random.integers(1, 4)),
        intermediate_size=int(random.integers(1, 60)),
        attention_bias=bool(random.integers(2)),
        mlp_bias=bool(random.integers(2)),
        tie_word_embeddings=bool(random.integers(2)),
    )
    compare(load_checkpoint(tmp_path), model, draw(int(random.integers(1, 4)), 11, seed, ["left", "right"][seed % 2]))


# --- rotary positions --------------------------------------------------------------------------------------------------------------

SCALED: dict[str, dict[str, Any]] = {
    "plain": {"rope_theta": 10000.0},
    "llama 3.1": {"rope_theta": 500000.0, "rope_scaling": LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 8192}},
    "llama 3.2": {"rope_theta": 500000.0, "rope_scaling": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192}},
    "linear, old name": {"rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama3 over the whole length": {"rope_scaling": {k: v for k, v in LLAMA3.items() if not k.startswith("original")}},
    "yarn": {"rope_theta": 1000000.0, "rope_scaling": YARN | {"original_max_position_embeddings": 32768}},
    "yarn, small base": {"rope_theta": 100.0, "rope_scaling": YARN | {"truncate": False}},
    "transformers 5": {"rope_parameters": {"rope_type": "linear", "factor": 7.0, "rope_theta": 1234.5}},
}


@pytest.mark.parametrize("features", [6, 64, 128])
@pytest.mark.parametrize("name", SCALED)
def test_frequencies(name: str, features: int) -> None:
    """The f32 numbers of transformers, but for the last bit of its powers; and what a scaled frequency makes of it."""
    fields = CONFIGS["llama"][1] | {"vocab_size": 50, "head_dim": features, "max_position_embeddings": 2048} | SCALED[name]
    problems = Collector()
    have = OurConfig.read(Fields(fields, problems)).rotary.frequencies
    problems.check()
    want = LlamaRotaryEmbedding(LlamaConfig(**fields)).inv_freq.numpy()
    assert have.dtype == np.float32 and have.shape == (features // 2,)
    np.testing.assert_allclose(have, want, rtol=3e-7)


def test_old_and_new_configs_say_the_same(tmp_path: Path) -> None:
    model = saved(tmp_path, "llama", rope_parameters=LLAMA3 | {"rope_theta": 20.0})
    compare(load_checkpoint(tmp_path), model, draw())
    new = str(load_checkpoint(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_scaling"] = {("type" if k == "rope_type" else k): v for k, v in config.pop("rope_parameters").items()}
    config["rope_theta"] = config["rope_scaling"].pop("rope_theta")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert str(load_checkpoint(tmp_path)) == new


STRETCHED: dict[str, dict[str, Any]] = {
    "llama3": LLAMA3 | {"original_max_position_embeddings": 512},
    "linear": {"rope_type": "linear", "factor": 8.0},
    "dynamic": {"rope_type": "dynamic", "factor": 8.0},
    "yarn": YARN | {"factor": 8.0, "original_max_position_embeddings": 512},
}


@pytest.mark.parametrize("kind", STRETCHED)
def test_long_texts(tmp_path: Path, kind: str) -> None:
    """Far positions, beyond the texts that a model was trained on: angles are f32 on both sides."""
    scaling = STRETCHED[kind] | {"rope_theta": 500000.0}
    longest = 4096 if kind == "llama3" else 512
    model = saved(tmp_path, "llama", max_position_embeddings=longest, num_hidden_layers=1, head_dim=16, rope_parameters=scaling)
    inputs = draw(1, 3500, side="")
    exe = tfir.compile(load_checkpoint(tmp_path))
    with torch.no_grad():
        want = model(**{k: torch.tensor(v) for k, v in inputs.items()}).logits.numpy()
    np.testing.assert_allclose(exe(**inputs), want, rtol=0, atol=1e-4 * float(np.abs(want).max()))


# --- checkpoints -------------------------------------------------------------------------------------------------------------------


def test_old_checkpoints_hold_frequencies(tmp_path: Path) -> None:
    model = saved(tmp_path, "llama", tie_word_embeddings=True)
    weights = load_file(tmp_path / "model.safetensors")
    for i in range(2):
        weights[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.ignored) == 3
    compare(checkpoint.module(), model, draw())


REFUSED: dict[str, tuple[dict[str, Any], Code, str]] = {
    "key heads": ({"num_key_value_heads": 4}, Code.CONFIG_INVALID, "'num_key_value_heads' is 4, which does not divide num_attention_heads 6"),
    "heads": (
        {"num_attention_heads": 10, "head_dim": None},
        Code.CONFIG_INVALID,
        "'num_attention_heads' is 10, which does not divide hidden_size 24",
    ),
    "odd heads": ({"head_dim": 5}, Code.CONFIG_INVALID, "'head_dim' is 5: rotary positions turn pairs of features"),
    "activation": ({"hidden_act": "relu2"}, Code.UNSUPPORTED_CONFIG, "'hidden_act' is 'relu2', which is not supported"),
    "no network": ({"intermediate_size": None}, Code.CONFIG_INVALID, "'intermediate_size' is missing"),
    "task": (
        {"architectures": ["LlamaForSequenceClassification"]},
        Code.UNSUPPORTED_CONFIG,
        "the architecture 'LlamaForSequenceClassification' is not supported",
    ),
    "other scaling": (
        {"rope_scaling": {"rope_type": "su", "factor": 4.0}},
        Code.UNSUPPORTED_CONFIG,
        "'rope_scaling.rope_type' is 'su', which is not supported",
    ),
    "dynamic": (
        {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "head_dim": 2},
        Code.UNSUPPORTED_CONFIG,
        "'rope_scaling' is dynamic, and 2 features of a head turn: one pair has no other theta",
    ),
    "waves": (
        {"rope_scaling": YARN | {"beta_fast": 0.5}},
        Code.CONFIG_INVALID,
        "'rope_scaling.beta_fast' is 0.5, which is below beta_slow 1, or that is 0",
    ),
    "divisors": (
        {"rope_scaling": LONGROPE | {"long_factor": [1.0]}},
        Code.CONFIG_INVALID,
        "'rope_scaling.long_factor' is a list, not a list of 2 numbers above 0",
    ),
    "no factor": ({"rope_parameters": {"rope_type": "linear"}}, Code.CONFIG_INVALID, "'rope_parameters.factor' is missing"),
    "shrunk": (
        {"rope_scaling": {"type": "linear", "factor": 0.5}},
        Code.CONFIG_INVALID,
        "'rope_scaling.factor' is 0.5, not a number of at least 1",
    ),
    "bands": (
        {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
        Code.CONFIG_INVALID,
        "'rope_scaling.high_freq_factor' is 1, which is not above low_freq_factor 1, or that is 0",
    ),
    "no object": ({"rope_scaling": "linear"}, Code.CONFIG_INVALID, "'rope_scaling' is 'linear', not an object"),
    "partial": (
        {"partial_rotary_factor": 0.5},
        Code.UNSUPPORTED_CONFIG,
        "'partial_rotary_factor' is not 1: all features of a head turn",
    ),
    "theta": ({"rope_parameters": {"rope_theta": 0}}, Code.CONFIG_INVALID, "'rope_parameters.rope_theta' is 0, not a number of at least 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_configs_that_are_refused(tmp_path: Path, name: str) -> None:
    fields, code, message = REFUSED[name]
    saved(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    assert refused(tmp_path) == [(code, message)]


def test_problems_are_told_together(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"hidden_act": "relu2", "num_key_value_heads": 5, "rope_scaling": {"rope_type": "llama3", "factor": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert {code for code, _ in refused(tmp_path)} == {Code.UNSUPPORTED_CONFIG, Code.CONFIG_INVALID}
    assert len(refused(tmp_path)) == 4


def test_kernels_of_a_layer() -> None:
    """One product for queries, keys and values; gate and up with what is made of them are one kernel, in any dtype of the weights."""
    for stored in ("f32", "bf16"):
        exe = tfir.compile(
            "random:llama?hidden_size=96&num_hidden_layers=1&num_attention_heads=6&num_key_value_heads=2&intermediate_size=160"
            f"&vocab_size=70&architecture=LlamaForCausalLM&dtype={stored}"
        )
        labels = [set(k.label.split("+")) for k in exe.manifest.entries[0].kernels]
        product, norm, views = {"linear"}, {"rms_norm"}, {"slice", "reshape", "transpose"}
        layer = labels[labels.index(norm) :]
        attention = [product, views | {"rope"}, views | {"rope"}, views | {"attention"}, product | {"add"}]
        assert layer == [norm, *attention, norm, product | {"silu", "mul"}, product | {"add"}, norm, product]
        assert any("gate_proj" in w for w in exe.module.weights)


def test_objects_in_random_models() -> None:
    module = random_model('random:llama?num_hidden_layers=1&rope_scaling={"rope_type":"linear","factor":2}')
    assert module.weights
    with pytest.raises(CompilerError, match="su"):
        random_model('random:llama?rope_scaling={"rope_type":"su","factor":2}')
