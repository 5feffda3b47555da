"""Artifacts with code for GPUs: the same bytes for the same module, and a clear refusal of each that is broken."""

from __future__ import annotations

import functools
import json
import random
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_harness import Document, packed, parts
from gpu_harness import INTERPRETER, encoder, encoder_module
from runtime_harness import encoder_inputs, same

import trustformers_ir as tfir
from trustformers_ir.codegen.triton import device
from trustformers_ir.codegen.triton.aot import Wanted
from trustformers_ir.codegen.triton.binary import Binary
from trustformers_ir.codegen.triton.build import has_triton
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.runtime import artifact
from trustformers_ir.runtime.gpu import code
from trustformers_ir.runtime.gpu.executable import GpuExecutable
from trustformers_ir.runtime.records import Broken
from trustformers_ir.tools.cli import main

TINY = "random:bert?hidden_size=32&num_hidden_layers=1&num_attention_heads=2&intermediate_size=64&vocab_size=50"
HEAD = 32


def code_of_kernels(wanted: Sequence[Wanted], *_: Any) -> list[Binary]:
    """In place of Triton's machine code, of a length that leaves gaps."""
    return [Binary(w.emitted.name, w.emitted.name, b"\x7fELF" + bytes([n]) * (90 + n), "", 1024, 4, 32, 0, 2) for n, w in enumerate(wanted)]


@functools.cache
def good_file(target: str = INTERPRETER) -> bytes:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "compile_kernels", code_of_kernels)
        path = Path(folder) / "good.tfc"
        artifact.save(encoder_module(target), path)
        return path.read_bytes()


def code_parts(section: bytes) -> tuple[Document, bytes, bytes]:
    """Plan, text and the rest."""
    plan, text = struct.unpack_from("<QQ", section, 16)
    return json.loads(section[HEAD : HEAD + plan]), section[HEAD + plan : HEAD + plan + text], section[HEAD + plan + text :]


def with_code(section: bytes, target: str = INTERPRETER) -> bytes:
    return packed(code=section, base=good_file(target))


def with_plan(change: Callable[[Document], object], target: str = INTERPRETER) -> bytes:
    """The good file with a change made to its plan; of machine code, the bytes where the plan ends stay where they are."""
    section = parts(good_file(target))[2]
    plan, text, rest = code_parts(section)
    before = HEAD + len(json.dumps(plan, separators=(",", ":"), ensure_ascii=False).encode()) + len(text)
    change(plan)
    new = json.dumps(plan, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    if rest:
        new += b" " * (before - HEAD - len(text) - len(new))
    return with_code(section[:16] + struct.pack("<QQ", len(new), len(text)) + new + text + rest, target)


def put(*path: Any, value: Any, target: str = INTERPRETER) -> Callable[[], bytes]:
    def change(plan: Document) -> None:
        at: Any = plan
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value

    return lambda: with_plan(change, target)


def drop(*path: Any) -> Callable[[], bytes]:
    def change(plan: Document) -> None:
        at: Any = plan
        for step in path[:-1]:
            at = at[step]
        del at[path[-1]]

    return lambda: with_plan(change)


def section(change: Callable[[bytes], bytes], target: str = INTERPRETER) -> Callable[[], bytes]:
    return lambda: with_code(change(parts(good_file(target))[2]), target)


CUDA = "cuda:sm_90"
KERNEL, LAUNCH = ("kernels", 0), ("functions", 0, "launches", 0)
BUFFER = (*LAUNCH, "buffers", 0)
CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no code": (section(lambda s: b""), "G1"),
    "code of a CPU": (section(lambda s: b"\x7fELF" + bytes(200)), "G1: it does not begin"),
    "half a header": (section(lambda s: s[:20]), "G1"),
    "another version": (section(lambda s: s[:8] + b"\x09\0\0\0" + s[12:]), "G1: it has version 9"),
    "the reserved word": (section(lambda s: s[:12] + b"\x01\0\0\0" + s[16:]), "G1"),
    "a plan beyond the end": (section(lambda s: s[:16] + struct.pack("<Q", 1 << 60) + s[24:]), "G1: plan and text"),
    "a text beyond the end": (section(lambda s: s[:24] + struct.pack("<Q", 1 << 40) + s[32:]), "G1: plan and text"),
    "a text that is not UTF-8": (section(lambda s: s[:-1] + b"\xff"), "G1: the text is not UTF-8"),
    "bytes after the text": (section(lambda s: s + bytes(64)), "G3"),
    "a plan that is no JSON": (section(lambda s: s[:HEAD] + b"[" + s[HEAD + 1 :]), "G1"),
    "no kernels": (drop("kernels"), "G1: the plan has no 'kernels'"),
    "a field too many": (put("other", value=1), "G1: the plan has a field"),
    "a field of a kernel": (drop(*KERNEL, "symbols"), "G1: plan.kernels[0] has no 'symbols'"),
    "text for a number": (put(*LAUNCH, "kernel", value="0"), "G1"),
    "a name that is none": (put(*KERNEL, "name", value="a; import os"), "G2"),
    "a name twice": (put(*KERNEL, "name", value="kernel_1"), "G2"),
    "an unknown dtype": (put(*KERNEL, "buffers", 0, value="f8"), "G2"),
    "an unknown symbol": (put(*KERNEL, "symbols", value=["time"]), "G2"),
    "a symbol twice": (put(*KERNEL, "symbols", value=["batch", "batch"]), "G2"),
    "many checks": (put(*KERNEL, "checks", value=2), "G2"),
    "no functions": (put("functions", value=[]), "G4"),
    "another function": (put("functions", 0, "name", value="other"), "G4"),
    "a kernel that there is not": (put(*LAUNCH, "kernel", value=99), "G4"),
    "a negative kernel": (put(*LAUNCH, "kernel", value=-1), "G4"),
    "a buffer too few": (drop(*BUFFER), "G4"),
    "memory too much": (put(*LAUNCH, "memory", value=[0]), "G4"),
    "an input that there is not": (put(*BUFFER, value={"storage": "input", "number": 2, "offset": 0, "bytes": 8}), "G5"),
    "a weight that there is not": (put(*BUFFER, value={"storage": "weight", "number": 3, "offset": 0, "bytes": 8}), "G5"),
    "a storage that there is not": (put(*BUFFER, value={"storage": "host", "number": 0, "offset": 0, "bytes": 8}), "G5"),
    "the middle of an input": (put(*BUFFER, value={"storage": "input", "number": 0, "offset": 8, "bytes": 8}), "G5"),
    "a grid of an unknown dim": (put(*LAUNCH, "programs", value="time"), "G5"),
    "an arena of an unknown dim": (put("functions", 0, "arena_bytes", value="time"), "G5"),
    "a grid that divides by zero": (put(*LAUNCH, "programs", value="batch//0"), "G1"),
    "a condition of an unknown dim": (put(*LAUNCH, "conditions", value=[{"size": "time", "above": 0, "most": None}]), "G5"),
    "code for one kernel alone": (put(*KERNEL, "narrow", value=None, target=CUDA), "G3"),
    "code elsewhere": (put(*KERNEL, "narrow", "offset", value=1 << 50, target=CUDA), "G3"),
    "code of no length": (put(*KERNEL, "narrow", "length", value=0, target=CUDA), "G3"),
    "code too long": (put(*KERNEL, "narrow", "length", value=1 << 50, target=CUDA), "G3"),
    "no warps": (put(*KERNEL, "narrow", "warps", value=0, target=CUDA), "G6"),
    "many warps": (put(*KERNEL, "narrow", "warps", value=65, target=CUDA), "G6"),
    "negative memory": (put(*KERNEL, "narrow", "shared", value=-1, target=CUDA), "G6"),
    "wide code as narrow": (put(*KERNEL, "narrow", "index_bits", value=64, target=CUDA), "G6"),
    "bytes between codes": (section(lambda s: _gap(s), CUDA), "G3"),
}


def _gap(s: bytes) -> bytes:
    """A byte after the first piece of machine code that is not zero."""
    first = code_parts(s)[0]["kernels"][0]["narrow"]
    at = first["offset"] + first["length"]
    assert at % 64
    return s[:at] + b"\1" + s[at + 1 :]


@pytest.mark.parametrize("name", CASES)
def test_broken_code_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = CASES[name]
    monkeypatch.setenv("TFIR_GPU", "interpreter")
    path = tmp_path / "m.tfc"
    path.write_bytes(make())
    with pytest.raises(CompilerError) as caught:
        tfir.load(str(path))
    assert caught.value.codes == (Code.ARTIFACT_CODE,) and message in str(caught.value), str(caught.value)
    where = caught.value.diagnostics[0].where
    assert where.file == str(path) and where.offset is not None


def test_work_needs_a_pointer() -> None:
    module = encoder_module()
    plan = code.decode(module.code, module.manifest)
    made = device.DeviceCode(0, 0, 32, 4, 0, 32, 0, reserved=0, work=64)
    broken = replace(plan, kernels=tuple(replace(k, narrow=made) for k in plan.kernels))
    with pytest.raises(Broken, match="G6"):
        code.decode(code.encode(broken, {k.name: (b"x",) for k in broken.kernels}), module.manifest)


def test_random_changes_never_do_more_than_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of the code changed at random, checksums put right: refused, or as good as before."""
    monkeypatch.setenv("TFIR_GPU", "interpreter")
    draw = random.Random(7)
    good = parts(good_file(CUDA))[2]
    plan = struct.unpack_from("<Q", good, 16)[0]
    path, refused = tmp_path / "m.tfc", 0
    for _ in range(200):
        changed = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(HEAD + plan)] = draw.choice([draw.randrange(256), ord("9"), ord("]"), ord("-")])
        path.write_bytes(with_code(bytes(changed), CUDA))
        try:
            exe = tfir.load(str(path))
        except CompilerError as error:
            assert set(error.codes) <= {Code.ARTIFACT_CODE}  # noqa: PT017
            refused += 1
            continue
        try:
            assert isinstance(exe, GpuExecutable)
            exe._first.plan(encoder_inputs())
        except CompilerError:
            refused += 1
    assert refused > 100


# --- good files --------------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path, again = tmp_path / "a.tfc", tmp_path / "b.tfc"
    artifact.save(encoder(), path)
    exe = tfir.load(str(path))
    assert isinstance(exe, GpuExecutable)
    exe.save(again)
    assert path.read_bytes() == again.read_bytes() == good_file()
    assert exe.device == GpuExecutable(encoder()).device
    outputs = exe(*encoder_inputs())
    assert same(outputs, GpuExecutable(encoder())(*encoder_inputs()))
    assert str(exe.module) == exe.graph and exe.report()["target"] == INTERPRETER


def test_machine_code_lies_where_the_plan_says() -> None:
    section_bytes = parts(good_file(CUDA))[2]
    plan = code.decode(section_bytes, encoder_module().manifest)
    for n, kernel in enumerate(plan.kernels):
        assert kernel.narrow is not None and code.code_of(section_bytes, kernel.narrow) == b"\x7fELF" + bytes([n]) * (90 + n)


def test_several_chips_share_graph_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "compile_kernels", code_of_kernels)
    path = tmp_path / "m.tfc"
    exe = tfir.compile(TINY, target="cuda:sm_80, cuda:sm_90,cuda:sm_100")
    assert exe.targets == ("cuda:sm_100", "cuda:sm_90", "cuda:sm_80")
    exe.save(path)
    found = artifact.inspect(path)
    assert len({v.graph for v in found.variants}) == 1 and len({v.manifest.weights for v in found.variants}) == 1
    monkeypatch.setenv("TFIR_GPU", "interpreter")
    assert tfir.load(str(path), target="cuda:sm_80").manifest.target.name == "cuda:sm_80"
    monkeypatch.delenv("TFIR_GPU")
    with pytest.raises(CompilerError) as caught:
        tfir.load(str(path))
    assert caught.value.codes == (Code.ARTIFACT_TARGET,) * 3
    with pytest.raises(CompilerError, match="the code is for cuda:sm_100"):
        exe(input_ids=[[1, 2]])


@pytest.mark.skipif(not has_triton(), reason="pip install triton")
def test_machine_code_of_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing, once: one small function for both makers, with code for long indices where the dims have no bounds."""
    for target, magic in (("cuda:sm_90", b"\x7fELF"), ("rocm:gfx942", b"\x7fELF")):
        exe = tfir.compile(lambda x: x * 2.0 + 1.0, tfir.f32["n", 8], target=target)
        assert isinstance(exe, GpuExecutable)
        (kernel,) = exe.device.kernels
        assert kernel.narrow is not None and kernel.wide is not None
        for binary, bits in ((kernel.narrow, 32), (kernel.wide, 64)):
            machine = code.code_of(exe.compiled.code, binary)
            assert machine[:4] == magic and binary.index_bits == bits and binary.reserved == 2 and kernel.symbol.encode() in machine
        exe.save(tmp_path / "m.tfc")
        assert artifact.inspect(tmp_path / "m.tfc").manifest.target.name == target
        with pytest.raises(CompilerError) as caught:
            exe([[1.0] * 8])
        assert caught.value.codes == (Code.ARTIFACT_TARGET,)


# --- the command line --------------------------------------------------------------------------------------------------------------


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "compile_kernels", code_of_kernels)
    out = str(tmp_path / "m.tfc")
    assert main(["compile", TINY, "-o", out, "--target", "cuda:sm_90"]) == 0
    assert "for cuda:sm_90" in capsys.readouterr().err
    assert main(["inspect", out]) == 0
    shown = capsys.readouterr().out
    assert "cuda:sm_90" in shown and "kernels, " in shown and "64-bit indices" in shown
    ids = tmp_path / "ids.npy"
    np.save(ids, np.arange(6).reshape(2, 3))
    assert main(["run", out, "--input", f"input_ids={ids}"]) == 2
    assert "error[TFC5005]: the code is for cuda:sm_90; this machine has no driver of NVIDIA" in capsys.readouterr().err
    assert main(["bench", out, "--target", "cuda:sm_90"]) == 2
    assert "TFC5005" in capsys.readouterr().err
    for command in (["compile", TINY, "-o", out], ["run", TINY, "--input", f"input_ids={ids}"], ["bench", TINY]):
        assert main([*command, "--target", "cuda"]) == 2
        said = capsys.readouterr().err
        assert "error[TFC4005]: the target 'cuda' is the GPU of this machine" in said and "cuda:sm_90" in said
    assert main(["targets"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("cuda:sm_90 ") and line.split()[1:3] == ["yes", "no"] for line in listed)
    assert any(line.startswith("triton:interpreter ") and line.split()[1:3] == ["yes", "yes"] for line in listed)


def test_the_interpreter_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "compile_kernels", code_of_kernels)
    monkeypatch.setenv("TFIR_GPU", "interpreter")
    ids, out = tmp_path / "ids.npy", str(tmp_path / "m.tfc")
    np.save(ids, np.arange(6).reshape(2, 3))
    assert main(["compile", TINY, "-o", out, "--target", "cuda"]) == 0
    results = []
    for words in ([out], [TINY, "--target", "cpu"]):
        assert main(["run", *words, "--input", f"input_ids={ids}", "--output", str(tmp_path / "o.npz")]) == 0
        with np.load(tmp_path / "o.npz") as found:
            results.append({k: found[k] for k in found.files})
    assert results[0].keys() == results[1].keys()
    for name, array in results[0].items():
        np.testing.assert_allclose(array, results[1][name], atol=1e-5)
    capsys.readouterr()
    assert main(["bench", out, "--target", "cuda", "--seq", "4", "--repeat", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["calls"] == 1 and told["device"] == "Triton's interpreter" and told["median_ms"] > 0
    monkeypatch.setenv("TFIR_GPU", "abacus")
    assert main(["run", out, "--input", f"input_ids={ids}"]) == 2
    assert "TFIR_GPU takes interpreter" in capsys.readouterr().err


def test_the_plan_of_many_layers_is_one_of_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What single launches need behind the arena repeats from layer to layer. (A maximum over all launches once took longer than anybody waited.)"""

    def greedy(wanted: Sequence[Wanted], *_: Any) -> list[Binary]:
        return [replace(b, work=64 * n, work_alignment=64) for n, b in enumerate(code_of_kernels(wanted))]

    monkeypatch.setattr(device, "compile_kernels", greedy)
    three, twelve = (tfir.compile(TINY.replace("layers=1", f"layers={n}"), target="cuda:sm_90") for n in (3, 12))
    sizes = [exe.manifest.entries[0].arena_bytes for exe in (three, twelve)]
    assert isinstance(twelve, GpuExecutable) and len(twelve.device.functions[0].launches) > 60
    assert sizes[0] == sizes[1] and len(str(sizes[1])) < 2000
