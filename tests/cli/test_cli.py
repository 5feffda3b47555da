"""The command line: what goes to stdout, what to stderr, and the exit codes. The compiler behind it is replaced by a toy."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir.abi import Entry, Manifest, Port, TargetInfo
from trustformers_ir.ir.atomic import atomic_output
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.ops import Add, Return
from trustformers_ir.runtime import artifact
from trustformers_ir.tools.cli import COMMANDS, main
from trustformers_ir.tools.commands import run as run_command

ROOT = Path(__file__).resolve().parents[2]


def doubling() -> Module:
    """``x + x`` of any length."""
    module = Module("doubling")
    module.facts.declare("n", SymbolFact(low=1, high=64))
    block = Block([DType.f32["n"]], ["x"])
    builder = Builder(module, block)
    builder.create(Return(), builder(Add(), block.args[0], block.args[0], name="y"))
    module.add_function(Function("main", block))
    return module


class Toy:
    """An executable that interprets."""

    def __init__(self, error: float = 0.0) -> None:
        self.module = doubling()
        self.inputs = (Port("x", DType.f32["n"]),)
        self.outputs = (Port("y", DType.f32["n"]),)
        entry = Entry("main", "tfir_entry_main", self.inputs, self.outputs, 0, 0)
        target = TargetInfo("cpu", "x86_64-unknown-linux-gnu", "x86-64-v3", ("avx2",))
        self.manifest = Manifest("toy", target, tuple(self.module.facts.symbols.items()), (entry,), (), (), "0.1.0")
        self.targets = (target.name,)
        self.sections: dict[str, Any] = {}
        self.variants, self.stored = (self,), ()
        self.threads = 1
        self.entries = (entry.name,)
        self.error = error

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        return evaluate(self.module, *arrays, **named) + np.float32(self.error)

    def save(self, path: str, embed_weights: bool = False) -> None:
        with atomic_output(path) as stream:
            stream.write(b"toy")

    def report(self) -> dict[str, object]:
        return {"kernels": 1}


class Api:
    """Stands in for ``trustformers_ir.api``."""

    def to_module(self, path: str) -> Module:
        if not Path(path).exists():
            raise CompilerError.of(Code.FILE_NOT_FOUND, f"'{path}' does not exist", Where(file=path), "look at the path")
        return doubling()

    def run_passes(self, module: Module, text: str) -> Module:
        if text == "boom":
            raise RuntimeError("a bug")
        return module

    def list_passes(self) -> list[str]:
        return ["canonicalize", "fold"]

    def emit(self, executable: Toy, stage: str) -> str:
        return f"the {stage}"


@pytest.fixture(autouse=True)
def toy_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(vars(tfir), "api", Api())
    monkeypatch.setitem(vars(tfir), "compile", lambda model, example_inputs=None, **options: Toy())
    monkeypatch.setitem(vars(tfir), "load", lambda path, threads=None, target=None: Toy(error=0.5 if "wrong" in path else 0.0))
    monkeypatch.setitem(vars(tfir), "evaluate", evaluate)
    monkeypatch.setattr(artifact, "inspect", lambda path: Toy())
    (tmp_path / "m.tfir").write_text("")


def tfc(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err or "--debug" in words
    return code, captured.out, captured.err


def test_compile_writes_the_artifact(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = tfc(capsys, "compile", "m.tfir", "-o", "m.tfc")
    assert (code, out) == (0, "") and err.startswith("m.tfc: 3 B for cpu")
    assert Path("m.tfc").read_bytes() == b"toy"


def test_json_is_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = tfc(capsys, "compile", "m.tfir", "-o", "m.tfc", "--json")
    assert code == 0 and json.loads(out)["report"] == {"kernels": 1}
    for words in (
        ["targets"],
        ["inspect", "m.tfir"],
        ["inspect", "m.tfc"],
        ["verify", "m.tfir", "m.tfc"],
    ):
        code, out, err = tfc(capsys, *words, "--json")
        assert code == 0, err
        json.loads(out)


@pytest.mark.parametrize("stage", ["kernels", "llvm", "asm"])
def test_emit(capsys: pytest.CaptureFixture[str], stage: str) -> None:
    assert tfc(capsys, "compile", "m.tfir", "--emit", stage) == (0, f"the {stage}\n", "")
    tfc(capsys, "compile", "m.tfir", "--emit", stage, "-o", "out.txt")
    assert Path("out.txt").read_text() == f"the {stage}\n"


def test_run_on_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("x.npy", np.arange(3, dtype=np.float32))
    code, out, err = tfc(capsys, "run", "m.tfc", "--input", "x=x.npy", "--output", "e.npz")
    assert (code, out) == (0, ""), err
    np.testing.assert_array_equal(np.load("e.npz")["y"], [0, 2, 4])
    code, out, _ = tfc(capsys, "run", "m.tfc", "--input", "x=x.npy")
    assert code == 0 and "y       float32  [3]    0.0  4.0  2.0" in out


def test_verify_tells_same_from_different(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = tfc(capsys, "verify", "m.tfir", "m.tfc")
    assert code == 0 and "same" in out, err
    code, out, err = tfc(capsys, "verify", "m.tfir", "m.tfc", "wrong.tfc")
    assert code == 1 and "DIFFERS" in out and "error[TFC6100]" in err and "wrong.tfc" in err
    assert tfc(capsys, "verify", "m.tfir", "wrong.tfc", "--tolerance", "10")[0] == 0


def test_opt(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = tfc(capsys, "opt", "m.tfir", "--passes", "canonicalize")
    assert code == 0 and out == f"{doubling()}\n"
    code, out, _ = tfc(capsys, "opt", "m.tfir", "-o", "n.tfir")
    assert (code, out) == (0, "") and Path("n.tfir").read_text().rstrip() == str(doubling()).rstrip()
    assert tfc(capsys, "opt", "--list")[1] == "canonicalize\nfold\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["compile"], Code.USAGE),
        (["compile", "m.tfir"], Code.USAGE),
        (["compile", "m.tfir", "-o"], Code.USAGE),
        (["compile", "m.tfir", "-o", "a", "--threads", "0"], Code.USAGE),
        (["compile", "m.tfir", "--emit", "poetry"], Code.USAGE),
        (["compile", "m.tfir", "--emit", "metal"], Code.NOT_BUILT),
        (["compile", "m.tfir", "--emit", "graph", "--json"], Code.USAGE),
        (["compile", "m.tfir", "-o", "no/such/m.tfc"], Code.UNWRITABLE),
        (["compile", "m.tfir", "-o", "."], Code.UNWRITABLE),
        (["launch"], Code.USAGE),
        (["--loud"], Code.USAGE),
        (["run", "m.tfc", "--input", "x"], Code.USAGE),
        (["run", "m.tfc", "--input", "x=none.npy"], Code.FILE_NOT_FOUND),
        (["run", "m.tfc", "--input", "x=m.tfir"], Code.BAD_ARRAY),
        (["run", "m.tfc", "--input", "x=."], Code.UNREADABLE),
        (["run", "m.tfc", "--output", "e.csv"], Code.USAGE),
        (["run", "m.tfc", "--prompt", "Once"], Code.USAGE),
        (["run", "m.tfc", "--text", "hello"], Code.USAGE),
        (["run", "m.tfc"], Code.INPUT_COUNT),
        (["verify", "m.tfir"], Code.USAGE),
        (["verify", "m.tfir", "gone.tfir"], Code.FILE_NOT_FOUND),
        (["inspect", "gone.tfc"], Code.FILE_NOT_FOUND),
        (["opt", "gone.tfir"], Code.FILE_NOT_FOUND),
        (["opt"], Code.USAGE),
        (["export", "m.tfir", "-o", "m.onnx", "--quantize", "int4", "--opset", "20"], Code.USAGE),
        (["export", "m.tfir", "-o", "m.onnx", "--quantize", "q4_k"], Code.CANNOT_EXPORT),
        (["export", "m.tfir", "-o", "m.onnx", "--quantize", "int9"], Code.UNKNOWN_RECIPE),
        (["export", "m.tfir", "-o", "m.onnx", "--calibrate", "texts.txt"], Code.USAGE),
        (["export", "m.tfir", "-o", "m.pdf"], Code.USAGE),
        (["bench", "m.tfir", "--against", "llama.cpp"], Code.NOT_BUILT),
        (["bench", "m.tfir", "--against", "abacus"], Code.USAGE),
    ],
)
def test_bad_requests(capsys: pytest.CaptureFixture[str], words: list[str], code: Code) -> None:
    before = sorted(Path().iterdir())
    status, out, err = tfc(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith(f"error[{code.id}]: ") and "  help: " in err
    assert sorted(Path().iterdir()) == before


def test_export(capsys: pytest.CaptureFixture[str]) -> None:
    small = "random:llama?hidden_size=32&num_hidden_layers=1&num_attention_heads=2&vocab_size=64&intermediate_size=32"
    status, out, err = tfc(capsys, "export", small, "-o", "m.gguf", "--quantize", "q8_0", "--json")
    told = json.loads(out)
    assert status == 0 and told["tensors"] == {"Q8_0": 9, "F32": 3} and told["bytes"] == Path("m.gguf").stat().st_size
    assert "m.gguf: " in err and "9 Q8_0, 3 F32" in err
    assert tfc(capsys, "export", "m.gguf", "-o", "again.gguf")[0] == 0
    assert Path("again.gguf").read_bytes() == Path("m.gguf").read_bytes()


def test_a_lying_array_header_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("x.npy", np.zeros(4, np.float32))
    data = Path("x.npy").read_bytes().replace(b"(4,), }             ", b"(400000000000000,), }", 1)
    assert b"400000000000000" in data
    Path("x.npy").write_bytes(data)
    status, _, err = tfc(capsys, "run", "m.tfc", "--input", "x=x.npy")
    assert status == 2 and "TFC6008" in err


def test_our_bugs_are_ours(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = tfc(capsys, "opt", "m.tfir", "--passes", "boom")
    assert (status, out) == (3, "") and err.startswith("error[TFC9001]: RuntimeError: a bug")
    status, _, err = tfc(capsys, "opt", "m.tfir", "--passes", "boom", "--debug")
    assert status == 3 and "Traceback" in err


def test_texts_run_in_batches_of_like_length() -> None:
    lengths = np.array([5, 2, 5, 2, 9])
    groups = run_command._groups(lengths, 2, pad=False)
    assert [[int(i) for i in g] for g in groups] == [[1, 3], [0, 2], [4]]
    groups = run_command._groups(lengths, 3, pad=True)
    assert [[int(i) for i in g] for g in groups] == [[1, 3, 0], [2, 4]]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_there(capsys: pytest.CaptureFixture[str], name: str) -> None:
    function = getattr(importlib.import_module(f"trustformers_ir.tools.commands.{name}"), name)
    assert function.__doc__ == COMMANDS[name]
    code, out, _ = tfc(capsys, name, "--help")
    assert code == 0 and COMMANDS[name] in " ".join(out.split())
    assert COMMANDS[name].split()[0] in tfc(capsys, "--help")[1]


def test_help_loads_no_compiler() -> None:
    call = "import sys; from trustformers_ir.tools.cli import main; sys.argv = ['tfc', '--help']"
    code = f"{call}\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "compile" in done.stdout, done.stderr
    loaded = done.stderr.split()
    heavy = ("llvmlite", "torch", "onnx", "tokenizers", "trustformers_ir.codegen", "trustformers_ir.frontend", "trustformers_ir.passes")
    assert not [m for m in loaded if m.startswith(heavy)]
