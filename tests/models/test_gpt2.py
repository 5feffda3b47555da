"""What is GPT-2's own, against ``transformers``: layouts of weights, options of its config, old checkpoints, refusals. See test_decoders.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_harness import compare, draw, refused, saved
from safetensors.numpy import load_file, save_file

import trustformers_ir as tfir
from trustformers_ir.frontend.checkpoint import load_checkpoint, open_checkpoint
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.ops import Transpose

OPTIONS: list[dict[str, Any]] = [
    {"n_inner": 37},
    {"activation_function": "relu"},
    {"activation_function": "gelu"},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "reorder_and_upcast_attn": True},
    {"layer_norm_epsilon": 0.1},
    {"n_layer": 0},
]


@pytest.mark.parametrize("fields", OPTIONS, ids=str)
def test_options(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = saved(tmp_path, "gpt2", **fields)
    compare(load_checkpoint(tmp_path), model, draw())


@pytest.mark.parametrize("seed", range(6))
def test_random_configs(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    heads = int(random.integers(1, 6))
    model = saved(
        tmp_path,
        "gpt2",
        head=seed % 2 == 0,
        n_embd=heads * int(random.integers(1, 12)),
        n_head=heads,
        n_layer=int(random.integers(1, 4)),
        n_inner=int(random.integers(1, 60)),
        n_positions=int(random.integers(9, 30)),
        tie_word_embeddings=bool(random.integers(2)),
    )
    compare(load_checkpoint(tmp_path), model, draw(int(random.integers(1, 4)), 9, seed, ["left", "right"][seed % 2]))


def test_old_checkpoints(tmp_path: Path) -> None:
    """The published ones have no prefix, hold masks as buffers, and some a copy of the tied head."""
    model = saved(tmp_path, "gpt2")
    weights = {name.removeprefix("transformer."): array for name, array in load_file(tmp_path / "model.safetensors").items()}
    for i in range(2):
        weights[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.uint8))
        weights[f"h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    weights["lm_head.weight"] = weights["wte.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.ignored) == 5
    compare(checkpoint.module(), model, draw())


def test_general_names_of_fields(tmp_path: Path) -> None:
    model = saved(tmp_path, "gpt2")
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_positions": "max_position_embeddings"}
    (tmp_path / "config.json").write_text(json.dumps({names.get(k, k): v for k, v in config.items()}))
    compare(load_checkpoint(tmp_path), model, draw())
    for spec in ("random:gpt2?n_embd=24&n_layer=1", "random:gpt2?hidden_size=24&num_hidden_layers=1"):
        assert random_model(spec).weights["h.0.attn.c_attn.weight"].type.shape == (24, 72)


def test_weights_are_turned_once() -> None:
    """They lie [inputs, outputs]; packing turns them, and what is left at run time moves heads only, inside of other kernels."""
    exe = tfir.compile("random:gpt2?hidden_size=48&num_hidden_layers=1&num_attention_heads=3&vocab_size=70")
    weights = exe.module.weights
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        assert f"h.0.{name}.weight.transposed.panels48" in weights and f"h.0.{name}.weight" not in weights
    assert all(len(o.op.perm) == 4 for o in exe.module.walk() if isinstance(o.op, Transpose))
    labels = [set(k.label.split("+")) for k in exe.manifest.entries[0].kernels]
    product = {"linear", "add"}
    attention = {"slice", "reshape", "transpose", "attention"}
    norm = {"layer_norm"}
    assert labels[1:] == [{"embedding", "slice", "add"}, norm, product, attention, product, norm, product | {"gelu"}, product, norm]


def test_products_have_the_names_of_the_checkpoint() -> None:
    exe = tfir.compile("random:gpt2?hidden_size=64&num_hidden_layers=1&num_attention_heads=4&vocab_size=70", quantize="int8")
    assert "h.0.attn.c_attn.weight.transposed.int8.panels48x4" in exe.module.weights


REFUSED: dict[str, tuple[dict[str, Any], Code, str]] = {
    "heads": ({"n_head": 5}, Code.CONFIG_INVALID, "'n_head' is 5, which does not divide n_embd 24"),
    "no width": ({"n_embd": None}, Code.CONFIG_INVALID, "'n_embd' is missing"),
    "activation": ({"activation_function": "relu2"}, Code.UNSUPPORTED_CONFIG, "'activation_function' is 'relu2', which is not supported"),
    "encoder": ({"add_cross_attention": True}, Code.UNSUPPORTED_CONFIG, "'add_cross_attention' is true: GPT-2 is supported without an encoder"),
    "task": ({"architectures": ["GPT2DoubleHeadsModel"]}, Code.UNSUPPORTED_CONFIG, "the architecture 'GPT2DoubleHeadsModel' is not supported"),
    "positions": ({"n_positions": 0}, Code.CONFIG_INVALID, "'n_positions' is 0, not a whole number of at least 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_configs_that_are_refused(tmp_path: Path, name: str) -> None:
    fields, code, message = REFUSED[name]
    saved(tmp_path, "gpt2")
    config = json.loads((tmp_path / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    assert refused(tmp_path) == [(code, message)]


def test_texts_that_are_too_long() -> None:
    exe = tfir.compile("random:gpt2?hidden_size=24&num_hidden_layers=1&num_attention_heads=3&vocab_size=50&n_positions=8")
    with pytest.raises(CompilerError, match="seq"):
        exe(input_ids=np.zeros((1, 9), np.int64))
