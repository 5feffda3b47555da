"""WordPiece (Schuster and Nakajima 2012; Devlin et al. 2019) in GGUF files, both ways: the tokenizer of BERT.

Files hold the tokens alone. What begins a word has a mark in front there, and what goes on with one has none: ``▁un`` and ``able``, where
``tokenizer.json`` has ``un`` and ``##able``. Text is changed and cut as the published BERT does, without capitals and accents: other rules have no
name there, so they are not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MODEL = "bert"  # what files call it
MARK, GOES_ON = "\u2581", "##"
UNCASED = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
LONGEST_WORD = 100
#: roles of tokens in ``tokenizer_config.json``, by the keys of files; the second is spelled so there
ROLES = {"bos": "cls", "seperator": "sep", "unknown": "unk", "padding": "pad", "mask": "mask", "cls": "cls"}


def outward(token: str, special: bool) -> str:
    """A token as files hold it."""
    return token if special else token.removeprefix(GOES_ON) if token.startswith(GOES_ON) else MARK + token


def inward(token: str, special: bool) -> str:
    """The way back."""
    return token if special else token.removeprefix(MARK) if token.startswith(MARK) else GOES_ON + token


def parts(tokens: Sequence[str], special: set[int], unknown: str) -> dict[str, Any]:
    """Those of a ``tokenizer.json``. ``tokens`` as files hold them, ``special`` by their ids."""
    vocab = {inward(token, i in special): i for i, token in enumerate(tokens)}
    limits = {"continuing_subword_prefix": GOES_ON, "max_input_chars_per_word": LONGEST_WORD}
    return {
        "normalizer": {"type": "BertNormalizer", **UNCASED},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": GOES_ON, "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": unknown, **limits, "vocab": vocab},
    }


def template(begin: str, end: str, ids: Mapping[str, int]) -> dict[str, Any]:
    """What stands around a text, and between two."""

    def special(token: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": kind}}

    single = [special(begin, 0), {"Sequence": {"id": "A", "type_id": 0}}, special(end, 0)]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}, special(end, 1)]
    used = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (begin, end)}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": used}


def unlike(raw: Mapping[str, Any]) -> str | None:
    """By what the tokenizer of a ``tokenizer.json`` is another one than files can say; None if by nothing."""
    changed, model = raw.get("normalizer") or {}, raw["model"]
    if changed.get("type") != "BertNormalizer" or any(changed.get(name, value) != value for name, value in UNCASED.items()):
        return "it does not change texts as the BERT without capitals does"
    if (raw.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer":
        return "it does not cut texts as BERT does"
    if model.get("continuing_subword_prefix", GOES_ON) != GOES_ON or model.get("max_input_chars_per_word", LONGEST_WORD) != LONGEST_WORD:
        return "its words have other marks, or another limit"
    return None
