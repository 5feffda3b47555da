"""Artifacts with code for several targets: one file, the best code that runs, the same bits whichever it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runtime_harness import BATCH, encoder_function, encoder_inputs, f32, i64, random_weights

import trustformers_ir as tfir
from trustformers_ir.codegen.llvm.target import TargetError, familiar, host, parse
from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir.abi import TargetInfo
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError, InternalError
from trustformers_ir.runtime import artifact
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.runtime.targets import choose_target
from trustformers_ir.tools.cli import main

TARGETS = "cpu:avx2,cpu:avx512"


def here(name: str) -> bool:
    try:
        return set(parse(name).features) <= set(host().features)
    except TargetError:
        return False


RUNNING = [name for name in TARGETS.split(",") if here(name)]


def module() -> Module:
    return trace(encoder_function, i64["batch", "seq"], f32[()], facts=BATCH, weights=random_weights(), name="encoder")


@pytest.fixture(scope="module")
def fat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fat") / "fat.tfc"
    tfir.compile(module(), target=TARGETS).save(path)
    return path


def test_the_same_bits_for_every_target(fat: Path) -> None:
    inputs = encoder_inputs()
    thin = {name: tfir.compile(module(), target=name, threads=1)(*inputs) for name in RUNNING}
    bits = {tuple(y.tobytes() for y in outputs) for outputs in thin.values()}
    for name in RUNNING:
        for threads in (1, 2):
            exe = tfir.load(str(fat), threads, target=name)
            assert exe.manifest.target.name == name and exe.targets == ("cpu:avx512", "cpu:avx2")
            bits.add(tuple(y.tobytes() for y in exe(*inputs)))
    assert len(bits) == 1


def test_the_best_is_chosen_unless_another_is_named(fat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tfir.load(str(fat)).manifest.target.name == RUNNING[-1]
    for name in RUNNING:
        monkeypatch.setenv("TFIR_TARGET", name)
        assert tfir.load(str(fat)).manifest.target.name == name
        assert tfir.compile(module(), target=TARGETS).manifest.target.name == name
    monkeypatch.setenv("TFIR_TARGET", "cpu:riscv")
    for ask in (lambda: tfir.load(str(fat)), lambda: tfir.compile(module(), target=TARGETS), lambda: tfir.load(str(fat), target="gpu")):
        with pytest.raises(CompilerError, match="there is code for cpu:avx512, cpu:avx2") as caught:
            ask()
        assert caught.value.codes == (Code.USAGE,)


def test_the_order_of_the_targets_does_not_matter(fat: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tfc"
    tfir.compile(module(), target="cpu:avx512, cpu:avx2").save(again)
    assert again.read_bytes() == fat.read_bytes()
    for name in RUNNING:  # nor does which code is loaded when it is saved again
        tfir.load(str(fat), target=name).save(again)
        assert again.read_bytes() == fat.read_bytes()


def test_what_is_shared_is_written_once(fat: Path, tmp_path: Path) -> None:
    """Both targets read panels of 16, so that there is one set of weights and one graph."""
    found = artifact.inspect(fat)
    first, second = found.variants
    assert first.manifest.weights == second.manifest.weights and first.graph == second.graph and first.code != second.code
    assert found.graph_of(first) == found.graph_of(second) and found.code_of(first) != found.code_of(second)
    tfir.compile(module(), target="cpu:avx2").save(tmp_path / "thin.tfc")
    assert found.sections["weights"].length == artifact.inspect(tmp_path / "thin.tfc").sections["weights"].length
    found.check_weights()


def test_weights_that_differ_lie_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no common layout is known, each target has a graph and packed weights of its own; what neither packs is still shared."""
    monkeypatch.setattr("trustformers_ir.codegen.build.common_panel", lambda targets: None)
    path = tmp_path / "two.tfc"
    tfir.compile(module(), target=TARGETS).save(path)
    found = artifact.inspect(path)
    names = [{w.name for w in v.manifest.weights} for v in found.variants]
    assert names[0] & names[1] == {"bias", "table"} and len(found.stored) == 4
    assert found.variants[0].graph != found.variants[1].graph
    bits = {tuple(y.tobytes() for y in artifact.load(path, target=name)(*encoder_inputs())) for name in RUNNING}
    assert len(bits) == 1
    damaged = bytearray(path.read_bytes())
    damaged[-4] ^= 1  # of the last weight, which the second target alone reads
    path.write_bytes(damaged)
    with pytest.raises(CompilerError, match="have changed"):
        artifact.load(path, target="cpu:avx2")
    if "cpu:avx512" in RUNNING:
        artifact.load(path, target="cpu:avx512")


def test_weights_of_one_name_that_differ_are_not_written(tmp_path: Path) -> None:
    exe = tfir.compile(module(), target=TARGETS)
    first, second = exe.family
    wrong = replace(second.manifest.weights[0], offset=1 << 20)
    other = replace(second, manifest=replace(second.manifest, weights=(wrong, *second.manifest.weights[1:])))
    with pytest.raises(InternalError, match="M6"):
        Executable(first, family=[first, other]).save(tmp_path / "x.tfc")
    assert not (tmp_path / "x.tfc").exists()


def machine(name: str, *features: str) -> TargetInfo:
    return TargetInfo(name, host().triple, "some", features)


CHOICES: Mapping[str, tuple[tuple[TargetInfo, ...], int | str]] = {
    "the first that runs": ((machine("a", "quantum"), machine("b"), machine("c")), 1),
    "the best": ((machine("a"), machine("b", "quantum")), 0),
    "none": ((machine("a", "quantum", "warp"), machine("b", "quantum")), "a (some) and needs CPU features that this machine lacks: quantum, warp"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choosing(case: str) -> None:
    targets, expected = CHOICES[case]
    if isinstance(expected, int):
        assert choose_target(targets) == expected
        return
    with pytest.raises(CompilerError) as caught:
        choose_target(targets)
    assert caught.value.codes == (Code.ARTIFACT_TARGET,) * len(targets)
    assert expected in str(caught.value) and "b (some) and needs CPU features that this machine lacks: quantum" in str(caught.value)
    with pytest.raises(CompilerError, match="lacks: quantum"):
        choose_target(targets, "b")


def test_a_file_that_fits_no_machine_can_be_made_and_inspected_but_not_loaded(fat: Path, tmp_path: Path) -> None:
    family = [replace(m, manifest=replace(m.manifest, target=replace(m.manifest.target, features=("quantum",)))) for m in tfir.load(str(fat)).family]
    path = tmp_path / "x.tfc"
    Executable(family[0], family=family).save(path)
    assert len(artifact.inspect(path).variants) == 2
    with pytest.raises(CompilerError, match="quantum"):
        tfir.load(str(path))


def test_requests_that_make_no_sense() -> None:
    same = "cpu:avx2,cpu:haswell"
    for target, text in ((same, "are the same machine"), ("cpu:avx2,cpu:avx2", "are the same machine"), ("cpu:avx2,", "there is no target ''")):
        with pytest.raises(CompilerError, match=text):
            tfir.compile(module(), target=target)
    with pytest.raises(CompilerError, match="not built yet"):
        tfir.compile(module(), target="cuda:sm_90,cpu")


def test_command_line(fat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.tfc"
    model = "random:bert?hidden_size=32&num_hidden_layers=1&num_attention_heads=2&intermediate_size=64&vocab_size=50"
    assert main(["compile", model, "-o", str(out), "--target", TARGETS]) == 0
    assert "for cpu:avx512 and cpu:avx2" in capsys.readouterr().err
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "cpu:avx2:" in shown and "no weights of its own" in shown and "one graph" in shown
    np.save(tmp_path / "ids.npy", np.arange(6).reshape(2, 3))
    results = []
    for name in RUNNING:
        monkeypatch.setenv("TFIR_TARGET", name)
        assert main(["run", str(out), "--input", f"input_ids={tmp_path / 'ids.npy'}", "--output", str(tmp_path / "o.npz")]) == 0
        with np.load(tmp_path / "o.npz") as found:
            results.append({k: v.tobytes() for k, v in found.items()})
    monkeypatch.delenv("TFIR_TARGET")
    for name in RUNNING:
        arguments = ["run", str(out), "--target", name, "--input", f"input_ids={tmp_path / 'ids.npy'}", "--output", str(tmp_path / "o.npz")]
        assert main(arguments) == 0
        with np.load(tmp_path / "o.npz") as found:
            results.append({k: v.tobytes() for k, v in found.items()})
    assert all(r == results[0] for r in results)
    capsys.readouterr()
    assert main(["run", str(out), "--target", "cpu:sse9", "--input", f"input_ids={tmp_path / 'ids.npy'}"]) == 2
    said = capsys.readouterr().err
    assert "there is no code for the target 'cpu:sse9'" in said and "help: there is code for cpu:avx512, cpu:avx2" in said
    assert main(["targets"]) == 0
    listed = capsys.readouterr().out
    assert [name for name in familiar() if f"\n{name} " not in listed] == []


def test_one_file_for_all_targets(tmp_path: Path) -> None:
    path = tmp_path / "all.tfc"
    exe = tfir.compile(module(), target=",".join(familiar()))
    exe.save(path)
    found = artifact.inspect(path)
    assert sorted(exe.targets) == sorted(familiar()) and len({v.graph for v in found.variants}) == 1
    features = [set(v.manifest.target.features) for v in found.variants]
    assert not any(a < b for n, a in enumerate(features) for b in features[n + 1 :])  # nothing stands before what is better
    running = [name for name in familiar() if here(name)]
    bits = {tuple(y.tobytes() for y in tfir.load(str(path), 2, target=name)(*encoder_inputs())) for name in running}
    assert len(bits) == 1 and len(running) > 0
