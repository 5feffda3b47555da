"""Two builds of the same inputs have the same bytes, wherever and however they ran; locks say so, and are checked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import trustformers_ir as tfir
from trustformers_ir.tools.cli import main
from trustformers_ir.tools.locking.lock import Lock, read_lock

SPEC = "random:llama?architecture=LlamaForCausalLM&hidden_size=64&intermediate_size=128&num_hidden_layers=1&num_attention_heads=2"
SPEC += "&num_key_value_heads=2&vocab_size=96"
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
FACTORY = """
import numpy as np
import trustformers_ir as tfir
from parts import WEIGHT

def make():
    return (lambda x: (x @ WEIGHT).softmax(-1)), (tfir.f32["n", 16],)
"""
PARTS = "import numpy as np\nWEIGHT = np.linspace(-1, 1, 256, dtype=np.float32).reshape(16, 16)\n"
#: what is not to make a difference: seed of hashes, threads, mask of new files, folder, and the instructions that numpy may use
PLACES: Sequence[dict[str, Any]] = (
    {"seed": "0", "threads": "1", "umask": "022", "folder": "a"},
    {"seed": "4321", "threads": "3", "umask": "077", "folder": "b/much/deeper"},
    {
        "seed": "7", "threads": "2", "umask": "022", "folder": "c",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_ICL", "OPENBLAS_CORETYPE": "Sandybridge",
    },
)  # fmt: skip
_CHILD = """
import json, os, sys
os.umask(int(sys.argv[1], 8))
from trustformers_ir.tools.cli import main
sys.exit(max(main(command) for command in json.loads(sys.argv[2])))
"""


def write_inputs(folder: Path) -> Path:
    """A small LLaMA with weights, a factory, and examples of calibration."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    weights = {f"model.{n}" if n != "lm_head.weight" else n: np.array(w.data) for n, w in tfir.api.to_module(SPEC).weights.items()}
    save_file(weights, folder / "model" / "model.safetensors", {"format": "pt"})
    (folder / "factory.py").write_text(FACTORY)
    (folder / "parts.py").write_text(PARTS)
    ids = np.random.default_rng(0).integers(0, 96, (4, 8))
    np.savez(folder / "examples.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    return folder


def built(place: dict[str, Any], root: Path, commands: Sequence[Sequence[str]]) -> dict[str, str]:
    """SHA-256 of everything that is there after the commands, in a process of its own."""
    folder = write_inputs(root / place["folder"])
    more = {k: v for k, v in place.items() if k.isupper()}
    threads = dict.fromkeys(("TFIR_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), place["threads"])
    path = os.pathsep.join([str(Path(tfir.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | threads | more | {"PYTHONHASHSEED": place["seed"], "PYTHONPATH": path}
    run = [sys.executable, "-W", "ignore", "-c", _CHILD, place["umask"], json.dumps(commands)]
    made = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and "__pycache__" not in p.parts}
    assert not any(str(folder).encode() in content for content in found.values()), "an output names the folder in which it was made"
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def same_everywhere(places: Sequence[dict[str, Any]], root: Path, commands: Sequence[Sequence[str]], *expected: str) -> None:
    first, *others = (built(place, root, commands) for place in places)
    assert set(expected) <= set(first)
    for other in others:
        assert {name for name in {*first, *other} if first.get(name) != other.get(name)} == set()


def test_two_builds_have_the_same_bytes(tmp_path: Path) -> None:
    """Files, locks and bills; more formats and recipes, and other instructions of the CPU, in ``test_many_builds``. Core ML packages are also in
    ``test_coreml_export.py``."""
    commands = (
        ("export", "model", "-o", "m.onnx", "-o", "m.gguf", "-o", "m.mlir", "--lock", "model.lock", "--bom", "bom.json"),
        ("export", "model", "-o", "int8.onnx", "--quantize", "int8", "--lock", "int8.lock"),
        ("compile", "factory:make", "-o", "f.tfc", "--lock", "f.lock"),
    )
    same_everywhere(PLACES[:2], tmp_path, commands, "m.onnx", "m.gguf", "m.mlir", "int8.onnx", "f.tfc", "model.lock", "f.lock", "bom.json")


@pytest.mark.long
def test_many_builds(tmp_path: Path) -> None:
    """Recipes, calibration, several targets, libraries for C, factories, formats out of formats."""
    commands = (
        ("export", "model", "-o", "m.onnx", "-o", "m.gguf", "-o", "m.mlpackage", "--lock", "model.lock", "--bom", "bom.json"),
        ("compile", "model", "-o", "m.tfc", "--lock", "tfc.lock"),
        *(("export", "model", "-o", f"{kind}.gguf", "--quantize", kind) for kind in ("q8_0", "q4_k_m", "q2_k", "q5_1")),
        ("export", "model", "-o", "int8.mlpackage", "--quantize", "int8"),
        ("export", "factory:make", "-o", "f.onnx"),
        ("export", "model", "-o", "q4_0.onnx", "--quantize", "q4_0"),
        ("export", "model", "-o", "s.onnx", "--quantize", "int8{activations=static}", "--calibrate", "examples.npz", "--lock", "so.lock"),
        ("compile", "m.onnx", "-o", "onnx.tfc", "--target", "cpu:avx2"),
        ("compile", "q4_k_m.gguf", "-o", "gguf.tfc", "--target", "cpu:avx2"),
        ("compile", "model", "-o", "fat.tfc", "--target", "cpu:avx2,cpu:avx512", "--quantize", "int8"),
        ("compile", "model", "-o", "fp8.tfc", "--target", "cpu:avx512", "--quantize", "fp8"),
        ("compile", "model", "-o", "static.tfc", "--quantize", "int8{activations=static}", "--calibrate", "examples.npz", "--lock", "s.lock"),
        ("compile", "factory:make", "-o", "product.so", "--target", "cpu:avx2", "--lock", "f.lock", "--bom", "f.json"),
        ("compile", "factory:make", "-o", "f.o", "--target", "cpu:avx2"),
    )
    weights = "m.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    library = ("product.so", "product.weights", "product.h", "f.lock")
    same_everywhere(PLACES, tmp_path, commands, "static.tfc", "f.o", "fat.tfc", "q2_k.gguf", *library, weights)


# --- locks --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inputs, in the working directory."""
    monkeypatch.chdir(write_inputs(tmp_path / "work"))
    return Path.cwd()


def locked(*more: str) -> Lock:
    assert main(["export", "model", "-o", "m.gguf", "-o", "m.onnx", "--lock", "model.lock", *more]) == 0
    return read_lock("model.lock")


def change_weight() -> None:
    """One bit of the last number."""
    path = Path("model/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_lock_says_what_was_read_done_and_written(folder: Path) -> None:
    lock = locked("--dtype", "f16")
    for files in (lock.inputs, lock.outputs):
        assert all(f.sha256 == hashlib.sha256(Path(f.path).read_bytes()).hexdigest() and f.bytes == Path(f.path).stat().st_size for f in files)
    assert [f.path for f in lock.inputs] == ["model/config.json", "model/model.safetensors"]
    assert [f.path for f in lock.outputs] == ["m.gguf", "m.onnx"]
    assert lock.request.options == {"dtype": "f16"} and lock.pipeline == ("canonicalize", "constant_fold", "cse", "dce")
    assert {"trustformers_ir", "trustformers_ir.sources", "gguf", "onnx", "numpy"} <= set(lock.versions) and "llvmlite" not in lock.versions
    assert lock.text == Path("model.lock").read_text("utf-8") and "python" in lock.information


def test_outputs_do_not_depend_on_the_lock(folder: Path) -> None:
    locked()
    before = [Path(name).read_bytes() for name in ("m.gguf", "m.onnx")]
    assert main(["export", "model", "-o", "m.gguf", "-o", "m.onnx"]) == 0
    assert before == [Path(name).read_bytes() for name in ("m.gguf", "m.onnx")]


def test_what_is_as_it_was_is_rebuilt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From any folder, and into the places of outputs that are gone or broken; a check leaves those alone."""
    locked()
    whole = Path("m.onnx").read_bytes()
    Path("m.onnx").write_bytes(b"broken")
    Path("m.gguf").unlink()
    os.chdir("/")
    assert main(["rebuild", str(folder / "model.lock"), "--check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["same"] and [o["name"] for o in told["outputs"]] == ["m.gguf", "m.onnx"]
    assert (folder / "m.onnx").read_bytes() == b"broken" and not (folder / "m.gguf").exists()
    assert main(["rebuild", str(folder / "model.lock")]) == 0
    assert (folder / "m.onnx").read_bytes() == whole and (folder / "m.gguf").exists()
    assert not list(folder.glob(".rebuild*")) and Path.cwd() == Path("/")


def test_other_bytes_are_told_with_what_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked()
    kept = Path("m.onnx").read_bytes()
    change_weight()
    text = Path("model.lock").read_text("utf-8")
    Path("model.lock").write_text(text.replace(json.dumps(tfir.__version__), '"0.0.1"'), "utf-8")
    for options in (["--check"], []):
        assert main(["rebuild", "model.lock", *options]) == 1
        said = capsys.readouterr().err
        assert "error[TFC6100]: 'm.gguf' has other bytes" in said and "'m.onnx' has other bytes" in said
        assert "the input 'model/model.safetensors' has other bytes" in said and f"trustformers_ir was 0.0.1, and is {tfir.__version__}" in said
        assert Path("m.onnx").read_bytes() == kept and not list(folder.glob(".rebuild*"))


def test_inputs_that_change_nothing_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked()
    with Path("model/config.json").open("a") as stream:
        stream.write("\n")
    Path("model/generation_config.json").write_text("{}")
    assert main(["rebuild", "model.lock", "--check"]) == 0
    said = capsys.readouterr().err
    assert "although the input 'model/config.json' has other bytes" in said and "'model/generation_config.json' is new" in said


def test_all_inputs_that_are_gone_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked()
    shutil.rmtree("model")
    assert main(["rebuild", "model.lock", "--check"]) == 2
    said = capsys.readouterr().err
    assert said.count("TFC6016") == 2 and "'model/config.json' is not there" in said and "'model/model.safetensors' is not there" in said


def test_this_machine_is_no_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "factory:make", "-o", "f.tfc", "--lock", "f.lock"]) == 0
    lock = read_lock("f.lock")
    assert [f.path for f in lock.inputs] == ["factory.py", "parts.py"] and {f.role for f in lock.inputs} == {"source"}
    assert "pack_weights" in ",".join(lock.pipeline) and {"llvm", "llvmlite"} <= set(lock.versions)
    Path("f.lock").write_text(lock.text.replace(f'"cpu": "{lock.targets[0].cpu}"', '"cpu": "core2"'), "utf-8")
    assert main(["rebuild", "f.lock", "--check"]) == 2
    assert "TFC6017" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1', '"version": 2', "its format is"),
        ('"command": "export"', '"command": "run"', "no command 'run'"),
        ('"options": {}', '"options": {"target": "cpu"}', "the option 'target' of export"),
        ('"options": {}', '"options": {"opset": true}', "the option 'opset' of export"),
        ('"directory": "."', '"directory": 7', "directory is no text"),
        ('"bytes": ', '"bytes": -', "the bytes or the digest"),
        ('"role": "model",', "", "a file has no 'role'"),
        ('"targets"', '"inputs"', "inputs"),
        ("{", "[", "is no lock"),
    ],
)
def test_broken_locks(folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str) -> None:
    text = lock_text()
    assert old in text
    Path("broken.lock").write_text(text.replace(old, new, 1), "utf-8")
    assert main(["rebuild", "broken.lock"]) == 2
    said = capsys.readouterr().err
    assert "error[TFC6015]" in said and message in said and not Path("m.gguf").exists()


def lock_text() -> str:
    """That of a small export, made once."""
    if "lock" not in _MADE:
        assert main(["export", "model", "-o", "m.gguf", "--lock", "model.lock"]) == 0
        _MADE["lock"] = Path("model.lock").read_text("utf-8")
        Path("m.gguf").unlink()
    return _MADE["lock"]


_MADE: dict[str, str] = {}


def test_requests_that_cannot_be_locked(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, message in (
        (["export", "model", "-o", "m.gguf", "--lock", "m.gguf"], "named twice"),
        (["export", "model", "-o", "m.gguf", "--lock", "x", "--bom", "x"], "named twice"),
        (["export", "model", "-o", "m.gguf", "--lock", "nowhere/x"], "does not exist"),
        (["compile", "model", "--emit", "graph", "--lock", "x"], "--emit"),
        (["rebuild", "nowhere"], "TFC6002"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("TFIR_STOP_AFTER", "3")
    assert main(["export", "model", "-o", "m.gguf", "--lock", "x"]) == 2
    assert "TFIR_STOP_AFTER" in capsys.readouterr().err
    assert not list(folder.glob("m.*")) and not Path("x").exists()


# --- bills of materials -------------------------------------------------------------------------------------------------------------


def test_bills_follow_the_schema(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official one, as its own library checks it, strictly."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    texts = []
    for time in ("", "1700000000"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", time)
        for command in (["export", "model", "-o", "m.gguf", "-o", "m.onnx", "--dtype", "f16"], ["compile", "factory:make", "-o", "f.tfc"]):
            assert main([*command, "--bom", "bom.json"]) == 0
            texts.append(Path("bom.json").read_text("utf-8"))
    for text in texts:
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    dated = json.loads(texts[2])
    assert dated["metadata"].pop("timestamp") == "2023-11-14T22:13:20Z" and dated == json.loads(texts[0])
    found = json.loads(texts[0])
    model = found["metadata"]["component"]
    assert model["type"] == "machine-learning-model" and model["modelCard"]["modelParameters"]["modelArchitecture"] == "LlamaForCausalLM"
    properties = {p["name"]: p["value"] for p in model["properties"]}
    count = sum(int(np.prod(w.type.concrete({}))) for w in tfir.api.to_module("model").weights.values())
    assert properties["trustformers_ir:parameters"] == str(count) and properties["trustformers_ir:dtype"] == "f16"
    assert [c["hashes"][0]["content"] for c in found["components"]] == [
        hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in ("model/config.json", "model/model.safetensors")
    ]
    assert found["dependencies"][0]["dependsOn"] == [c["bom-ref"] for c in found["components"]]
    assert "timestamp" not in found["metadata"] and found["serialNumber"] != json.loads(texts[1])["serialNumber"]
