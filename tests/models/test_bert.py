"""BERT against ``transformers``: encoder and heads, activations, padding, stored dtypes, random configs; and the real MiniLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models_harness import ours, output_names, saved_model, theirs
from transformers import BertConfig

from trustformers_ir.frontend.checkpoint import load_checkpoint, open_checkpoint
from trustformers_ir.frontend.tokenizer import load_tokenizer
from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.ops import Cast, WeightOp

TINY = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}
HEADS = ["MaskedLM", "NextSentencePrediction", "PreTraining", "QuestionAnswering", "SequenceClassification", "TokenClassification"]


def saved(folder: Path, kind: str = "BertModel", dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    """A random model of transformers, saved into the folder."""
    config = BertConfig(**TINY | fields, attn_implementation="eager")
    return saved_model(lambda: getattr(transformers, kind)(config), folder, dtype)


def draw(batch: int = 3, length: int = 7, seed: int = 0) -> dict[str, np.ndarray]:
    """Ids with rows of different lengths, padded at the end."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, length + 1, (batch, 1))
    lengths[0] = length
    mask = (np.arange(length) < lengths).astype(np.int64)
    ids = random.integers(0, TINY["vocab_size"], (batch, length))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": random.integers(0, 2, (batch, length))}


def compare(module: Module, model: Any, inputs: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """All outputs, evaluated in float64 on both sides. States of padding are nobody's business."""
    for have, want in zip(ours(module, inputs), theirs(model, inputs), strict=True):
        assert have.shape == want.shape
        rows = inputs["attention_mask"] > 0 if want.shape[:2] == inputs["attention_mask"].shape else slice(None)
        np.testing.assert_allclose(have[rows], want[rows], rtol=0, atol=tolerance * max(1.0, float(np.abs(want).max())))


def test_encoder(tmp_path: Path) -> None:
    model = saved(tmp_path)
    module = load_checkpoint(tmp_path)
    assert output_names(module) == ["last_hidden_state", "pooler_output"]
    assert [(a.name, a.type) for a in module.main.args] == [
        (name, DType.i64["batch", "seq"]) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert module.facts.symbols == {"batch": SymbolFact(1, 1 << 20), "seq": SymbolFact(1, 16)}
    assert module.metadata["default.attention_mask"] == "1" and module.metadata["default.token_type_ids"] == "0"
    for batch, length in ((1, 1), (3, 7), (2, 16)):
        compare(module, model, draw(batch, length))


@pytest.mark.parametrize("head", HEADS)
def test_heads(tmp_path: Path, head: str) -> None:
    model = saved(tmp_path, f"BertFor{head}", num_labels=2 if head == "QuestionAnswering" else 5)
    module = load_checkpoint(tmp_path)
    assert module.metadata["architecture"] == f"BertFor{head}"
    compare(module, model, draw())


@pytest.mark.parametrize("head", HEADS)
def test_the_encoder_alone_of_a_task_checkpoint(tmp_path: Path, head: str) -> None:
    model = saved(tmp_path, f"BertFor{head}")
    checkpoint = open_checkpoint(tmp_path, architecture="BertModel")
    inputs = draw()
    with torch.no_grad():
        want = model.bert.double()(**{k: torch.tensor(v) for k, v in inputs.items()}).last_hidden_state.numpy()
    have = evaluate(checkpoint.module(), wide=True, **inputs)
    hidden = have[0] if isinstance(have, tuple) else have
    rows = inputs["attention_mask"] > 0
    np.testing.assert_allclose(hidden[rows], want[rows], atol=1e-5)
    assert all(name.startswith(("cls.", "classifier.", "qa_outputs.")) for name in checkpoint.ignored)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu6", "silu", "tanh", "sigmoid", "mish"])
def test_activations(tmp_path: Path, act: str) -> None:
    model = saved(tmp_path, hidden_act=act)
    compare(load_checkpoint(tmp_path), model, draw())


@pytest.mark.parametrize("seed", range(6))
def test_random_configs(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    heads = int(random.integers(1, 5))
    model = saved(
        tmp_path,
        hidden_size=heads * int(random.integers(1, 9)),
        num_attention_heads=heads,
        num_hidden_layers=int(random.integers(0, 4)),
        intermediate_size=int(random.integers(1, 50)),
        max_position_embeddings=int(random.integers(7, 20)),
        type_vocab_size=int(random.integers(2, 4)),
        layer_norm_eps=float(10.0 ** -random.integers(3, 13)),
    )
    compare(load_checkpoint(tmp_path), model, draw(seed=seed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_dtypes_are_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    model = saved(tmp_path, dtype=dtype)
    module = load_checkpoint(tmp_path)
    casts = [o for o in module.walk() if isinstance(o.op, Cast) and o.inputs[0].op_as(WeightOp)]
    assert len(casts) >= len(module.weights)
    assert {w.type.dtype for w in module.weights.values()} == {DType.parse(str(dtype).removeprefix("torch."))}
    compare(module, model, draw())


def test_computing_in_another_dtype(tmp_path: Path) -> None:
    saved(tmp_path)
    module = load_checkpoint(tmp_path, dtype=DType.bf16)
    assert {t.dtype for t in module.main.output_types} == {DType.bf16}


def test_padding_and_batches_change_nothing(tmp_path: Path) -> None:
    saved(tmp_path)
    module = load_checkpoint(tmp_path)
    inputs = draw(4, 9)
    whole = evaluate(module, **inputs)[0]
    for row, length in enumerate(inputs["attention_mask"].sum(1)):
        alone = evaluate(module, **{k: v[row : row + 1, :length] for k, v in inputs.items()})[0]
        np.testing.assert_array_equal(whole[row, :length], alone[0])


def test_untied_embeddings(tmp_path: Path) -> None:
    model = saved(tmp_path, "BertForMaskedLM", tie_word_embeddings=False)
    module = load_checkpoint(tmp_path)
    assert "cls.predictions.decoder.weight" in module.weights
    compare(module, model, draw())


def test_model_code_can_leave_out_inputs(tmp_path: Path) -> None:
    model = saved(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    bert: Any = checkpoint.model
    module = trace(bert, input_ids=DType.i64["b", "s"], weights=checkpoint.weights, facts={"s": (1, 16)})
    ids = draw()["input_ids"]
    with torch.no_grad():
        want = model.double()(input_ids=torch.tensor(ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(evaluate(module, ids, wide=True)[0], want, atol=1e-5)


def test_model_code_is_the_place_of_every_operation(tmp_path: Path) -> None:
    saved(tmp_path)
    places = {o.loc.file for o in load_checkpoint(tmp_path).walk() if o.loc is not None and not o.op.terminator}
    assert places == {"trustformers_ir/models/bert.py", "trustformers_ir/models/blocks.py"}


# --- the real one ------------------------------------------------------------------------------------------------------------------

SENTENCES = ["A cat sits on the mat.", "Stocks fell sharply on Tuesday after the central bank raised its key interest rate again."]


def test_minilm(minilm: Path) -> None:
    checkpoint = open_checkpoint(minilm)
    module = checkpoint.module()
    assert checkpoint.ignored == ("embeddings.position_ids",)
    assert output_names(module) == ["last_hidden_state", "pooler_output", "sentence_embedding"]
    ids, mask = load_tokenizer(minilm).encode_batch(SENTENCES)
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    encoded = theirs_tokenizer(SENTENCES, padding=True, return_tensors="np")
    np.testing.assert_array_equal(ids, encoded["input_ids"])
    np.testing.assert_array_equal(mask, encoded["attention_mask"])
    hidden, pooled, sentence = evaluate(module, ids, mask, np.zeros_like(ids), wide=True)
    model = transformers.AutoModel.from_pretrained(minilm).double().eval()
    with torch.no_grad():
        out = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    want = out.last_hidden_state.numpy()
    np.testing.assert_allclose(hidden[mask > 0], want[mask > 0], atol=1e-5)
    np.testing.assert_allclose(pooled, out.pooler_output.numpy(), atol=1e-5)
    mean = (want * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(sentence, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
