"""The products of a graph whose weight is known at build time, by name: what quantization, calibration and error reports speak of.

A product is named after its weight, ``encoder.layer.0.output.dense`` for ``encoder.layer.0.output.dense.weight``; one that ``merge_linears``
made has the names of its parts, what they begin with written once: ``encoder.layer.0.attention.self.query+key+value``. The second product
with the same weight is ``name#2``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Module, Operation, Value, Weight
from trustformers_ir.ir.mapped import let_go
from trustformers_ir.ir.schema import FusionKind
from trustformers_ir.ir.types import ROW_MAJOR
from trustformers_ir.passes.manager import PassLog
from trustformers_ir.passes.weights import mapped_files, weight_of

_TAIL = re.compile(r"\.weight(\.(f32|f16|bf16))?\Z")  # what a checkpoint, and a cast that was folded, add to the name of a product
_NUMBER = re.compile(r"(\.experts\.)\d+\.")


@dataclass(frozen=True)
class Product:
    """One ``linear``, or ``matmul`` by a matrix, or ``expert_matmul`` by several; ``weight`` is None when the right side is computed. ``parts`` are
    the full names of the products that were merged into this one, or its own."""

    name: str
    parts: tuple[str, ...]
    operation: Operation
    weight: Weight | None

    @property
    def activation(self) -> Value:
        return self.operation.inputs[0]

    @property
    def bias(self) -> Value | None:
        return self.operation.operands[2] if isinstance(self.operation.op, ops.Linear) else None

    @property
    def transposed(self) -> bool:
        """Whether the weight holds a column, not a row, for each output."""
        return isinstance(self.operation.op, ops.MatMul | ops.ExpertMatMul)

    @property
    def matrices(self) -> tuple[int, ...]:
        """Of a product by chosen matrices how many there are, as a shape."""
        assert self.weight is not None
        return self.weight.type.concrete({})[:-2]

    @property
    def sizes(self) -> tuple[int, int]:
        """The numbers of outputs and of terms of each, (n, k); of one matrix where there are several."""
        assert self.weight is not None
        rows, columns = self.weight.type.concrete({})[-2:]
        return (columns, rows) if self.transposed else (rows, columns)

    def named_by(self, patterns: Iterable[str]) -> bool:
        """Whether a pattern (``*`` and ``?``) is that of its name, or of one of its parts."""
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in (self.name, *self.parts))

    @property
    def location(self) -> str:
        return str(self.operation.loc) if self.operation.loc is not None else ""


#: What a product becomes, made in front of it; or None and the reason why not.
Attempt = Callable[[Product], tuple[Operation | None, str]]


def products(module: Module, experts: bool = False) -> Iterator[Product]:
    """Every product of two matrices, in order. Those of two activations (rank above 2 on the right) are none. ``experts``: also those by chosen
    matrices."""
    seen: Counter[str] = Counter()
    for function in module.functions.values():
        for operation in function.body:
            by_chosen = experts and isinstance(operation.op, ops.ExpertMatMul)
            if not by_chosen and (not isinstance(operation.op, (ops.Linear, ops.MatMul)) or operation.inputs[1].type.rank != 2):
                continue
            right = operation.inputs[1]
            weight = weight_of(module, right) if right.type.layout == ROW_MAJOR else None
            named = _name_of_experts if by_chosen else _name
            parts = (operation.op.mnemonic,) if weight is None else tuple(map(named, weight.name.split("+")))
            name = _short(parts)
            seen[name] += 1
            yield Product(name if seen[name] == 1 else f"{name}#{seen[name]}", parts, operation, weight)


def _name(weight: str) -> str:
    return _TAIL.sub("", weight)


def _name_of_experts(weight: str) -> str:
    """That of all of them: ``experts.w1`` for ``experts.0.w1.weight.reshape_1_512_256.concat_0_of_8.transpose_0_2_1``."""
    return _NUMBER.sub(r"\1", weight.partition(".weight")[0])


def _short(parts: tuple[str, ...]) -> str:
    """The names joined by ``+``, from the second on without the words that all of them begin with."""
    words = [p.split(".") for p in parts]
    shared = min(len(w) for w in words) - 1
    while len({tuple(w[:shared]) for w in words}) > 1:
        shared -= 1
    return "+".join([parts[0], *(".".join(w[shared:]) for w in words[1:])])


def decision(product: Product, quantized: str, made: Operation | None, reason: str) -> dict[str, object]:
    """What was decided about a product, as plain data: whether it is ``quantized`` (the name of the recipe), and if not, why."""
    row: dict[str, object] = {"name": product.name, "location": product.location, quantized: made is not None, "reason": reason or None}
    if product.weight is not None:
        row["outputs"], row["terms"] = product.sizes
    return row


def rewrite_products(module: Module, log: PassLog, kind: str, attempt: Attempt, experts: bool = False) -> None:
    """Replaces every product by what ``attempt`` makes in front of it; a row of the log's table tells what was decided about each. ``kind`` is the
    name of the recipe; ``experts``: whether it is for products by chosen matrices, too."""
    sources = mapped_files(module)
    for product in list(products(module, experts)):
        made, reason = attempt(product)
        let_go(sources)  # who reads every weight for its scales should not hold them all
        if made is None:
            log.miss(f"{product.name} in {kind}", reason)
        else:
            product.operation.replace_with([made.result])
            log.count(f"products in {kind}")
        log.row(**decision(product, kind, made, reason))


def moves_too_far(error: float, most: float, infinite: str = "its weight has values that are not finite") -> str | None:
    """Why a weight that would move by ``error``, relatively, stays; None where it need not. ``infinite`` is what it means that there is no error."""
    if not math.isfinite(error):
        return infinite
    return f"its weight would move by {error:.2%}, more than max_error = {most:.2%}" if error > most else None


def decides(product: Product, heads: bool) -> str | None:
    """Why the numbers of a product matter too much for rounding: what is made of them; None where it is allowed. ``heads``: those may be rounded."""
    if chooses_experts(product.operation):
        return "it chooses experts: a small difference there is another network"
    return "it is a head: a result of the model is made from it directly" if not heads and is_head(product.operation) else None


def is_head(operation: Operation) -> bool:
    """Whether a result of the function is made from this one by elementwise operations and views alone: a classifier, a pooler, logits."""
    waiting, seen = [operation], {operation}
    while waiting:
        for user in (u for r in waiting.pop().results for u in r.users):
            if user.op.terminator:
                return True
            if user not in seen and user.op.fusion in (FusionKind.ELEMENTWISE, FusionKind.INJECTIVE):
                seen.add(user)
                waiting.append(user)
    return False


def chooses_experts(operation: Operation) -> bool:
    """Whether what is made from this result, but for sums of products, says which matrices rows are multiplied by."""
    waiting, seen = list(operation.results), set(operation.results)
    while waiting:
        value = waiting.pop()
        for user in value.users:
            if isinstance(user.op, ops.ExpertMatMul | ops.ExpertBlocks) and user.operands[-1] is value:
                return True
            on_the_way = user.op.fusion in (FusionKind.ELEMENTWISE, FusionKind.INJECTIVE) or isinstance(user.op, ops.Softmax | ops.TopK)
            for made in user.results if on_the_way else ():
                if made not in seen:
                    seen.add(made)
                    waiting.append(made)
    return False
