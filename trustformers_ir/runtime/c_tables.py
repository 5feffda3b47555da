"""The tables of a model for ``c/library.c``: sizes as programs of a stack machine, how each dim of an input is solved for a symbol, ports, places
in the model, and the CPU features that each code needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trustformers_ir.ir.abi import POOL_SYMBOLS, Manifest, Port
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import Dim, SymExpr, parse_dim, product, symbols_of
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.runtime.arguments import defaults_of
from trustformers_ir.runtime.cpu_features import FEATURE_BITS

#: The codes that a library gives, by their names in the header.
CODES = (
    Code.ARTIFACT_TRUNCATED,
    Code.ARTIFACT_CORRUPT,
    Code.ARTIFACT_TARGET,
    Code.INPUT_COUNT,
    Code.INPUT_DTYPE,
    Code.INPUT_SHAPE,
    Code.DIM_CONFLICT,
    Code.DIM_RANGE,
    Code.INDEX_OUT_OF_RANGE,
    Code.OUT_OF_MEMORY,
    Code.UNKNOWN_ENTRY,
    Code.OUTPUT_SIZE,
    Code.USAGE,
    Code.FILE_NOT_FOUND,
    Code.UNREADABLE,
)
#: In the order of ``enum tfm_dtype``: the type in C, which for f16, bf16 and f8e4m3 is that of their bits.
C_TYPES = {
    DType.bool: "uint8_t",
    DType.i8: "int8_t",
    DType.i16: "int16_t",
    DType.i32: "int32_t",
    DType.i64: "int64_t",
    DType.u8: "uint8_t",
    DType.u16: "uint16_t",
    DType.u32: "uint32_t",
    DType.u64: "uint64_t",
    DType.f16: "uint16_t",
    DType.bf16: "uint16_t",
    DType.f32: "float",
    DType.f64: "double",
    DType.f8e4m3: "uint8_t",
}
_DTYPES = list(C_TYPES)
_OPERATIONS = {"add": 3, "mul": 4, "floordiv": 5, "mod": 6, "min": 7, "max": 8}
_END, _CONST, _SYMBOL = 0, 1, 2
_LARGEST = (1 << 63) - 1


class Programs:
    """Dims as programs, each kept once; ``depth`` is the deepest stack that one of them needs."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.words: list[int] = []
        self.depth = 1
        self._numbers = {name: n for n, name in enumerate(symbols)}
        self._known: dict[Dim, int] = {}

    def add(self, dim: Dim) -> int:
        """The place of the program that computes ``dim``. ``UNSUPPORTED_SHAPE`` for numbers of more than 64 bits."""
        if dim not in self._known:
            out: list[int] = []
            self._emit(dim, out, 1)
            self._known[dim] = len(self.words)
            self.words += [*out, _END]
        return self._known[dim]

    def _emit(self, dim: Dim, out: list[int], depth: int) -> None:
        """Appends what leaves the value on the stack, which then has ``depth`` entries."""
        self.depth = max(self.depth, depth)
        if isinstance(dim, int):
            if not -_LARGEST <= dim <= _LARGEST:
                raise CompilerError.of(Code.UNSUPPORTED_SHAPE, f"the number {str(dim)[:40]} in a size has more than 64 bits")
            out += [_CONST, dim]
            return
        for n, (monomial, coefficient) in enumerate(dim.terms):
            level = depth + (n > 0)
            self._emit(coefficient, out, level)
            for atom, power in monomial:
                for _ in range(power):
                    self.depth = max(self.depth, level + 1)
                    if atom.kind == "sym":
                        out += [_SYMBOL, self._numbers[atom.name]]
                    else:
                        self._emit(atom.args[0], out, level + 1)
                        self._emit(atom.args[1], out, level + 2)
                        out.append(_OPERATIONS[atom.kind])
                    out.append(_OPERATIONS["mul"])
            if n:
                out.append(_OPERATIONS["add"])


def linear_in(dim: Dim, name: str) -> tuple[Dim, Dim] | None:
    """``(slope, offset)`` with ``dim == slope * name + offset``, neither of which mentions the symbol; None when there are none."""
    slope: Dim = 0
    offset: Dim = 0
    for monomial, coefficient in () if isinstance(dim, int) else dim.terms:
        factor: Dim = coefficient
        mentions = 0
        for atom, power in monomial:
            if atom.kind == "sym" and atom.name == name:
                mentions += power
                continue
            inner = SymExpr(((((atom, 1),), 1),))
            if name in inner.symbols():
                return None
            factor = factor * product([inner] * power)
        if mentions > 1:
            return None
        slope, offset = (slope + factor, offset) if mentions else (slope, offset + factor)
    return (slope, offset) if slope != 0 else None


def text(value: str) -> str:
    """A C string."""
    safe = "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in value.encode())
    return f'"{safe}"'


def port_problem(port: Port) -> CompilerError | None:
    """Why a port has no place in a C interface."""
    if port.type.dtype in C_TYPES:
        return None
    return CompilerError.of(Code.UNSUPPORTED_DTYPE, f"'{port.name}' is {port.type}, and {port.type.dtype} has no type in C")


class Tables:
    """Collects the tables of a family of manifests and writes them; ``symbol(n, plain)`` is what the code of variant n calls ``plain``."""

    def __init__(self, family: Sequence[Manifest], symbol: Callable[[int, str], str]) -> None:
        self.family = family
        self.first = family[0]
        self.symbol = symbol
        self.programs = Programs([name for name, _ in self.first.symbols])
        self.numbers = {name: n for n, (name, _) in enumerate(self.first.symbols)}
        self.solutions: list[str] = []
        self.axes: list[str] = []

    @property
    def max_rank(self) -> int:
        """The largest rank of an input or output, at least 1."""
        return max([1, *(p.type.rank for e in self.first.entries for p in (*e.inputs, *e.outputs))])

    def write(self, constants: Mapping[str, object]) -> str:
        """The text of ``tables.h``."""
        entries = self.first.entries
        ports = {"input": [p for e in entries for p in e.inputs], "output": [p for e in entries for p in e.outputs]}
        details = {kind: [f"{{{self.add_axes(p)}, {self.fill(p)}}}" for p in found] for kind, found in ports.items()}
        starts = {kind: _starts([len(e.inputs if kind == "input" else e.outputs) for e in entries]) for kind in ports}
        firsts = list(zip(starts["input"], starts["output"], strict=True))
        model = [
            f"{{{text(e.name)}, {len(e.inputs)}, {len(e.outputs)}, tfi_inputs + {i}, tfi_outputs + {o}}}"
            for e, (i, o) in zip(entries, firsts, strict=True)
        ]
        symbols = [
            f"{{{text(name)}, {fact.low}, {'INT64_MAX' if fact.high is None else fact.high}, {fact.divisor}}}" for name, fact in self.first.symbols
        ]
        variants = [self.variant(n) for n in range(len(self.family))]
        names = list(dict.fromkeys(f for m in self.family for f in m.target.features))
        needed = [names.index(f) for m in self.family for f in m.target.features]
        sizes = {
            "TFI_SYMBOLS": len(symbols),
            "TFI_FUNCTIONS": len(entries),
            "TFI_INPUTS": max(len(e.inputs) for e in entries),
            "TFI_OUTPUTS": max(len(e.outputs) for e in entries),
            "TFI_VARIANTS": len(self.family),
            "TFI_STACK": self.programs.depth + 1,
        }
        lines = [f"#define {name} {value}" for name, value in {**constants, **sizes}.items()]
        rows = [f"{{{c.number}, {text(c.title)}}}" for c in CODES]
        lines += ["static const struct { int code; const char *text; } tfi_codes[] = {", _body(['{0, "done"}', *rows]), "};"]
        lines += _table("int64_t", "tfi_programs", [str(w) for w in self.programs.words])
        lines += _table("tfi_solution", "tfi_solutions", self.solutions, "{0, -1, -1}")
        lines += _table("tfi_axis", "tfi_axes", self.axes, "{0, 0, 0}")
        lines += _table("tfm_symbol", "tfi_symbols", symbols, '{"", 0, 0, 1}')
        for kind, found in ports.items():
            lines += _table("tfm_port", f"tfi_{kind}s", [self.port(p) for p in found], '{"", 0, 0, {0}, {0}, 0}')
            lines += _table("tfi_port", f"tfi_{kind}_details", details[kind], "{0, {0}}")
        lines += _table("tfi_function", "tfi_functions", [f"{{{i}, {o}}}" for i, o in firsts])
        lines += _table("tfm_function", "tfi_model", model)
        lines += _table("tfi_feature", "tfi_features", [_feature(f) for f in names], '{"", 0, 0, 0, 0, 0}')
        lines += _table("int", "tfi_needed", [str(n) for n in needed])
        for n, (declared, sites, codes, _) in enumerate(variants):
            lines += declared
            lines += _table("tfi_site", f"tfi_sites_{n}", sites, '{"", "", "", -1}')
            lines += _table("tfi_code", f"tfi_codes_{n}", codes)
        lines += _table("tfi_variant", "tfi_variants", [row for *_, row in variants])
        return "\n".join(lines) + "\n"

    def add_axes(self, port: Port) -> int:
        """The place of the first of a port's axes."""
        place = len(self.axes)
        for dim in port.type.shape:
            first = len(self.solutions)
            for name in sorted(symbols_of(dim)):
                found = linear_in(dim, name)
                slope, offset = (-1, -1) if found is None else (self.programs.add(found[0]), self.programs.add(found[1]))
                self.solutions.append(f"{{{self.numbers[name]}, {slope}, {offset}}}")
            self.axes.append(f"{{{self.programs.add(dim)}, {first}, {len(self.solutions) - first}}}")
        return place

    def default(self, port: Port) -> int | None:
        """The number that fills an input that is left out."""
        return defaults_of(self.first, [port]).get(port.name)

    def fill(self, port: Port) -> str:
        value = self.default(port)
        data = b"" if value is None else port.type.dtype.numpy.type(value).tobytes()
        return "{" + (", ".join(map(str, data)) or "0") + "}"

    def port(self, port: Port) -> str:
        dims = ", ".join(text(str(d)) for d in port.type.shape) or "0"
        sizes = ", ".join(str(d) if isinstance(d, int) else "-1" for d in port.type.shape) or "0"
        dtype = _DTYPES.index(port.type.dtype)
        return f"{{{text(port.name)}, {dtype}, {port.type.rank}, {{{dims}}}, {{{sizes}}}, {int(self.default(port) is not None)}}}"

    def variant(self, n: int) -> tuple[list[str], list[str], list[str], str]:
        """Declarations, sites, codes and the row of a variant."""
        m = self.family[n]
        declared = [f"extern tfi_entry {s} TFI_HIDDEN;" for s in dict.fromkeys(self.symbol(n, e.symbol) for e in m.entries)]
        create, run, patience, destroy, _ = (self.symbol(n, plain) for plain in POOL_SYMBOLS)
        declared += [
            f"extern void *{create}(int64_t) TFI_HIDDEN;",
            f"extern void {run}(void *, tfi_entry *, const struct tfir_call *, uint8_t *, int64_t) TFI_HIDDEN;",
            f"extern void {patience}(void *, int64_t) TFI_HIDDEN;",
            f"extern void {destroy}(void *) TFI_HIDDEN;",
        ]
        sites = [f"{{{text(f'{s.op}: {s.what}')}, {text(s.bound)}, {text(s.location)}, {self.bound(s.bound)}}}" for s in m.sites]
        codes = []
        for e in m.entries:
            costs = (sum((k.flops for k in e.kernels), start=0), sum((k.bytes for k in e.kernels), start=0))
            places = ", ".join(str(self.programs.add(d)) for d in (e.arena_bytes, e.scratch_bytes, *costs))
            codes.append(f"{{{self.symbol(n, e.symbol)}, {places}}}")
        before = sum(len(o.target.features) for o in self.family[:n])
        row = (
            f"{{{text(m.target.name)}, {text(m.target.cpu)}, {before}, {len(m.target.features)}, tfi_sites_{n}, {len(sites)}, tfi_codes_{n}, "
            f"{create}, {run}, {patience}, {destroy}}}"
        )
        return declared, sites, codes, row

    def bound(self, written: str) -> int:
        """The program of a site's bound; -1 when it says nothing more than its text."""
        try:
            dim = parse_dim(written)
            return -1 if isinstance(dim, int) or not symbols_of(dim) <= self.numbers.keys() else self.programs.add(dim)
        except ValueError:
            return -1


def _feature(name: str) -> str:
    row = FEATURE_BITS.get(name)
    if row is None:
        message = f"the CPU feature '{name}' cannot be checked from C"
        raise CompilerError.of(Code.TARGET_UNAVAILABLE, message, help="compile for a target such as --target cpu:avx2")
    return f"{{{text(name)}, {row.leaf}u, {row.subleaf}u, {row.register}, {row.bit}, {row.state}}}"


def _starts(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:n]) for n in range(len(counts))]


def _body(rows: Sequence[str]) -> str:
    return "\n".join(f"    {row}," for row in rows)


def _table(type: str, name: str, rows: Sequence[str], nothing: str = "0") -> list[str]:
    """A table; C has no empty ones."""
    return [f"static const {type} {name}[] = {{", _body(list(rows) or [nothing]), "};"]
