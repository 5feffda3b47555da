"""llama.cpp, asked over the server of the package ``xllamacpp``: log-probabilities of the next token are what it tells."""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.tools.agreement.metrics import log_softmax

ROWS = 2  # of a probe: each is a text of its own here
CONTEXT = 640


def installed() -> bool:
    """Whether there is a llama.cpp to ask."""
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaCpp:
    """A file that llama.cpp has read. Starts at the first question."""

    def __init__(self, path: str, words: int) -> None:
        self.path, self.words, self._server = path, words, None

    def next_tokens(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """``f64[rows, vocabulary]``: log-probabilities of the token after each of the first rows that hold any."""
        rows = texts(arrays)
        return [np.stack([self._ask(ids) for ids in rows]) if rows else np.zeros((0, self.words))]

    def _ask(self, ids: np.ndarray) -> np.ndarray:
        import xllamacpp

        if self._server is None:
            parameters = xllamacpp.CommonParams()
            parameters.model.path = self.path
            parameters.n_ctx = CONTEXT
            parameters.warmup = False
            try:
                self._server = xllamacpp.Server(parameters)
            except Exception as error:
                message = f"llama.cpp cannot read '{self.path}': {error}"
                raise CompilerError.of(Code.CHECK_FAILED, message, Where(file=self.path), "--by interpreter leaves it out") from error
        request = {"prompt": ids.tolist(), "n_predict": 1, "n_probs": self.words, "temperature": 0, "cache_prompt": False}
        server: Any = self._server
        asked = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(request).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=600) as answer:
            told = json.load(answer)["completion_probabilities"][0]["top_logprobs"]
        found = np.full(self.words, -np.inf)
        for row in told:
            found[row["id"]] = row["logprob"]
        return found


def texts(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The ids of the first rows that are not all padding."""
    ids = arrays["input_ids"]
    lengths = arrays["attention_mask"].sum(-1) if "attention_mask" in arrays else np.full(len(ids), ids.shape[1])
    return [row[: int(n)] for row, n in zip(ids, lengths, strict=True) if n][:ROWS]


def true_next_tokens(arrays: Mapping[str, np.ndarray], outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What :meth:`LlamaCpp.next_tokens` ought to be, from logits ``[batch, length, vocabulary]``."""
    (logits,) = outputs
    ids = arrays["input_ids"]
    lengths = arrays["attention_mask"].sum(-1) if "attention_mask" in arrays else np.full(len(ids), ids.shape[1])
    at = [(n, int(length) - 1) for n, length in enumerate(lengths) if length][:ROWS]
    return [log_softmax(np.stack([logits[n, last] for n, last in at])) if at else np.zeros((0, logits.shape[-1]))]
