"""Compiled checkpoints are kept, used when nothing has changed, and made again when anything has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir import compiler
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.passes.recipes import Int8
from trustformers_ir.runtime import artifact, cache
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.tools.bench.compile_time import bert

IDS = np.arange(10).reshape(2, 5)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return bert(tmp_path / "models", 1, 64)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, which is on."""
    monkeypatch.setenv("TFIR_CACHE", "1")
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


def compiled(path: Path, **options: object) -> tuple[str, Executable]:
    """The executable, and what the cache did for it."""
    exe = tfir.compile(path, **options)
    settle()
    return state(exe), exe


def settle() -> None:
    """Waits for what is being stored."""
    for thread in threading.enumerate():
        if thread.name == "tfir compile cache":
            thread.join()


def state(exe: Executable) -> str:
    found = exe.report().get("cache")
    return str(found["state"]) if isinstance(found, dict) else "off"


def entries(kept: Path) -> list[Path]:
    return sorted(kept.glob("*.tfc"))


def test_the_second_time_nothing_is_compiled(checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, made = compiled(checkpoint)
    monkeypatch.setattr("trustformers_ir.compiler.compile_model", None)
    second, found = compiled(checkpoint)
    assert (first, second) == ("stored", "used")
    assert all(map(np.array_equal, made(IDS), found(IDS)))
    assert str(found.module) == str(made.module)
    assert found.report()["passes"] == made.report()["passes"]


def test_an_entry_is_the_artifact_that_would_be_saved(checkpoint: Path, kept: Path, tmp_path: Path) -> None:
    _, made = compiled(checkpoint)
    made.save(tmp_path / "m.tfc")
    (entry,) = entries(kept)
    assert entry.read_bytes() == (tmp_path / "m.tfc").read_bytes()


def change_weights(folder: Path) -> None:
    """Other bytes, the same size, and the time of the last change set back."""
    path = folder / "model.safetensors"
    before = path.stat()
    with path.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(np.float32(0.5).tobytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def change_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))


def add_settings(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")


@pytest.mark.parametrize("change", [change_weights, change_config, add_settings])
def test_a_checkpoint_that_changed_is_compiled_again(checkpoint: Path, kept: Path, change: Callable[[Path], None]) -> None:
    compiled(checkpoint)
    change(checkpoint)
    assert compiled(checkpoint)[0] == "stored"
    assert len(entries(kept)) == 2


def test_a_copy_of_a_checkpoint_is_known(checkpoint: Path, kept: Path, tmp_path: Path) -> None:
    compiled(checkpoint)
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / checkpoint.name
    copy.mkdir()
    for file in checkpoint.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert compiled(copy)[0] == "used"


def test_requests_are_kept_apart(checkpoint: Path, kept: Path) -> None:
    for options in ({}, {"target": "cpu:avx2"}, {"dtype": "bf16"}):
        assert compiled(checkpoint, **options)[0] == "stored"
    assert compiled(checkpoint, target="cpu:avx2")[1].manifest.target.name == "cpu:avx2"
    assert compiled(checkpoint, threads=1)[0] == "used"


BOTH = "cpu:avx2,cpu:avx512"


def test_code_for_several_targets(checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry holds all of it; which code is executed is decided when it is used."""
    first, made = compiled(checkpoint, target=BOTH)
    assert first == "stored" and made.targets == ("cpu:avx512", "cpu:avx2")
    monkeypatch.setattr("trustformers_ir.compiler.compile_model", None)
    second, found = compiled(checkpoint, target=BOTH)
    assert second == "used" and found.targets == made.targets and found.manifest.target == made.manifest.target
    assert all(map(np.array_equal, made(IDS), found(IDS)))
    monkeypatch.setenv("TFIR_TARGET", "cpu:avx2")
    third, other = compiled(checkpoint, target=BOTH)
    assert third == "used" and other.manifest.target.name == "cpu:avx2"
    assert all(map(np.array_equal, made(IDS), other(IDS)))
    assert len(entries(kept)) == 1


def test_weights_of_every_target_are_checked(checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that only code reads which is not executed now: the note says that the whole entry is right."""
    monkeypatch.setattr("trustformers_ir.codegen.build.common_panel", lambda targets: None)  # no common layout: weights of their own
    monkeypatch.setenv("TFIR_TARGET", "cpu:avx2")
    compiled(checkpoint, target=BOTH)
    (entry,) = entries(kept)
    foreign = [w for w in artifact.inspect(entry).variants[0].manifest.weights if w.name.endswith("panels48")][-1]
    damaged = bytearray(entry.read_bytes())
    damaged[artifact.inspect(entry).sections["weights"].offset + foreign.offset] ^= 1
    entry.write_bytes(damaged)
    assert compiled(checkpoint, target=BOTH)[0] == "stored"


def test_an_entry_that_cannot_be_executed_here_is_not_broken(checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(checkpoint, target=BOTH)
    (entry,) = entries(kept)
    before = entry.stat()
    monkeypatch.setenv("TFIR_TARGET", "cpu:sse9")
    with pytest.raises(CompilerError) as caught:
        compiled(checkpoint, target=BOTH)
    assert caught.value.codes == (Code.USAGE,)
    assert (entry.stat().st_ino, entry.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_recipes_that_print_alike_are_kept_apart(checkpoint: Path, kept: Path) -> None:
    for keep in (("pooler*", "other*"), ("pooler*+other*",)):
        assert compiled(checkpoint, quantize=Int8(keep=keep))[0] == "stored"


def test_a_wrong_number_of_threads_costs_no_entry(checkpoint: Path, kept: Path) -> None:
    compiled(checkpoint)
    with pytest.raises(tfir.CompilerError, match="threads is 0"):
        tfir.compile(checkpoint, threads=0)
    assert len(entries(kept)) == 1 and compiled(checkpoint)[0] == "used"


def test_a_checkpoint_that_changes_meanwhile_is_not_kept(checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its entry would be known by the old bytes and hold the new ones."""
    compile_model = compiler.compile_model

    def late(*arguments: Any) -> Executable:
        change_weights(checkpoint)
        return compile_model(*arguments)

    monkeypatch.setattr(compiler, "compile_model", late)
    assert compiled(checkpoint)[0] == "not stored" and not list(kept.iterdir())


def test_without_a_thread_to_write_it_nothing_is_kept(checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "tfir compile cache":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    what, exe = compiled(checkpoint)
    assert what == "not stored" and exe(IDS)


def test_a_compiler_that_changed_makes_its_own(checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(checkpoint)
    monkeypatch.setattr(cache, "_SOURCES", "another")
    assert compiled(checkpoint)[0] == "off", "sources changed after this process began: what runs is neither the old nor the new compiler"
    monkeypatch.setattr(cache, "source_identity", lambda: "another")
    assert compiled(checkpoint)[0] == "stored"


@pytest.mark.parametrize("place", [0.0, 0.001, 0.3, 0.6, 0.9, 0.9999])
def test_a_broken_entry_is_made_again(checkpoint: Path, kept: Path, place: float) -> None:
    _, made = compiled(checkpoint)
    (entry,) = entries(kept)
    good = entry.read_bytes()
    at = int(place * len(good))
    entry.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    what, again = compiled(checkpoint)
    assert what == "stored"
    assert all(map(np.array_equal, made(IDS), again(IDS)))
    assert entry.read_bytes() == good
    assert compiled(checkpoint)[0] == "used"


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_a_cut_entry_is_made_again(checkpoint: Path, kept: Path, length: int) -> None:
    compiled(checkpoint)
    (entry,) = entries(kept)
    os.truncate(entry, length)
    assert compiled(checkpoint)[0] == "stored"
    assert compiled(checkpoint)[0] == "used"


def test_a_broken_report_is_left_out(checkpoint: Path, kept: Path) -> None:
    compiled(checkpoint)
    (entry,) = entries(kept)
    for text in ("", "[1]", "[" * 100_000, '{"weights": 7}'):
        entry.with_suffix(".json").write_text(text)
        what, exe = compiled(checkpoint)
        assert what == "used" and exe.report()["weights"] != 7


def test_what_was_used_longest_ago_goes(checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = ["cpu", "cpu:avx2", "cpu:avx512"]
    for age, target in enumerate(targets[:2]):
        compiled(checkpoint, target=target)
        for used in kept.glob("*.used"):
            os.utime(used, (0, 0))
        for entry in entries(kept):
            if not entry.with_suffix(".used").exists():
                entry.with_suffix(".used").touch()
                os.utime(entry.with_suffix(".used"), (1000 * (2 - age), 1000 * (2 - age)))
    assert compiled(checkpoint)[0] == "used"  # the older one is the newer one now
    size = entries(kept)[0].stat().st_size
    monkeypatch.setenv("TFIR_CACHE_LIMIT", str(int(size * 2.5)))
    assert compiled(checkpoint, target=targets[2])[0] == "stored"
    monkeypatch.setattr("trustformers_ir.compiler.compile_model", None)
    assert compiled(checkpoint)[0] == "used" and compiled(checkpoint, target=targets[2])[0] == "used"
    assert len(entries(kept)) == 2


def test_what_is_larger_than_the_cache_is_not_kept(checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_CACHE_LIMIT", "1K")
    what, exe = compiled(checkpoint)
    assert what == "not stored" and not entries(kept)
    assert exe(IDS)


def test_off(checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_CACHE", "0")
    assert compiled(checkpoint)[0] == "off"
    assert not kept.exists()
    monkeypatch.setenv("TFIR_CACHE", "1")
    monkeypatch.setenv("TFIR_STOP_AFTER", "3")
    assert compiled(checkpoint)[0] == "off"


def test_a_folder_that_others_can_write_is_not_used(checkpoint: Path, kept: Path) -> None:
    kept.mkdir(parents=True)
    for place in (kept, kept.parent):  # who can write the outer one can put another one into its place
        place.chmod(0o777)
        assert compiled(checkpoint)[0] == "off"
        place.chmod(0o700)
    assert not entries(kept)
    kept.parent.chmod(0o1777)
    assert compiled(checkpoint)[0] == "stored"


def test_a_cache_that_cannot_be_made_stops_nobody(checkpoint: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert compiled(checkpoint)[0] == "off"


def test_a_relative_folder_is_that_of_the_moment(checkpoint: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program goes elsewhere before the entry is written."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFIR_CACHE_DIR", "cache")
    gate = threading.Event()
    was = Executable.save

    def late(*arguments: Any, **options: Any) -> None:
        gate.wait(60)
        was(*arguments, **options)

    monkeypatch.setattr(Executable, "save", late)
    made = tfir.compile(checkpoint)
    monkeypatch.chdir(tmp_path / "elsewhere")
    gate.set()
    settle()
    assert state(made) == "stored", made.report()["cache"]
    assert [p.parent for p in entries(kept)] == [kept]
    assert Path(str(made.report()["cache"]["file"])).is_absolute()  # type: ignore[index]
    monkeypatch.chdir(tmp_path)
    found = tfir.compile(checkpoint)
    assert state(found) == "used"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("unforeseen"), KeyError("w")], ids=lambda e: type(e).__name__)
def test_whatever_happens_while_an_entry_is_written_is_reported(
    error: Exception, checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Executable, "save", fails)
    made, exe = compiled(checkpoint)
    assert made == "not stored"
    assert type(error).__name__ in str(exe.report()["cache"])
    assert not entries(kept) and not list(kept.glob(".*"))
    assert [s.exc_value for s in seen] == ([] if isinstance(error, MemoryError) else [error])  # a defect of ours is not hushed up


def test_processes_that_store_at_once(checkpoint: Path, kept: Path) -> None:
    """All of them get the same bits, and one entry is left, whole."""
    code = (
        "import sys, hashlib, numpy as np, trustformers_ir as tfir\n"
        "out = tfir.compile(sys.argv[1])(np.arange(10).reshape(2, 5))\n"
        "print(hashlib.sha256(out[0].tobytes()).hexdigest())"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(checkpoint)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {child.communicate(timeout=120)[0] for child in children}
    assert all(child.returncode == 0 for child in children) and len(outputs) == 1
    assert len(entries(kept)) == 1 and not list(kept.glob(".*"))
    assert compiled(checkpoint)[0] == "used"
