"""Machine code of kernels: by processes in which Triton works, and kept on the disk for the next time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="pip install triton")

import trustformers_ir as tfir
from trustformers_ir.codegen.triton import aot, device, kept
from trustformers_ir.codegen.triton.aot import TritonError, Wanted, Workers, attempt_kernels, compile_kernels
from trustformers_ir.codegen.triton.binary import Binary
from trustformers_ir.codegen.triton.build import lower
from trustformers_ir.codegen.triton.target import TARGETS
from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.keeping import ABANDONED
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager
from trustformers_ir.tools.cli import main

HOPPER = TARGETS["cuda:sm_90"]
BINARY = Binary("kernel_0", "tfir_add", b"\x7fELF\0\xff", "ptx", 1024, 4, 32, 0)
KEY = "ab" * 32


def wanted(fn: Callable[..., Any], *specs: Any) -> tuple[Wanted, ...]:
    module = trace(fn, *specs)
    PassManager(pipelines.gpu()).run(module)
    return lower(module, HOPPER).wanted


def double(x: Any) -> Any:
    return x * 2.0 + 1.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are kept: in a cache of this test's own."""
    monkeypatch.setenv("TFIR_CACHE", "1")
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def opened() -> kept.Kept:
    store = kept.opened()
    assert store is not None
    return store


# --- processes ---------------------------------------------------------------------------------------------------------------------


def test_what_was_compiled_once_is_read_from_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = wanted(double, tfir.f32["n", 8])
    (made,) = compile_kernels([first], HOPPER)
    assert made.name == "kernel_0" and made.symbol == "tfir_mul_add" and made.symbol.encode() in made.code and not made.spilled
    assert len(list(folder.iterdir())) == 1

    def refuse() -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(aot, "_Worker", refuse)
    again = next(w for w in wanted(lambda x: (F.softmax(x, -1), double(x)), tfir.f32["n", 8]) if w.label == "mul+add")
    (same,) = compile_kernels([again], HOPPER)  # its number is another one in another model
    assert same == replace(made, name=again.emitted.name) and same.name != made.name
    for other in (replace(first, wide=True), replace(first, launch=replace(first.launch, warps=8))):
        with pytest.raises(AssertionError, match="a process was started"):
            compile_kernels([other], HOPPER)


def test_what_triton_refuses(folder: Path) -> None:
    """One kernel that cannot be compiled, and one that ends the process: the others are not harmed, and what went wrong is said."""
    (good,) = wanted(double, tfir.f32["n", 8])
    head, _, body = good.emitted.text.partition("\n")
    wrong, deadly = (replace(good, emitted=replace(good.emitted, text=f"{head}\n    {line}\n{body}")) for line in ("nonsense(1)", "1"))
    deadly = replace(deadly, emitted=replace(deadly.emitted, text=deadly.emitted.text + "\n\nimport os\nos._exit(3)"))
    with Workers(1) as workers:
        found = attempt_kernels([wrong, deadly, good], HOPPER, workers)
        assert isinstance(found[0], TritonError) and "nonsense is not defined" in str(found[0]) and "'tfir_mul_add'" in str(found[0])
        assert isinstance(found[1], TritonError) and "Triton ended with 3" in str(found[1])
        assert isinstance(found[2], Binary) and found[2].code.startswith(b"\x7fELF")
        with pytest.raises(TritonError, match="nonsense"):
            compile_kernels([good, wrong], HOPPER, workers)
    assert len(list(folder.iterdir())) == 1, "what went wrong is not kept"


# --- the disk ----------------------------------------------------------------------------------------------------------------------


def test_what_is_kept(folder: Path) -> None:
    store = opened()
    assert store.folder == folder and store.get(KEY) is None
    store.put(KEY, BINARY)
    assert store.get(KEY) == BINARY and [p.name for p, _ in store.entries()] == [f"{KEY}.tfk"]
    assert store.clear() == 1 and store.get(KEY) is None


def test_another_triton_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"text": "def f(): pass", "warps": 4}
    first = kept.key(job)
    assert kept.key(dict(job)) == first != kept.key({**job, "warps": 8})
    monkeypatch.setattr(kept, "package_identity", lambda name: "another one")
    assert kept.key(job) != first


def test_the_command_counts_and_clears_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened().put(KEY, BINARY)
    assert main(["cache"]) == 0
    assert f"1 kernels of GPUs in {folder}" in capsys.readouterr().err
    assert main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"] == {"count": 1, "bytes": (folder / f"{KEY}.tfk").stat().st_size}
    assert main(["cache", "--clear"]) == 0
    assert "and 1 kernels" in capsys.readouterr().err and not list(folder.iterdir())


@pytest.mark.parametrize(
    "broken",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"TFK0" + data[4:],
        lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
    ],
)
def test_broken_entries_are_made_again(folder: Path, broken: Callable[[bytes], bytes]) -> None:
    store = opened()
    store.put(KEY, BINARY)
    path = folder / f"{KEY}.tfk"
    path.write_bytes(broken(path.read_bytes()))
    assert store.get(KEY) is None and not path.exists()


@pytest.mark.parametrize("row", [[1], {}, {"name": 1}, {"shared": "1024"}, {"code": "no base64 !"}, {"registers": True}])
def test_entries_of_other_fields_are_made_again(folder: Path, row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest is right, what it covers is not a kernel."""
    store = opened()
    plain = kept.json.dumps
    monkeypatch.setattr(kept.json, "dumps", lambda fields: plain({**fields, **row} if row and isinstance(row, dict) else row))
    store.put(KEY, BINARY)
    assert (folder / f"{KEY}.tfk").exists() and store.get(KEY) is None and not (folder / f"{KEY}.tfk").exists()


def test_what_was_used_longest_ago_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    names = [f"{n:064x}" for n in range(4)]
    for n, name in enumerate(names):
        store.put(name, BINARY)
        os.utime(folder / f"{name}.tfk", (1000 + n, 1000 + n))
    assert store.get(names[0]) is not None  # used now
    left = folder / ".x.tmp"
    left.touch()
    os.utime(left, (1, 1))
    size = (folder / f"{names[0]}.tfk").stat().st_size
    monkeypatch.setenv("TFIR_CACHE_LIMIT", str(2 * size))
    opened().trim()
    assert [p.stem for p, _ in store.entries()] == [names[3], names[0]] and not left.exists() and ABANDONED > 0


def test_nothing_is_kept_where_others_can_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened()
    folder.chmod(0o777)
    assert kept.opened() is None
    folder.chmod(0o700)
    monkeypatch.setenv("TFIR_CACHE", "0")
    assert kept.opened() is None


# --- indices of 64 bits ------------------------------------------------------------------------------------------------------------


def test_kernels_for_few_rows_have_short_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing bounds the batch, so a product has code for long indices, but not where it is launched for so many rows at most."""
    seen: list[Wanted] = []

    def code_of_kernels(kernels: Sequence[Wanted], *_: Any) -> list[Binary]:
        seen.extend(kernels)
        return [replace(BINARY, name=w.emitted.name) for w in kernels]

    monkeypatch.setattr(device, "compile_kernels", code_of_kernels)
    module = trace(lambda x, w: F.linear(x, w), DType.bf16["batch", "seq", 1024], DType.bf16[4096, 1024])
    PassManager(pipelines.gpu()).run(module)
    made = device.build(module, HOPPER)
    conditions = [launch.conditions for launch in made.device.functions[0].launches]
    assert [c[0].most for c in conditions] == [1, 32, 512, None]
    assert [k.wide is not None for k in made.device.kernels] == [False, False, False, True]
    assert [w.wide for w in seen] == [False] * 4 + [True] and seen[4].emitted is seen[3].emitted
