"""llama.cpp, asked over the server of the package ``xllamacpp``: it tells log-probabilities of the next token, or vectors of texts.

It lives in a process of its own, which this module is too (``python -m …llama_cpp FILE WIDTH WHAT``): what it cannot read makes it abort, and with it
the process that it is in. The two speak in lines: ids there, ``[[id, log-probability], …]`` back (of a vector, the number of each feature and the
feature), behind a mark, for others write to stdout as well.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.tools.agreement.metrics import log_softmax

ROWS = 2  # of a probe: each is a text of its own here
CONTEXT = 640
MARK = "it says: "
LOGITS, VECTOR = "logits", "sentence_embedding"
TOKENS, VECTORS = "tokens", "vectors"
SHOWN = {LOGITS: TOKENS, VECTOR: VECTORS}  #: the outputs of models of which it tells something, and what


def installed() -> bool:
    """Whether there is a llama.cpp to ask."""
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaCpp:
    """A file that llama.cpp reads. Its process starts at the first question, and ends with this one. ``width``: of the vocabulary, or of vectors."""

    def __init__(self, path: str, width: int, what: str = TOKENS) -> None:
        self.path, self.width, self.what = path, width, what
        self._process: subprocess.Popen[str] | None = None

    def compute(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """``f64[rows, width]``: log-probabilities of the token after each of the first rows that hold any, or their vectors. Raises
        ``CHECK_FAILED`` when llama.cpp stops."""
        rows = texts(arrays)
        return [np.stack([self._ask(ids) for ids in rows]) if rows else np.zeros((0, self.width))]

    def _ask(self, ids: np.ndarray) -> np.ndarray:
        if self._process is None:
            command = [sys.executable, "-m", __name__, self.path, str(self.width), self.what]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None and answers is not None
        try:
            print(json.dumps(ids.tolist()), file=asked, flush=True)
            told = next((line for line in answers if line.startswith(MARK)), None)
        except BrokenPipeError:
            told = None
        if told is None:
            message = f"llama.cpp cannot read '{self.path}' (its process ended with {self._process.wait()})"
            help = "does the file hold a vocabulary? --by interpreter leaves llama.cpp out"
            raise CompilerError.of(Code.CHECK_FAILED, message, Where(file=self.path), help)
        found = np.full(self.width, -np.inf)
        for id, value in json.loads(told.removeprefix(MARK)):
            found[id] = value
        return found

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.kill()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
            self._process = None

    def __del__(self) -> None:
        self.close()


def lengths_of(arrays: Mapping[str, np.ndarray]) -> list[int]:
    """How many tokens of each row are no padding."""
    ids = arrays["input_ids"]
    return [int(n) for n in arrays["attention_mask"].sum(-1)] if "attention_mask" in arrays else [ids.shape[1]] * len(ids)


def texts(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The ids of the first rows that are not all padding."""
    return [row[:n] for row, n in zip(arrays["input_ids"], lengths_of(arrays), strict=True) if n][:ROWS]


def true_next_tokens(arrays: Mapping[str, np.ndarray], logits: np.ndarray) -> list[np.ndarray]:
    """What log-probabilities ought to be, from logits ``[batch, length, vocabulary]``."""
    at = [(row, n - 1) for row, n in enumerate(lengths_of(arrays)) if n][:ROWS]
    return [log_softmax(np.stack([logits[row, last] for row, last in at])) if at else np.zeros((0, logits.shape[-1]))]


def true_vectors(arrays: Mapping[str, np.ndarray], vectors: np.ndarray) -> list[np.ndarray]:
    """What vectors ought to be, from those of a model, ``[batch, width]``: their length is 1."""
    found = vectors[[row for row, n in enumerate(lengths_of(arrays)) if n][:ROWS]]
    return [found / np.linalg.norm(found, axis=-1, keepdims=True)]


def serve(path: str, width: int, what: str) -> None:
    """Answers the lines of stdin."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx = CONTEXT
    parameters.warmup = False
    if what == VECTORS:
        parameters.embedding = True
        parameters.n_batch = parameters.n_ubatch = CONTEXT  # a text of an encoder is read whole
    server: Any = xllamacpp.Server(parameters)
    ask = _vector if what == VECTORS else _next_token
    for line in sys.stdin:
        print("\n" + MARK + json.dumps(ask(server.listening_address, json.loads(line), width)), flush=True)


def _next_token(address: str, ids: list[int], width: int) -> list[list[float]]:
    request = {"prompt": ids, "n_predict": 1, "n_probs": width, "temperature": 0, "cache_prompt": False}
    rows = _answer(f"{address}/completion", request)["completion_probabilities"][0]["top_logprobs"]
    return [[row["id"], row["logprob"]] for row in rows]


def _vector(address: str, ids: list[int], width: int) -> list[list[float]]:
    (found,) = _answer(f"{address}/embedding", {"content": ids})[0]["embedding"]
    return [[n, value] for n, value in enumerate(found)]


def _answer(url: str, request: Mapping[str, Any]) -> Any:
    asked = urllib.request.Request(url, json.dumps(request).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=600) as answer:
        return json.load(answer)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
