"""Fusion: every operation goes into a region, and every region becomes one kernel.

Before::

    %1 = linear(%x, %w, %b) : f32[batch, seq, 1536]
    %2 = gelu(%1) : f32[batch, seq, 1536]

After::

    %2 = fused(%x, %w, %b) {kind = contraction} : f32[batch, seq, 1536] {
      (%a, %c, %d):
      %3 = linear(%a, %c, %d) : f32[batch, seq, 1536]
      %4 = gelu(%3) : f32[batch, seq, 1536]
      yield(%4)
    }

Regions grow from anchors, the dearest first, as in TVM's operator fusion (Chen et al. 2018, section 3) with the kinds of ``ir/schema.py``:

1. *attention* takes in the views (reshape, transpose, slice) of its operands and the first two kinds of its result, and what makes keys and
   values of a cache (pages in order, numbers of codes, casts). With ``scores`` it also takes in the rotary embedding of its queries, which it reads
   once, and cheap operations that make its mask and its bias (ALiBi is ``slope * (j - i)``), which then never lie in memory as a square of the
   length;
2. *contractions* take in the elementwise operations after them that have their shape, and views of the result. A product by a packed weight
   takes in a second one of the same activation, when these operations alone read it and panels are small (``twin_bytes``): gate and up of a
   gated feed-forward network, ``silu(x W) * (x V)``, are one kernel, and neither goes to memory;
3. *reductions* take in cheap operations before them and elementwise ones after them; a norm also takes in the quantization of its result, or
   its cast, whatever else reads that result: the row is at hand. With ``sums`` it takes in the addition before it even when others read that
   (the residual, where no product has taken it), and hands out both;
4. *writes* into a cache take in what computes the rows that they write: views, rotary embeddings, elementwise operations;
5. what is left are *loops* of elementwise and injective operations, grown from each result upwards.

An operation enters a region only when nothing else needs its result, so no work is done twice, except that operations without operands
(constants, ranges, sizes) are copied into every region that reads them. Operations grow along single uses, so a region never depends on
itself through the outside. Each refusal is recorded with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.core import Block, Function, Module, Operation, Value
from trustformers_ir.ir.ops.nn import normalised_axes
from trustformers_ir.ir.ops.region import RegionKind
from trustformers_ir.ir.schema import FusionKind, Op
from trustformers_ir.ir.types import Panels, TensorType
from trustformers_ir.passes.manager import Pass, PassLog

#: Elementwise operations that cost less than a trip to memory: they may be computed several times per element.
CHEAP = (
    *(ops.Add, ops.Sub, ops.Mul, ops.Neg, ops.Abs, ops.Minimum, ops.Maximum, ops.Select, ops.Cast, ops.Clamp, ops.Relu, ops.Dropout),
    *(ops.And, ops.Or, ops.Xor, ops.LogicalNot, ops.BitwiseNot, ops.Eq, ops.Ne, ops.Lt, ops.Le, ops.Gt, ops.Ge),
)
VIEWS = (ops.Reshape, ops.Transpose)
KEPT = (ops.PagedRead, ops.DequantizeGroups, ops.Cast)  # from a cache as it lies to the numbers in it
NORMS = (ops.LayerNorm, ops.RmsNorm)
CODES = (ops.QuantizeDynamic, ops.QuantizeStatic, ops.QuantizeGroups, ops.QuantizeF8, ops.Cast)
_KINDS = {
    FusionKind.ATTENTION: RegionKind.ATTENTION,
    FusionKind.CONTRACTION: RegionKind.CONTRACTION,
    FusionKind.REDUCTION: RegionKind.REDUCTION,
}


@dataclass
class _Group:
    """A region in the making. ``last`` computes its result; ``viewed`` says that a view follows the anchor, so only views may follow."""

    anchor: Operation
    last: Operation
    members: set[Operation] = field(default_factory=set)
    viewed: bool = False

    @property
    def kind(self) -> RegionKind:
        return _KINDS.get(self.anchor.op.fusion, RegionKind.LOOP)


@dataclass(frozen=True)
class Fuse(Pass):
    """``max_ops`` bounds the operations of one region: compile time grows with it faster than speed. Two products of one activation share a region
    where a panel of each weight, together, has at most ``twin_bytes``; 0: never. ``scores``: attention computes what its scores are made of where it
    reads it. ``sums``: a norm computes the sum of which it is the norm, and hands it out beside its result. Both suit GPUs."""

    max_ops: int = 24
    twin_bytes: int = 0
    scores: bool = False
    sums: bool = False

    def __post_init__(self) -> None:
        if self.max_ops < 1:
            raise ValueError("max_ops is at least 1")
        if self.twin_bytes < 0:
            raise ValueError("twin_bytes is not negative")

    name = "fuse"
    summary = "group operations into regions that become one kernel each"
    requires = frozenset({"flat"})
    ensures = frozenset({"fused"})
    breaks = frozenset({"flat"})

    def run(self, module: Module, log: PassLog) -> None:
        """Puts every operation of every function into a region; weights stay outside."""
        for function in module.functions.values():
            _Fusion(function, self, log).run()


class _Fusion:
    def __init__(self, function: Function, options: Fuse, log: PassLog) -> None:
        self.function, self.log = function, log
        self.max_ops, self.twin_bytes, self.scores, self.sums = options.max_ops, options.twin_bytes, options.scores, options.sums
        self.order = {o: n for n, o in enumerate(function.body)}
        self.group_of: dict[Operation, _Group] = {}
        self.groups: list[_Group] = []

    def run(self) -> None:
        operations = [o for o in self.function.body if not isinstance(o.op, (ops.Fused, ops.WeightOp)) and not o.op.terminator]
        for kind in (FusionKind.ATTENTION, FusionKind.CONTRACTION, FusionKind.REDUCTION):
            for o in operations:
                if o.op.fusion is kind and o not in self.group_of:
                    self.grow(self.start(o))
        for o in operations:
            if o.op.fusion is FusionKind.WRITE:
                self.grow_up(self.start(o))
        for o in reversed(operations):
            if o.op.fusion in (FusionKind.ELEMENTWISE, FusionKind.INJECTIVE) and o not in self.group_of:
                self.grow_up(self.start(o))
        for o in operations:
            if o.op.fusion is FusionKind.OPAQUE:
                self.start(o)
        returned = {v.producer for v in self.function.outputs}
        for o in operations:
            if o.op.fusion is FusionKind.CONSTANT and o in returned:
                self.start(o)
        for group in self.groups:
            outline(group.members, group.kind)
        for o in reversed(operations):  # constants that every reader has copied
            if o not in self.group_of and o.is_dead:
                o.erase()

    def start(self, anchor: Operation) -> _Group:
        group = _Group(anchor, anchor, {anchor})
        self.group_of[anchor] = group
        self.groups.append(group)
        return group

    def add(self, group: _Group, operation: Operation) -> bool:
        if len(group.members) >= self.max_ops:
            self.log.miss("fused", f"a region has {self.max_ops} operations")
            return False
        if not rewriting.allowed():
            return False
        group.members.add(operation)
        self.group_of[operation] = group
        self.log.count(f"fused into a {group.kind.value}")
        return True

    def grow(self, group: _Group) -> None:
        if group.kind is RegionKind.ATTENTION:
            if self.scores:
                self.scores_before(group)
            self.views_before(group, group.anchor)
            if isinstance(group.anchor.op, ops.CachedAttention):
                self.cache_before(group)
        elif group.kind is RegionKind.REDUCTION:
            self.grow_up(group)
        while not self.hands_out(group) and (following := self.following(group)) is not None and not self.quantizes(group, following):
            reason = self.refuse_after(group, following)
            if reason is not None:
                self.log.miss("fused", f"{following.op.mnemonic} after {group.anchor.op.mnemonic}: {reason}")
                break
            if not self.add(group, following):
                return
            group.viewed |= isinstance(following.op, VIEWS)
            group.last = following
        if group.kind is RegionKind.REDUCTION:
            self.codes(group)
        elif self.twin_bytes and isinstance(group.anchor.op, ops.Linear):
            self.twin(group)

    def twin(self, group: _Group) -> None:
        """Takes in a second product of the anchor's activation that the operations behind the first one read, and what stands between: the other
        half of a gated network. Where room is short, what is nearest comes first: what stays outside never needs the region."""
        reader = group.anchor
        while reader is not group.last:
            (reader,) = reader.result.users
            for value in reader.inputs:
                chain = self.product_behind(value)
                if not chain or chain[-1].inputs[0] is not group.anchor.inputs[0]:
                    continue
                reason = self.refuse_twin(group.anchor.inputs[1].type, chain[-1].inputs[1].type)
                if reason is not None:
                    self.log.miss("fused", f"linear beside linear: {reason}")
                elif all(self.add(group, o) for o in chain):
                    self.log.count("second product of a region")
                    return

    def refuse_twin(self, first: TensorType, second: TensorType) -> str | None:
        """Why products by weights of these types do not share a region."""
        if first != second:
            return "their weights differ in shape, dtype or layout"
        terms = first.shape[-1]
        if not isinstance(first.layout, Panels) or not isinstance(terms, int):
            return "their weights are not packed"
        if (size := 2 * first.layout.width * terms * first.dtype.itemsize) > self.twin_bytes:
            return f"a panel of each is {size} bytes, and a cache has room for {self.twin_bytes}"
        return None

    def product_behind(self, value: Value) -> list[Operation]:
        """What makes ``value`` of a product, elementwise, and that product; nothing where one of them is in a region or read elsewhere."""
        chain: list[Operation] = []
        while (o := value.producer) is not None and o not in self.group_of and value.has_one_use and len(o.results) == 1:
            chain.append(o)
            if isinstance(o.op, ops.Linear):
                return chain
            if o.op.fusion is not FusionKind.ELEMENTWISE:
                return []
            value = o.inputs[0]
        return []

    def codes(self, group: _Group) -> None:
        """Takes in what quantizes the group's result, scaled by a weight or not; the result leaves the region as well when others read it.

        The quantization moves to the group's end, so that those others still come after the region, and weights that it reads before it.
        """
        last = group.last
        for user in last.result.users if len(last.results) == 1 else ():
            chain = [user, *user.result.users] if isinstance(user.op, ops.Mul) and user.result.has_one_use else [user]
            if any(o in self.group_of for o in chain) or not self.quantizes(group, *chain) or not all(self.add(group, o) for o in chain):
                continue
            for o in chain:
                for weight in (v.producer for v in o.inputs if v.producer is not None and isinstance(v.producer.op, ops.WeightOp)):
                    weight.move_before(group.anchor)
                assert group.last.next is not None
                o.move_before(group.last.next)
                group.last = o
            return

    def quantizes(self, group: _Group, *chain: Operation) -> bool:
        """Whether ``chain`` makes codes of the rows that the group's norm has just made, or casts them, from nothing else but constants and
        weights."""
        norm, first, o = group.anchor, chain[0], chain[-1]
        if not isinstance(norm.op, NORMS) or not isinstance(o.op, CODES) or group.viewed:
            return False
        if first.inputs[0] is not group.last.result or any(m.op.fusion is FusionKind.INJECTIVE for m in group.members):
            return False
        if o is not first and (o.inputs[0] is not first.result or first.result.type.shape != group.last.result.type.shape):
            return False
        others = (v.producer for each in chain for v in each.inputs[1:])
        return normalised_axes(*norm.operand_types[1:]) == 1 and all(p is not None and isinstance(p.op, (ops.Constant, ops.WeightOp)) for p in others)

    def following(self, group: _Group) -> Operation | None:
        """The only operation that reads the group's result, when there is one that may be fused."""
        if len(group.last.results) != 1:
            return None
        users = group.last.result.users
        if len(users) != 1 or users[0] in self.group_of or users[0].op.terminator or isinstance(users[0].op, ops.Fused):
            return None
        return users[0]

    def refuse_after(self, group: _Group, o: Operation) -> str | None:
        """Why ``o`` may not follow the group's result in its region."""
        if o.op.fusion not in (FusionKind.ELEMENTWISE, FusionKind.INJECTIVE):
            return f"it is a {o.op.fusion.value} itself"
        if isinstance(o.op, ops.Transpose):
            return None if o.op.perm[-1] == len(o.op.perm) - 1 else "it moves the last axis, which the loops run along"
        if isinstance(o.op, ops.Reshape):
            return None
        if o.op.fusion is not FusionKind.ELEMENTWISE:
            return "it reads its operand in another order"
        if group.viewed:
            return "a view lies between them"
        if group.kind is RegionKind.ATTENTION:
            return "the loops of attention store their result only"
        if o.result.type.shape != group.last.result.type.shape:
            return "its result is broadcast to another shape"
        return None

    def views_before(self, group: _Group, operation: Operation) -> None:
        for value in operation.inputs:
            o = value.producer
            if o is not None and isinstance(o.op, (*VIEWS, ops.Slice)) and self.only_here(o, group) and self.add(group, o):
                self.views_before(group, o)

    def cache_before(self, group: _Group) -> None:
        """Takes in what makes the keys and the values of what is kept."""
        self.all_before(group, group.anchor.inputs[1:3], KEPT)

    def scores_before(self, group: _Group) -> None:
        """Takes in the rotary embedding of the queries, and what the mask and the bias are computed by."""
        attention = group.anchor
        rope = attention.inputs[0].producer
        if rope is not None and isinstance(rope.op, ops.Rope) and self.only_here(rope, group) and self.add(group, rope):
            self.views_before(group, rope)
        if isinstance(attention.op, ops.Attention):
            self.all_before(group, [v for v in attention.operands[3:5] if v is not None], (*CHEAP, *VIEWS, ops.Expand))

    def all_before(self, group: _Group, values: Sequence[Value], kinds: tuple[type[Op], ...]) -> None:
        """Takes in what makes these values, and what makes that, as far as it is of these kinds."""
        waiting = list(values)
        while waiting:
            o = waiting.pop().producer
            if o is not None and isinstance(o.op, kinds) and self.only_here(o, group) and self.add(group, o):
                waiting += o.inputs

    def grow_up(self, group: _Group) -> None:
        """Takes in producers, nearest first."""
        waiting = list(group.members)
        while waiting:
            consumer = waiting.pop()
            for value in consumer.inputs:
                o = value.producer
                if o is None or o in self.group_of or not (self.only_here(o, group) or self.is_sum(o, group)):
                    continue
                reason = self.refuse_before(group, consumer, o)
                if reason is None:
                    if self.add(group, o):
                        waiting.append(o)
                elif reason:
                    self.log.miss("fused", f"{o.op.mnemonic} before {group.anchor.op.mnemonic}: {reason}")

    def hands_out(self, group: _Group) -> bool:
        """Whether others read what a norm's region has taken in before the norm. They may come before what follows it, and must not."""
        before = (o for o in group.members if o is not group.anchor) if group.last is group.anchor else ()
        return any(u not in group.members for o in before for r in o.results for u in r.users)

    def is_sum(self, o: Operation, group: _Group) -> bool:
        """Whether the region of a norm may take in ``o``, which others read as well, and hand its result out: it is the sum of which that is the
        norm, and the others come later."""
        norm = group.anchor
        if not self.sums or not isinstance(norm.op, NORMS) or not isinstance(o.op, ops.Add) or o.result is not norm.inputs[0]:
            return False
        return o.result.type.shape == norm.result.type.shape and all(self.order[u] >= self.order[norm] for u in o.result.users)

    def refuse_before(self, group: _Group, consumer: Operation, o: Operation) -> str | None:
        """Why ``o`` may not be computed where ``consumer`` reads it; empty for what needs no mention."""
        if o.op.fusion in (FusionKind.CONSTANT, FusionKind.STRUCTURE):
            return ""
        if o.op.fusion not in (FusionKind.ELEMENTWISE, FusionKind.INJECTIVE):
            return f"it is a {o.op.fusion.value}, which starts its own region"
        if o.op.fusion is FusionKind.INJECTIVE or isinstance(o.op, CHEAP):
            return None
        if group.kind is RegionKind.REDUCTION:
            return "it would be computed again in every pass of the reduction"
        if o.result.type.shape != group.anchor.result.type.shape or consumer.op.fusion is not FusionKind.ELEMENTWISE:
            return "it would be computed several times per element"
        return None

    def only_here(self, o: Operation, group: _Group) -> bool:
        """Whether nothing outside the group reads the results of ``o``."""
        return o not in self.group_of and all(u in group.members for r in o.results for u in r.users)


def outline(members: set[Operation], kind: RegionKind) -> Operation:
    """Move operations of one block into a new region at the place of the last one. Constants that they read are copied into it."""
    block = next(iter(members)).block
    assert block is not None
    inside = [o for o in block if o in members]
    last = inside[-1]
    copies: dict[Operation, Operation] = {}
    arguments: dict[Value, None] = {}
    body = Block()
    for value in (v for o in inside for v in o.inputs):
        o = value.producer
        if o in members:
            continue
        if o is not None and o.op.fusion is FusionKind.CONSTANT and not isinstance(o.op, ops.WeightOp):
            if o not in copies:
                copies[o] = body.append(Operation(o.op, o.operands, [r.type for r in o.results], o.loc))
        else:
            arguments.setdefault(value)
    inner: dict[Value, Value] = {v: body.add_arg(v.type, v.name) for v in arguments}
    inner |= {r: c for o, copy in copies.items() for r, c in zip(o.results, copy.results, strict=True)}
    results = list(_escaping(inside, members))
    region = Operation(ops.Fused(kind), list(arguments), [v.type for v in results], last.loc, body)
    block.insert_before(last, region)
    for old, new in zip(results, region.results, strict=True):
        new.name = old.name
        for user, index in old.uses:
            if user not in members:
                user.set_operand(index, new)
    end = body.append(Operation(ops.Yield(), results, []))
    for o in inside:
        o.move_before(end)
        for i, v in enumerate(o.operands):
            if v in inner:
                o.set_operand(i, inner[v])
    return region


def _escaping(inside: list[Operation], members: set[Operation]) -> Iterator[Value]:
    """Results that something outside reads; those of the last operation when nothing does."""
    found = [r for o in inside for r in o.results if any(u not in members for u in r.users)]
    yield from found or inside[-1].results
