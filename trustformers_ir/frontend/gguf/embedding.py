"""Vectors of texts in GGUF files of encoders: how hidden states become one, as keys of a file, both ways.

``<architecture>.pooling_type`` is a number of llama.cpp's. That vectors have the length 1 is not in files: who reads one there makes them so, and so
do we. What sentence-transformers says beyond that stands under keys of its own name, which others pass over.
"""

from __future__ import annotations

from trustformers_ir.frontend.gguf.container import GgufFile
from trustformers_ir.frontend.sentence import SentenceSettings
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.gguf_content import Key

NONE = 0
POOLINGS = {1: "pooling_mode_mean_tokens", 2: "pooling_mode_cls_token"}  # of llama.cpp's enum llama_pooling_type
POOLING = "pooling_type"
NORMALIZE, LONGEST = "sentence_transformers.normalize", "sentence_transformers.max_seq_length"


def read_settings(file: GgufFile, architecture: str) -> SentenceSettings | None:
    """How a file's vectors are made; None where it says of none. ``UNSUPPORTED_CONFIG`` for another way, ``GGUF_METADATA`` for no number."""
    kind = file.metadata.get(f"{architecture}.{POOLING}", NONE)
    normalize, longest = file.metadata.get(NORMALIZE, True), file.metadata.get(LONGEST)
    where = Where(file=str(file.path))
    if isinstance(kind, bool) or not isinstance(kind, int) or not isinstance(normalize, bool):
        name = f"{architecture}.{POOLING}" if isinstance(normalize, bool) else NORMALIZE
        raise CompilerError.of(Code.GGUF_METADATA, f"{name} is {file.metadata[name]!r}", where, "it is a number, and that a truth")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
        raise CompilerError.of(Code.GGUF_METADATA, f"{LONGEST} is {longest!r}, not a number of tokens", where, "convert the model again")
    if kind == NONE:
        return None
    if kind not in POOLINGS:
        message = f"{architecture}.{POOLING} is {kind}, which is not supported"
        raise CompilerError.of(Code.UNSUPPORTED_CONFIG, message, where, "0 (none), 1 (mean) and 2 (first token) are")
    return SentenceSettings((POOLINGS[kind],), normalize, longest)


def encoder_keys(types: int, settings: SentenceSettings | None, architecture: str, place: Where) -> dict[str, Key]:
    """The keys of such settings, and of so many types of tokens. ``CANNOT_EXPORT`` for what a file cannot say."""
    found = {"tokenizer.ggml.token_type_count": Key.of(types), f"{architecture}.{POOLING}": Key.of(NONE)}
    if settings is None:
        return found
    numbers = {name: n for n, name in POOLINGS.items()}
    if len(settings.poolings) != 1 or settings.poolings[0] not in numbers:
        message = f"a GGUF file cannot say that vectors of texts are made by {' and '.join(settings.poolings)}"
        raise CompilerError.of(Code.CANNOT_EXPORT, message, place, f"it can say {' or '.join(numbers)}")
    found |= {f"{architecture}.{POOLING}": Key.of(numbers[settings.poolings[0]]), NORMALIZE: Key.of(settings.normalize)}
    return found | ({} if settings.max_length is None else {LONGEST: Key.of(settings.max_length)})
