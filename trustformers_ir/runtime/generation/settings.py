"""What the metadata of an artifact say of writing text: the tokens that end one, and the tokenizer that makes text of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from trustformers_ir.ir.abi import GENERATION_KEY, TOKENIZER_KEY
from trustformers_ir.ir.diagnostics import Code, CompilerError


def end_tokens(metadata: Mapping[str, str]) -> list[int]:
    """The tokens that end a text; none where nothing says so: metadata is what anybody wrote."""
    try:
        told = json.loads(metadata.get(GENERATION_KEY, "null"))
    except (ValueError, RecursionError):
        return []
    found = told.get("ends") if isinstance(told, dict) else None
    return [n for n in found if isinstance(n, int) and not isinstance(n, bool)] if isinstance(found, list) else []


def text_decoder(metadata: Mapping[str, str]) -> Callable[[list[int]], str]:
    """What makes text of tokens. ``MISSING_DEPENDENCY``, or ``TOKENIZER_MISSING``."""
    text = metadata.get(TOKENIZER_KEY)
    if text is None:
        raise CompilerError.of(Code.TOKENIZER_MISSING, "the model has no tokenizer, so no text can be looked for", help="give decode=, a function")
    try:
        import tokenizers
    except ImportError:
        help = "install it: pip install 'trustformers_ir[hf]', or give decode=, a function"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, "reading text needs the package tokenizers, which is not installed", help=help) from None
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:
        raise CompilerError.of(Code.TOKENIZER_INVALID, f"the tokenizer of the model is none that the library reads: {error}") from None
    return lambda ids: str(tokenizer.decode(ids))
