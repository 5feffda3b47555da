"""The entry function: one straight line of kernel calls that every worker executes, with the barriers of the plan.

    void tfir_entry_<name>(const struct tfir_call *call, int64_t worker, int64_t workers, void *barrier, uint8_t *scratch)

It loads the dims, evaluates the arena offsets, and for each kernel call writes the buffer pointers into a table on its stack. A call whose
results may be empty is skipped when they are (other loops of the kernel might have many turns). With a profile buffer each worker notes the
cycle counter around every call; without one that costs a comparison. The text is linear in the number of calls; kernels are shared between
calls, so a deep model has a long entry and few kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trustformers_ir.codegen.kernel_ir.simplify import symbol_facts
from trustformers_ir.codegen.llvm.emit import emit_expr
from trustformers_ir.codegen.llvm.text import Val, Writer
from trustformers_ir.codegen.lower.indexing import dim_expr
from trustformers_ir.codegen.plan import Plan
from trustformers_ir.codegen.program import BufferRef, KernelCall, Program, Storage
from trustformers_ir.ir.dims import Dim, Facts, maximum, symbols_of
from trustformers_ir.ir.dtypes import DType

_FIELDS = ("dims", "inputs", "outputs", "weights", "arena", "status", "profile")
STAMPS = 3  # per kernel call: arrived, past the barrier, done
STAMP = """
define internal void @tfir_stamp(ptr %profile, i64 %at) noinline nounwind {
entry:
  %off = icmp eq ptr %profile, null
  br i1 %off, label %out, label %on
on:
  %now = call i64 @llvm.readcyclecounter()
  %slot = getelementptr i64, ptr %profile, i64 %at
  store i64 %now, ptr %slot, align 8
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
        self.base = ""
        self.dims: dict[str, Val] = {}
        self.pointers: dict[tuple[Storage, int | str], str] = {}

    def run(self, symbol: str, kernels: Sequence[str]) -> str:
        w = self.writer
        for n, field in enumerate(_FIELDS):
            slot = w.op(f"getelementptr ptr, ptr %call, i64 {n}")
            self.fields[field] = w.op(f"load ptr, ptr {slot}, align 8")
        sizes = [_size(c, self.facts) for c in self.program.calls]
        for name in sorted(symbols_of(*(s.offset for s in self.plan.slots), *(s for s in sizes if s is not None))):
            slot = w.op(f"getelementptr i64, ptr {self.fields['dims']}, i64 {self.symbols.index(name)}")
            self.dims[name] = Val(w.op(f"load i64, ptr {slot}, align 8"), DType.i64)
        width = max((len(c.arguments) for c in self.program.calls), default=0)
        table = w.op(f"alloca [{max(width, 1)} x ptr], align 8")
        self.base = w.op(f"mul i64 %worker, {len(self.program.calls) * STAMPS}")
        for i, call in enumerate(self.program.calls):
            self.stamp(i, 0)
            if i in self.plan.barriers:
                w.line("call void @tfir_barrier(ptr %barrier)")
            self.stamp(i, 1)
            pointers = [self.pointer(ref) for ref in call.arguments]
            size = sizes[i]
            if size is not None:
                some, done = w.fresh("some"), w.fresh("done")
                w.line(f"br i1 {w.op(f'icmp sgt i64 {self.value(size)}, 0')}, label %{some}, label %{done}")
                w.label(some)
            for n, pointer in enumerate(pointers):
                slot = w.op(f"getelementptr ptr, ptr {table}, i64 {n}")
                w.line(f"store ptr {pointer}, ptr {slot}, align 8")
            dims, status = self.fields["dims"], self.fields["status"]
            w.line(f"call void @{kernels[i]}(ptr {table}, ptr {dims}, i64 %worker, i64 %workers, ptr %scratch, ptr {status})")
            if size is not None:
                w.line(f"br label %{done}")
                w.label(done)
            self.stamp(i, 2)
        w.line("ret void")
        signature = f"define void @{symbol}(ptr %call, i64 %worker, i64 %workers, ptr %barrier, ptr %scratch)"
        return "\n".join([f"{signature} #0 {{", "entry:", *w.lines, "}"])

    def stamp(self, call: int, which: int) -> None:
        at = self.writer.op(f"add i64 {self.base}, {call * STAMPS + which}")
        self.writer.line(f"call void @tfir_stamp(ptr {self.fields['profile']}, i64 {at})")

    def pointer(self, ref: BufferRef) -> str:
        w = self.writer
        match ref.storage:
            case Storage.WEIGHT:
                place: tuple[Storage, int | str] = (ref.storage, ref.key)
            case Storage.ARENA:
                place = (ref.storage, self.plan.slot_of[int(ref.key)])
            case _:
                place = (ref.storage, ref.key)
        if place not in self.pointers:
            match ref.storage:
                case Storage.INPUT | Storage.OUTPUT:
                    field = self.fields["inputs" if ref.storage is Storage.INPUT else "outputs"]
                    slot = w.op(f"getelementptr ptr, ptr {field}, i64 {ref.key}")
                    self.pointers[place] = w.op(f"load ptr, ptr {slot}, align 8")
                case Storage.WEIGHT:
                    self.pointers[place] = w.op(f"getelementptr i8, ptr {self.fields['weights']}, i64 {self.weights[str(ref.key)]}")
                case Storage.ARENA:
                    offset = self.value(self.plan.offset(ref))
                    self.pointers[place] = w.op(f"getelementptr i8, ptr {self.fields['arena']}, i64 {offset}")
        return self.pointers[place]

    def value(self, dim: Dim) -> str:
        return emit_expr(self.writer, dim_expr(dim), self.dims, self.kernel_facts).text


def _size(call: KernelCall, facts: Facts) -> Dim | None:
    """The elements of the largest result; None where that is surely positive."""
    size: Dim = 0
    for ref, writes in zip(call.arguments, call.writes, strict=True):
        if writes:
            size = maximum(size, ref.type.elements)
    return None if facts.bounds(size)[0] > 0 else size
