"""ViT and DeiT against ``transformers``: encoder and heads, image and patch sizes, activations, stored dtypes, broken checkpoints, presets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models_harness import listed, ours, output_names, saved_model, theirs
from safetensors.numpy import load_file, save_file
from transformers import DeiTConfig, ViTConfig

import trustformers_ir as tfir
from trustformers_ir.frontend.checkpoint import load_checkpoint, open_checkpoint
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.models.blocks import ACTIVATIONS

TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "image_size": 12, "patch_size": 4}
TOLERANCE = 2e-5
KINDS = ["ViTModel", "ViTForImageClassification", "DeiTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"]


def saved(folder: Path, kind: str = "ViTModel", dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    """A random model of transformers, saved into the folder."""
    return saved_model(lambda: getattr(transformers, kind)(config_of(kind, **fields)), folder, dtype)


def config_of(kind: str, **fields: Any) -> Any:
    return (DeiTConfig if kind.startswith("DeiT") else ViTConfig)(**TINY | fields, attn_implementation="eager")


def images(module: Module, batch: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    (pixels,) = module.main.args
    shape = (batch, *pixels.type.shape[1:])
    return {"pixel_values": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def compare(module: Module, model: Any, batch: int = 3, seed: int = 0) -> None:
    """All outputs: the reference semantics in float64 and the compiled model in its own dtype, against transformers in float64."""
    inputs = images(module, batch, seed)
    wanted = theirs(model, inputs)
    for have, want in zip(ours(module, inputs), wanted, strict=True):
        assert have.shape == want.shape
        np.testing.assert_allclose(have, want, rtol=0, atol=TOLERANCE / 2)
    for have, want in zip(listed(tfir.compile(module)(**inputs)), wanted, strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=TOLERANCE)


def test_encoder(tmp_path: Path) -> None:
    model = saved(tmp_path)
    module = load_checkpoint(tmp_path)
    assert output_names(module) == ["last_hidden_state", "pooler_output"]
    assert [(a.name, a.type) for a in module.main.args] == [("pixel_values", DType.f32["batch", 3, 12, 12])]
    assert [str(t) for t in module.main.output_types] == ["f32[batch, 10, 24]", "f32[batch, 24]"]
    assert module.facts.symbols == {"batch": SymbolFact(1, 1 << 20)}
    assert module.metadata == {"model_type": "vit", "architecture": "ViTModel"}
    for batch in (1, 3):
        compare(module, model, batch)


@pytest.mark.parametrize("kind", KINDS)
def test_architectures(tmp_path: Path, kind: str) -> None:
    model = saved(tmp_path, kind, num_labels=5)
    module = load_checkpoint(tmp_path)
    assert module.metadata["architecture"] == kind
    compare(module, model)


@pytest.mark.parametrize("kind", ["ViTModel", "DeiTModel"])
def test_without_pooler(tmp_path: Path, kind: str) -> None:
    model = saved_model(lambda: getattr(transformers, kind)(config_of(kind), add_pooling_layer=False), tmp_path)
    module = load_checkpoint(tmp_path)
    assert output_names(module) == ["last_hidden_state"]
    compare(module, model)


def test_pooler_of_another_size(tmp_path: Path) -> None:
    model = saved(tmp_path, pooler_output_size=7, pooler_act="relu")
    compare(load_checkpoint(tmp_path), model)


@pytest.mark.parametrize("kind", ["ViTForImageClassification", "ViTForMaskedImageModeling", "DeiTForImageClassificationWithTeacher"])
def test_the_encoder_alone_of_a_task_checkpoint(tmp_path: Path, kind: str) -> None:
    model = saved(tmp_path, kind, encoder_stride=4)
    checkpoint = open_checkpoint(tmp_path, architecture="DeiTModel" if kind.startswith("DeiT") else "ViTModel")
    module = checkpoint.module()
    inner = model.deit if kind.startswith("DeiT") else model.vit
    compare(module, inner)
    heads = ("classifier.", "cls_classifier.", "distillation_classifier.", "decoder.", "vit.embeddings.mask_token")
    assert checkpoint.ignored and all(name.startswith(heads) for name in checkpoint.ignored)


def test_no_labels(tmp_path: Path) -> None:
    model = saved(tmp_path, "ViTForImageClassification", num_labels=0)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["id2label"] == {}
    compare(load_checkpoint(tmp_path), model)


SIZES = [
    {"image_size": 8, "patch_size": 8},
    {"image_size": 8, "patch_size": 1},
    {"image_size": 14, "patch_size": 4},
    {"image_size": [8, 12], "patch_size": 4},
    {"image_size": [9, 8], "patch_size": [3, 2]},
    {"image_size": 12, "patch_size": [12, 3], "num_channels": 1},
    {"image_size": 16, "patch_size": 2, "num_channels": 5},
]


@pytest.mark.parametrize("fields", SIZES, ids=lambda f: "-".join(map(str, f.values())))
@pytest.mark.parametrize("batch", [1, 3])
def test_image_and_patch_sizes(tmp_path: Path, fields: dict[str, Any], batch: int) -> None:
    model = saved(tmp_path, **fields)
    compare(load_checkpoint(tmp_path), model, batch)


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_activations(tmp_path: Path, act: str) -> None:
    model = saved(tmp_path, hidden_act=act)
    compare(load_checkpoint(tmp_path), model)


def test_attention_without_bias(tmp_path: Path) -> None:
    model = saved(tmp_path, qkv_bias=False)
    module = load_checkpoint(tmp_path)
    assert not any(name.endswith(("query.bias", "key.bias", "value.bias")) for name in module.weights)
    compare(module, model)


@pytest.mark.parametrize("seed", range(6))
def test_random_configs(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    heads = int(random.integers(1, 5))
    patch = [int(random.integers(1, 6)) for _ in range(2)]
    model = saved(
        tmp_path,
        ["ViTModel", "DeiTModel"][seed % 2],
        hidden_size=heads * int(random.integers(2, 9)),
        num_attention_heads=heads,
        num_hidden_layers=int(random.integers(0, 4)),
        intermediate_size=int(random.integers(1, 50)),
        patch_size=patch,
        image_size=[p * int(random.integers(1, 4)) + int(random.integers(0, p)) for p in patch],
        num_channels=int(random.integers(1, 4)),
        qkv_bias=bool(random.integers(2)),
        layer_norm_eps=float(10.0 ** -random.integers(3, 7)),
    )
    compare(load_checkpoint(tmp_path), model, seed=seed)


def test_names_of_transformers_5(tmp_path: Path) -> None:
    """Older names are what ``save_pretrained`` writes; those that the code has in memory are read as well."""
    model = saved(tmp_path, "ViTForImageClassification")
    model.save_pretrained(tmp_path, save_original_format=False)
    assert "vit.layers.0.attention.q_proj.weight" in load_file(tmp_path / "model.safetensors")
    compare(load_checkpoint(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_dtypes_are_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    model = saved(tmp_path, dtype=dtype)
    module = load_checkpoint(tmp_path)
    assert {w.type.dtype for w in module.weights.values()} == {DType.parse(str(dtype).removeprefix("torch."))}
    compare(module, model)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DType.bf16, 0.5), (DType.f16, 0.05), (DType.f64, 1e-6)])
def test_computing_in_another_dtype(tmp_path: Path, dtype: DType, tolerance: float) -> None:
    """Pixels are given as f32 and cast; the whole model computes in the other dtype."""
    model = saved(tmp_path)
    module = load_checkpoint(tmp_path, dtype=dtype)
    assert module.main.args[0].type.dtype is DType.f32
    assert {t.dtype for t in module.main.output_types} == {dtype}
    inputs = images(module)
    for have, want in zip(listed(tfir.compile(module)(**inputs)), theirs(model, inputs), strict=True):
        np.testing.assert_allclose(have.astype(np.float64), want, rtol=0, atol=tolerance)


# --- broken checkpoints ------------------------------------------------------------------------------------------------------------


def broken(folder: Path, arrays: dict[str, np.ndarray | None] | None = None, **fields: Any) -> list[tuple[Code, str, str | None]]:
    """Loads the tiny classifier with other weights or fields (None takes one away): code, message and tensor of each problem."""
    saved(folder, "ViTForImageClassification")
    weights = load_file(folder / "model.safetensors") | (arrays or {})
    save_file({k: v for k, v in weights.items() if v is not None}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(CompilerError) as caught:
        load_checkpoint(folder)
    return [(d.code, d.message, d.where.tensor) for d in caught.value.diagnostics]


def test_missing_and_misshaped_weights_are_reported_together(tmp_path: Path) -> None:
    position, key = "vit.embeddings.position_embeddings", "vit.encoder.layer.1.attention.attention.key.bias"
    found = broken(tmp_path, {position: np.zeros((1, 17, 24), np.float32), key: None, "vit.spare": np.zeros(3, np.float32)})
    assert found == [
        (Code.WEIGHT_MISSING, f"the weight '{key}', f32[24], is missing", key),
        (Code.WEIGHT_UNEXPECTED, "the weight 'vit.spare', f32[3], has no place in the architecture", "vit.spare"),
        (Code.WEIGHT_SHAPE, f"the weight '{position}' has shape [1, 17, 24], the config implies [1, 10, 24]", position),
    ]


def test_patches_of_another_size(tmp_path: Path) -> None:
    found = {(code, name) for code, _, name in broken(tmp_path, patch_size=6)}
    assert found == {
        (Code.WEIGHT_SHAPE, "vit.embeddings.patch_embeddings.projection.weight"),
        (Code.WEIGHT_SHAPE, "vit.embeddings.position_embeddings"),
    }


def test_biases_that_the_config_denies(tmp_path: Path) -> None:
    found = broken(tmp_path, qkv_bias=False)
    assert len(found) == 6 and {code for code, _, _ in found} == {Code.WEIGHT_UNEXPECTED}


CONFIGS = {
    "no patch size": ({"patch_size": None}, Code.CONFIG_INVALID, "'patch_size' is missing"),
    "no size": ({"image_size": "wide"}, Code.CONFIG_INVALID, "'image_size' is 'wide', not a whole number of at least 1 or a list of two"),
    "three sizes": ({"image_size": [8, 8, 3]}, Code.CONFIG_INVALID, "'image_size' is a list, not a whole number of at least 1 or a list of two"),
    "large patches": ({"patch_size": 16}, Code.CONFIG_INVALID, "'patch_size' is (16, 16), which does not fit into image_size (12, 12)"),
    "heads": ({"num_attention_heads": 5}, Code.CONFIG_INVALID, "'num_attention_heads' is 5, which does not divide hidden_size 24"),
    "activation": ({"hidden_act": "relu2"}, Code.UNSUPPORTED_CONFIG, "'hidden_act' is 'relu2', which is not supported"),
    "pooler": ({"pooler_act": "relu2"}, Code.UNSUPPORTED_CONFIG, "'pooler_act' is 'relu2', which is not supported"),
    "heads of their own size": ({"head_dim": 16}, Code.UNSUPPORTED_CONFIG, "'head_dim' is not hidden_size / num_attention_heads, 8"),
    "other images": (
        {"interpolate_pos_encoding": True},
        Code.UNSUPPORTED_CONFIG,
        "'interpolate_pos_encoding' is true: images have the size that image_size says",
    ),
    "task": (
        {"architectures": ["ViTForMaskedImageModeling"]},
        Code.UNSUPPORTED_CONFIG,
        "the architecture 'ViTForMaskedImageModeling' is not supported",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_cannot_be(tmp_path: Path, name: str) -> None:
    fields, code, message = CONFIGS[name]
    assert [(c, m) for c, m, _ in broken(tmp_path, **fields)] == [(code, message)]


def test_sentences_need_tokens(tmp_path: Path) -> None:
    saved(tmp_path)
    modules = [{"idx": 0, "type": "sentence_transformers.models.Transformer", "path": ""}]
    modules.append({"idx": 1, "type": "sentence_transformers.models.Pooling", "path": "pool"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "config.json").write_text(json.dumps({"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}))
    with pytest.raises(CompilerError) as caught:
        load_checkpoint(tmp_path)
    assert [d.code for d in caught.value.diagnostics] == [Code.UNSUPPORTED_CONFIG]
    assert "reads no tokens" in caught.value.diagnostics[0].message
    assert output_names(load_checkpoint(tmp_path, sentence=False)) == ["last_hidden_state", "pooler_output"]


# --- the compiled model ------------------------------------------------------------------------------------------------------------

SMALL = "random:{0}?hidden_size=48&num_hidden_layers=2&num_attention_heads=3&intermediate_size=80&image_size=24&patch_size=8"


@pytest.mark.parametrize("model_type", ["vit", "deit"])
def test_compiled_and_interpreted(model_type: str) -> None:
    module = random_model(SMALL.format(model_type))
    exe = tfir.compile(module)
    for batch in (1, 2, 5):
        inputs = images(module, batch)
        for have, want in zip(listed(exe(**inputs)), listed(evaluate(module, **inputs)), strict=True):
            np.testing.assert_allclose(have, want, rtol=0, atol=TOLERANCE)


def test_patches_are_a_packed_matrix_product() -> None:
    exe = tfir.compile(random_model(SMALL.format("vit")))
    assert "conv2d" not in str(exe.module)
    assert "embeddings.patch_embeddings.projection.weight.reshape_48_192.panels48" in exe.module.weights


def test_images_do_not_meet() -> None:
    """An image gives the same bits alone and in a batch."""
    module = random_model(SMALL.format("vit"))
    exe = tfir.compile(module)
    pixels = images(module, 4)["pixel_values"]
    whole = exe(pixel_values=pixels)
    for i in range(4):
        for have, want in zip(exe(pixel_values=pixels[i : i + 1]), whole, strict=True):
            np.testing.assert_array_equal(have[0], want[i])


@pytest.mark.parametrize("model_type", ["vit", "deit"])
def test_text_round_trip(model_type: str) -> None:
    module = random_model(SMALL.format(model_type))
    for text in (str(module), str(tfir.compile(module).module)):
        assert str(tfir.parse(text)) == text


# --- presets -----------------------------------------------------------------------------------------------------------------------

MILLIONS = {"tiny": 5.5, "small": 21.7, "base": 85.8, "large": 303.3, "huge": 630.8}
"""Weights of the encoder without pooler; Dosovitskiy et al., table 1, and Touvron et al., table 1, round them, with the classifier."""


@pytest.mark.parametrize("preset", MILLIONS)
def test_presets_have_the_published_sizes(preset: str) -> None:
    module = random_model(f"random:vit?preset={preset}")
    count = sum(math.prod(w.type.shape) for w in module.weights.values() if not w.name.startswith("pooler."))
    assert round(count / 1e6, 1) == MILLIONS[preset]


def test_fields_win_over_presets() -> None:
    module = random_model("random:vit?num_hidden_layers=1&preset=tiny&image_size=[32,48]")
    assert [str(t) for t in module.main.output_types] == ["f32[batch, 7, 192]", "f32[batch, 192]"]
    assert not any(name.startswith("encoder.layer.1.") for name in module.weights)
