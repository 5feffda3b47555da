"""llama.cpp, asked over its own server: the program that defines what GGUF files mean."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

xllamacpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp")


class LlamaCpp:
    """A model that is being served."""

    def __init__(self, server: Any) -> None:
        self._url = server.listening_address

    def ask(self, what: str, **request: Any) -> Any:
        body = json.dumps(request).encode()
        asked = urllib.request.Request(f"{self._url}/{what}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return json.load(answer)

    def tokens(self, text: str, special: bool = True) -> list[int]:
        """The ids of a text; ``special``: with those that stand around it."""
        return list(self.ask("tokenize", content=text, add_special=special, parse_special=True)["tokens"])

    def text(self, ids: list[int]) -> str:
        return str(self.ask("detokenize", tokens=ids)["content"])


@contextlib.contextmanager
def served(path: Path, context: int = 128, threads: int = 2, embedding: bool = False) -> Iterator[LlamaCpp]:
    """The model of a file. ``embedding``: it makes vectors of texts, and no texts."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = context
    parameters.cpuparams.n_threads = threads
    parameters.warmup = False
    if embedding:
        parameters.embedding, parameters.n_batch, parameters.n_ubatch = True, context, context
    server = xllamacpp.Server(parameters)
    try:
        yield LlamaCpp(server)
    finally:
        del server
