"""The entry function: a walk over a table of kernel calls that every worker executes, interval by interval of the plan.

    void tfir_entry_<name>(const struct tfir_call *call, int64_t worker, int64_t workers, void *pool, uint8_t *scratch, int64_t claim)

It loads the dims, notes the address of every *place* (inputs, outputs, weights, slots of the arena) in an array on its stack, and then executes the
share that it was given of one interval (the calls between two barriers), asks ``tfir_pool_next`` for another share, and so on until there is
none (``pool.py`` says who gets which). Each call is a row of constants that says which kernel, which places are its buffers, and
which number of elements must be positive for it to run (a call whose results are empty is skipped: other loops of the kernel might have many
turns). With a profile buffer the cycle counter is noted around every call, and who executed it; without one that costs a comparison.

A deep model has long tables and no more code than a shallow one. As straight code the entry of twelve layers took LLVM longer than all kernels
together (0.65 s of 0.9 s for BERT-base); a call costs some ten loads more now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trustformers_ir.codegen.kernel_ir.simplify import symbol_facts
from trustformers_ir.codegen.llvm.emit import emit_expr
from trustformers_ir.codegen.llvm.pool import SHARE_BITS, SHARE_MASK
from trustformers_ir.codegen.llvm.text import Val, Writer, literal
from trustformers_ir.codegen.lower.indexing import dim_expr
from trustformers_ir.codegen.plan import Place, Plan
from trustformers_ir.codegen.program import BufferRef, KernelCall, Program, Storage
from trustformers_ir.ir.dims import Dim, Facts, maximum, symbols_of
from trustformers_ir.ir.dtypes import DType

_FIELDS = ("dims", "inputs", "outputs", "weights", "arena", "status", "profile")
STAMPS = 4  # per share and kernel call: the worker arrived, was past the barrier, was done; the number of the worker
STAMP = """
; The cycle counter, where there is a profile.
define internal i64 @tfir_clock(ptr %profile) noinline nounwind {
entry:
  %off = icmp eq ptr %profile, null
  br i1 %off, label %none, label %some
some:
  %now = call i64 @llvm.readcyclecounter()
  ret i64 %now
none:
  ret i64 0
}

define internal void @tfir_stamp(ptr %profile, i64 %at, i64 %arrived, i64 %began, i64 %worker) noinline nounwind {
entry:
  %off = icmp eq ptr %profile, null
  br i1 %off, label %out, label %on
on:
  %row = getelementptr i64, ptr %profile, i64 %at
  store i64 %arrived, ptr %row, align 8
  %p.began = getelementptr i64, ptr %row, i64 1
  store i64 %began, ptr %p.began, align 8
  %now = call i64 @llvm.readcyclecounter()
  %p.done = getelementptr i64, ptr %row, i64 2
  store i64 %now, ptr %p.done, align 8
  %p.worker = getelementptr i64, ptr %row, i64 3
  store i64 %worker, ptr %p.worker, align 8
  br label %out
out:
  ret void
}
"""
STAMP_DECLARATION = "declare i64 @llvm.readcyclecounter()"


def emit_entry(
    symbol: str, program: Program, plan: Plan, kernels: Sequence[str], weights: Mapping[str, int], symbols: Sequence[str], facts: Facts
) -> str:
    """LLVM text of the entry ``symbol``: ``kernels[i]`` is the function of call i, ``weights`` the offset of each weight's bytes."""
    return _Entry(program, plan, weights, symbols, facts).run(symbol, kernels)


class _Entry:
    def __init__(self, program: Program, plan: Plan, weights: Mapping[str, int], symbols: Sequence[str], facts: Facts) -> None:
        self.program, self.plan, self.weights, self.symbols, self.facts = program, plan, weights, symbols, facts
        self.kernel_facts = symbol_facts(facts)
        self.writer = Writer()
        self.fields: dict[str, str] = {}
        self.dims: dict[str, Val] = {}

    def run(self, symbol: str, kernels: Sequence[str]) -> str:
        w, calls = self.writer, self.program.calls
        places = _places(self.program, self.plan)
        numbers = {place: n for n, place in enumerate(places)}
        sizes = [_size(c, self.facts, self.program.computed) for c in calls]
        distinct = list(dict.fromkeys(s for s in sizes if s is not None))
        for n, field in enumerate(_FIELDS):
            self.fields[field] = self.loaded("ptr", "%call", n)
        for name in sorted(symbols_of(*(s.offset for s in self.plan.slots), *distinct)):
            self.dims[name] = Val(self.loaded("i64", self.fields["dims"], self.symbols.index(name)), DType.i64)
        array = w.op(f"alloca [{len(places) or 1} x ptr], align 8")
        counts = w.op(f"alloca [{len(distinct) + 1} x i64], align 8")
        table = w.op(f"alloca [{max((len(c.arguments) for c in calls), default=0) or 1} x ptr], align 8")
        offsets = [self.weights[str(key)] for storage, key in places if storage is Storage.WEIGHT]
        self.fill(array, places, f"@{symbol}.weights", len(offsets))
        self.store("i64", "1", counts, 0)  # of the calls whose results are never empty
        for n, elements in enumerate(distinct):
            self.store("i64", self.value(elements), counts, n + 1)
        arguments: list[int] = []
        rows: list[tuple[int, int, int]] = []
        for call, size in zip(calls, sizes, strict=True):
            which = 0 if size is None else distinct.index(size) + 1
            rows.append((len(arguments), len(call.arguments), which))
            arguments += [numbers[_place(ref, self.plan)] for ref in call.arguments]
        bounds = [0, *sorted(self.plan.barriers - {0}), len(calls)]
        self.walk(symbol, len(bounds) - 1, array, counts, table)
        w.line("ret void")
        constants = [
            _constant(f"{symbol}.kernels", "ptr", [f"@{k}" for k in kernels]),
            _constant(f"{symbol}.intervals", "i64", bounds),
            _constant(f"{symbol}.calls", "i64", [n for row in rows for n in row]),
            _constant(f"{symbol}.arguments", "i64", arguments),
            _constant(f"{symbol}.weights", "i64", offsets),
        ]
        signature = f"define void @{symbol}(ptr %call, i64 %worker, i64 %workers, ptr %pool, ptr %scratch, i64 %claim)"
        return "\n".join([*constants, f"{signature} #0 {{", "entry:", *w.lines, "}"])

    def fill(self, array: str, places: Sequence[Place], offsets: str, weights: int) -> None:
        """Stores the address of every place. Those of the weights, which may be many and come last, in a loop over their offsets."""
        w = self.writer
        for n, (storage, key) in enumerate(places[: len(places) - weights]):
            if storage is Storage.ARENA:
                offset = self.value(self.plan.slots[int(key)].offset)
                self.store("ptr", w.op(f"getelementptr i8, ptr {self.fields['arena']}, i64 {offset}"), array, n)
            elif storage is Storage.DIM:
                self.store("ptr", w.op(f"getelementptr i64, ptr {self.fields['dims']}, i64 {self.symbols.index(str(key))}"), array, n)
            else:
                field = self.fields["inputs" if storage is Storage.INPUT else "outputs"]
                self.store("ptr", self.loaded("ptr", field, int(key)), array, n)
        if weights:
            first = len(places) - weights

            def one(i: Val, _: list[Val]) -> Sequence[Val]:
                address = w.op(f"getelementptr i8, ptr {self.fields['weights']}, i64 {self.loaded('i64', offsets, i.text)}")
                self.store("ptr", address, array, w.op(f"add i64 {i.text}, {first}"))
                return []

            w.loop(_ZERO, _number(weights), (), one, may_skip=False)

    def walk(self, symbol: str, intervals: int, array: str, counts: str, table: str) -> None:
        """The loop over claims, and inside it over the calls of an interval."""
        w, total, profile = self.writer, len(self.program.calls), self.fields["profile"]
        current, came = (w.op("alloca i64, align 8") for _ in range(2))
        self.store("i64", "%claim", current, 0)
        self.store("i64", w.op(f"call i64 @tfir_clock(ptr {profile})"), came, 0)
        turn, out = w.fresh("turn"), w.fresh("out")
        w.line(f"br label %{turn}")
        w.label(turn)
        claim = self.loaded("i64", current, 0)
        share, interval = w.op(f"and i64 {claim}, {SHARE_MASK}"), w.op(f"lshr i64 {claim}, {SHARE_BITS}")
        first = self.loaded("i64", f"@{symbol}.intervals", interval)
        last = self.loaded("i64", f"@{symbol}.intervals", w.op(f"add i64 {interval}, 1"))
        base = w.op(f"mul i64 {share}, {total * STAMPS}")

        def one(i: Val, _: list[Val]) -> Sequence[Val]:
            row = w.op(f"getelementptr i64, ptr @{symbol}.calls, i64 {w.op(f'mul i64 {i.text}, 3')}")
            argument, count, which = (self.loaded("i64", row, n) for n in range(3))
            began = w.op(f"call i64 @tfir_clock(ptr {profile})")
            some = w.op(f"icmp sgt i64 {self.loaded('i64', counts, which)}, 0")
            w.branch(Val(some, DType.bool), lambda: self.call(symbol, i, argument, count, share, array, table))
            at = w.op(f"add i64 {base}, {w.op(f'mul i64 {i.text}, {STAMPS}')}")
            w.line(f"call void @tfir_stamp(ptr {profile}, i64 {at}, i64 {self.loaded('i64', came, 0)}, i64 {began}, i64 %worker)")
            self.store("i64", w.op(f"call i64 @tfir_clock(ptr {profile})"), came, 0)
            return []

        w.loop(Val(first, DType.i64), Val(last, DType.i64), (), one)
        following = w.op(f"call i64 @tfir_pool_next(ptr %pool, i64 %worker, i64 {claim}, i64 {intervals})")
        self.store("i64", following, current, 0)
        w.line(f"br i1 {w.op(f'icmp sge i64 {following}, 0')}, label %{turn}, label %{out}")
        w.label(out)

    def call(self, symbol: str, i: Val, first: str, count: str, share: str, array: str, table: str) -> Sequence[Val]:
        w = self.writer

        def argument(n: Val, _: list[Val]) -> Sequence[Val]:
            which = self.loaded("i64", f"@{symbol}.arguments", w.op(f"add i64 {first}, {n.text}"))
            self.store("ptr", self.loaded("ptr", array, which), table, n.text)
            return []

        w.loop(_ZERO, Val(count, DType.i64), (), argument)
        kernel = self.loaded("ptr", f"@{symbol}.kernels", i.text)
        dims, status = self.fields["dims"], self.fields["status"]
        return self.line(f"call void {kernel}(ptr {table}, ptr {dims}, i64 {share}, i64 %workers, ptr %scratch, ptr {status})")

    def line(self, text: str) -> Sequence[Val]:
        self.writer.line(text)
        return []

    def loaded(self, type: str, base: str, index: int | str) -> str:
        slot = self.writer.op(f"getelementptr {type}, ptr {base}, i64 {index}")
        return self.writer.op(f"load {type}, ptr {slot}, align 8")

    def store(self, type: str, value: str, base: str, index: int | str) -> None:
        slot = self.writer.op(f"getelementptr {type}, ptr {base}, i64 {index}")
        self.writer.line(f"store {type} {value}, ptr {slot}, align 8")

    def value(self, dim: Dim) -> str:
        return emit_expr(self.writer, dim_expr(dim), self.dims, self.kernel_facts).text


def _number(value: int) -> Val:
    return literal(value, DType.i64)


_ZERO = _number(0)


def _constant(name: str, type: str, values: Sequence[int | str]) -> str:
    elements = ", ".join(f"{type} {v}" for v in values)
    return f"@{name} = private unnamed_addr constant [{len(values)} x {type}] [{elements}], align 8"


def _place(ref: BufferRef, plan: Plan) -> Place:
    """What the address of a buffer follows from: arena buffers lie where their slot does."""
    return (ref.storage, plan.slot_of[int(ref.key)] if ref.storage is Storage.ARENA else ref.key)


def _places(program: Program, plan: Plan) -> list[Place]:
    """Every place that some call touches, in order of first use, weights last."""
    found = dict.fromkeys(_place(ref, plan) for c in program.calls for ref in c.arguments)
    return sorted(found, key=lambda place: place[0] is Storage.WEIGHT)


def _size(call: KernelCall, facts: Facts, computed: Mapping[str, Dim]) -> Dim | None:
    """The elements of the largest result; None where that is surely positive, and where the program computes it: it is not known yet."""
    size: Dim = 0
    for ref, writes in zip(call.arguments, call.writes, strict=True):
        if writes:
            size = maximum(size, ref.type.elements)
    return None if facts.bounds(size)[0] > 0 or symbols_of(size) & computed.keys() else size
