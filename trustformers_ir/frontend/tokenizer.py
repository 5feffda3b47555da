"""Text to token ids, through the `tokenizers` library (the optional extra ``hf``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where


class Tokenizer:
    """A ``tokenizer.json``: normaliser, pre-tokeniser, model and post-processor as the checkpoint's authors saved them."""

    def __init__(self, impl: Any) -> None:
        self._impl = impl
        self._impl.no_truncation()
        self._impl.no_padding()
        self.pad_id = self._find_pad_id()

    def _find_pad_id(self) -> int:
        for token in ("[PAD]", "<pad>", "<|endoftext|>"):
            number = self._impl.token_to_id(token)
            if number is not None:
                return int(number)
        return 0

    def encode_batch(self, texts: Sequence[str], max_length: int, pad: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and attention mask, both i64[batch, seq]. Texts are cut at ``max_length`` tokens (special tokens included, and kept).

        With ``pad`` shorter texts are padded at the end to the longest of the batch; without it they must all have the same length.
        """
        self._impl.enable_truncation(max_length=max(max_length, 1))
        try:
            rows = [e.ids for e in self._impl.encode_batch(list(texts))]
        finally:
            self._impl.no_truncation()
        longest = max((len(r) for r in rows), default=0)
        if not pad and any(len(r) != longest for r in rows):
            lengths = ", ".join(str(len(r)) for r in rows)
            raise CompilerError.of(Code.INPUT_SHAPE, f"without padding the texts of a batch have one length, not {lengths}")
        ids = np.full((len(rows), longest), self.pad_id, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return ids, mask

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self._impl.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))


def load_tokenizer(source: Path | str | bytes) -> Tokenizer:
    """The tokenizer of a checkpoint folder, of a ``tokenizer.json`` file, or of its bytes."""
    try:
        import tokenizers
    except ImportError:
        message = "reading text needs the package 'tokenizers'"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, message, help="pip install 'trustformers_ir[hf]'") from None
    place = Where()
    if not isinstance(source, bytes):
        path = Path(source)
        path = path / "tokenizer.json" if path.is_dir() else path
        place = Where(file=str(path))
        try:
            source = path.read_bytes()
        except OSError as error:
            raise CompilerError.of(Code.TOKENIZER_MISSING, f"no tokenizer: {error.strerror}", place, "give token ids instead of text") from None
    try:
        return Tokenizer(tokenizers.Tokenizer.from_str(source.decode("utf-8")))
    except Exception as error:  # the library raises bare Exception for every kind of broken file
        raise CompilerError.of(Code.TOKENIZER_INVALID, f"the tokenizer cannot be read: {error}", place) from None
