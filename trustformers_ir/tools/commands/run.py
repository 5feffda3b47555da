"""``tfc run``: a model on texts or arrays."""

from __future__ import annotations

import json as jsonlib
import math
import time
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import typer

import trustformers_ir as tfir
from trustformers_ir.frontend.onnx.convert import port_name
from trustformers_ir.ir.atomic import atomic_output, check_writable, write_text
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dims import Facts
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.progress import note
from trustformers_ir.tools import console
from trustformers_ir.tools.arrays import load_arrays
from trustformers_ir.tools.commands.generate import Wish, check_can_write, continue_prompt
from trustformers_ir.tools.commands.options import Cache, Calibrate, Dtype, Json, Quantize, Target, Threads, check_options_of_artifact, files
from trustformers_ir.tools.text import sentence_vectors, tokenizer_of


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL|FILE.tfc", help="An artifact, or anything that `tfc compile` takes.", show_default=False)],
    text: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A text to read; give it again for more.")] = None,
    text_file: Annotated[str | None, typer.Option(metavar="FILE", help="A file with a text on each line.")] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="A prompt to continue.")] = None,
    length: Annotated[int | None, typer.Option("-n", min=1, metavar="N", help="How many tokens to generate at most (64).")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, metavar="T", help="Randomness of generated tokens; 0 takes the likeliest.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, metavar="K", help="Draw from the K likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, metavar="P", help="Draw from the likeliest that make up P.")] = None,
    min_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, metavar="P", help="Draw from those P times as likely as the best.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(metavar="R", help="Above 1: tokens that occurred are less likely.")] = None,
    beams: Annotated[int | None, typer.Option(min=1, metavar="N", help="Follow the N likeliest continuations.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Makes what is drawn repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End where this text is written; give it again for more.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show tokens as they are generated.")] = False,
    input: Annotated[list[str] | None, typer.Option(metavar="NAME=FILE.npy", help="An input array; give it again for more.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE.npz", help="Where to write the outputs.")] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="B", help="How many texts are run at once.")] = 32,
    pad: Annotated[bool, typer.Option(help="Run texts of different lengths together, padded; or each length by itself.")] = True,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long for the model.")] = False,
    profile: Annotated[
        str | None, typer.Option(metavar="TRACE.json", help="Profile the largest batch: a table on stderr, a trace for Perfetto in the file.")
    ] = None,
    target: Target = "cpu",
    quantize: Quantize = None,
    calibrate: Calibrate = None,
    dtype: Dtype = None,
    cache: Cache = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Run MODEL, compiling it first unless it is an artifact."""
    texts = [(t, Where()) for t in text or []] + (_lines(text_file) if text_file is not None else [])
    wish = Wish(length, temperature, top_k, top_p, min_p, repetition_penalty, beams, seed, tuple(stop or ()), stream)
    if prompt is None and wish.asked:
        raise console.usage("options of generation without a prompt", '--prompt "The capital of France is"')
    if prompt is not None and (texts or input or output is not None or profile is not None):
        raise console.usage("--prompt excludes --text, --text-file, --input, --output and --profile", "give a prompt alone")
    if texts and input:
        raise console.usage("--text and --input exclude each other", "give texts, or arrays")
    if output is not None:
        if not output.endswith((".npz", ".npy")):
            raise console.usage(f"'{output}' is neither a .npz nor a .npy file", "--output FILE.npz")
        check_writable(output)
    if profile is not None:
        check_writable(profile)
    arrays = load_arrays(input or [])
    with console.progress("loading" if model.endswith(".tfc") else "compiling"):
        if model.endswith(".tfc"):
            check_options_of_artifact(model, quantize, dtype, cache)
            executable = tfir.load(model, threads=threads, target=None if target == "cpu" else target)
        else:
            given = arrays if model.endswith(".onnx") and arrays else None  # what decides over shapes takes its value from them
            options: dict[str, Any] = {"target": target, "dtype": dtype, "quantize": quantize, "cache": cache, "threads": threads}
            executable = tfir.compile(model, given, calibration=files(calibrate), **options)
    arrays = _as_ports(executable, arrays)
    if prompt is not None:
        check_can_write(executable, model)
        continue_prompt(executable, model, prompt, wish, json)
        return
    started = time.perf_counter()
    call = _Call(executable)
    results = _run_texts(executable, call, model, texts, batch, pad, truncate) if texts else _named(executable, call(**arrays))
    seconds = time.perf_counter() - started
    if profile is not None:
        told = executable.profile(**call.largest)
        write_text(profile, jsonlib.dumps(told.trace()))
        console.say(f"{told}\n{profile}: open it in https://ui.perfetto.dev or chrome://tracing")
    if output is not None:
        _save(output, results)
        console.say(f"{output}: {', '.join(results)}; ran in {seconds * 1e3:.1f} ms")
    if json:
        console.print_json({"seconds": seconds, "outputs": [_summary(n, a) for n, a in results.items()]})
    elif output is None:
        rows = [list(_summary(n, a).values()) for n, a in results.items()]
        console.print_table(rows, ("output", "dtype", "shape", "min", "max", "mean"))


class _Call:
    """Calls the executable, and remembers the largest inputs for ``--profile``."""

    def __init__(self, executable: Any) -> None:
        self.executable = executable
        self.largest: dict[str, Any] = {}

    def __call__(self, **arrays: np.ndarray) -> Any:
        if sum(a.size for a in arrays.values()) >= sum(a.size for a in self.largest.values()):
            self.largest = arrays
        return self.executable(**arrays)


Texts = list[tuple[str, Where]]
"""Texts, and where each comes from."""


def _run_texts(executable: Any, call: _Call, model: str, texts: Texts, batch: int, pad: bool, truncate: bool) -> dict[str, np.ndarray]:
    """Every text once, in batches; outputs are joined in the order of the texts, with zeros where a text has no token."""
    ports = {p.name: p.type for p in executable.inputs}
    if "input_ids" not in ports:
        message = f"the model does not read text: its inputs are {', '.join(ports)}"
        raise CompilerError.of(Code.USAGE, message, help="give it arrays: --input name=file.npy")
    sequence = ports["input_ids"].shape[-1]
    _, longest = Facts(dict(executable.manifest.symbols)).bounds(sequence)
    tokenizer = tokenizer_of(model, executable.manifest.metadata)
    room = None if longest == math.inf else int(longest)
    ids, mask = tokenizer.encode_batch([t for t, _ in texts], room, truncate=truncate, places=[place for _, place in texts])
    lengths = mask.sum(axis=1)
    per_token = {p.name: p.type.rank > 1 and p.type.shape[1] == sequence for p in executable.outputs}
    joined: dict[str, np.ndarray] = {}
    groups = _groups(lengths, batch, pad)
    for done, group in enumerate(groups):
        note("running", done, len(groups))
        width = int(lengths[group].max())
        feed = {"input_ids": ids[group, :width], "attention_mask": mask[group, :width]}
        feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
        typed = {name: np.ascontiguousarray(array, ports[name].dtype.numpy) for name, array in feed.items() if name in ports}
        for name, array in _named(executable, call(**typed)).items():
            shape = (len(texts), ids.shape[1], *array.shape[2:]) if per_token[name] else (len(texts), *array.shape[1:])
            whole = joined.setdefault(name, np.zeros(shape, array.dtype))
            if per_token[name]:
                real = feed["attention_mask"].reshape(len(group), width, *(1,) * (array.ndim - 2))
                whole[group, :width] = np.where(real, array, array.dtype.type(0))  # what stands beside padding depends on the batch
            else:
                whole[group] = array
    if "last_hidden_state" in joined and "sentence_embedding" not in joined:
        joined["sentence_embedding"] = sentence_vectors(joined["last_hidden_state"], mask)
    return joined | {"input_ids": ids, "attention_mask": mask}


def _groups(lengths: np.ndarray, batch: int, pad: bool) -> list[np.ndarray]:
    """Which texts run together: those of like length, for less padding; of equal length when there is to be none."""
    order = np.argsort(lengths, kind="stable")
    runs = [order] if pad else np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)
    return [run[i : i + batch] for run in runs for i in range(0, len(run), batch)]


def _as_ports(executable: Any, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays under the names of the inputs: in ONNX files names have other characters as well."""
    ports = {p.name for p in executable.inputs}
    plain = {name: name if name in ports else port_name(name) for name in arrays}
    return {plain[name] if plain[name] in ports else name: a for name, a in arrays.items()}


def _named(executable: Any, results: Any) -> dict[str, np.ndarray]:
    values = results if isinstance(results, tuple | list) else (results,)
    return {port.name: np.asarray(value) for port, value in zip(executable.outputs, values, strict=True)}


def _lines(path: str) -> Texts:
    try:
        with open(path, encoding="utf-8") as stream:
            texts = [(line.rstrip("\n"), Where(file=path, line=number)) for number, line in enumerate(stream, 1) if line.strip()]
    except FileNotFoundError:
        raise CompilerError.of(Code.FILE_NOT_FOUND, f"'{path}' does not exist", Where(file=path), "look at the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CompilerError.of(
            Code.UNREADABLE, f"cannot read '{path}': {error}", Where(file=path), "a UTF-8 file with a text on each line"
        ) from error
    if not texts:
        raise CompilerError.of(Code.USAGE, f"'{path}' holds no text", Where(file=path), "a UTF-8 file with a text on each line")
    return texts


def _save(path: str, results: Mapping[str, np.ndarray]) -> None:
    plain = {name: a.astype(np.float32) if DType.from_numpy(a.dtype) is DType.bf16 else a for name, a in results.items()}
    if path.endswith(".npy") and len(plain) != 1:
        raise console.usage(f"a .npy file holds one array, the model has {len(plain)} outputs", "--output FILE.npz")
    with atomic_output(path) as stream:
        if path.endswith(".npy"):
            np.save(stream, next(iter(plain.values())))
        else:
            np.savez(stream, **plain)  # type: ignore[arg-type]


def _summary(name: str, array: np.ndarray) -> dict[str, object]:
    row: dict[str, object] = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    if not array.size or np.iscomplexobj(array):
        return row | {"min": None, "max": None, "mean": None}
    wide = array.astype(np.float64)
    return row | {"min": round(float(wide.min()), 6), "max": round(float(wide.max()), 6), "mean": round(float(wide.mean()), 6)}
