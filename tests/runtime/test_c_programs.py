"""C programs that use compiled libraries: the example with the real model, without Python, and one that misuses a library under tools that watch
its memory."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_harness import STRICT, needs_cc
from runtime_harness import encoder_module

import trustformers_ir as tfir
from trustformers_ir.codegen.llvm.target import host, parse
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.tools.text import tokenizer_of

pytestmark = needs_cc
ROOT = Path(__file__).parents[2]
TARGETS = ["cpu:avx2", "cpu:avx512"]
RUNNING = [t for t in TARGETS if set(parse(t).features) <= set(host().features)]
TEXTS = [
    "A man is eating.",
    "Someone has lunch; isn't that (rather) nice?",
    "Unfathomable antidisestablishmentarianism!",
    "x",
    "The 3rd of May, 1808: $5.00 @home -- " + "word " * 60,
    "\ta\n  b",
]


@pytest.fixture(scope="module")
def example(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the example with the library and the program, made as its Makefile says."""
    folder = tmp_path_factory.mktemp("example") / "c"
    shutil.copytree(ROOT / "examples" / "c", folder, ignore=shutil.ignore_patterns("minilm*", "libminilm*"))
    tfir.compile(str(minilm), target=",".join(TARGETS)).save(folder / "libminilm.so")
    subprocess.run(["make", "TFC=false"], cwd=folder, check=True, capture_output=True)
    return folder


def run(folder: Path, *words: str) -> tuple[str, list[np.ndarray]]:
    """What the program prints and the bytes of its outputs, in an environment where nothing is, in a folder that is another."""
    raw = folder / "raw"
    command = ["env", "-i", "PATH=/nowhere", str(folder / "minilm"), "--raw", str(raw), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    texts, tokens = _first_two(done.stdout)
    flat = np.fromfile(raw, np.float32)
    hidden, rest = np.split(flat, [texts * tokens * 384])
    pooled, embedding = np.split(rest, 2)
    return done.stdout, [hidden.reshape(texts, tokens, 384), pooled.reshape(texts, 384), embedding.reshape(texts, 384)]


def _first_two(text: str) -> tuple[int, int]:
    words = text.replace(",", "").split()
    return int(words[0]), int(words[2])


def bits(arrays: list[np.ndarray]) -> list[bytes]:
    return [np.ascontiguousarray(a).tobytes() for a in arrays]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_example_gives_the_bits_of_python(example: Path, minilm: Path, threads: str) -> None:
    model = tfir.compile(str(minilm), threads=1)
    rng = np.random.default_rng(0)
    for lengths in ((1,), (7,), (5, 3, 9), (128,), (40, 41, 1, 17, 33, 2, 8, 3), (512,)):
        width = max(lengths)
        ids, mask = np.zeros((len(lengths), width), np.int64), np.zeros((len(lengths), width), np.int64)
        for row, n in enumerate(lengths):
            ids[row, :n], mask[row, :n] = rng.integers(0, 30522, n), 1
        words = [" ".join(map(str, ids[row, :n])) for row, n in enumerate(lengths)]
        expected = bits(model(input_ids=ids, attention_mask=mask))
        for target in RUNNING:
            shown, found = run(example, "--ids", "--threads", threads, "--target", target, *words)
            assert bits(found) == expected, (lengths, target)
            assert f"{threads} threads, {target}" in shown


def test_the_example_reads_text(example: Path, minilm: Path) -> None:
    """Its tokenizer finds the pieces that the model's own finds."""
    model = tfir.compile(str(minilm), threads=2)
    ids, mask = tokenizer_of(str(minilm), {}).encode_batch(TEXTS)
    shown, found = run(example, "--vocab", str(minilm / "vocab.txt"), *TEXTS)
    assert bits(found) == bits(model(input_ids=ids, attention_mask=mask))
    table = found[2] @ found[2].T
    assert f"{table[1, 0]:.3f}" in shown and f"[{found[2][0, 0]:.6f}, " in shown


def test_the_example_says_what_is_wrong(example: Path) -> None:
    for words, text in (
        (["--ids", "30522"], "out of range of a size of 30522"),
        (["--ids", " ".join(["1"] * 513)], "more token ids than the model has positions"),
        (["--ids", "--threads", "5000", "1"], "threads is 5000"),
        (["--ids", "--target", "cpu:none", "1"], "there is code for cpu:avx512, cpu:avx2"),
        (["--ids", "--weights", "/dev/null", "1"], "not an ordinary file"),
        (["--ids", "one"], "token ids are whole numbers"),
        (["--vocab", "/nowhere", "one"], "cannot read the vocabulary"),
        ([], "give texts"),
    ):
        done = subprocess.run([str(example / "minilm"), *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and text in done.stderr, done.stderr


def test_the_program_of_the_page(example: Path, minilm: Path) -> None:
    page = (ROOT / "docs" / "c_api.md").read_text()
    program, command = page.split("```c\n")[1].split("```")[0], next(line for line in page.splitlines() if line.startswith("cc "))
    (example / "hello.c").write_text(program)
    subprocess.run(command.replace("'$ORIGIN'", "'$ORIGIN' " + " ".join(STRICT[1:])), cwd=example, check=True, shell=True)
    shown = subprocess.run([example / "hello"], check=True, capture_output=True, text=True, env={}).stdout
    ids, mask = np.array([[101, 7592, 2088, 102], [101, 7592, 102, 0]]), np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    assert shown == f"{tfir.compile(str(minilm))(input_ids=ids, attention_mask=mask)[2][0, 0]:f}\n"


def misuse(folder: Path, *flags: str) -> Path:
    shutil.copy(ROOT / "tests" / "runtime" / "misuse.c", folder)
    command = ["cc", *STRICT, "-g", *flags, "-o", "misuse", "misuse.c", "-L.", "-lencoder", "-Wl,-rpath,$ORIGIN"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "misuse"


def test_misuse(tmp_path: Path) -> None:
    Executable(encoder_module()).save(tmp_path / "libencoder.so")
    subprocess.run([misuse(tmp_path)], check=True, timeout=60)
    (tmp_path / "short").write_bytes(b"short")
    subprocess.run([misuse(tmp_path), tmp_path / "short"], check=True, timeout=60)


def test_misuse_under_sanitizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = "int main(void) { return 0; }"
    probe = subprocess.run(["cc", *flags, "-x", "c", "-", "-o", str(tmp_path / "probe")], input=program, text=True, check=False, capture_output=True)
    if probe.returncode or subprocess.run([tmp_path / "probe"], check=False).returncode:
        pytest.skip("cc has no sanitizers here")
    monkeypatch.setenv("CC", " ".join(["cc", *flags]))
    Executable(encoder_module()).save(tmp_path / "libencoder.so")
    alone = {"ASAN_OPTIONS": "detect_leaks=0"}  # that is valgrind's part: some containers forbid what it takes
    done = subprocess.run([misuse(tmp_path, *flags)], check=False, timeout=120, capture_output=True, text=True, env=alone)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]


@pytest.mark.long
def test_misuse_under_valgrind(tmp_path: Path) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("there is no valgrind: apt-get install valgrind")
    Executable(encoder_module("cpu:avx2")).save(tmp_path / "libencoder.so")
    command = ["valgrind", "--quiet", "--leak-check=full", "--error-exitcode=9", "--fair-sched=yes", str(misuse(tmp_path))]
    done = subprocess.run(command, check=False, timeout=280, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
