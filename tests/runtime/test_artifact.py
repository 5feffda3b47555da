"""``*.tfc`` files: the same bytes for the same module, the same results from the file, and nothing of the compiler needed for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_harness import good_file, rows
from runtime_harness import add, compiled, encoder, encoder_inputs, encoder_module, f32

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.abi import StoredWeight
from trustformers_ir.ir.diagnostics import Code, CompilerError, InternalError
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameter
from trustformers_ir.ir.progress import watching
from trustformers_ir.runtime import artifact, container
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.runtime.manifest import RULES, Span, Variant, decode, encode
from trustformers_ir.runtime.records import Broken
from trustformers_ir.tools.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    out = tmp_path / "model.tfc"
    out.write_bytes(good_file())
    return out


def test_the_same_module_gives_the_same_bytes(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.tfc" for n in range(6)]
    artifact.save(encoder(), files[0])
    artifact.save(encoder_module(), files[1])
    exe = Executable(encoder(), 1)
    exe.save(files[2])
    exe(*encoder_inputs())
    artifact.save(exe, files[3])
    loaded = artifact.load(files[0])
    loaded.save(files[4])
    loaded.save(files[0])  # over the file that is mapped
    loaded(*encoder_inputs())
    os.utime(files[0], (0, 0))
    loaded.save(files[5])
    assert {f.read_bytes() for f in files} == {good_file()}


def test_compilations_in_other_processes_give_the_same_bytes(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, 'tests/runtime'); from runtime_harness import *\n"
        "from trustformers_ir.runtime import artifact; artifact.save(encoder(), sys.argv[1])"
    )
    for n, seed in enumerate(("1", "2")):
        target = tmp_path / f"{n}.tfc"
        subprocess.run([sys.executable, "-c", program, str(target)], check=True, env={**os.environ, "PYTHONHASHSEED": seed}, cwd=ROOT)
    assert (tmp_path / "0.tfc").read_bytes() == (tmp_path / "1.tfc").read_bytes()


def test_results_from_the_file(path: Path) -> None:
    exe, loaded = Executable(encoder(), 1), artifact.load(path, threads=2)
    for seed in range(3):
        inputs = encoder_inputs(1 + seed, 9, seed)
        for a, b in zip(exe(*inputs), loaded(*inputs), strict=True):
            assert a.tobytes() == b.tobytes()
    assert loaded.threads == 2 and loaded.manifest == exe.manifest and loaded.graph == exe.graph
    assert loaded.compiled.code == exe.compiled.code


def test_weights_are_mapped(path: Path) -> None:
    loaded = artifact.load(path)
    for name, make in encoder().weights.items():
        weight = loaded.weight(name)
        np.testing.assert_array_equal(weight, make())
        assert not weight.flags.writeable and not weight.flags.owndata and weight.ctypes.data % 4096 == 0
    path.unlink()
    loaded(*encoder_inputs())


def test_inspect(path: Path) -> None:
    found = artifact.inspect(path)
    assert found.manifest == encoder().manifest and found.graph == encoder().graph and found.code == encoder().code
    assert list(found.sections) == ["manifest", "graph", "code", "weights"]
    assert [(s.offset, s.length) for s in found.sections.values()] == rows(good_file())
    assert found.sections["weights"].end == found.file_bytes == len(good_file())
    for name, make in encoder().weights.items():
        np.testing.assert_array_equal(found.weight(name), make())
        assert f"@{name} : {found.weight(name).dtype.name.replace('float', 'f')}" in found.graph
        np.testing.assert_array_equal(found.weight_of_digest(f"sha256:{found.digests[name]}"), make())
        assert f"sha256:{found.digests[name]}" in found.graph
    for lookup in (found.weight, found.weight_of_digest):
        with pytest.raises(KeyError):
            lookup("nothing")
    found.check_weights()


def test_code_for_another_machine_can_be_inspected_and_saved_but_not_loaded(tmp_path: Path) -> None:
    other = replace(encoder().manifest.target, name="cpu:other", triple="aarch64-unknown-linux-gnu", cpu="other", features=("sve",))
    module = replace(encoder(), manifest=replace(encoder().manifest, target=other))
    Executable(module).save(tmp_path / "other.tfc")
    found = artifact.inspect(tmp_path / "other.tfc")
    assert found.manifest.target == other and "sha256" in found.graph
    with pytest.raises(CompilerError) as caught:
        artifact.load(tmp_path / "other.tfc")
    assert caught.value.codes == (Code.ARTIFACT_TARGET,)


def test_tfc_inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == "encoder" and shown["weights"] == 3 and shown["inputs"] == {"ids": "i64[batch, seq]", "scale": "f32[]"}
    assert main(["inspect", str(path), "--text"]) == 0
    assert capsys.readouterr().out == encoder().graph + "\n"
    path.write_bytes(good_file()[:1000])
    assert main(["inspect", str(path)]) == 2
    assert "TFC5002" in capsys.readouterr().err


def test_weights_may_go_unchecked(path: Path) -> None:
    data = bytearray(good_file())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CompilerError) as caught:
        artifact.load(path)
    assert caught.value.codes == (Code.ARTIFACT_CORRUPT,) and caught.value.diagnostics[0].where.tensor
    artifact.load(path, check_weights=False)(*encoder_inputs())


def test_modules_without_weights_and_with_odd_ones(tmp_path: Path) -> None:
    artifact.save(add(), tmp_path / "add.tfc")
    x = np.ones((2, 2), np.float32)
    np.testing.assert_array_equal(artifact.load(tmp_path / "add.tfc", 1)(x, x), x + x)
    for dtype in (DType.bf16, DType.f16, DType.i8, DType.bool):
        for shape in ((), (3,), (5000,)):
            weight = np.ones(shape, np.float32).astype(dtype.numpy)
            parameter = Parameter("größe ← w", shape, dtype)
            module = compiled(lambda x, p=parameter: (x, F.where(x.sum() > 0, p, p)), f32["n"], weights={"größe ← w": weight})
            artifact.save(module, tmp_path / "w.tfc")
            loaded = artifact.load(tmp_path / "w.tfc", 1)
            np.testing.assert_array_equal(loaded(np.ones(1, np.float32))[1], weight)
            np.testing.assert_array_equal(loaded.weight("größe ← w"), weight)


def test_saving_reports_progress_and_asks_for_each_weight_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def counted(name: str) -> Any:
        return lambda: (asked.append(name), encoder().weights[name]())[1]

    notes: list[tuple[str, int, int]] = []
    with watching(lambda *note: notes.append(note)):
        artifact.save(replace(encoder(), weights={n: counted(n) for n in encoder().weights}), tmp_path / "x.tfc")
    assert sorted(asked) == ["bias", "dense", "table"] and notes == [("writing weights", n, 3) for n in range(3)]


def test_a_failure_leaves_the_old_file(path: Path) -> None:
    def broken() -> np.ndarray:
        raise RuntimeError("gone")

    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="gone"):
        artifact.save(replace(encoder(), weights=dict.fromkeys(encoder().weights, broken)), path)
    with pytest.raises(InternalError, match="announced"):
        artifact.save(replace(encoder(), weights=dict.fromkeys(encoder().weights, lambda: np.zeros(3))), path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(CompilerError) as caught:
        artifact.save(encoder(), path.parent / "no" / "such" / "folder.tfc")
    assert caught.value.codes == (Code.UNWRITABLE,)


def test_a_manifest_that_breaks_a_rule_is_not_written(path: Path) -> None:
    manifest = encoder().manifest
    weights = manifest.weights
    for broken in (
        replace(manifest, entries=()),
        replace(manifest, weights=(weights[0], *weights)),
        replace(manifest, entries=(replace(manifest.entries[0], symbol="system"),)),
        replace(manifest, weights=(replace(weights[0], offset=1), *weights[1:])),
    ):
        with pytest.raises(InternalError, match=r"M\d: "):
            artifact.save(replace(encoder(), manifest=broken), path)
    assert path.read_bytes() == good_file()


def test_manifests_round_trip() -> None:
    manifest = replace(encoder().manifest, metadata={"b": "ü\n\0", "a": "🎉"})
    digests = {w.name: "0" * 64 for w in manifest.weights}
    variant = Variant(manifest, Span(0, 5), Span(0, 7))
    data = encode([variant], digests)
    assert decode(data) == ((variant,), digests) and encode(*decode(data)) == data
    turned = replace(manifest, metadata=dict(reversed(list(manifest.metadata.items()))))
    assert encode([replace(variant, manifest=turned)], dict(reversed(list(digests.items())))) == data
    packed = StoredWeight("p", f32[7, 3], 0, 7 * 3 * 4)
    with pytest.raises(Broken, match="M7"):
        encode([replace(variant, manifest=replace(manifest, weights=(packed,)))], {})


def test_metadata_is_written_once() -> None:
    manifest = replace(encoder().manifest, metadata={"tokenizer.json": "x" * 10_000})
    other = replace(manifest, target=replace(manifest.target, name="other"))
    digests = {w.name: "0" * 64 for w in manifest.weights}
    variants = [Variant(m, Span(0, 5), Span(n * 64, 7)) for n, m in enumerate((manifest, other))]
    data = encode(variants, digests)
    assert data.count(b"x" * 10_000) == 1 and decode(data) == (tuple(variants), digests)


def test_loading_and_running_need_no_compiler(path: Path) -> None:
    program = (
        "import sys, numpy as np\n"
        "from trustformers_ir.runtime import artifact\n"
        f"exe = artifact.load({str(path)!r}, 2)\n"
        "exe(np.zeros((2, 3), np.int64), np.float32(1)); exe.report(); exe.save(sys.argv[1]); artifact.inspect(sys.argv[1])\n"
        "ours = [m for m in sys.modules if m.startswith('trustformers_ir.')]\n"
        "print(*sorted({m.split('.')[1] for m in ours}))\n"
        "print(*[m for m in ('torch', 'onnx', 'transformers', 'typer', 'rich') if m in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(path.parent / "b.tfc")], check=False, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == ["ir runtime", ""]


def test_the_page_gives_the_format() -> None:
    page = (ROOT / "docs" / "artifact.md").read_text()
    assert f"| 8 | u32 | version of the format, {container.FORMAT_VERSION} |" in page
    for rule in RULES:
        assert f"**{rule}**" in page
