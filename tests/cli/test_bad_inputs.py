"""Bad inputs of every command: each is told with code, place and help, exits with 2, and leaves nothing behind.

A case writes its files into the current folder, which is empty but for ``out/``, and gives the words of the command line.
"""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_harness import CONFIG, RANDOM, artifact_bytes, tfc, tokenizer, weights, write_checkpoint

from trustformers_ir.ir.abi import CompiledModule
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.runtime import artifact
from trustformers_ir.tools.cli import main

Words = list[str]
COMPILE = ["compile", "m", "-o", "out/m.tfc"]
NAMES = ("input_ids", "attention_mask", "token_type_ids")
RUN = ["run", "m.tfc", "-o", "out/e.npz"]


# --- files -------------------------------------------------------------------------------------------------------------------------


def checkpoint(**files: bytes | str | None) -> Words:
    """Compile a checkpoint some of whose files (``config``, ``model``, ``tokenizer``) are replaced, or missing when None."""
    folder = write_checkpoint("m")
    for name, content in files.items():
        (path,) = folder.glob(f"{name}.*")
        path.unlink()
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return COMPILE


def config(**fields: Any) -> Words:
    """Compile a checkpoint whose config has other fields; None takes a field away."""
    return checkpoint(config=json.dumps({k: v for k, v in (CONFIG | fields).items() if v is not None}, indent=2))


def tensors(**arrays: np.ndarray | None) -> Words:
    """Compile a checkpoint with other weights: ``pooler_bias`` for ``bert.pooler.dense.bias``; None takes one away."""
    names = {"pooler_bias": "bert.pooler.dense.bias", "pooler": "bert.pooler.dense.weight", "scale": "bert.embeddings.LayerNorm.weight"}
    changed = weights() | {names.get(name, name): array for name, array in arrays.items()}
    write_checkpoint("m", {name: array for name, array in changed.items() if array is not None})
    return COMPILE


def stored(change: Callable[[bytes], bytes]) -> Words:
    """Compile a checkpoint the bytes of whose weight file are changed."""
    return checkpoint(model=change(Path(write_checkpoint("m"), "model.safetensors").read_bytes()))


def header(text: str | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with that header, which may lie about its length."""
    raw = (text if isinstance(text, str) else json.dumps(text)).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def shards(index: str) -> Words:
    folder = write_checkpoint("m")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    return COMPILE


def graph(body: str | bytes, *words: str, result: str = "f32[n, 4]") -> Words:
    """Compile a text; ``body`` is a whole text, or the operations of a function of ``%x: f32[n, 4]``."""
    if isinstance(body, str) and not body.startswith("module"):
        body = f"module @m {{\n  symbol n : [1, 8]\n  func @main(%x: f32[n, 4]) -> ({result}) {{\n    {body}\n  }}\n}}\n"
    Path("m.tfir").write_bytes(body if isinstance(body, bytes) else body.encode())
    return list(words) or ["compile", "m.tfir", "-o", "out/m.tfc"]


def compiled(change: Callable[[bytearray], object] | None = None, *words: str) -> Words:
    """Run an artifact whose bytes are changed in place, or replaced by what ``change`` gives."""
    data = bytearray(artifact_bytes())
    made = change(data) if change is not None else None
    Path("m.tfc").write_bytes(made if isinstance(made, bytes) else data)
    return [*RUN, "--text", "the cat sat", *words]


def flipped(section: str) -> Words:
    """Run an artifact one bit of which has changed, in the middle of a section."""
    words = compiled()
    found = artifact.inspect("m.tfc").sections[section]
    with open("m.tfc", "r+b") as stream:
        stream.seek(found.offset + found.length // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 4]))
    return words


def resaved(change: Callable[[CompiledModule], CompiledModule]) -> Words:
    """Run an artifact of which something is wrong, though all checksums are right."""
    words = compiled()
    artifact.save(change(artifact.inspect("m.tfc").compiled()), "other.tfc")
    Path("other.tfc").rename("m.tfc")
    return words


def without_code() -> Words:
    return resaved(lambda c: replace(c, code=b"\x7fELF" + b"?" * 500))


def foreign(**target: Any) -> Words:
    """Run an artifact that says it is for another machine."""
    return resaved(lambda c: replace(c, manifest=replace(c.manifest, target=replace(c.manifest.target, **target))))


def other_tokenizer(text: str) -> Words:
    return resaved(lambda c: replace(c, manifest=replace(c.manifest, metadata={"tokenizer.json": text})))


def arrays(**inputs: Any) -> Words:
    """Run the artifact on arrays: numpy arrays, bytes of a file, or None for an input that is not given."""
    compiled()
    ids = np.array([[2, 5, 6, 3]])
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)} | inputs
    words = list(RUN)
    for name, value in given.items():
        if value is not None:
            words += ["--input", f"{name}={name}.npy"]
            if isinstance(value, bytes):
                Path(f"{name}.npy").write_bytes(value)
            else:
                np.save(f"{name}.npy", value)
    return words


def lying_array() -> bytes:
    """A .npy file of 32 bytes of data whose header announces 32 terabytes."""
    np.save("x.npy", np.zeros((4, 2), np.int32))
    data = Path("x.npy").read_bytes().replace(b"(4, 2), }              ", b"(4000000000000, 2), }  ")
    Path("x.npy").unlink()
    assert b"4000000000000" in data
    return data


def texts(content: bytes) -> Words:
    compiled()
    Path("t.txt").write_bytes(content)
    return [*RUN, "--text-file", "t.txt"]


def to_output(output: str) -> Words:
    write_checkpoint("m")
    return ["compile", "m", "-o", output]


def changed(words: Words, *more: str) -> Words:
    return [*words, *more]


def unweighted() -> str:
    """The graph of the checkpoint, without its weights."""
    assert main(["opt", "m", "-o", "g.tfir"]) == 0
    return "g.tfir"


def panicking() -> Words:
    """A template with a token that it does not define: the tokenizers library panics when it reads a text."""
    text = json.loads(tokenizer())
    text["post_processor"]["special_tokens"].pop("[SEP]")
    return but(checkpoint(tokenizer=json.dumps(text)), "run", "m", "--text", "the cat", "-o", "out/e.npz")


def but(_: Words, *words: str) -> Words:
    """The files of a case, and another command."""
    return list(words)


def empty(folder: str) -> Words:
    Path(folder).mkdir()
    return []


def full_disk() -> str:
    """A file on a disk that is always full."""
    Path("out/full.npz").symlink_to("/dev/full")
    return "out/full.npz"


# --- the cases ---------------------------------------------------------------------------------------------------------------------

Case = tuple[str, Callable[[], Words], Code, str]

SAFETENSORS: list[Case] = [
    ("empty", lambda: checkpoint(model=b""), Code.SAFETENSORS_TRUNCATED, "m/model.safetensors (byte 0)"),
    ("header cut off", lambda: stored(lambda b: b[:500]), Code.SAFETENSORS_TRUNCATED, "m/model.safetensors (byte 0)"),
    ("data cut off", lambda: stored(lambda b: b[:-100]), Code.SAFETENSORS_TRUNCATED, 'm/model.safetensors (tensor "bert.'),
    ("header of 2**60 bytes", lambda: checkpoint(model=header("{}", length=1 << 60)), Code.SAFETENSORS_HEADER, "m/model.safetensors (byte 0)"),
    ("header of 2**64 - 1 bytes", lambda: checkpoint(model=header("{}", length=(1 << 64) - 1)), Code.SAFETENSORS_HEADER, "(byte 0)"),
    ("header too long", lambda: stored(lambda b: struct.pack("<Q", 50 + int.from_bytes(b[:8], "little")) + b[8:]), Code.SAFETENSORS_HEADER, "byte"),
    ("header no JSON", lambda: checkpoint(model=header("{'a': 1}")), Code.SAFETENSORS_HEADER, "m/model.safetensors (byte 9)"),
    ("header nested", lambda: checkpoint(model=header("[" * 100_000)), Code.SAFETENSORS_HEADER, "(byte 8)"),
    ("shape overflows", lambda: checkpoint(model=header({"a": tensor([1 << 40, 1 << 40], 0, 4)}, b"0123")), Code.SAFETENSORS_OFFSETS, 'tensor "a"'),
    ("spans overlap", lambda: checkpoint(model=header({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, b"." * 12)), Code.SAFETENSORS_OFFSETS, "b"),
    ("span ends early", lambda: checkpoint(model=header({"a": tensor([2], 8, 0)}, b"." * 8)), Code.SAFETENSORS_OFFSETS, 'tensor "a"'),
    ("bytes of nobody", lambda: stored(lambda b: b + b"1234"), Code.SAFETENSORS_OFFSETS, "m/model.safetensors (byte"),
    ("span beyond the file", lambda: checkpoint(model=header({"a": tensor([1 << 40], 0, 1 << 42)})), Code.SAFETENSORS_TRUNCATED, 'tensor "a"'),
    ("name twice", lambda: checkpoint(model=header('{"a": %s, "a": %s}' % ((json.dumps(tensor([1], 0, 4)),) * 2))), Code.SAFETENSORS_HEADER, "byte"),
    ("unknown dtype", lambda: checkpoint(model=header({"a": tensor([1], 0, 4, "F7")}, b"0123")), Code.SAFETENSORS_DTYPE, 'tensor "a"'),
    ("no file", lambda: checkpoint(model=None), Code.WEIGHTS_NOT_FOUND, "m"),
    ("index no JSON", lambda: shards("{"), Code.SHARD_INDEX, "m/model.safetensors.index.json:1:2"),
    ("shard not there", lambda: shards('{"weight_map": {"a": "model-2.safetensors"}}'), Code.SHARD_MISSING, "index.json:1"),
    ("shard of no name", lambda: shards('{"weight_map": {"a": "\\ud800"}}'), Code.SHARD_INDEX, "m/"),
    ("shard elsewhere", lambda: shards('{"weight_map": {"a": "../../etc/passwd"}}'), Code.SHARD_INDEX, "m"),
    ("index disagrees", lambda: shards('{"weight_map": {"a": "model-1.safetensors"}}'), Code.SHARD_INDEX, 'index.json (tensor "a")'),
]

WEIGHTS: list[Case] = [
    ("missing", lambda: tensors(pooler_bias=None), Code.WEIGHT_MISSING, 'm/model.safetensors (tensor "bert.pooler.dense.bias")'),
    ("one too many", lambda: tensors(spare=np.zeros(3, np.float32)), Code.WEIGHT_UNEXPECTED, 'm/model.safetensors (tensor "spare")'),
    ("wrong shape", lambda: tensors(pooler=np.zeros((32, 31), np.float32)), Code.WEIGHT_SHAPE, 'tensor "bert.pooler.dense.weight"'),
    ("whole numbers", lambda: tensors(pooler=np.zeros((32, 32), np.int8)), Code.WEIGHT_DTYPE, 'tensor "bert.pooler.dense.weight"'),
    ("config of another size", lambda: config(hidden_size=64), Code.WEIGHT_SHAPE, 'm/model.safetensors (tensor "bert.'),
]

CONFIGS: list[Case] = [
    ("no folder", lambda: COMPILE, Code.FILE_NOT_FOUND, "m"),
    ("none", lambda: checkpoint(config=None), Code.CONFIG_MISSING, "m"),
    ("empty", lambda: checkpoint(config=""), Code.CONFIG_INVALID, "m/config.json:1:1"),
    ("no JSON", lambda: checkpoint(config='{\n  "model_type" = "bert"\n}'), Code.CONFIG_INVALID, "m/config.json:2:16"),
    ("no object", lambda: checkpoint(config="[1]"), Code.CONFIG_INVALID, "m/config.json"),
    ("nested", lambda: checkpoint(config="[" * 1_000_000), Code.CONFIG_INVALID, "m/config.json"),
    ("not UTF-8", lambda: checkpoint(config=b'{"a": "\xff"}'), Code.CONFIG_INVALID, "m/config.json (byte 7)"),
    ("huge number", lambda: checkpoint(config='{"model_type": "bert", "hidden_size": 1%s}' % ("0" * 5000)), Code.CONFIG_INVALID, "m/config.json"),
    ("key twice", lambda: checkpoint(config='{"model_type": "bert",\n "model_type": "bert"}'), Code.CONFIG_INVALID, "m/config.json:2:2"),
    ("unknown model_type", lambda: config(model_type="bart"), Code.UNKNOWN_MODEL_TYPE, "m/config.json:5:3"),
    ("no model_type", lambda: config(model_type=None), Code.CONFIG_INVALID, "m/config.json"),
    ("field missing", lambda: config(vocab_size=None), Code.CONFIG_INVALID, "m/config.json"),
    ("field no number", lambda: config(hidden_size="wide"), Code.CONFIG_INVALID, "m/config.json:7:3"),
    ("field out of range", lambda: config(num_hidden_layers=-1), Code.CONFIG_INVALID, "m/config.json:8:3"),
    ("heads do not divide", lambda: config(num_attention_heads=5), Code.CONFIG_INVALID, "m/config.json:9:3"),
    ("unknown activation", lambda: config(hidden_act="gulu"), Code.UNSUPPORTED_CONFIG, "m/config.json:12:3"),
    ("unknown architecture", lambda: config(architectures=["BertForPoetry"]), Code.UNSUPPORTED_CONFIG, "m/config.json:2:3"),
    ("billions of layers", lambda: config(num_hidden_layers=2_000_000_000), Code.CONFIG_INVALID, "m/config.json:8:3"),
    ("thousands of layers", lambda: config(num_hidden_layers=10_000), Code.WEIGHT_MISSING, "m/model.safetensors"),
]

TEXTS: list[Case] = [
    ("empty", lambda: graph(b""), Code.SYNTAX, "m.tfir:1"),
    ("no return", lambda: graph(""), Code.VERIFY, "m.tfir:3:8"),
    ("no module", lambda: graph(b"hello"), Code.SYNTAX, "m.tfir:1:1"),
    ("cut off", lambda: graph(b"module @m {\n  func @main("), Code.SYNTAX, "m.tfir:2"),
    ("unknown op", lambda: graph("%y = explode(%x) : f32[n, 4]\n    return %y"), Code.UNKNOWN_OP, "m.tfir:4:10"),
    ("undefined value", lambda: graph("return %z"), Code.UNKNOWN_NAME, "m.tfir:4:12"),
    ("wrong type", lambda: graph("%y = exp(%x) : f32[n, 5]\n    return %y"), Code.TYPE_MISMATCH, "m.tfir:4"),
    ("impossible axis", lambda: graph("%y = softmax(%x) {axis = 7} : f32[n, 4]\n    return %y"), Code.CONSTRAINT, "m.tfir:4"),
    ("unknown dtype", lambda: graph("return %x", result="f33[n, 4]"), Code.BAD_TYPE, "m.tfir:3"),
    ("not UTF-8", lambda: graph(b"module @\xff {}"), Code.TEXT_ENCODING, "m.tfir (byte 8)"),
    ("nested", lambda: graph(f"return %x loc({'(' * 100_000}"), Code.SYNTAX, "m.tfir:4"),
    ("huge number", lambda: graph(f"%y = reshape(%x) {{shape = [{'9' * 5000}]}} : f32[4]\n    return %x"), Code.TEXT_LIMIT, "m.tfir:4"),
    ("complex numbers", lambda: graph("%y = cast(%x) {dtype = c64} : c64[n, 4]\n    return %y", result="c64[n, 4]"), Code.UNSUPPORTED_DTYPE, "m"),
    (
        "weights without bytes",
        lambda: graph(f"module @m {{\n  weight @w : f32[4] = sha256:{'ab' * 32}\n  func @main() -> () {{\n    return\n  }}\n}}"),
        Code.WEIGHT_MISSING,
        'm.tfir (tensor "w")',
    ),
    ("a folder", lambda: but(empty("m.tfir"), "compile", "m.tfir", "-o", "out/m.tfc"), Code.CONFIG_MISSING, "m.tfir"),
    ("unknown pass", lambda: graph("return %x", "opt", "m.tfir", "--passes", "fold"), Code.UNKNOWN_PASS, "tfc opt m.tfir --passes fold"),
    (
        "pass without bytes",
        lambda: but(checkpoint(), "opt", unweighted(), "--passes", "pack_weights", "-o", "out/p.tfir"),
        Code.MISSING_BYTES,
        'tensor "encoder.layer.0.',
    ),
    ("pass option", lambda: graph("return %x", "opt", "m.tfir", "--passes", "fuse{colour=red}"), Code.PASS_OPTION, "tfc opt"),
    ("no pipeline", lambda: graph("return %x", "opt", "m.tfir", "--passes", "a,,b"), Code.USAGE, "tfc opt"),
]

ARTIFACTS: list[Case] = [
    ("empty", lambda: compiled(lambda b: b""), Code.NOT_AN_ARTIFACT, "m.tfc (byte 0)"),
    ("a text", lambda: compiled(lambda b: b"hello, world\n" * 100), Code.NOT_AN_ARTIFACT, "m.tfc (byte 0)"),
    ("header cut off", lambda: compiled(lambda b: bytes(b[:100])), Code.ARTIFACT_TRUNCATED, "m.tfc (byte 100)"),
    ("end cut off", lambda: compiled(lambda b: bytes(b[:-1])), Code.ARTIFACT_TRUNCATED, "m.tfc (byte"),
    ("something follows", lambda: compiled(lambda b: bytes(b) + b"x"), Code.ARTIFACT_CORRUPT, "m.tfc (byte"),
    ("another version", lambda: compiled(lambda b: struct.pack_into("<I", b, 8, 99)), Code.ARTIFACT_VERSION, "m.tfc (byte 8)"),
    ("lying length", lambda: compiled(lambda b: struct.pack_into("<Q", b, 40, 1 << 60)), Code.ARTIFACT_CORRUPT, "m.tfc (byte 0)"),
    ("header flipped", lambda: compiled(lambda b: struct.pack_into("<B", b, 70, b[70] ^ 1)), Code.ARTIFACT_CORRUPT, "m.tfc (byte 0)"),
    ("manifest flipped", lambda: flipped("manifest"), Code.ARTIFACT_CORRUPT, "m.tfc (byte"),
    ("graph flipped", lambda: flipped("graph"), Code.ARTIFACT_CORRUPT, "m.tfc (byte"),
    ("code flipped", lambda: flipped("code"), Code.ARTIFACT_CORRUPT, "m.tfc (byte"),
    ("weights flipped", lambda: flipped("weights"), Code.ARTIFACT_CORRUPT, "m.tfc ("),
    ("code of nobody", without_code, Code.ARTIFACT_CODE, "m.tfc (byte"),
    ("another architecture", lambda: foreign(triple="aarch64-unknown-linux-gnu"), Code.ARTIFACT_TARGET, "m.tfc"),
    ("another system", lambda: foreign(triple="x86_64-pc-windows-msvc"), Code.ARTIFACT_TARGET, "m.tfc"),
    ("another CPU", lambda: foreign(features=("avx10.9", "fma")), Code.ARTIFACT_TARGET, "m.tfc"),
    ("a folder", lambda: but(empty("m.tfc"), "run", "m.tfc"), Code.UNREADABLE, "m.tfc"),
    ("inspected", lambda: but(flipped("graph"), "inspect", "m.tfc"), Code.ARTIFACT_CORRUPT, "m.tfc (byte"),
    ("verified", lambda: but(flipped("code"), "verify", "m.tfc", "m.tfc"), Code.ARTIFACT_CORRUPT, "m.tfc (byte"),
    ("timed", lambda: but(flipped("manifest"), "bench", "m.tfc", "--json"), Code.ARTIFACT_CORRUPT, "m.tfc (byte"),
    ("optimised", lambda: but(flipped("graph"), "opt", "m.tfc", "-o", "out/m.tfir"), Code.ARTIFACT_CORRUPT, "m.tfc (byte"),
]

INPUTS: list[Case] = [
    ("text too long", lambda: compiled(None, "--text", "cat " * 15), Code.TEXT_TOO_LONG, "tfc run m.tfc"),
    ("line too long", lambda: texts(b"the cat\n\n" + b"cat " * 15), Code.TEXT_TOO_LONG, "t.txt:3"),
    ("text not UTF-8", lambda: texts(b"\xff\xfe"), Code.UNREADABLE, "t.txt"),
    ("no line", lambda: texts(b"\n\n"), Code.USAGE, "t.txt"),
    ("no text file", lambda: changed(compiled(), "--text-file", "none.txt"), Code.FILE_NOT_FOUND, "none.txt"),
    ("no tokenizer", lambda: ["run", RANDOM, "--text", "cat", "-o", "out/e.npz"], Code.TOKENIZER_MISSING, "random:bert"),
    (
        "broken tokenizer",
        lambda: but(checkpoint(tokenizer=b"\x93\xf1" * 500), "run", "m", "--text", "cat", "-o", "out/e.npz"),
        Code.TOKENIZER_INVALID,
        "m/tokenizer.json",
    ),
    ("tokenizer that crashes its library", lambda: panicking(), Code.TOKENIZER_INVALID, "m/tokenizer.json"),
    ("broken tokenizer in an artifact", lambda: other_tokenizer('{"version": "9"}'), Code.TOKENIZER_INVALID, "m.tfc, tokenizer.json"),
    ("input missing", lambda: arrays(input_ids=None), Code.INPUT_COUNT, "tfc run"),
    ("input unknown", lambda: arrays(labels=np.zeros(3)), Code.INPUT_NAME, 'tensor "labels"'),
    ("dtype", lambda: arrays(input_ids=np.zeros((1, 4), np.float32)), Code.INPUT_DTYPE, 'tensor "input_ids"'),
    ("rank", lambda: arrays(input_ids=np.zeros(4, np.int64)), Code.INPUT_SHAPE, 'tensor "input_ids"'),
    ("other lengths", lambda: arrays(input_ids=np.zeros((1, 5), np.int64)), Code.DIM_CONFLICT, 'tensor "attention_mask"'),
    ("no such token", lambda: arrays(input_ids=np.array([[2, 5, 99, 3]])), Code.INDEX_OUT_OF_RANGE, "op embedding"),
    ("too many tokens", lambda: arrays(**dict.fromkeys(NAMES, np.ones((1, 17), np.int64))), Code.DIM_RANGE, 'tensor "input_ids"'),
    ("array with a lying header", lambda: arrays(input_ids=lying_array()), Code.BAD_ARRAY, "input_ids.npy"),
    ("array of objects", lambda: arrays(input_ids=np.array([{}, None])), Code.BAD_ARRAY, "input_ids.npy"),
    ("array nested", lambda: arrays(input_ids=b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000), Code.BAD_ARRAY, "input_ids.npy"),
    ("array empty", lambda: arrays(input_ids=b""), Code.BAD_ARRAY, "input_ids.npy"),
    ("structured array", lambda: arrays(input_ids=np.zeros((1, 4), [("a", "i4")])), Code.INPUT_DTYPE, 'tensor "input_ids"'),
]

LLAMA = "random:llama?num_hidden_layers=1&hidden_size=32&intermediate_size=48&num_attention_heads=4&num_key_value_heads=2&vocab_size=99"

REQUESTS: list[Case] = [
    ("output in no folder", lambda: to_output("none/m.tfc"), Code.UNWRITABLE, "none/m.tfc"),
    ("output a folder", lambda: to_output("out"), Code.UNWRITABLE, "out"),
    ("output the model", lambda: to_output("m"), Code.UNWRITABLE, "m"),
    ("output of another format", lambda: to_output("m.onnx"), Code.USAGE, "tfc compile"),
    ("options of an artifact", lambda: but(compiled(), "run", "m.tfc", "--text", "cat", "--target", "cpu:avx2"), Code.USAGE, "m.tfc"),
    ("output where nothing can be made", lambda: to_output("/proc/m.tfc"), Code.UNWRITABLE, "/proc/m.tfc"),
    ("output a full disk", lambda: but(compiled(), "run", "m.tfc", "--text", "cat", "-o", full_disk()), Code.UNWRITABLE, "out/full.npz"),
    ("unknown target", lambda: changed(checkpoint(), "--target", "cpu:pentium"), Code.UNKNOWN_TARGET, "--target cpu:pentium"),
    ("target not built", lambda: changed(checkpoint(), "--target", "metal"), Code.NOT_BUILT, "--target metal"),
    ("target not here", lambda: changed(checkpoint(), "--target", "rocm"), Code.TARGET_UNAVAILABLE, "--target rocm"),
    ("unknown dtype", lambda: changed(checkpoint(), "--dtype", "f33"), Code.USAGE, "--dtype f33"),
    ("unknown dim", lambda: changed(checkpoint(), "--dynamic", "batsh"), Code.USAGE, "--dynamic batsh"),
    ("too many threads", lambda: changed(checkpoint(), "--threads", "1000000"), Code.USAGE, "--threads 1000000"),
    ("unknown format", lambda: but(texts(b"cat"), "inspect", "t.txt"), Code.UNKNOWN_FORMAT, "t.txt"),
    ("random of nothing", lambda: ["compile", "random:", "-o", "out/m.tfc"], Code.RANDOM_MODEL, "tfc compile random:"),
    ("random field", lambda: ["compile", f"{RANDOM}&colour=3", "-o", "out/m.tfc"], Code.RANDOM_MODEL, "tfc compile"),
    ("random and huge", lambda: ["compile", "random:bert?vocab_size=2000000000", "-o", "out/m.tfc"], Code.RANDOM_MODEL, "tfc compile"),
    ("different models", lambda: graph("return %x", "verify", "m.tfir", RANDOM), Code.INPUT_NAME, "random:bert"),
    ("a head that the other has not", lambda: ["verify", LLAMA, f"{LLAMA}&architecture=LlamaForCausalLM"], Code.INPUT_SHAPE, "architecture=LlamaFor"),
    ("export", lambda: but(checkpoint(), "export", "m", "-o", "out/m.onnx", "--quantize", "fp8"), Code.CANNOT_EXPORT, "fp8"),
]


GROUPS = {"safetensors": SAFETENSORS, "weights": WEIGHTS, "config": CONFIGS, "tfir": TEXTS, "tfc": ARTIFACTS, "run": INPUTS, "request": REQUESTS}
CASES = [pytest.param(*case[1:], id=f"{group}: {case[0]}") for group, cases in GROUPS.items() for case in cases]
PROBLEM = re.compile(r"error\[(TFC\d{4})\]: \S.*\n(?:  .*\n)*?  --> (\S.*)\n(?: .*\n)*?  help: \S")


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()


def check(code: int, out: str, err: str, expected: Code, place: str) -> None:
    assert code == 2, err
    assert out == "" and "Traceback" not in err
    problems = PROBLEM.findall(err)
    assert len(problems) == err.count("error[TFC") > 0, f"a problem lacks its place or help:\n{err}"
    assert any(found == expected.id and place in where for found, where in problems), err
    assert not [p for p in Path("out").iterdir() if not p.is_symlink()]
    assert not list(Path().rglob("*.tmp"))


@pytest.mark.parametrize(("words", "expected", "place"), CASES)
def test_bad_input(capsys: pytest.CaptureFixture[str], words: Callable[[], Words], expected: Code, place: str) -> None:
    check(*tfc(capsys, *words()), expected, place)


def test_there_are_many() -> None:
    assert len(CASES) >= 36
    assert all(len({case[0] for case in group}) == len(group) for group in GROUPS.values())


def test_all_problems_of_a_checkpoint_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    tensors(pooler_bias=None, pooler=np.zeros((32, 31), np.float32), scale=np.zeros(32, np.int8), spare=np.zeros(3, np.float32))
    code, out, err = tfc(capsys, *COMPILE)
    check(code, out, err, Code.WEIGHT_MISSING, 'tensor "bert.pooler.dense.bias"')
    told = {found for found, _ in PROBLEM.findall(err)}
    assert told == {c.id for c in (Code.WEIGHT_MISSING, Code.WEIGHT_SHAPE, Code.WEIGHT_DTYPE, Code.WEIGHT_UNEXPECTED)}
    code, out, err = tfc(capsys, *config(vocab_size=None, hidden_size="wide", hidden_act="gulu"))
    check(code, out, err, Code.CONFIG_INVALID, "m/config.json:6:3")
    assert err.count("error[TFC2003]") == 2 and err.count("error[TFC2005]") == 1


def test_all_problems_of_a_text_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    words = graph("%y = explode(%x) : f32[n, 4]\n    %z = exp(%w) : f32[n, 4]\n    %v = exp(%x) : f32[n, 5]\n    return %x")
    code, out, err = tfc(capsys, *words)
    check(code, out, err, Code.UNKNOWN_OP, "m.tfir:4:10")
    assert [found for found, _ in PROBLEM.findall(err)] == [Code.UNKNOWN_OP.id, Code.UNKNOWN_NAME.id, Code.TYPE_MISMATCH.id]
    assert "    4 |     %y = explode(%x) : f32[n, 4]\n      |          ^" in err  # the line itself, with a caret


@pytest.mark.parametrize("name", ["out/m.tfc", "out/e.npz"])
def test_an_output_that_was_there_stays(capsys: pytest.CaptureFixture[str], name: str) -> None:
    words = checkpoint(config="{") if name.endswith(".tfc") else compiled(None, "--text", "cat " * 15)
    Path(name).write_text("old")
    assert tfc(capsys, *words)[0] == 2
    assert Path(name).read_text() == "old" and os.listdir("out") == [Path(name).name]


def test_a_bad_environment_variable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_THREADS", "two")
    check(*tfc(capsys, *checkpoint()), Code.BAD_ENVIRONMENT, "tfc compile m -o out/m.tfc")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").chmod(0o500)
    check(*tfc(capsys, *checkpoint()), Code.UNWRITABLE, "out/m.tfc")


def process(*words: str, **settings: Any) -> subprocess.Popen[str]:
    """The command line as a process of its own."""
    command = [sys.executable, "-m", "trustformers_ir.tools.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


@pytest.mark.parametrize("case", [SAFETENSORS[1], CONFIGS[9], TEXTS[3], ARTIFACTS[9], INPUTS[1], REQUESTS[0]], ids=lambda case: case[0])
def test_bad_input_of_a_process(case: Case) -> None:
    _, words, expected, place = case
    child = process(*words())
    out, err = child.communicate(timeout=60)
    check(child.returncode, out, err, expected, place)


def test_the_traceback_is_there_when_asked_for() -> None:
    child = process("--debug", *checkpoint(config="{"))
    _, err = child.communicate(timeout=60)
    assert child.returncode == 2 and "Traceback (most recent call last)" in err and "error[TFC2003]" in err


@pytest.mark.parametrize("stage", ["lower", "writing weights"])
def test_an_interrupted_compilation_leaves_nothing(stage: str) -> None:
    """Ctrl-C while the compiler works, and while the artifact is being written."""
    write_checkpoint("m")
    Path("slow.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # jobs in the background start with it ignored
        "from trustformers_ir.ir.progress import watching\n"
        "from trustformers_ir.tools.cli import main\n"
        "def show(stage, done, total):\n"
        f"    if stage == {stage!r}:\n"
        "        print('here', flush=True)\n"
        "        time.sleep(60)\n"
        "with watching(show):\n"
        "    sys.exit(main(['compile', 'm', '-o', 'out/m.tfc']))\n"
    )
    child = subprocess.Popen([sys.executable, "slow.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "here\n"
    assert bool(os.listdir("out")) == (stage == "writing weights")
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err.strip()) == (130, "interrupted")
    assert os.listdir("out") == []
