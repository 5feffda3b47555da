"""Writing text, against ``generate`` of transformers: greedy, with penalties, by beams; several prompts at once; streams, ends and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_harness import CONFIGS, VOCAB, saved

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.runtime.generation.session import Session
from trustformers_ir.runtime.runnable import Runnable

LONGER: dict[str, dict[str, Any]] = {"gpt2": {"n_positions": 96}}
END = 7
SIZES = "num_hidden_layers=2&hidden_size=32&intermediate_size=48&num_attention_heads=4&num_key_value_heads=2&vocab_size=60"
SPEC = f"random:llama?{SIZES}&architecture=LlamaForCausalLM"


def written(folder: Path, model_type: str) -> tuple[Any, Runnable]:
    """A random model that writes different texts for different prompts, and what it was compiled to."""
    model = saved(folder, model_type, eos_token_id=END, **LONGER.get(model_type, {"max_position_embeddings": 96}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2.5
    model.generation_config.eos_token_id = END
    model.save_pretrained(folder)
    return model, tfir.compile(str(folder))


def prompts(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(8, VOCAB, n) for n in lengths]


def theirs(model: Any, prompt: np.ndarray, new: int, **options: Any) -> list[int]:
    ids = torch.from_numpy(prompt)[None]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0, use_cache=True, **options)
    found: list[int] = out[0, len(prompt) :].tolist()
    return found


#: over the same parts as others: their tests are long ones
ALIKE = frozenset({"cohere", "gemma", "gemma2", "gpt2", "gpt_neo", "gptj", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "stablelm"})


@pytest.mark.parametrize("model_type", [pytest.param(n, marks=[pytest.mark.long] * (n in ALIKE)) for n in CONFIGS])
def test_families_write_what_transformers_writes(tmp_path: Path, model_type: str) -> None:
    model, exe = written(tmp_path, model_type)
    given = prompts(5, 17, 9, 1)
    together = exe.generate(given, max_new_tokens=64)
    for prompt, new in zip(given, together, strict=True):
        assert new.tolist() == theirs(model, prompt, 64)
        assert new.tolist() == exe.generate(prompt, max_new_tokens=64).tolist()
    prompt = given[1]
    assert exe.generate(prompt, max_new_tokens=20, num_beams=4).tolist() == theirs(model, prompt, 20, num_beams=4)
    assert exe.generate(prompt, max_new_tokens=20, repetition_penalty=1.3).tolist() == theirs(model, prompt, 20, repetition_penalty=1.3)
    pieces_have_the_bits_of_the_whole(exe)


def pieces_have_the_bits_of_the_whole(exe: Runnable) -> None:
    """Tokens read one by one, and pieces, have the scores of one pass."""
    ids = prompts(90)[0]
    whole = exe(ids[None], np.ones_like(ids)[None])[0]
    session = Session(exe, 1)
    assert (session.read([ids[:1]])[0] == whole[0]).all()
    for n in range(1, 70):
        assert (session.step(ids[n : n + 1])[0] == whole[n]).all()
    assert (session.read([ids[70:]])[0] == whole[89]).all()


#: rotary positions beyond the texts that a model was trained on; the last two turn by an angle that depends on how long a text is
STRETCHED: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "linear": {"rope_type": "linear", "factor": 8.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512},
    "dynamic": {"rope_type": "dynamic", "factor": 8.0},
    "longrope": {
        "rope_type": "longrope", "short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)],
        "original_max_position_embeddings": 512,
    },
}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.long] * (k not in ("llama3", "longrope"))) for k in STRETCHED])
def test_texts_far_beyond_the_first_positions(kind: str, tmp_path: Path) -> None:
    """3,500 tokens, then 24 more as transformers writes them; read as a piece and a token they have the bits of one pass."""
    family = "phi3" if kind == "longrope" else "llama"
    scaling = STRETCHED[kind] | {"rope_theta": 10000.0}
    longest = 512 if kind in ("linear", "dynamic") else 4096
    sizes = {"num_hidden_layers": 1, "head_dim": 16, "max_position_embeddings": longest, "rope_parameters": scaling}
    if kind == "longrope":
        sizes |= {"hidden_size": 64, "num_attention_heads": 4, "original_max_position_embeddings": 512, "partial_rotary_factor": 1.0}
    model = saved(tmp_path, family, eos_token_id=END, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2.5
    model.generation_config.eos_token_id = END
    model.save_pretrained(tmp_path)
    exe, prompt = tfir.compile(str(tmp_path)), prompts(3500)[0]
    assert exe.generate(prompt, max_new_tokens=24).tolist() == theirs(model, prompt, 24)
    if kind not in ("dynamic", "longrope"):
        session = Session(exe, 1)
        session.read([prompt[:-1]])
        whole = exe(prompt[None], np.ones_like(prompt)[None])[0]
        assert (session.step(prompt[-1:])[0] == whole[-1]).all()


@pytest.fixture(scope="module")
def exe() -> Runnable:
    return tfir.compile(SPEC)


def test_what_is_drawn_does_not_depend_on_the_others(exe: Runnable) -> None:
    first, second = prompts(4, 11)
    both = exe.generate([first, second], max_new_tokens=12, temperature=1.0, top_k=20, seed=3)
    assert exe.generate([first, first], max_new_tokens=12, temperature=1.0, top_k=20, seed=3)[0].tolist() == both[0].tolist()
    assert exe.generate(first, max_new_tokens=12, temperature=1.0, top_k=20, seed=3).tolist() == both[0].tolist()
    assert exe.generate(first, max_new_tokens=12, temperature=1.0, top_k=20, seed=4).tolist() != both[0].tolist()


def test_streams(exe: Runnable) -> None:
    given, seen = prompts(4, 9), list[Any]()
    want = exe.generate(given, max_new_tokens=6)
    assert list(exe.generate(given[0], max_new_tokens=6, stream=True)) == want[0].tolist()
    assert np.array(list(exe.generate(given, max_new_tokens=6, stream=True))).T.tolist() == [w.tolist() for w in want]
    exe.generate(given[0], max_new_tokens=6, stream=seen.append)
    assert seen == want[0].tolist()


def test_ends(exe: Runnable) -> None:
    prompt = prompts(4)[0]
    free = exe.generate(prompt, max_new_tokens=12).tolist()
    cut = free.index(free[5]) + 1
    assert exe.generate(prompt, max_new_tokens=12, ends=[free[5]]).tolist() == free[:cut]
    text = "".join(chr(65 + n) for n in free)
    stop = text[3:5]
    found = exe.generate(prompt, max_new_tokens=12, stop=stop, decode=lambda ids: "".join(chr(65 + n) for n in ids)).tolist()
    assert found == free[: text.index(stop) + 2]


def test_texts_that_end_early_leave_the_others_alone(exe: Runnable) -> None:
    given = prompts(4, 9)
    free = exe.generate(given, max_new_tokens=12)
    end = int(free[0][2])
    found = exe.generate(given, max_new_tokens=12, ends=[end])
    for text, whole in zip(found, free, strict=True):
        expected = whole.tolist()
        assert text.tolist() == (expected[: expected.index(end) + 1] if end in expected else expected)


def test_long_prompts_are_read_in_pieces(exe: Runnable, monkeypatch: pytest.MonkeyPatch) -> None:
    given = prompts(50, 31)
    want = exe.generate(given, max_new_tokens=5)
    monkeypatch.setattr("trustformers_ir.runtime.generation.session.CHUNK", 7)
    assert [t.tolist() for t in exe.generate(given, max_new_tokens=5)] == [t.tolist() for t in want]


def test_an_artifact_writes_too(exe: Runnable, tmp_path: Path) -> None:
    exe.save(str(tmp_path / "m.tfc"))
    loaded = tfir.load(str(tmp_path / "m.tfc"))
    prompt = prompts(6)[0]
    assert loaded.generate(prompt, max_new_tokens=9).tolist() == exe.generate(prompt, max_new_tokens=9).tolist()


@pytest.mark.parametrize(
    ("given", "options", "code", "what"),
    [
        ([], {}, Code.USAGE, "there is no prompt"),
        ([[1, 2], []], {}, Code.USAGE, "prompt 1"),
        ("text", {}, Code.USAGE, "no list of token ids"),
        ([1, 60], {}, Code.INDEX_OUT_OF_RANGE, "token 60"),
        ([-1], {}, Code.INDEX_OUT_OF_RANGE, "token -1"),
        ([1], {"max_new_tokens": 0}, Code.USAGE, "max_new_tokens"),
        ([1], {"max_new_tokens": 1 << 40}, Code.CACHE_FULL, "positions"),
        ([1], {"temperature": -1.0}, Code.USAGE, "temperature"),
        ([1], {"top_k": 0, "top_p": 0.0, "min_p": 2.0, "repetition_penalty": 0.0}, Code.USAGE, "min_p"),
        ([1], {"num_beams": 0}, Code.USAGE, "num_beams"),
        ([1], {"num_beams": 2, "temperature": 1.0}, Code.USAGE, "exclude"),
        ([1], {"stop": "a"}, Code.TOKENIZER_MISSING, "no tokenizer"),
    ],
)
def test_refusals(exe: Runnable, given: Any, options: dict[str, Any], code: Code, what: str) -> None:
    with pytest.raises(CompilerError) as caught:
        exe.generate(given, **options)
    assert set(caught.value.codes) == {code} and what in str(caught.value)


def test_other_models_do_not_write() -> None:
    exe = tfir.compile("random:bert?num_hidden_layers=1&hidden_size=32&num_attention_heads=2&intermediate_size=32&vocab_size=60")
    with pytest.raises(CompilerError) as caught:
        exe.generate([1, 2])
    assert set(caught.value.codes) == {Code.NO_GENERATION}
