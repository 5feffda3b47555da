"""Models larger than the memory that exporting them may take: of addresses a limit of the system, of pages twice the largest tensor and 300 MB."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sparse_checkpoint import Sizes

import trustformers_ir as tfir
from trustformers_ir.frontend import safetensors
from trustformers_ir.frontend.safetensors import open_safetensors
from trustformers_ir.ir import holes
from trustformers_ir.ir.holes import write_array
from trustformers_ir.ir.mapped import backing

BESIDES = 300 << 20
MB, GB = 10**6, 10**9
SMALL = Sizes(hidden=1024, inner=2816, layers=38, vocab=8000, heads=8, shard=400 * MB)  # 1 GB
LARGE = Sizes(hidden=5120, inner=13824, layers=37, vocab=32000, heads=40, shard=5 * GB)  # 24 GB
LARGE_F32 = Sizes(hidden=4096, inner=11008, layers=29, vocab=32000, heads=32, shard=5 * GB, dtype="F32")  # its matrices are turned round in ONNX

PART = {"q8_0": 0.5, "int8": 0.5, "q4_0": 0.25}  # of the bytes of a checkpoint in 16 bits

_CHILD = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
from trustformers_ir.tools.cli import main
code = main(sys.argv[2:])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"code": code, **{name: 1024 * int(status[name].split()[0]) for name in ("VmPeak", "VmHWM")}}))
"""


def limited(limit: int, *arguments: str) -> dict[str, int]:
    """``tfc`` in a process of so many bytes of addresses: its exit code, the most addresses, the most memory."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # each thread has a buffer of its own
    command = [sys.executable, "-c", _CHILD, str(limit), *arguments]
    made = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert made.returncode == 0, made.stderr
    found: dict[str, int] = json.loads(made.stdout.splitlines()[-1])
    print(*arguments[2:], f"{found['VmPeak'] / MB:.0f} MB of addresses, {found['VmHWM'] / MB:.0f} MB of memory")
    assert found["code"] == 0, made.stderr
    return found


def has_holes(folder: Path) -> bool:
    """Whether holes of files need no room there."""
    with (folder / "probe").open("wb") as stream:
        stream.truncate(1 << 24)
    return (folder / "probe").stat().st_blocks * 512 < 1 << 20


def check(sizes: Sizes, limit: int, folder: Path, *options: str, output: str, command: str = "export") -> None:
    """Writes a file within the limits, of the right size, with holes where the model has some."""
    if not has_holes(folder):
        assert shutil.disk_usage(folder).free > 2 * sizes.total + 15 * GB, "the file system has no holes, and no room"
    model, path = sizes.write(folder / "model"), folder / output
    found = limited(limit, command, str(model), "-o", str(path), *options)
    assert found["VmHWM"] <= 2 * sizes.largest + BESIDES
    written = [p for p in folder.iterdir() if p.name.startswith(path.name)]
    total = sum(p.stat().st_size for p in written)
    assert total > next((part for name, part in PART.items() if name in options), 1) * sizes.total
    if has_holes(folder):
        full = 50 if "int8" in options else 8 if "q4_0" in options else 100  # the scale of an output of zeros is 1, of a block of them -0.0
        assert sum(p.stat().st_blocks * 512 for p in written) < total / full


@pytest.mark.parametrize("output", ["m.onnx", "m.gguf"])
def test_a_gigabyte_in_half_of_it(tmp_path: Path, output: str) -> None:
    check(SMALL, 500 * MB, tmp_path, output=output)


@pytest.mark.long
@pytest.mark.parametrize("options", [("--quantize", "int8", "--dtype", "f32"), ("--quantize", "q4_0")])
def test_quantized_onnx_files_of_a_gigabyte(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Addresses are those of the compiler, which int8 may ask for ranges; memory is what counts."""
    check(SMALL, 2 * GB, tmp_path, *options, output="m.onnx")


@pytest.mark.long
@pytest.mark.parametrize(("output", "options"), [("m.onnx", ()), ("m.gguf", ()), ("m.gguf", ("--quantize", "q8_0"))])
def test_24_gb_in_1_5(tmp_path: Path, output: str, options: tuple[str, ...]) -> None:
    check(LARGE, 1500 * MB, tmp_path, *options, output=output)


@pytest.mark.long
def test_an_artifact_of_a_gigabyte_in_less(tmp_path: Path) -> None:
    check(SMALL, 900 * MB, tmp_path, "--target", "cpu:avx2", output="m.tfc", command="compile")


@pytest.mark.long
def test_24_gb_that_are_turned_round(tmp_path: Path) -> None:
    check(LARGE_F32, 1500 * MB, tmp_path, output="m.onnx")


@pytest.mark.long
def test_more_than_2_gb_there_and_back(tmp_path: Path) -> None:
    """An ONNX file with weights beside it is read again: the same weights, the same outputs."""
    sizes = Sizes(hidden=2048, inner=5632, layers=9, vocab=32000, heads=16, shard=GB, dtype="F32")
    model = sizes.write(tmp_path / "model")
    drawn = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * 0.03
    for n, path in enumerate(sorted(model.glob("*.safetensors"))):
        names = list(open_safetensors(path))
        arrays = {name: np.resize(np.roll(drawn, 977 * (n * 1000 + i)), sizes.tensors[name]) for i, name in enumerate(names)}
        save_file(arrays, path, {"format": "pt"})
    tfir.export(str(model), str(tmp_path / "m.onnx"))
    assert (tmp_path / "m.onnx.data").stat().st_size > 1 << 31
    before, after = tfir.api.to_module(str(model)), tfir.api.to_module(str(tmp_path / "m.onnx"))
    have = {w.digest for w in after.weights.values()}
    for name, w in before.weights.items():
        turned = tfir.ir.core.Weight(name, w.type, np.ascontiguousarray(w.data.T)) if w.type.rank == 2 else w
        assert w.digest in have or turned.digest in have, name
    ids = np.array([[1, 31999, 7]])
    want, found = (tfir.evaluate(m, ids, np.ones_like(ids)) for m in (before, after))
    assert np.abs(want - found).max() <= 1e-5 * np.abs(want).max()


# --- the parts ----------------------------------------------------------------------------------------------------------------------


def test_neighbours_share_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are mapped with their neighbours up to a size, the larger ones by themselves, and maps go with the last view."""
    monkeypatch.setattr(safetensors, "PART", 1 << 16)
    arrays = {f"t{n}": np.full(size, n, np.float32) for n, size in enumerate([10, 3, 40_000, 0, 9, 16_000, 16_000])}
    save_file(arrays, tmp_path / "m.safetensors")
    file = open_safetensors(tmp_path / "m.safetensors")
    found = {name: file.array(name) for name in file}
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    maps = {name: backing(array) for name, array in found.items() if array.size}
    assert len(set(map(id, maps.values()))) == 4  # of those that lie side by side in the file, which sorts them
    assert all(m is not None and len(m) <= max(1 << 16, 160_000) + 4096 for m in maps.values())
    first = next(iter(maps))
    assert backing(file.array(first)) is maps[first]
    gone = weakref.ref(maps[first])
    del found, maps
    gc.collect()
    assert gone() is None and file.array(first)[0] == arrays[first][0]


def test_a_file_that_was_cut_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"t": np.ones(100_000, np.float32)}, path)
    file = open_safetensors(path)
    os.truncate(path, 1000)
    with pytest.raises(tfir.CompilerError) as caught:
        file.array("t")
    assert "cannot map" in str(caught.value)


@pytest.mark.parametrize("shape", [(0,), (), (7,), (3, 0, 2), (5000, 700), (2, 3, 1 << 18)])
def test_holes_read_as_zeros(tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are those of the array, wherever its zeros are, in any order of axes."""
    monkeypatch.setattr(holes, "ROWS", 1 << 16)
    monkeypatch.setattr(holes, "PIECE", 1 << 13)
    random = np.random.default_rng(1)
    dense = np.where(random.random(shape) < 1e-3, random.standard_normal(shape), 0).astype(np.float32)
    blocky = np.zeros(shape, np.float32)
    blocky.reshape(-1)[blocky.size // 3 : blocky.size // 2] = 1
    for array in (dense, blocky, np.zeros(shape, np.float16), dense.T, np.ones(shape, np.bool_)):
        with (tmp_path / "bytes").open("wb") as stream:
            stream.write(b"before")
            write_array(stream, array)
            stream.write(b"after")
        assert (tmp_path / "bytes").read_bytes() == b"before" + array.tobytes() + b"after"


def test_what_ends_in_zeros_has_its_length(tmp_path: Path) -> None:
    with (tmp_path / "bytes").open("wb") as stream:
        write_array(stream, np.zeros(10 << 20, np.uint8))
    assert (tmp_path / "bytes").read_bytes() == bytes(10 << 20)
