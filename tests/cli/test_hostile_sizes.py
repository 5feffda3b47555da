"""Files that promise much: what `tfc` allocates is bounded by the size of its input, and it answers within seconds.

Each file is read by a fork of a process that has warmed up. It may not map more than ``ROOM`` bytes beyond what it has then, and measures
the most memory that it holds after that.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from cli_harness import CONFIG, artifact_bytes, tokenizer, write_checkpoint

from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.runtime import artifact
from trustformers_ir.runtime.container import HEADER_BYTES

ALLOWED = 64 << 20  # bytes, and
PER_BYTE = 16  # times the bytes of the input
ROOM = 1 << 30
SECONDS = 20.0

CHILD = """
import json, os, resource, sys, time
from trustformers_ir.tools.cli import main

def status(field):
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(field + ":"))

def measure(words):
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")  # the peak counts from here
    before, room = status("VmRSS"), status("VmSize") + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    started = time.perf_counter()
    code = main(words)
    seconds = time.perf_counter() - started
    with open("measured.json", "w") as stream:
        json.dump({"code": code, "peak": status("VmHWM") - before, "seconds": seconds}, stream)

assert main(["run", "good.tfc", "--text", "the cat"]) == 0 and main(["compile", "good", "-o", "warm.tfc"]) == 0
with open("commands.json") as stream:
    commands = json.load(stream)
for folder, words in commands.items():
    if os.fork() == 0:
        os.chdir(folder)
        os.dup2(os.open("stderr.txt", os.O_WRONLY | os.O_CREAT), 2)
        measure(words)
        os._exit(0)
    os.wait()
"""


def safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> int:
    """Replaces the weights of the checkpoint; gives the bytes of the file."""
    write_checkpoint("m")
    return Path("m/model.safetensors").write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def tensor(shape: list[int], begin: int, end: int) -> bytes:
    return json.dumps({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}).encode()


def many_tensors() -> int:
    return safetensors(b"{" + b", ".join(b'"a%d": %s' % (i, tensor([0], 0, 0)) for i in range(100_000)) + b"}")


def config(text: str) -> int:
    write_checkpoint("m")
    return Path("m/config.json").write_bytes(text.encode())


def many_layers() -> int:
    config(json.dumps(CONFIG | {"num_hidden_layers": 10_000}))
    return Path("m/model.safetensors").stat().st_size


def random_tokenizer() -> int:
    write_checkpoint("m")
    return Path("m/tokenizer.json").write_bytes(os.urandom(1 << 20))


def graph(text: str) -> int:
    return Path("m.tfir").write_bytes(text.encode())


def splats() -> int:
    lines = "".join(f"    %{i} = constant {{value = f32[262144] splat {i}.0}} : f32[262144]\n" for i in range(1000))
    return graph(f"module @m {{\n  func @main() -> () {{\n{lines}    return\n  }}\n}}\n")


def sealed(offset: int, value: int) -> int:
    """An artifact with a number of its header replaced, and the checksum of the header put right."""
    data = bytearray(artifact_bytes())
    struct.pack_into("<Q", data, offset, value)
    data[HEADER_BYTES - 32 : HEADER_BYTES] = hashlib.sha256(data[: HEADER_BYTES - 32]).digest()
    return Path("m.tfc").write_bytes(data)


def greedy() -> int:
    """An artifact that wants an exabyte of memory for its intermediates."""
    Path("m.tfc").write_bytes(artifact_bytes())
    module = artifact.inspect("m.tfc").compiled()
    entries = tuple(replace(e, arena_bytes=1 << 60) for e in module.manifest.entries)
    artifact.save(replace(module, manifest=replace(module.manifest, entries=entries)), "greedy.tfc")
    Path("greedy.tfc").rename("m.tfc")
    return Path("m.tfc").stat().st_size


def lying_array(shape: str) -> int:
    Path("m.tfc").write_bytes(artifact_bytes())
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return Path("x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64))


COMPILE = ["compile", "m", "-o", "out.tfc"]
GRAPH = ["compile", "m.tfir", "-o", "out.tfc"]
TEXT = ["run", "m.tfc", "--text", "the cat", "-o", "out.npz"]
ARRAY = ["run", "m.tfc", "--input", "input_ids=x.npy", "--input", "attention_mask=x.npy", "--input", "token_type_ids=x.npy"]
NESTED = "module @m {\n  func @main() -> () {\n    return loc(" + "(" * 1_000_000

CASES: dict[str, tuple[Callable[[], int], list[str], Code]] = {
    "a header of 2**60 bytes": (lambda: safetensors(b"{}", length=1 << 60), COMPILE, Code.SAFETENSORS_HEADER),
    "a tensor of 2**80 elements": (lambda: safetensors(b'{"a": %s}' % tensor([1 << 40] * 2, 0, 4), bytes(4)), COMPILE, Code.SAFETENSORS_OFFSETS),
    "a tensor of 2**42 bytes": (lambda: safetensors(b'{"a": %s}' % tensor([1 << 40], 0, 1 << 42)), COMPILE, Code.SAFETENSORS_TRUNCATED),
    "a header of brackets": (lambda: safetensors(b"[" * 4_000_000), COMPILE, Code.SAFETENSORS_HEADER),
    "a hundred thousand tensors": (many_tensors, COMPILE, Code.WEIGHT_MISSING),
    "a config of brackets": (lambda: config("[" * 4_000_000), COMPILE, Code.CONFIG_INVALID),
    "a config too large": (lambda: config(json.dumps(CONFIG) + " " * 8_000_000), COMPILE, Code.CONFIG_INVALID),
    "a vocabulary of 2**31 words": (lambda: config(json.dumps(CONFIG | {"vocab_size": 1 << 31})), COMPILE, Code.WEIGHT_SHAPE),
    "ten thousand layers": (many_layers, COMPILE, Code.WEIGHT_MISSING),
    "a random tokenizer": (random_tokenizer, ["run", "m", "--text", "cat"], Code.TOKENIZER_INVALID),
    "a text of brackets": (lambda: graph(NESTED), GRAPH, Code.SYNTAX),
    "a thousand splats": (splats, GRAPH, Code.TEXT_LIMIT),
    "a splat of terabytes": (
        lambda: graph("module @m {\n  func @main() -> () {\n    %0 = constant {value = f32[1000000, 1000000] splat 1.0} : f32[1000000, 1000000]\n"),
        GRAPH,
        Code.TEXT_LIMIT,
    ),
    "an input of terabytes": (
        lambda: graph("module @m {\n  func @main(%x: f32[1000000, 1000000]) -> (f32[1000000, 1000000]) {\n    return %x\n  }\n}\n"),
        ["verify", "m.tfir", "m.tfir"],
        Code.OUT_OF_MEMORY,
    ),
    "a hundred thousand axes": (
        lambda: graph(f"module @m {{\n  func @main(%x: f32[{'1, ' * 100_000}1]) -> () {{\n    return\n  }}\n}}\n"),
        GRAPH,
        Code.TEXT_LIMIT,
    ),
    "an artifact of an exabyte": (lambda: sealed(16, 1 << 60), TEXT, Code.ARTIFACT_TRUNCATED),
    "a section of an exabyte": (lambda: sealed(40, 1 << 60), TEXT, Code.ARTIFACT_CORRUPT),
    "an arena of an exabyte": (greedy, TEXT, Code.OUT_OF_MEMORY),
    "an array of terabytes": (lambda: lying_array("(1000000, 1000000)"), ARRAY, Code.BAD_ARRAY),
    "an array of 2**120 elements": (lambda: lying_array(f"({1 << 60}, {1 << 60})"), ARRAY, Code.BAD_ARRAY),
}


@dataclass(frozen=True)
class Measured:
    """What happened to a case."""

    folder: Path
    size: int
    code: int
    peak: int
    seconds: float

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.txt").read_text()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    """All cases, each in a fork of one process."""
    root = tmp_path_factory.mktemp("hostile")
    write_checkpoint(root / "good")
    (root / "good.tfc").write_bytes(artifact_bytes())
    sizes, commands = {}, {}
    for i, (name, (build, words, _)) in enumerate(CASES.items()):
        (root / str(i)).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root / str(i))
            sizes[name] = build()
        commands[str(i)] = words
    (root / "commands.json").write_text(json.dumps(commands))
    subprocess.run([sys.executable, "-c", CHILD, str(ROOM)], cwd=root, check=True, timeout=600)
    found = {name: root / str(i) for i, name in enumerate(CASES)}
    return {name: Measured(at, sizes[name], **json.loads((at / "measured.json").read_text())) for name, at in found.items()}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", CASES)
def test_memory_is_bounded_by_the_input(measured: dict[str, Measured], name: str) -> None:
    found, expected = measured[name], CASES[name][2]
    print(f"{name}: {found.size} bytes, peak {found.peak}, {found.seconds:.3f} s")
    assert found.code == 2 and f"error[{expected.id}]: " in found.stderr, found.stderr
    assert "Traceback" not in found.stderr
    assert found.peak <= ALLOWED + PER_BYTE * found.size
    assert found.seconds <= SECONDS
    assert not (found.folder / "out.tfc").exists() and not (found.folder / "out.npz").exists()


def test_a_good_artifact_needs_little_more_than_its_bytes(tmp_path: Path) -> None:
    """Weights are mapped, not copied."""
    path = tmp_path / "m.tfc"
    path.write_bytes(artifact_bytes())
    found = artifact.inspect(path)
    assert isinstance(found.weights.base, np.ndarray) and not found.weights.flags.owndata and not found.weights.flags.writeable
    assert tokenizer() == found.manifest.metadata["tokenizer.json"]
