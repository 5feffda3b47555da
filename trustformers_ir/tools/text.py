"""Text in: from sentences to the inputs of a model, and from its hidden states to sentence vectors."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.frontend.tokenizer import load_tokenizer
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where

TOKENIZER_KEY = "tokenizer.json"  # of the metadata of a module and of an artifact
_ENDLESS = 1 << 20


def tokenizer_of(model: str, metadata: Mapping[str, str]) -> Any:
    """The tokenizer that travels in the artifact, or the one in the checkpoint's folder."""
    if TOKENIZER_KEY in metadata:
        with tempfile.TemporaryDirectory(prefix="tfir-") as folder:
            (Path(folder) / "tokenizer.json").write_text(metadata[TOKENIZER_KEY], encoding="utf-8")
            return load_tokenizer(Path(folder))
    if not Path(model).is_dir():
        message = f"'{model}' carries no tokenizer, so it cannot read text"
        raise CompilerError.of(Code.TOKENIZER_MISSING, message, Where(file=model), "give token ids: --input input_ids=ids.npy")
    return load_tokenizer(Path(model))


def encode(tokenizer: Any, texts: Sequence[str], longest: int | None, truncate: bool, pad: bool) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask of a batch. Texts of more than ``longest`` tokens are all reported, unless they are to be cut."""
    if longest is None or truncate:
        return _encoded(tokenizer, texts, longest or _ENDLESS, pad)
    ids, mask = _encoded(tokenizer, texts, longest + 1, pad)
    problems = Collector()
    for number, (text, tokens) in enumerate(zip(texts, mask.sum(axis=1), strict=True), 1):
        if tokens > longest:
            beginning = text if len(text) <= 40 else text[:40] + "…"
            message = f"text {number} ('{beginning}') has more than the {longest} tokens that the model has positions for"
            problems.add(Code.TEXT_TOO_LONG, message, help="shorten it, or cut it with --truncate")
    problems.check()
    return ids, mask


def _encoded(tokenizer: Any, texts: Sequence[str], longest: int, pad: bool) -> tuple[np.ndarray, np.ndarray]:
    ids, mask = tokenizer.encode_batch(list(texts), longest, pad)
    return np.asarray(ids), np.asarray(mask)


def sentence_vectors(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean of the hidden states of real tokens, scaled to length 1."""
    weight = mask[:, :, None].astype(np.float64)
    mean: np.ndarray = (hidden.astype(np.float64) * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    return np.asarray(mean / np.maximum(length, 1e-12), np.float32)
