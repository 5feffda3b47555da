"""Text to token ids, with the ``tokenizers`` library: the ``tokenizer.json`` of a checkpoint, or its bytes from an artifact."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.mapped import give_back, read_most

TOKENIZER = "tokenizer.json"
MAX_BYTES = 256 << 20
_PADDING_NAMES = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")


class TextTokenizer:
    """A tokenizer that never cuts a text unless it is told to."""

    def __init__(self, backend: Any, text: str, place: str = TOKENIZER) -> None:
        self._backend = backend
        self._text = text
        self._place = place
        padding = backend.padding
        named = next((i for i in map(backend.token_to_id, _PADDING_NAMES) if i is not None), 0)
        self.pad_id: int = named if padding is None else padding["pad_id"]
        backend.no_truncation()  # settings of training scripts travel in tokenizer.json
        backend.no_padding()

    @property
    def vocab_size(self) -> int:
        return int(self._backend.get_vocab_size())

    @property
    def special_tokens(self) -> int:
        """How many tokens are put around a text."""
        return int(self._backend.num_special_tokens_to_add(False))

    def encode_batch(
        self,
        texts: Sequence[str],
        max_length: int | None = None,
        pad: bool = True,
        truncate: bool = False,
        places: Sequence[Where] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask, both ``int64[batch, length]``; the mask is 1 for tokens and 0 for padding at the end.

        A text of more than ``max_length`` tokens is an error (``TFC6009``, all such texts together) unless ``truncate``; ``places`` say where
        each text comes from. Without ``pad`` the texts have to have one length.
        """
        texts = list(texts)
        if not texts or not all(isinstance(t, str) for t in texts):
            raise CompilerError.of(Code.USAGE, "a batch is made of one or more texts", help='encode_batch(["a text"])')
        rows = self._rows(texts, max_length if truncate else None)
        lengths = [len(r) for r in rows]
        if max_length is not None and not truncate:
            _check_lengths(texts, lengths, max_length, places or [Where()] * len(texts))
        if not pad and len(set(lengths)) > 1:
            message = f"texts of {min(lengths)} to {max(lengths)} tokens make no rectangle"
            raise CompilerError.of(Code.USAGE, message, help="encode them one by one, or with pad=True")
        ids = np.full((len(rows), max(lengths)), self.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=True))

    def _rows(self, texts: list[str], longest: int | None) -> list[list[int]]:
        backend = self._backend
        if longest is not None:
            if longest <= self.special_tokens:
                message = f"{longest} tokens leave no room for a text: {self.special_tokens} are put around it"
                raise CompilerError.of(Code.USAGE, message, help="give a larger maximal length")
            backend = _parsed(self._text)  # a copy: this one is not to cut the next batch
            backend.no_padding()
            backend.enable_truncation(longest)
        if any("\ud800" <= c <= "\udfff" for text in texts for c in text):
            message = "a text is not valid Unicode: it has half of a surrogate pair"
            raise CompilerError.of(Code.USAGE, message, help="decode the text as UTF-8 first")
        with _guarded(self._place, self._text):
            return [e.ids for e in backend.encode_batch(texts)]


def load_tokenizer(source: str | Path | bytes, shown: str = TOKENIZER) -> TextTokenizer:
    """The tokenizer of a checkpoint folder, of a ``tokenizer.json``, or of the bytes of one, which messages name as ``shown``."""
    if isinstance(source, bytes):
        return _made(source, shown)
    path = Path(source)
    path = path / TOKENIZER if path.is_dir() else path
    return _made(_read(path), str(path))


def tokenizer_text(folder: str | Path) -> str | None:
    """The tokenizer of a folder as text that can travel in an artifact; None when there is none."""
    path = Path(folder) / TOKENIZER
    if not path.is_file():
        return None
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        where = Where(file=str(path), offset=error.start)
        raise CompilerError.of(Code.TOKENIZER_INVALID, "the tokenizer is not UTF-8 text", where) from None


def _read(path: Path) -> bytes:
    place = Where(file=str(path))
    try:
        with path.open("rb") as stream:
            raw = read_most(stream, MAX_BYTES)
    except FileNotFoundError:
        help = "save it with the checkpoint, or give token ids: --input input_ids=ids.npy"
        raise CompilerError.of(Code.TOKENIZER_MISSING, f"there is no {path.name} in '{path.parent}'", place, help) from None
    except OSError as error:
        raise CompilerError.of(Code.UNREADABLE, f"cannot read '{path}': {error.strerror}", place) from None
    if len(raw) > MAX_BYTES:
        raise CompilerError.of(Code.TOKENIZER_INVALID, f"the tokenizer has more than the {MAX_BYTES} bytes that are allowed", place)
    return raw


def _made(raw: bytes, place: str) -> TextTokenizer:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        where = Where(file=place, offset=error.start)
        raise CompilerError.of(Code.TOKENIZER_INVALID, "the tokenizer is not UTF-8 text", where) from None
    with _guarded(place, text):
        return TextTokenizer(_parsed(text), text, place)


@contextlib.contextmanager
def _guarded(place: str, text: str) -> Iterator[None]:
    """``TOKENIZER_INVALID`` for what the library raises: plain exceptions, and panics, which are not even those."""
    try:
        yield
    except (CompilerError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        message = f"'{place}' is no tokenizer that the tokenizers library reads: {error}"
        help = "save it again with the version of tokenizers that is installed"
        raise CompilerError.of(Code.TOKENIZER_INVALID, message, _place_of_error(place, text), help) from None


def _parsed(text: str) -> Any:
    try:
        import tokenizers
    except ImportError:
        help = "install it: pip install 'trustformers_ir[hf]'"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, "reading text needs the package tokenizers, which is not installed", help=help) from None
    backend = tokenizers.Tokenizer.from_str(text)
    give_back()  # what reading it took besides: 27 MB for a vocabulary of 49,000
    return backend


def _place_of_error(place: str, text: str) -> Where:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return Where(file=place, line=error.lineno, column=error.colno)
    except (RecursionError, ValueError):
        pass
    return Where(file=place)


def _check_lengths(texts: list[str], lengths: list[int], longest: int, places: Sequence[Where]) -> None:
    problems = Collector()
    for number, (text, length, place) in enumerate(zip(texts, lengths, places, strict=True), 1):
        if length > longest:
            beginning = text if len(text) <= 40 else text[:40] + "…"
            message = f"text {number} ('{beginning}') has {length} tokens, more than the {longest} that the model has positions for"
            problems.add(Code.TEXT_TOO_LONG, message, place, "shorten it, or cut it with --truncate (truncate=True)")
    problems.check()
