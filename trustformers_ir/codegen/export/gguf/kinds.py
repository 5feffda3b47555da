"""Which type each tensor of a GGUF file has.

The rule is that of llama.cpp (``llama-quant.cpp``). Weights with two axes are quantized, along their rows; norms, biases and tables of positions stay
F32. The head, which is the table of tokens where there is no other, is finer than the rest. A row that is no multiple of a block takes a type of
smaller blocks, and at last a type of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.gguf_content import Content, ContentTensor

NUMBERS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class FileType:
    """What ``quantize`` names: ``kind`` of matrices, ``head`` of the head, and the number under ``general.file_type``. A block has ``block``
    elements."""

    name: str
    kind: str
    head: str
    number: int
    block: int = 32


FILE_TYPES: Mapping[str, FileType] = {
    row.name: row
    for row in (
        FileType("f32", "F32", "F32", 0, 1),
        FileType("f16", "F16", "F16", 1, 1),
        FileType("bf16", "BF16", "BF16", 32, 1),
        FileType("q8_0", "Q8_0", "Q8_0", 7),
        FileType("q4_0", "Q4_0", "Q8_0", 2),
        FileType("q4_1", "Q4_1", "Q8_0", 3),
        FileType("q5_0", "Q5_0", "Q8_0", 8),
        FileType("q5_1", "Q5_1", "Q8_0", 9),
    )
}
LATER = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k", "q4_k_s", "q4_k_m", "q5_k", "q5_k_s", "q5_k_m", "q6_k")


def find_file_type(quantize: object) -> FileType | None:
    """The row that ``quantize`` names; None for None. Raises ``CompilerError``."""
    if quantize is None:
        return None
    known = f"the types are {', '.join(FILE_TYPES)}"
    name = quantize.lower() if isinstance(quantize, str) else ""
    if name in FILE_TYPES:
        return FILE_TYPES[name]
    if name in LATER:
        raise CompilerError.of(Code.NOT_BUILT, f"quantizing to {name} is not built yet", help=known)
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
    head = tensor.name == content.head
    falcon = head and content.architecture == "falcon" and asked.block > 1
    kind = "Q8_0" if falcon else asked.head if head else asked.kind
    return kind if tensor.shape[-1] % asked.block == 0 else numbers or "F16"
