"""Prompts to continuations: a token of each text at a time, until each has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.runtime.generation.beams import beam_search
from trustformers_ir.runtime.generation.sampling import Sampling
from trustformers_ir.runtime.generation.session import Session

if TYPE_CHECKING:
    from trustformers_ir.runtime.runnable import Runnable

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Ending:
    """When a text ends: behind ``most`` new tokens, with one of ``tokens``, or when ``decode`` finds one of ``texts`` in the new tokens."""

    most: int
    tokens: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()
    decode: Decode | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.most, bool) or not isinstance(self.most, (int, np.integer)) or self.most < 1:
            raise CompilerError.of(Code.USAGE, f"max_new_tokens is {self.most!r}", help="a whole number from 1 on")

    def reached(self, new: list[int]) -> bool:
        """Whether the text ends with these new tokens."""
        if len(new) >= self.most or new[-1] in self.tokens:
            return True
        if not self.texts:
            return False
        assert self.decode is not None
        tail = self.decode(new[-(max(map(len, self.texts)) + 8) :])  # a token has a letter at least, but for parts of one
        return any(text in tail for text in self.texts)


def prompts_of(given: Any, vocabulary: int) -> tuple[list[np.ndarray], bool]:
    """The prompts, and whether it is a single one: ids, or a list of ids for each text. ``USAGE``"""
    single = not isinstance(given, (list, tuple)) or (len(given) > 0 and np.ndim(given[0]) == 0)
    if single and np.ndim(given) == 2:
        single = False
    rows = [given] if single else list(given)
    out: list[np.ndarray] = []
    for n, row in enumerate(rows):
        ids = np.asarray(row)
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
            message = f"prompt {n} is no list of token ids: {np.shape(row)} of {ids.dtype}"
            raise CompilerError.of(Code.USAGE, message, help="generate([1, 2, 3]), or generate([[1, 2, 3], [4, 5]]); a text goes through a tokenizer")
        if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
            wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            message = f"prompt {n} has the token {wrong}, and the model knows tokens 0 to {vocabulary - 1}"
            raise CompilerError.of(Code.INDEX_OUT_OF_RANGE, message, help="is it the tokenizer of this model?")
        out.append(ids.astype(np.int64))
    if not out:
        raise CompilerError.of(Code.USAGE, "there is no prompt", help="generate([1, 2, 3])")
    return out, single


def steps(session: Session, prompts: Sequence[np.ndarray], sampling: Sampling, ending: Ending, seed: int | None) -> Iterator[list[int | None]]:
    """The next token of each text, None where the text has ended, until all have. What is drawn for a text does not depend on the others."""
    random = [np.random.default_rng(None if seed is None else [seed, n]) for n in range(len(prompts))]
    new: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    scores = session.read(prompts)
    while True:
        row: list[int | None] = []
        for n, prompt in enumerate(prompts):
            if not going[n]:
                row.append(None)
                continue
            seen = np.concatenate([prompt, np.array(new[n], np.int64)]) if sampling.repetition_penalty != 1.0 else ()
            token = sampling.choose(scores[n], seen, random[n])
            new[n].append(token)
            row.append(token)
            going[n] = not ending.reached(new[n])
        yield row
        if not any(going):
            return
        scores = session.step([tokens[-1] for tokens in new])


@dataclass(frozen=True)
class Beams:
    """How many continuations of each text are followed, and how much longer ones are preferred (Wu et al. 2016: sums of logarithms are divided by
    ``length ** length_penalty``)."""

    count: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise CompilerError.of(Code.USAGE, f"num_beams is {self.count!r}", help="a whole number from 1 on")


def generate(
    executable: Runnable, given: Any, sampling: Sampling, ending: Ending, beams: Beams, seed: int | None, stream: bool | Callable[[Any], object]
) -> Any:
    """See ``Runnable.generate``."""
    session = Session(executable, 1)
    prompts, single = prompts_of(given, session.vocabulary)
    longest = max(map(len, prompts)) + ending.most - 1
    if beams.count > 1:
        if stream or sampling.temperature != 0 or ending.texts:
            what = "stream" if stream else "temperature" if sampling.temperature else "stop"
            raise CompilerError.of(Code.USAGE, f"{what} and num_beams exclude each other", help="num_beams=1")
        found = [beam_search(executable, p, beams.count, beams.length_penalty, sampling, ending.most, ending.tokens) for p in prompts]
        return found[0] if single else found
    session = Session(executable, len(prompts), longest)
    running = steps(session, prompts, sampling, ending, seed)
    shown = ((row[0] if single else row) for row in running)
    if stream is True:
        return shown
    rows: list[Any] = []
    for row in shown:
        rows.append(row)
        if stream:
            stream(row)
    if single:
        return np.array(rows, np.int64)
    return [np.array([row[n] for row in rows if row[n] is not None], np.int64) for n in range(len(prompts))]
