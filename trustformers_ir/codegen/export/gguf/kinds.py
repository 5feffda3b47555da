"""Which type each tensor of a GGUF file has.

The rule is that of llama.cpp (``llama-quant.cpp``). Weights with two axes are quantized, along their rows; norms, biases and tables of positions stay
F32. The head, which is the table of tokens where there is no other, is finer than the rest, and so are, in mixtures (``q4_k_m``), some matrices of
some layers. A row that is no multiple of a block takes a type of smaller blocks, and at last a type of numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from trustformers_ir.ir.block_formats import FORMATS, Format
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.gguf_content import Content, ContentTensor

NUMBERS = ("F32", "F16", "BF16")
MIXTRALS = 8  # experts of the models for which llama.cpp has rules of their own


@dataclass(frozen=True)
class Layer:
    """Which of how many layers a matrix belongs to, in a model of which architecture; so many queries share a key, and so many experts a layer."""

    number: int
    count: int
    architecture: str
    group: int
    experts: int

    @property
    def more(self) -> bool:
        """Whether it is one of those that get more bits: the first and the last eighth, and every third between."""
        eighth = self.count // 8
        return self.number < eighth or self.number >= 7 * self.count // 8 or (self.number - eighth) % 3 == 2

    @property
    def falcon(self) -> bool:
        return self.architecture == "falcon"


Rule = Callable[[Layer], str | None]


@dataclass(frozen=True)
class FileType:
    """What ``quantize`` names: ``kind`` of matrices, ``head`` of the head, and the number under ``general.file_type``. ``finer``: which matrices of a
    layer have another type, by the word that names them; None where a layer's has not. ``mixed``: the type of the products behind attention in models
    of eight experts, None where that is ``kind``."""

    name: str
    kind: str
    head: str
    number: int
    finer: Mapping[str, Rule] = field(default_factory=dict)
    mixed: str | None = None

    def of_layer(self, word: str, layer: Layer) -> str:
        """The type of the matrix of a layer that is called so. Matrices of experts have that of the network which they are in other models. Where
        eight of them are nearly all of the weights, attention costs little: keys and values get 8 bits."""
        word = word.removesuffix("_exps")
        if layer.experts == MIXTRALS and self.kind not in NUMBERS and word in ("attn_k", "attn_v", "attn_output"):
            return (self.mixed or self.kind) if word == "attn_output" else "Q8_0"
        rule = self.finer.get(word)
        return (rule and rule(layer)) or self.kind


def _always(kind: str) -> Rule:
    return lambda layer: kind


def _where(condition: Callable[[Layer], bool], kind: str, otherwise: str | None = None) -> Rule:
    return lambda layer: kind if condition(layer) else otherwise


def _down_q3_k_m(layer: Layer) -> str | None:
    if layer.number < layer.count // 16:
        return "Q5_K"
    return "Q4_K" if not layer.falcon or layer.more else None


def _down_q4_k_m(layer: Layer) -> str | None:
    if not layer.falcon:
        return "Q6_K" if layer.more else None
    return "Q6_K" if layer.number < layer.count // 16 else "Q5_K" if layer.more else None


_MORE = _where(lambda layer: layer.more, "Q6_K")
FILE_TYPES: Mapping[str, FileType] = {
    row.name: row
    for row in (
        FileType("f32", "F32", "F32", 0),
        FileType("f16", "F16", "F16", 1),
        FileType("bf16", "BF16", "BF16", 32),
        FileType("q8_0", "Q8_0", "Q8_0", 7),
        FileType("q4_0", "Q4_0", "Q6_K", 2),
        FileType("q4_1", "Q4_1", "Q6_K", 3),
        FileType("q5_0", "Q5_0", "Q6_K", 8),
        FileType("q5_1", "Q5_1", "Q6_K", 9),
        FileType(
            *("q2_k", "Q2_K", "Q6_K", 10),
            {"attn_v": _where(lambda layer: layer.group >= 4, "Q4_K", "Q3_K"), "ffn_down": _always("Q3_K"), "attn_output": _always("Q3_K")},
            "Q5_K",
        ),
        FileType("q3_k_s", "Q3_K", "Q6_K", 11, mixed="Q5_K"),
        FileType(
            *("q3_k_m", "Q3_K", "Q6_K", 12),
            {
                "attn_v": _where(lambda layer: layer.number < 2, "Q5_K", "Q4_K"),
                "ffn_down": _down_q3_k_m,
                "attn_output": _where(lambda layer: not layer.falcon, "Q4_K"),
                "attn_qkv": _always("Q4_K"),
            },
            "Q5_K",
        ),
        FileType(
            *("q3_k_l", "Q3_K", "Q6_K", 13),
            {
                "attn_v": _always("Q5_K"),
                "ffn_down": _where(lambda layer: layer.falcon, "Q4_K", "Q5_K"),
                "attn_output": _where(lambda layer: not layer.falcon, "Q5_K"),
                "attn_qkv": _always("Q4_K"),
            },
        ),
        FileType(
            *("q4_k_s", "Q4_K", "Q6_K", 14),
            {
                "attn_v": _where(lambda layer: layer.number < 4, "Q5_K"),
                "ffn_down": _where(lambda layer: not layer.falcon and layer.number < layer.count // 8, "Q5_K"),
            },
            "Q5_K",
        ),
        FileType("q4_k_m", "Q4_K", "Q6_K", 15, {"attn_v": _MORE, "ffn_down": _down_q4_k_m, "attn_qkv": _always("Q5_K")}, "Q5_K"),
        FileType("q5_k_s", "Q5_K", "Q6_K", 16),
        FileType("q5_k_m", "Q5_K", "Q6_K", 17, {"attn_v": _MORE, "ffn_down": _MORE, "attn_qkv": _always("Q6_K")}),
        FileType("q6_k", "Q6_K", "Q6_K", 18),
    )
}
ALSO = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
#: What stands in for a type whose blocks a row is no multiple of. (llama.cpp takes IQ4_NL for the first two, which is as large.)
SMALLER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def find_file_type(quantize: object) -> FileType | None:
    """The row that ``quantize`` names; None for None. Raises ``CompilerError``."""
    if quantize is None:
        return None
    known = f"the types are {', '.join(FILE_TYPES)}"
    name = quantize.lower() if isinstance(quantize, str) else ""
    name = ALSO.get(name, name)
    if name in FILE_TYPES:
        return FILE_TYPES[name]
    near = get_close_matches(name, FILE_TYPES, 1)
    help = (f"did you mean '{near[0]}'? " if near else "") + known
    raise CompilerError.of(Code.UNKNOWN_RECIPE, f"GGUF files have no type {quantize!r}", help=help)


def find_numbers(dtype: object) -> str | None:
    """The type of numbers that a dtype is; None for None. Raises ``CompilerError``."""
    if dtype is None:
        return None
    name = str(dtype).upper()
    if name not in NUMBERS:
        raise CompilerError.of(Code.USAGE, f"weights of GGUF files are not written in {dtype}", help="f32, f16 or bf16")
    return name


def kind_of(tensor: ContentTensor, content: Content, asked: FileType | None, numbers: str | None) -> str:
    """The type in which the tensor is written. ``numbers`` is that of matrices which ``asked`` does not quantize; None: as they come, or F16 where
    the blocks of ``asked`` do not fit."""
    if not tensor.is_matrix or (asked is None and (numbers is None or tensor.kind not in NUMBERS)):
        return tensor.kind
    if asked is None:
        return numbers or tensor.kind
    if tensor.name == content.head:
        kind = "Q8_0" if content.architecture == "falcon" and asked.kind not in NUMBERS else asked.head
    else:
        named = _OF_LAYER.fullmatch(tensor.name)
        kind = asked.kind if named is None else asked.of_layer(named[2], _layer(int(named[1]), content))
    if tensor.shape[-1] % _block(kind):
        kind = SMALLER.get(kind, kind)
    return kind if tensor.shape[-1] % _block(kind) == 0 else numbers or "F16"


_OF_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def _block(kind: str) -> int:
    return 1 if kind in NUMBERS else FORMATS[Format[kind]].block


def _layer(number: int, content: Content) -> Layer:
    def known(name: str, otherwise: int) -> int:
        key = content.keys.get(f"{content.architecture}.{name}")
        return int(key.value) if key is not None and isinstance(key.value, int) else otherwise

    heads = known("attention.head_count", 1)
    group = heads // max(known("attention.head_count_kv", heads), 1)
    return Layer(number, known("block_count", 1), content.architecture, group, known("expert_count", 0))
