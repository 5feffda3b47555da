"""What holds for every decoder family, against ``transformers``: heads, padding, stored dtypes, shards; and the bits of the compiled model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_harness import CONFIGS, KINDS, compare, draw, saved
from models_harness import output_names

import trustformers_ir as tfir
from trustformers_ir.frontend.checkpoint import load_checkpoint, open_checkpoint
from trustformers_ir.frontend.random_model import random_model, untraced_model
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType

every = pytest.mark.parametrize("model_type", CONFIGS)
#: what depends on the family little: of most, with the long tests
families = pytest.mark.parametrize("model_type", [f if f in ("gpt2", "llama") else pytest.param(f, marks=pytest.mark.long) for f in CONFIGS])
SMALL = "random:{0}?hidden_size=48&num_hidden_layers=2&num_attention_heads=3&intermediate_size=80&vocab_size=70&architecture={1}"


def small(model_type: str) -> str:
    grouped = "&num_key_value_heads=3" if "num_key_value_heads" in CONFIGS[model_type][1] else ""
    turning = "&rotary_dim=8" if model_type == "gptj" else ""
    return SMALL.format(model_type, KINDS[model_type][1]) + grouped + turning


@every
def test_language_model(tmp_path: Path, model_type: str) -> None:
    model = saved(tmp_path, model_type)
    module = load_checkpoint(tmp_path)
    assert output_names(module) == ["logits"]
    assert [(a.name, a.type) for a in module.main.args] == [(name, DType.i64["batch", "seq"]) for name in ("input_ids", "attention_mask")]
    assert [str(t) for t in module.main.output_types] == ["f32[batch, seq, 50]"]
    assert module.facts.symbols == {"batch": SymbolFact(1, 1 << 20), "seq": SymbolFact(1, 16)}
    assert module.metadata == {"model_type": model_type, "architecture": KINDS[model_type][1], "default.attention_mask": "1"}
    compare(module, model, *(draw(batch, length) for batch, length in ((1, 1), (3, 7), (2, 16))))


@families
def test_without_a_head(tmp_path: Path, model_type: str) -> None:
    model = saved(tmp_path, model_type, head=False)
    module = load_checkpoint(tmp_path)
    assert output_names(module) == ["last_hidden_state"]
    compare(module, model, draw())


@families
def test_the_decoder_alone_of_a_language_model(tmp_path: Path, model_type: str) -> None:
    model = saved(tmp_path, model_type, tie_word_embeddings=False)
    checkpoint = open_checkpoint(tmp_path, architecture=KINDS[model_type][0])
    assert {name.partition(".")[0] for name in checkpoint.ignored} <= {"lm_head", "embed_out"} and checkpoint.ignored
    compare(checkpoint.module(), model.base_model, draw())


@families
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_embeddings(tmp_path: Path, model_type: str, tied: bool) -> None:
    model = saved(tmp_path, model_type, tie_word_embeddings=tied)
    module = load_checkpoint(tmp_path)
    assert ("lm_head.weight" in module.weights) is not tied
    compare(module, model, draw())


@families
def test_padding(tmp_path: Path, model_type: str) -> None:
    model = saved(tmp_path, model_type)
    texts = [draw(batch, 9, seed, side) for side in ("right", "left", "") for batch in (1, 3) for seed in range(3)]
    compare(load_checkpoint(tmp_path), model, *texts)


@families
def test_without_a_mask_all_are_tokens(tmp_path: Path, model_type: str) -> None:
    saved(tmp_path, model_type)
    exe = tfir.compile(tmp_path)
    inputs = draw(2, 9, side="")
    np.testing.assert_array_equal(exe(input_ids=inputs["input_ids"]), exe(**inputs))


@families
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_dtypes_are_cast(tmp_path: Path, model_type: str, dtype: torch.dtype) -> None:
    model = saved(tmp_path, model_type, dtype=dtype)
    module = load_checkpoint(tmp_path)
    assert {w.type.dtype for w in module.weights.values()} == {DType.parse(str(dtype).removeprefix("torch."))}
    assert {t.dtype for t in module.main.output_types} == {DType.f32}
    compare(module, model, draw())


@families
def test_16_bit_weights_are_packed_as_they_are(tmp_path: Path, model_type: str) -> None:
    """Half the bytes: nothing is kept in f32 but what norms and biases read, and positions, which are a slice and not looked up."""
    saved(tmp_path, model_type, dtype=torch.bfloat16)
    weights = tfir.compile(tmp_path).module.weights.values()
    wide = {w.name for w in weights if w.type.rank == 2 and w.type.dtype is not DType.bf16}
    assert wide == ({"wpe.weight.f32"} if model_type in ("gpt2", "gpt_neo") else set())


@families
@pytest.mark.parametrize("dtype", [DType.bf16, DType.f16])
def test_computing_in_16_bits(tmp_path: Path, model_type: str, dtype: DType) -> None:
    saved(tmp_path, model_type)
    module, wide = load_checkpoint(tmp_path, dtype=dtype), load_checkpoint(tmp_path)
    assert {t.dtype for t in module.main.output_types} == {dtype}
    inputs = draw(side="")
    have, want = tfir.compile(module)(**inputs), tfir.compile(wide)(**inputs)
    twice = 2 if model_type.startswith("gemma") else 1  # its norms scale by 1 + weight, so by 2 here
    error = np.abs(have.astype(np.float32) - want) / twice
    assert 0 < error.max() < (0.5 if dtype is DType.bf16 else 0.05) and error.mean() < (0.05 if dtype is DType.bf16 else 0.005)


@families
def test_shards(tmp_path: Path, model_type: str) -> None:
    model = saved(tmp_path, model_type)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="6KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and not (tmp_path / "model.safetensors").exists()
    compare(load_checkpoint(tmp_path), model, draw())


@families
def test_a_head_that_is_missing(tmp_path: Path, model_type: str) -> None:
    saved(tmp_path, model_type, head=False, architectures=[KINDS[model_type][1]], tie_word_embeddings=False)
    with pytest.raises(CompilerError) as caught:
        load_checkpoint(tmp_path, architecture=KINDS[model_type][1])
    assert {(d.code, d.where.tensor) for d in caught.value.diagnostics} >= {(Code.WEIGHT_MISSING, "lm_head.weight")}


# --- the compiled model ------------------------------------------------------------------------------------------------------------


@families
def test_batches_and_padding_at_the_end_change_no_bit(model_type: str) -> None:
    exe = tfir.compile(small(model_type))
    inputs = draw(4, 21)
    whole = exe(**inputs)
    for row, length in enumerate(inputs["attention_mask"].sum(1)):
        alone = exe(**{k: v[row : row + 1, :length] for k, v in inputs.items()})
        np.testing.assert_array_equal(whole[row, :length], alone[0])


@families
def test_a_token_sees_what_is_before_it(model_type: str) -> None:
    """Every prefix of a text has the bits that it has in the whole."""
    exe = tfir.compile(small(model_type))
    ids = draw(1, 40, side="")["input_ids"]
    whole = exe(input_ids=ids)
    for length in (1, 2, 15, 16, 17, 39):
        np.testing.assert_array_equal(exe(input_ids=ids[:, :length]), whole[:, :length])


@families
def test_text_round_trip(model_type: str) -> None:
    module = random_model(small(model_type))
    for text in (str(module), str(tfir.compile(module).module)):
        assert str(tfir.parse(text)) == text


# --- presets -----------------------------------------------------------------------------------------------------------------------

PARAMETERS = {
    ("gpt2", "distil"): 81_912_576,
    ("gpt2", "base"): 124_439_808,
    ("gpt2", "medium"): 354_823_168,
    ("gpt2", "large"): 774_030_080,
    ("gpt2", "xl"): 1_557_611_200,
    ("llama", "smollm2-135m"): 134_515_008,
    ("llama", "tinyllama-1.1b"): 1_100_048_384,
    ("llama", "llama3.2-1b"): 1_235_814_400,
    ("llama", "llama3.2-3b"): 3_212_749_824,
    ("llama", "base"): 6_738_415_616,
    ("llama", "llama3-8b"): 8_030_261_248,
    ("llama", "13b"): 13_015_864_320,
    ("mistral", "base"): 7_241_732_096,
    ("mistral", "7b-v0.3"): 7_248_023_552,
    ("qwen2", "0.5b"): 494_032_768,
    ("qwen2", "1.5b"): 1_543_714_304,
    ("qwen2", "base"): 7_615_616_512,
    ("qwen3", "0.6b"): 596_049_920,
    ("qwen3", "1.7b"): 1_720_574_976,
    ("qwen3", "4b"): 4_022_468_096,
    ("qwen3", "base"): 8_190_735_360,
    ("phi3", "base"): 3_821_079_552,
    ("phi3", "medium"): 13_960_238_080,
    ("phi3", "phi4"): 14_659_507_200,
    ("cohere", "aya-8b"): 8_028_033_024,
    ("falcon", "base"): 6_921_720_704,
    ("falcon", "rw-1b"): 1_311_625_216,
    ("gemma", "base"): 8_537_680_896,
    ("gemma", "2b"): 2_506_172_416,
    ("gemma2", "base"): 9_241_705_984,
    ("gemma2", "2b"): 2_614_341_888,
    ("gemma2", "27b"): 27_227_128_320,
    ("gemma3_text", "base"): 3_880_263_168,
    ("gemma3_text", "270m"): 268_098_176,
    ("gemma3_text", "1b"): 999_885_952,
    ("gemma3_text", "12b"): 11_766_034_176,
    ("gpt_neo", "base"): 1_315_575_808,
    ("gpt_neo", "125m"): 125_198_592,
    ("gpt_neo", "2.7b"): 2_651_307_520,
    ("gpt_neox", "base"): 20_554_567_680,
    ("gpt_neox", "pythia-70m"): 70_426_624,
    ("gpt_neox", "pythia-1b"): 1_011_781_632,
    ("gpt_neox", "pythia-6.9b"): 6_857_302_016,
    ("gptj", "base"): 6_050_882_784,
    ("stablelm", "base"): 2_795_443_200,
    ("stablelm", "2-1.6b"): 1_644_515_328,
    ("stablelm", "2-12b"): 12_143_185_920,
}
"""Of the language models, as published (that of LLaMA 13B is 13.0 in its table)."""


@pytest.mark.parametrize(("model_type", "preset"), PARAMETERS)
def test_presets_have_the_published_sizes(model_type: str, preset: str) -> None:
    weights = untraced_model(f"random:{model_type}?preset={preset}&architecture={KINDS[model_type][1]}&dtype=bf16").weights
    assert sum(math.prod(w.type.shape) for w in weights.values()) == PARAMETERS[model_type, preset]
