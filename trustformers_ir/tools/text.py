"""Text in: the tokenizer that belongs to a model, and sentence vectors from hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from trustformers_ir.frontend.tokenizer import TextTokenizer, load_tokenizer
from trustformers_ir.ir.abi import TOKENIZER_KEY
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where


def tokenizer_of(model: str, metadata: Mapping[str, str]) -> TextTokenizer:
    """The tokenizer in the checkpoint's folder, or the one that travels in the artifact."""
    if Path(model).is_dir():
        return load_tokenizer(Path(model))
    if TOKENIZER_KEY in metadata:
        return load_tokenizer(metadata[TOKENIZER_KEY].encode(), f"{model}, {TOKENIZER_KEY}")
    message = f"'{model}' carries no tokenizer, so it cannot read text"
    raise CompilerError.of(Code.TOKENIZER_MISSING, message, Where(file=model), "give token ids: --input input_ids=ids.npy")


class Detokenizer:
    """Text of tokens that come one by one: what a token adds depends on those before it, and a letter may be made of several."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode = decode
        self.ids: list[int] = []
        self._first, self._shown = 0, 0  # tokens from which on text is made again, and up to which it has been shown

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self.ids.append(int(token))
        text = self._new()
        if text.endswith("\ufffd"):  # the first bytes of a letter
            return ""
        self._first, self._shown = self._shown, len(self.ids)
        return text

    def rest(self) -> str:
        """What is left when no token follows."""
        return self._new()

    def _new(self) -> str:
        return self.decode(self.ids[self._first :])[len(self.decode(self.ids[self._first : self._shown])) :]


def sentence_vectors(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean of the hidden states of real tokens, scaled to length 1. ``hidden`` is ``f32[texts, tokens, width]``, ``mask`` ``[texts, tokens]``."""
    weight = mask[:, :, None].astype(np.float64)
    mean: np.ndarray = (hidden.astype(np.float64) * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    return np.asarray(mean / np.maximum(length, 1e-12), np.float32)
