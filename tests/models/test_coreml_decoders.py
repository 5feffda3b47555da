"""Decoders as Core ML packages with states write what transformers writes; read in pieces, what they say of a text read at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("coremltools", reason="pip install coremltools")

from coremltools.proto import Model_pb2
from decoder_harness import CONFIGS, VOCAB, saved

import trustformers_ir as tfir
from trustformers_ir.codegen.export.coreml.evaluate import Package
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.tools.cli import main

NEW = 16
PROMPT = 9
ALIKE = ("gemma2", "gpt_neo")  # so small, and so random, they write one token again and again
LONG = [n for n in CONFIGS if n not in ("llama", "gpt2")]


def written(package: Package, prompt: np.ndarray, new: int) -> list[int]:
    """Greedy: the prompt in two pieces, then token by token."""
    state, half = package.new_state(), len(prompt) // 2
    package.run({"input_ids": prompt[None, :half], "start": np.array([0])}, state)
    given, at, found = prompt[half:], half, []
    for _ in range(new):
        (scores,) = package.run({"input_ids": given[None], "start": np.array([at])}, state).values()
        assert scores.shape == (1, VOCAB)
        at += len(given)
        given = scores.argmax(-1)
        found.append(int(given[0]))
    return found


def theirs(model: Any, prompt: np.ndarray, new: int) -> list[int]:
    ids = torch.from_numpy(prompt)[None]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    found: list[int] = out[0, len(prompt) :].tolist()
    return found


@pytest.mark.parametrize("model_type", [*(n for n in CONFIGS if n not in LONG), *(pytest.param(n, marks=pytest.mark.long) for n in LONG)])
def test_what_is_written(model_type: str, tmp_path: Path) -> None:
    """Greedy texts of transformers, and of native code; the program in f32."""
    length = {"gpt2": "n_positions", "gptj": "n_positions"}.get(model_type, "max_position_embeddings")
    model = saved(tmp_path / "model", model_type, eos_token_id=None, **{length: 48})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2.5
    model.save_pretrained(tmp_path / "model")
    made = tfir.export(str(tmp_path / "model"), str(tmp_path / "m.mlpackage"), dtype="f32", cache="f16", capacity=32)
    assert not made.wide  # type: ignore[union-attr]
    package, prompt = Package(tmp_path / "m.mlpackage"), np.random.default_rng(3).integers(8, VOCAB, PROMPT)
    found = written(package, prompt, NEW)
    assert len(set(found)) > 1 or model_type in ALIKE
    assert found == theirs(model, prompt, NEW)
    assert found == tfir.compile(str(tmp_path / "model")).generate(prompt, max_new_tokens=NEW).tolist()


SPEC = (
    "random:llama?num_hidden_layers=1&hidden_size=32&intermediate_size=48&num_attention_heads=4&num_key_value_heads=2&vocab_size=50"
    "&max_position_embeddings=24&architecture=LlamaForCausalLM"
)


def test_the_package(tmp_path: Path) -> None:
    """What a caller meets: two inputs, scores of one token, a state of 16 bits for the keys and for the values of each layer."""
    path = tmp_path / "m.mlpackage"
    assert main(["export", SPEC, "-o", str(path), "--cache", "f16", "--capacity", "20"]) == 0
    specification = Model_pb2.Model()
    specification.ParseFromString((path / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    about = specification.description
    assert [i.name for i in about.input] == ["input_ids", "start"] and [o.name for o in about.output] == ["logits"]
    assert [(r.lowerBound, r.upperBound) for r in about.input[0].type.multiArrayType.shapeRange.sizeRanges] == [(1, 1), (1, 20)]
    assert {s.name: list(s.type.stateType.arrayType.shape) for s in about.state} == {"key_0": [1, 2, 20, 8], "value_0": [1, 2, 20, 8]}
    assert specification.specificationVersion == 9  # iOS 18
    package = Package(path)
    ids, state = np.arange(12)[None], package.new_state()
    whole = package.run({"input_ids": ids, "start": np.array([0])})["logits"]  # without a state, a call begins with a new one
    np.testing.assert_array_equal(package.run({"input_ids": ids, "start": np.array([0])})["logits"], whole)
    for n in range(12):
        one = package.run({"input_ids": ids[:, n : n + 1], "start": np.array([n])}, state)["logits"]
    assert np.abs(one - whole).max() < 3e-3 * np.abs(whole).max()
    assert not state["key_0"][:, :, 12:].any() and state["key_0"][:, :, :12].all()
    for given, start, code in ((ids, 9, Code.INDEX_OUT_OF_RANGE), (np.zeros((1, 21)), 0, Code.INPUT_SHAPE), (np.zeros((2, 3)), 0, Code.INPUT_SHAPE)):
        with pytest.raises(CompilerError) as caught:
            package.run({"input_ids": given, "start": np.array([start])}, state)
        assert caught.value.diagnostics[0].code is code


def test_as_many_tokens_as_there_are_positions(tmp_path: Path) -> None:
    path = tmp_path / "m.mlpackage"
    tfir.export(SPEC, str(path), cache="f16")
    assert Package(path).new_state()["key_0"].shape == (1, 2, 24, 8)
    bert = "random:bert?hidden_size=32&num_attention_heads=4&num_hidden_layers=1&intermediate_size=32"
    for model, options in (
        (SPEC, {"cache": "f16", "capacity": 25}),
        (SPEC, {"cache": "q8_0"}),
        (SPEC, {"cache": "f16", "capacity": 0}),
        (SPEC, {"capacity": 8}),
        (bert, {"cache": "f16"}),
    ):
        with pytest.raises(CompilerError):
            tfir.export(model, str(tmp_path / "other.mlpackage"), **options)  # type: ignore[call-overload]
    with pytest.raises(CompilerError):
        tfir.export(SPEC, str(tmp_path / "m.onnx"), cache="f16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.mlpackage"]
