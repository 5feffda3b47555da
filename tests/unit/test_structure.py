"""The shape of the code itself: who imports whom, how large files are, and what an import costs. See docs/architecture.md."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "trustformers_ir"
SOURCE = ROOT / PACKAGE
MAX_LINES = 800

# The rooms, and what each may import besides itself.
ROOMS: dict[str, set[str]] = {
    "ir": set(),
    "models": {"ir"},
    "frontend": {"models", "ir"},
    "passes": {"ir"},
    "codegen": {"passes", "ir"},
    "runtime": {"ir"},
    "quantizer": {"ir", "passes", "codegen", "runtime"},
    "tuner": {"ir", "codegen", "runtime"},
    "reader": {"ir", "models", "frontend", "runtime"},
    "exporter": {"ir", "frontend", "passes", "codegen", "quantizer", "reader"},
    "compiler": {"ir", "models", "frontend", "passes", "codegen", "runtime", "quantizer", "tuner", "reader"},
    # of the last four the types of results, and the version
    "api": {"ir", "runtime", "reader", "compiler", "exporter", "codegen", "passes", "tuner", ""},
    "torch_backend": {"ir", "frontend", "compiler"},
    "tools": {"ir", "models", "frontend", "passes", "codegen", "runtime", "tuner", "reader", "exporter", "api", ""},
    "": {"ir", "api", "passes"},  # trustformers_ir/__init__.py, where names of recipes are looked up
}
# The runtime shares data with the compiler, not its machinery.
SHARED = (
    *("abi", "atomic", "binding", "calling", "device", "diagnostics", "dims", "dtypes", "env"),
    *("holes", "keeping", "machine", "mapped", "progress", "strict_json", "types"),
)
RUNTIME_MAY_IMPORT = {f"{PACKAGE}.ir.{m}" for m in SHARED}

VISIBLE_ROOMS = {"codegen", "frontend", "models", "passes", "runtime", "tools"}

# Heavy or optional packages are imported where they are used.
HEAVY = {
    "coremltools",
    "gguf",
    "jax",
    "jaxlib",
    "llvmlite",
    "ml_dtypes",
    "networkx",
    "nncf",
    "onnx",
    "onnxruntime",
    "openvino",
    "rich",
    "safetensors",
    "tokenizers",
    "torch",
    "torchao",
    "transformers",
    "triton",
    "xllamacpp",
    "yaml",
}
# Other imports inside functions, each with its reason.
LAZY = {
    ("trustformers_ir.api", "trustformers_ir.compiler"): "`compiler.py` brings all compiler folders; running an artifact needs none of them",
    **dict.fromkeys(
        [("trustformers_ir.api", f"trustformers_ir.{name}") for name in ("exporter", "reader")], "the same of those parts of it that are asked for"
    ),
    **dict.fromkeys(
        [("trustformers_ir.reader", f"trustformers_ir.frontend.{name}") for name in ("onnx.model", "torch_export.read")],
        "most models need none of these, which are megabytes of rules",
    ),
    **dict.fromkeys(
        [
            ("trustformers_ir.exporter", f"trustformers_ir.{name}")
            for name in (
                *(f"codegen.export.{f}.write" for f in ("coreml", "gguf", "onnx", "stablehlo")),
                "codegen.export.gguf.kinds",
                "codegen.export.onnx.rules_quantized",
                "frontend.gguf.outward",
            )
        ],
        "a model is written in one format at a time",
    ),
    ("trustformers_ir.api", "trustformers_ir.ir.interpreter"): "running an artifact needs no op declarations",
    ("trustformers_ir.api", "trustformers_ir.ir.text"): "running an artifact needs no op declarations",
    ("trustformers_ir.runtime.executable", "trustformers_ir.runtime.library"): "whoever only runs a model needs no C compiler, nor what calls one",
    ("trustformers_ir.ir.dtypes", "trustformers_ir.ir.types"): "`f32['batch', 384]` builds a type, and types are made of dtypes",
}


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    line: int
    inside_function: bool
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> dict[str, Path]:
    return {module_name(p): p for p in sorted(SOURCE.rglob("*.py"))}


def names_imported(node: ast.Import | ast.ImportFrom, importer: str, path: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (a.name for a in node.names)
        return
    base = node.module or ""
    if node.level:
        package = importer.split(".") if path.name == "__init__.py" else importer.split(".")[:-1]
        base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if inner in modules() else base


def scan(node: ast.AST, importer: str, path: Path, inside: bool = False, typing_only: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            for name in names_imported(child, importer, path):
                yield Import(importer, name, child.lineno, inside, typing_only)
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in child.body:
                yield from scan(ast.Module([statement], []), importer, path, inside, True)
            for statement in child.orelse:
                yield from scan(ast.Module([statement], []), importer, path, inside, typing_only)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from scan(child, importer, path, inside or function, typing_only)


@functools.cache
def imports() -> tuple[Import, ...]:
    return tuple(i for name, path in modules().items() for i in scan(ast.parse(path.read_text()), name, path))


def ours(name: str) -> bool:
    return name == PACKAGE or name.startswith(PACKAGE + ".")


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_rooms_are_the_ones_of_the_architecture_page() -> None:
    found = {p.name for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__"} | {p.stem for p in SOURCE.glob("*.py")}
    assert found - {"__init__"} <= set(ROOMS)
    page = (ROOT / "docs" / "architecture.md").read_text()
    for name in sorted(set(ROOMS) - {"", "api", "compiler", "exporter", "quantizer", "reader", "torch_backend", "tuner"}):
        assert f"| `{name}/` |" in page, f"docs/architecture.md has no row for {name}/"


def test_imports_go_in_the_allowed_direction() -> None:
    wrong = [str(i) for i in imports() if ours(i.imported) and room(i.imported) not in ROOMS[room(i.importer)] | {room(i.importer)}]
    assert not wrong, "\n".join(wrong)


def test_runtime_shares_only_data_with_the_compiler() -> None:
    wrong = [
        str(i)
        for i in imports()
        if room(i.importer) == "runtime" and ours(i.imported) and room(i.imported) != "runtime" and i.imported not in RUNTIME_MAY_IMPORT
    ]
    assert not wrong, "\n".join(wrong)


def test_no_cycles() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for i in imports():
        if i.imported in graph and not i.inside_function and not i.typing_only:
            graph[i.importer].add(i.imported)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "a cycle of imports: " + " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for following in sorted(graph[name]):
                visit(following, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_imports_inside_functions_are_heavy_or_listed() -> None:
    inside = [i for i in imports() if i.inside_function and i.imported.split(".")[0] not in HEAVY]
    wrong = [str(i) for i in inside if (i.importer, i.imported) not in LAZY]
    assert not wrong, "imports inside functions:\n" + "\n".join(wrong)
    unused = set(LAZY) - {(i.importer, i.imported) for i in inside}
    assert not unused, f"no longer needed: {unused}"


def test_heavy_packages_are_not_imported_at_the_top() -> None:
    wrong = [str(i) for i in imports() if not i.inside_function and not i.typing_only and i.imported.split(".")[0] in HEAVY]
    assert not wrong, "\n".join(wrong)


def test_files_are_small() -> None:
    files = [*SOURCE.rglob("*.py"), *SOURCE.rglob("*.[ch]"), *(ROOT / "tests").rglob("*.py")]
    large = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not large, f"files of more than {MAX_LINES} lines: {large}"


def test_environment_is_read_in_one_place() -> None:
    readers = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
    }
    assert readers <= {f"{PACKAGE}.ir.env"}, "read the environment through ir/env.py"


def test_test_files_have_distinct_names() -> None:
    paths = list((ROOT / "tests").rglob("*.py"))
    names = [p.name for p in paths if p.name != "conftest.py"]
    assert len(names) == len(set(names)), f"pytest imports test files by name: {sorted({n for n in names if names.count(n) > 1})}"


def test_root_shows_the_rooms() -> None:
    links = {p.name: p for p in ROOT.iterdir() if p.is_symlink() and p.name != ".venv"}
    assert set(links) == VISIBLE_ROOMS
    for name, link in links.items():
        assert str(link.readlink()) == f"{PACKAGE}/{name}"
        assert (link / "__init__.py").is_file()


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


TORCH_AND_CO = ("torch", "onnx", "onnxruntime", "triton", "llvmlite", "networkx", "sympy", "transformers", "tokenizers", "rich")


def test_import_is_quick_and_light() -> None:
    # processor time: other processes on a shared machine do not count
    code = f"import sys, time; t = time.process_time(); import {PACKAGE}; print(time.process_time() - t, *sys.modules)"
    times = []
    for _ in range(8):
        seconds, *loaded = run(code).split()
        times.append(float(seconds))
        assert not [m for m in loaded if m.split(".")[0] in TORCH_AND_CO]
        if times[-1] < 0.075:
            break
    assert min(times) < 0.150, f"import {PACKAGE} took {sorted(times)} s"


def test_every_public_name_resolves() -> None:
    output = run(f"import {PACKAGE} as tfir; print([n for n in tfir.__all__ if getattr(tfir, n, None) is None])")
    assert output.strip() == "[]"


def test_running_needs_no_compiler() -> None:
    names = [m for m in modules() if room(m) == "runtime"]
    loaded = run(f"import importlib, sys\nfor m in {names}: importlib.import_module(m)\nprint(*sys.modules)").split()
    compiler = [m for m in loaded if ours(m) and room(m) in ("frontend", "passes", "codegen", "models", "api", "tools")]
    assert not compiler
    assert not [m for m in loaded if m.split(".")[0] in TORCH_AND_CO]
