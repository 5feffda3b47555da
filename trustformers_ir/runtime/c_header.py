"""The C header of a model, and the functions with types of their own that it declares. What all libraries share is in ``c/library.h``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trustformers_ir.ir.abi import Entry, Manifest, Port
from trustformers_ir.runtime.arguments import defaults_of
from trustformers_ir.runtime.c_tables import C_TYPES, CODES

TEMPLATES = Path(__file__).parent / "c"
_KEYWORDS = frozenset(
    "alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept const const_cast constexpr continue "
    "co_await co_return co_yield decltype default delete do double dynamic_cast else enum explicit export extern false float for friend goto "
    "if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register "
    "reinterpret_cast requires restrict return short signed sizeof static static_assert static_cast struct switch template this thread_local "
    "throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq linux unix NULL errno".split()
)
_TAKEN = frozenset(
    "code code_text create destroy dtype error function functions infer input options output port run session shapes sizes symbol symbols target "
    "threads tensor".split()
)


@dataclass(frozen=True)
class Function:
    """An entry with the names that it has in C."""

    entry: Entry
    name: str
    inputs: tuple[tuple[str, Port], ...]
    outputs: tuple[tuple[str, Port], ...]


def identifiers(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """A distinct C identifier for every name, as near to it as can be."""
    out: list[str] = []
    known = set(taken)
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
        plain = plain if re.match(r"[A-Za-z]", plain) else f"x{plain}"
        plain = f"{plain}_" if plain in _KEYWORDS else plain
        chosen, n = plain, 2
        while chosen in known:
            chosen, n = f"{plain}_{n}", n + 1
        known.add(chosen)
        out.append(chosen)
    return out


def functions(manifest: Manifest) -> list[Function]:
    """The functions of a library. A function ``f`` also takes the names ``f_inputs``, ``f_outputs``, ``f_shapes`` and ``f_infer``, and, for a
    constant, its own in capitals: of two that differ in case alone one is renamed."""
    names: list[str] = []
    taken = {*_TAKEN, "count"}  # there is a constant FUNCTION_COUNT
    for entry in manifest.entries:
        (plain,) = identifiers([entry.name])
        name, n = plain, 2
        while taken & {w.lower() for w in _with_suffixes(name)}:
            name, n = f"{plain}_{n}", n + 1
        names.append(name)
        taken |= {w.lower() for w in _with_suffixes(name)}
    return [
        Function(
            e,
            name,
            tuple(zip(identifiers(p.name for p in e.inputs), e.inputs, strict=True)),
            tuple(zip(identifiers(p.name for p in e.outputs), e.outputs, strict=True)),
        )
        for e, name in zip(manifest.entries, names, strict=True)
    ]


def _with_suffixes(name: str) -> set[str]:
    return {name, *(f"{name}_{suffix}" for suffix in ("inputs", "outputs", "shapes", "infer"))}


def named(text: str, prefix: str) -> str:
    """A template for the library of that name: ``tfm_`` and ``TFM_`` become its prefix."""
    return re.sub(r"\bTFM_", f"{prefix.upper()}_", re.sub(r"\btfm_", f"{prefix}_", text))


def header(manifest: Manifest, prefix: str, targets: Sequence[str], weights_file: str | None, max_rank: int) -> str:
    """The text of ``<prefix>.h``."""
    found = functions(manifest)
    rows = [
        row
        for f in found
        for row in (
            f" *     {f.name}",
            *(f" *         {what:<6}  {p.name}: {p.type}" for what, ports in (("in", f.entry.inputs), ("out", f.entry.outputs)) for p in ports),
        )
    ]
    symbols = ", ".join(f"{name} in {fact}" for name, fact in manifest.symbols)
    signatures = "\n".join([*rows, *([f" *     {symbols}"] if symbols else [])])
    beside = "the library holds them itself" if weights_file is None else f"'{weights_file}' beside the library"
    values = {
        "NAME": prefix,
        "MODEL": _comment(manifest.name),
        "COMPILER": _comment(manifest.compiler),
        "TARGETS": ", ".join(targets),
        "SIGNATURES": _comment(signatures),
        "WEIGHTS_NOTE": "" if weights_file is None else f"; the weights are in {weights_file}, which is mapped",
        "WEIGHTS_DEFAULT": beside,
        "FIRST": found[0].name,
        "CODES": "\n".join(f"    TFM_{c.name} = {c.number}, /* {c.title} */" for c in CODES),
        "MAX_RANK": str(max_rank),
        "CONSTANTS": "\n".join(_constants(found, manifest)),
        "TYPED": "\n".join([_sizes(manifest), *map(_declared, found, [manifest] * len(found))]),
    }
    template = (TEMPLATES / "library.h").read_text()
    return named(re.sub(r"@([A-Z_]+)@", lambda m: values[m[1]], template), prefix)


def _comment(text: str) -> str:
    """Text that does not end the comment it stands in."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text).replace("*/", "* /").replace("/*", "/ *")


def _constants(found: Sequence[Function], manifest: Manifest) -> list[str]:
    lines = ["enum { /* functions, as the calls below count them */"]
    lines += [f"    TFM_FUNCTION_{f.name.upper()} = {i}," for i, f in enumerate(found)]
    lines += [f"    TFM_FUNCTION_COUNT = {len(found)},", f"    TFM_SYMBOL_COUNT = {len(manifest.symbols)}", "};"]
    return lines


def _sizes(manifest: Manifest) -> str:
    names = identifiers(name for name, _ in manifest.symbols)
    rows = [f"    int64_t {name}; /* in {fact} */" for name, (_, fact) in zip(names, manifest.symbols, strict=True)]
    rows = rows or ["    char nothing; /* all shapes are constant */"]
    return "\n".join(["typedef struct tfm_sizes { /* in the order of tfm_symbols */", *rows, "} tfm_sizes;", ""])


def _declared(f: Function, manifest: Manifest) -> str:
    optional = defaults_of(manifest, f.entry.inputs)
    inputs = [
        f"    const {C_TYPES[p.type.dtype]} *{name}; /* {_comment(str(p.type))}{f'; NULL: all {optional[p.name]}' if p.name in optional else ''} */"
        for name, p in f.inputs
    ]
    outputs = [f"    {C_TYPES[p.type.dtype]} *{name}; /* {_comment(str(p.type))}; NULL: not wanted */" for name, p in f.outputs]
    shapes = [f"    int64_t {name}[{p.type.rank}]; /* {_comment(str(p.type))} */" for name, p in f.outputs if p.type.rank]
    nothing = ["    char nothing;"]
    return "\n".join(
        [
            f"/* {_comment(f.entry.name)} */",
            f"typedef struct tfm_{f.name}_inputs {{",
            *(inputs or nothing),
            f"}} tfm_{f.name}_inputs;",
            f"typedef struct tfm_{f.name}_outputs {{",
            *(outputs or nothing),
            f"}} tfm_{f.name}_outputs;",
            f"typedef struct tfm_{f.name}_shapes {{",
            *(shapes or nothing),
            f"}} tfm_{f.name}_shapes;",
            "/* The shapes of the outputs. */",
            f"int tfm_{f.name}_infer(const tfm_sizes *sizes, tfm_{f.name}_shapes *shapes, tfm_error *error);",
            "/* Runs. Every array has the shape that its comment gives for these sizes. */",
            f"int tfm_{f.name}(tfm_session *session, const tfm_sizes *sizes, const tfm_{f.name}_inputs *inputs,",
            f"    const tfm_{f.name}_outputs *outputs, tfm_error *error);",
            "",
        ]
    )


def typed(manifest: Manifest) -> str:
    """The definitions of the functions with types of their own, on top of ``tfm_shapes`` and ``tfm_run``."""
    symbols = identifiers(name for name, _ in manifest.symbols)
    lines: list[str] = [
        "static int tfi_typed(int function, const tfm_sizes *sizes, tfm_input *inputs, tfm_output *outputs, tfm_error *error) {",
        "    int64_t values[TFI_SYMBOLS + 1] = {0};",
        '    if (sizes == NULL) return tfi_fail(error, TFM_USAGE, "the sizes are NULL");',
        *(f"    values[{n}] = sizes->{name};" for n, name in enumerate(symbols)),
        "    return tfm_shapes(function, values, inputs, outputs, error);",
        "}",
        "",
    ]
    for number, f in enumerate(functions(manifest)):
        arrays = [f"    tfm_input in[{len(f.inputs) or 1}] = {{{{0}}}};", f"    tfm_output out[{len(f.outputs) or 1}] = {{{{0}}}};", "    int code;"]
        lines += [
            f"TFI_EXPORT int tfm_{f.name}_infer(const tfm_sizes *sizes, tfm_{f.name}_shapes *shapes, tfm_error *error) {{",
            *arrays,
            '    if (shapes == NULL) return tfi_fail(error, TFM_USAGE, "the shapes are NULL");',
            f"    code = tfi_typed({number}, sizes, in, out, error);",
            "    if (code != TFM_OK) return code;",
            *(f"    memcpy(shapes->{name}, out[{n}].shape, sizeof shapes->{name});" for n, (name, p) in enumerate(f.outputs) if p.type.rank),
            "    return code;",
            "}",
            "",
            f"TFI_EXPORT int tfm_{f.name}(tfm_session *session, const tfm_sizes *sizes, const tfm_{f.name}_inputs *inputs,",
            f"    const tfm_{f.name}_outputs *outputs, tfm_error *error) {{",
            *arrays,
            '    if (inputs == NULL || outputs == NULL) return tfi_fail(error, TFM_USAGE, "the inputs or the outputs are NULL");',
            f"    code = tfi_typed({number}, sizes, in, out, error);",
            "    if (code != TFM_OK) return code;",
            *(f"    in[{n}].data = inputs->{name};" for n, (name, _) in enumerate(f.inputs)),
            *(f"    out[{n}].data = outputs->{name};\n    out[{n}].capacity = out[{n}].bytes;" for n, (name, _) in enumerate(f.outputs)),
            f"    return tfm_run(session, {number}, in, {len(f.inputs)}, out, {len(f.outputs)}, error);",
            "}",
            "",
        ]
    return "\n".join(lines)
