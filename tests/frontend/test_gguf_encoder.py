"""BERT in GGUF files: what is written is the model, llama.cpp reads ids and vectors alike, and what files cannot say is an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import LlamaCpp, served

import trustformers_ir as tfir
from trustformers_ir.frontend.checkpoint import load_checkpoint
from trustformers_ir.frontend.gguf.container import GgufFile, open_gguf
from trustformers_ir.frontend.gguf.model import load_gguf
from trustformers_ir.frontend.gguf.vocabulary import tokenizer_json
from trustformers_ir.frontend.gguf.wordpiece import inward, outward
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.frontend.tokenizer import load_tokenizer
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.tools.cli import main

SMALL = (
    "random:bert?hidden_size=32&num_hidden_layers=2&num_attention_heads=4&intermediate_size=48&vocab_size=99&type_vocab_size=3&max_position_embeddings=40"
)
RNG = np.random.default_rng(3)
IDS, TYPES = RNG.integers(0, 99, (2, 7)), RNG.integers(0, 3, (2, 7))
MASK = np.array([[1] * 7, [1] * 4 + [0] * 3])
TEXTS = [
    "The capital of France is",
    "Hello, world! It's 12345 o'clock; they'LL say \"don't\" (x=3.14) -- #1.",
    "  two   spaces\tand tabs\n\n\nlines \r\n  end  ",
    "Café déjà vu, naïve façade, Straße, co\u0301te\u0301, İstanbul",
    "東京 2024年, привет мир! 12,345.67 km²",
    "\U0001f600 emoji \U0001f468\u200d\U0001f469\u200d\U0001f467 and \u00a0 odd\u2003spaces, un\u00adaffable",
    "antidisestablishmentarianism " * 3 + "x" * 99,
]


@pytest.fixture(scope="module")
def written(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "minilm.gguf"
    tfir.export(str(minilm), str(path))
    return path


def test_what_was_written_is_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tfir.export(SMALL, str(path))
    want, got = (tfir.evaluate(m, IDS, MASK, TYPES) for m in (random_model(SMALL), load_gguf(path)))
    assert len(want) == 2 and all(np.array_equal(a, b) for a, b in zip(want, got, strict=True)), "hidden states, and what the pooler makes"
    file = open_gguf(path)
    keys = ("bert.attention.causal", "bert.pooling_type", "tokenizer.ggml.token_type_count")
    assert [file.metadata[key] for key in keys] == [False, 0, 3]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, 2)
    for name in random_model(SMALL).weights:  # as the package calls those of the checkpoint
        assert (names.get_name(name, (".weight", ".bias")) or name.replace("pooler.dense", "cls")) in file


def test_a_real_encoder_comes_back(written: Path, minilm: Path) -> None:
    """Its hidden states, its pooler and its vectors; where texts are cut; and the ids of texts."""
    source, back = load_checkpoint(minilm), load_gguf(written)
    ids = RNG.integers(1000, 20_000, (2, 9))
    args = (ids, np.ones_like(ids), np.zeros_like(ids))
    assert all(np.array_equal(a, b) for a, b in zip(tfir.evaluate(source, *args), tfir.evaluate(back, *args), strict=True))
    assert source.metadata == back.metadata
    mine, theirs = load_tokenizer(str(tokenizer_json(open_gguf(written))).encode(), "file"), load_tokenizer(minilm)
    for text in TEXTS:
        assert [a.tolist() for a in mine.encode_batch([text])] == [a.tolist() for a in theirs.encode_batch([text])], text


def test_llama_cpp_makes_the_same_ids_and_vectors(written: Path) -> None:
    """It computes GELU by tanh, from a table in f16: 2e-4 of a vector of length 1."""
    executable = tfir.compile(str(written))
    tokenizer = load_tokenizer(str(tokenizer_json(open_gguf(written))).encode(), "file")
    with served(written, embedding=True) as peer:
        for text in TEXTS:
            ids, mask = tokenizer.encode_batch([text])
            assert peer.tokens(text) == ids[0].tolist(), text
            want = executable(ids, mask)[-1][0]
            assert np.abs(vector(peer, ids[0]) - want).max() < 5e-4, text


def vector(peer: LlamaCpp, ids: np.ndarray) -> np.ndarray:
    return np.array(peer.ask("embedding", content=ids.tolist())[0]["embedding"][0])


@pytest.mark.parametrize("quantize", ["q8_0", "q4_k_m"])
def test_llama_cpp_reads_blocks(quantize: str, minilm: Path, tmp_path: Path) -> None:
    """Tables of positions and of types stay numbers, as llama.cpp's quantizer leaves them."""
    path = tmp_path / "m.gguf"
    tfir.export(str(minilm), str(path), quantize=quantize)
    kinds = {t.name: t.kind.name for t in open_gguf(path).values()}
    assert kinds["position_embd.weight"] == kinds["token_types.weight"] == "F32" and kinds["blk.0.attn_q.weight"] not in ("F32", "F16")
    ids = np.array([[101, 1996, 3007, 1997, 2605, 2003, 3000, 102]])
    want = tfir.evaluate(load_gguf(path), ids, np.ones_like(ids), np.zeros_like(ids))[-1][0]
    with served(path, embedding=True) as peer:
        found = vector(peer, ids[0])
    assert want @ found > 0.9995, "it rounds activations to 8 bits: 0.99979 and 0.99976"


def test_verify_asks_llama_cpp(written: Path, minilm: Path, tmp_path: Path) -> None:
    told = tmp_path / "agreement.json"
    arguments = ["verify", str(minilm), str(written), "--probe", "1", "--by", "llama.cpp", "--output", str(told)]
    assert main(arguments) == 0
    (row,) = json.loads(told.read_text())["differences"]
    assert (row["by"], row["output"]) == ("llama.cpp", "sentence_embedding") and 1e-5 < row["relative"] < 1e-2


@given(st.text(min_size=1, max_size=6).filter(lambda t: t != "##"), st.booleans())
@settings(deadline=None)
def test_marks_come_back(token: str, special: bool) -> None:
    """But for a token that begins with the mark itself and goes on with a word: it cannot be told from one that begins a word."""
    assert inward(outward(token, special), special) == token or token.startswith("##\u2581")


# --- what cannot be said -------------------------------------------------------------------------------------------------


def changed(minilm: Path, folder: Path, name: str, change: Callable[[Any], None]) -> str:
    """A small sentence encoder with MiniLM's settings but one."""
    shutil.copytree(minilm, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    shutil.copytree(minilm / "1_Pooling", folder / "1_Pooling", dirs_exist_ok=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(folder)
    raw = json.loads((folder / name).read_text())
    change(raw)
    (folder / name).write_text(json.dumps(raw))
    return str(folder)


CANNOT: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "another GELU": ("config.json", lambda raw: raw.update(hidden_act="gelu_new"), "hidden_act is 'gelu_new'"),
    "a head": ("config.json", lambda raw: raw.update(model_type="bert", architectures=["BertForMaskedLM"]), "cls.predictions"),
    "maximum": ("1_Pooling/config.json", lambda raw: raw.update(pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True), "max_tokens"),
    "capitals": ("tokenizer.json", lambda raw: raw["normalizer"].update(lowercase=False), "without capitals"),
    "marks": ("tokenizer.json", lambda raw: raw["model"].update(continuing_subword_prefix="@@"), "other marks"),
    "nothing around": ("tokenizer.json", lambda raw: raw.update(post_processor=None), "no tokens around"),
    "added by users": ("tokenizer.json", lambda raw: raw["added_tokens"][4].update(special=False), "users have added"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_a_file_cannot_say_is_an_error(case: str, minilm: Path, tmp_path: Path) -> None:
    name, change, said = CANNOT[case]
    folder = changed(minilm, tmp_path / "m", name, change)
    if case == "a head":
        (tmp_path / "m" / "modules.json").unlink()
    with pytest.raises(CompilerError) as caught:
        tfir.export(folder, str(tmp_path / "m.gguf"))
    assert said in str(caught.value) and not (tmp_path / "m.gguf").exists()


READ: dict[str, tuple[dict[str, Any], Code]] = {
    "a decoder": ({"bert.attention.causal": True}, Code.UNSUPPORTED_CONFIG),
    "last token": ({"bert.pooling_type": 3}, Code.UNSUPPORTED_CONFIG),
    "no number": ({"bert.pooling_type": "mean"}, Code.GGUF_METADATA),
    "no truth": ({"sentence_transformers.normalize": 1}, Code.GGUF_METADATA),
    "no length": ({"sentence_transformers.max_seq_length": 0}, Code.GGUF_METADATA),
}


@pytest.mark.parametrize("case", READ)
def test_files_of_others_that_say_something_else(case: str, tmp_path: Path) -> None:
    keys, code = READ[case]
    tfir.export(SMALL, str(tmp_path / "m.gguf"))
    file = open_gguf(tmp_path / "m.gguf")
    with pytest.raises(CompilerError) as caught:
        load_gguf(GgufFile(file.path, 3, {**file.metadata, **keys}, dict(file)))
    assert code in caught.value.codes


@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_as_long_as_they_were(normalize: bool, minilm: Path, tmp_path: Path) -> None:
    folder = changed(minilm, tmp_path / "m", "modules.json", lambda raw: raw.__delitem__(slice(2 + normalize, None)))
    tfir.export(folder, str(tmp_path / "m.gguf"))
    ids = np.array([[101, 1996, 3007, 102]])
    found = tfir.evaluate(load_gguf(tmp_path / "m.gguf"), ids, np.ones_like(ids), np.zeros_like(ids))[-1]
    assert bool(abs(np.linalg.norm(found) - 1) < 1e-6) is normalize


def test_roles_that_a_file_does_not_name(written: Path) -> None:
    """They are those of the published BERT; a vocabulary without those is no tokenizer."""
    file = open_gguf(written)
    bare = {k: v for k, v in file.metadata.items() if not k.endswith("_token_id")}
    assert tokenizer_json(GgufFile(file.path, 3, bare, {})) == tokenizer_json(file)
    small = {**bare, "tokenizer.ggml.tokens": file.metadata["tokenizer.ggml.tokens"], "tokenizer.ggml.seperator_token_id": 10**6}
    with pytest.raises(CompilerError) as caught:
        tokenizer_json(GgufFile(file.path, 3, small, {}))
    assert caught.value.codes == (Code.TOKENIZER_INVALID,)
