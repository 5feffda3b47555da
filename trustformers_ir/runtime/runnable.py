"""What every executable is, whatever executes it: a compiled module that says what it takes, gives and costs, and that can be called and saved.

``executable.py`` runs modules on CPUs, ``gpu/executable.py`` on GPUs.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trustformers_ir.ir.abi import CALLING_KEY, CompiledModule, Entry, Manifest, Port
from trustformers_ir.ir.calling import Calling
from trustformers_ir.ir.diagnostics import Code, CompilerError, InternalError, Where
from trustformers_ir.ir.dims import Dim, SymbolFact, evaluate
from trustformers_ir.ir.types import TensorType
from trustformers_ir.runtime import container, memory
from trustformers_ir.runtime.entry_call import EntryCall
from trustformers_ir.runtime.generation.caches import Caches, HostCaches
from trustformers_ir.runtime.generation.loop import Beams, Ending, generate
from trustformers_ir.runtime.generation.pages import PagedCaches, is_table
from trustformers_ir.runtime.generation.sampling import Sampling
from trustformers_ir.runtime.generation.settings import end_tokens, text_decoder
from trustformers_ir.runtime.manifest import quantization
from trustformers_ir.runtime.profile import Profile


class Runnable:
    """A compiled module: ``exe(*inputs, **named)`` calls its first entry, ``exe.run(..., entry=name)`` any other.

    numpy arrays give numpy arrays; if any input is a torch tensor, torch tensors come out. One output comes as it is, several as a tuple.
    """

    threads: int  # of the CPU that execute it

    def __init__(self, compiled: CompiledModule, parse: Callable[..., Any] | None = None, family: Sequence[CompiledModule] = ()) -> None:
        """``parse(text, resolve=…)`` reads the text of the graph, for ``module``. ``family``: the module for each of its targets, best first;
        ``compiled`` is the one of them that is executed, ``save`` writes all."""
        self.compiled = compiled
        self.family = tuple(family) or (compiled,)
        self._parse = parse
        self._lasted: dict[str, int] = {}  # nanoseconds of the last call of each entry, without the preparation of its inputs
        self._calls: Mapping[str, EntryCall[Any]] = {e.name: self._callable(e) for e in compiled.manifest.entries}
        if not self._calls:
            raise InternalError.of(Code.INTERNAL, "a compiled module without an entry")
        self._first = next(iter(self._calls.values()))
        self.calling = Calling.of(compiled.manifest.metadata[CALLING_KEY]) if CALLING_KEY in compiled.manifest.metadata else None

    # -- what executes it --------------------------------------------------------------------------------------------

    @abstractmethod
    def _callable(self, entry: Entry) -> EntryCall[Any]:
        """What calls an entry."""

    @abstractmethod
    def prepare(self) -> object:
        """Loads code and weights, unless that is done. ``ARTIFACT_TARGET`` when the code is for another machine."""

    @abstractmethod
    def profile(self, /, *inputs: Any, entry: str | None = None, **named: Any) -> Profile:
        """Calls ``entry`` once, as :meth:`run` does, and says what happened when."""

    @abstractmethod
    def close(self) -> None:
        """Gives back what the machine lends to it. The next call takes it again."""

    def _weight_makers(self) -> Mapping[str, Callable[[], np.ndarray]]:
        """What gives the bytes of weights that are laid out in memory."""
        return {}

    def _told(self) -> Mapping[str, object]:
        """What ``report`` says of how it is executed."""
        return {}

    def _predicted(self, entry: Entry, dims: Mapping[str, int]) -> tuple[Sequence[Mapping[str, object]], float] | None:
        """What is predicted for each kernel, and milliseconds of all together; None where nothing is."""
        return None

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        return self.compiled.manifest

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Inputs of the first entry."""
        return self._first.entry.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Outputs of the first entry."""
        return self._first.entry.outputs

    @property
    def entries(self) -> tuple[str, ...]:
        """Names of the entries."""
        return tuple(self._calls)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets that there is code for, best first; ``manifest.target`` is the one that is executed."""
        return tuple(m.manifest.target.name for m in self.family)

    @property
    def symbols(self) -> dict[str, SymbolFact]:
        """The dim symbols and what their values may be."""
        return dict(self.manifest.symbols)

    @property
    def graph(self) -> str:
        """The optimised graph as text."""
        return self.compiled.graph

    @functools.cached_property
    def module(self) -> Any:
        """The optimised graph with its weights, read from its text. ``USAGE`` where nobody gave ``parse``."""
        if self._parse is None:
            raise CompilerError.of(Code.USAGE, "the runtime cannot read a graph", help="load the artifact with trustformers_ir.load, or see .graph")
        return self._parse(self.graph, resolve=self._resolve)

    def _resolve(self, digest: str, type: TensorType) -> np.ndarray | None:
        """The array of a weight that the graph names by its digest."""
        name = self._names.get(digest)
        stored = next((w for w in self.manifest.weights if w.name == name), None)
        return None if stored is None else memory.typed_view(memory.weight_bytes(stored, self.compiled.weights[stored.name]), type)

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        """Names of the weights by their digests."""
        return {self.compiled.digest(w.name): w.name for w in self.manifest.weights}

    def report(self, dims: Mapping[str, int] | None = None, **named: int) -> dict[str, object]:
        """What the compiler did and what a call costs, as plain data: ``report(batch=1, seq=128)``.

        Costs that depend on dims are texts, or numbers when the dims are given. ``arena_bytes`` is then exactly what such a call allocates.
        ``predicted_ms`` (of an entry, and ``predicted_us`` and ``bound`` of its kernels) is there when all dims are given and the rates of this
        machine are known for so many threads: ``tfc bench`` measures them once. How far it may be off: ``docs/performance.md``.
        """
        m = self.manifest
        dims = {**(dims or {}), **named} if dims is not None or named else None
        whole = dims is not None and all(name in dims for name, _ in m.symbols)

        def shown(dim: Dim) -> object:
            return dim if isinstance(dim, int) else str(dim) if dims is None else _value(dim, dims)

        entries: dict[str, dict[str, object]] = {}
        for e in m.entries:
            kernels: list[dict[str, object]] = [
                {"symbol": k.symbol, "label": k.label, "location": k.location, "flops": shown(k.flops), "bytes": shown(k.bytes)} for k in e.kernels
            ]
            entries[e.name] = {
                "inputs": {p.name: str(p.type) for p in e.inputs},
                "outputs": {p.name: str(p.type) for p in e.outputs},
                "kernels": kernels,
                "flops": shown(self._calls[e.name].costs[0]),
                "barriers": e.barriers,
                "arena_bytes": shown(e.arena_bytes),
                "scratch_bytes_per_thread": shown(e.scratch_bytes),
                "last_call_ms": self._lasted[e.name] / 1e6 if e.name in self._lasted else None,
                "predicted_ms": None,
            }
            found = self._predicted(e, dims) if whole and dims is not None else None
            if found is not None:
                for row, more in zip(kernels, found[0], strict=True):
                    row |= more
                entries[e.name]["predicted_ms"] = found[1]
        told = quantization(m.metadata)
        return {
            **self.compiled.report,
            **({} if told is None else {"quantization": told}),
            "name": m.name,
            "compiler": m.compiler,
            "target": m.target.name,
            "targets": list(self.targets),
            **self._told(),
            "weights": len(m.weights),
            "weight_bytes": sum(w.bytes for w in m.weights),
            "code_bytes": len(self.compiled.code),
            "entries": entries,
        }

    # -- what it does ------------------------------------------------------------------------------------------------

    def __call__(self, /, *inputs: Any, **named: Any) -> Any:
        if self.calling is None:
            return self._first(inputs, named)
        return self.calling.results(self._first((), self.calling.arguments(inputs, named)))

    def run(self, /, *inputs: Any, entry: str | None = None, **named: Any) -> Any:
        """Calls ``entry`` (None: the first). ``UNKNOWN_ENTRY`` when there is none of that name."""
        return self.called(entry)(inputs, named)

    def generate(
        self,
        prompt_ids: Any,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        seed: int | None = None,
        stream: bool | Callable[[Any], object] = False,
        stop: Sequence[str] | str = (),
        ends: Sequence[int] | None = None,
        decode: Callable[[list[int]], str] | None = None,
    ) -> Any:
        """The continuation of a prompt, token ids ``[length]``: its new tokens, ``i64[new]``, the one that ended it included. Several prompts, of any
        lengths, give a list of such arrays.

        A text ends behind ``max_new_tokens``, with one of the tokens ``ends`` (None: those that the model names; ``()``: none), or when it holds one
        of the texts ``stop``, which ``decode`` finds (None: the tokenizer in the artifact). How tokens are chosen, ``temperature`` 0 being the
        likeliest, is said in ``runtime/generation/sampling.py``; ``seed`` makes it repeatable. ``num_beams`` above 1 is beam search. ``stream=True``
        gives an iterator, of a token at a time, or of a list with one for each prompt and None where it has ended; a function is called with each
        instead.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        texts = (stop,) if isinstance(stop, str) else tuple(stop)
        if texts and decode is None:
            decode = text_decoder(self.manifest.metadata)
        found = end_tokens(self.manifest.metadata) if ends is None else ends
        ending = Ending(max_new_tokens, frozenset(int(n) for n in found), texts, decode)
        return generate(self, prompt_ids, sampling, ending, Beams(num_beams, length_penalty), seed, stream)

    def caches(self, ports: Sequence[Port]) -> Caches:
        """Memory for the states of texts, where this executable keeps it; ``ports`` are those of an entry behind the tokens and the lengths."""
        return PagedCaches(ports) if any(map(is_table, ports)) else HostCaches(ports)

    def called(self, entry: str | None) -> EntryCall[Any]:
        """The entry of that name; None: the first."""
        if entry is None:
            return self._first
        if entry not in self._calls:
            message = f"there is no entry '{entry}'"
            raise CompilerError.of(Code.UNKNOWN_ENTRY, message, help=f"the entries are {', '.join(self._calls)}")
        return self._calls[entry]

    def save(self, path: str | os.PathLike[str], *, embed_weights: bool = False, durable: bool = True) -> None:
        """Writes the module as an artifact, which ``runtime.artifact.load`` reads back, whole or not at all; ``durable`` waits for the disk.
        ``embed_weights`` is for shared libraries, which there are of code for CPUs alone."""
        if embed_weights:
            raise CompilerError.of(Code.USAGE, "weights are embedded in shared libraries alone", Where(file=os.fspath(path)), "name it *.so")
        container.write(self.family, path, self._makers(), durable)

    def _makers(self) -> dict[str, Callable[[], np.ndarray]]:
        """What gives the bytes of each weight of the family."""
        return {name: make for m in self.family for name, make in m.weights.items()} | dict(self._weight_makers())

    def annotate(self, more: Mapping[str, object]) -> None:
        """Adds to what ``report()`` says."""
        self.compiled = dataclasses.replace(self.compiled, report={**self.compiled.report, **more})


def _value(dim: Dim, dims: Mapping[str, int]) -> object:
    try:
        return evaluate(dim, dims)
    except KeyError:
        return str(dim)
