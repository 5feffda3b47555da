"""What the compiler tells the runtime: plain data, readable by both, without either importing the other.

A :class:`CompiledModule` is the result of a build in memory; the runtime executes it directly or writes it to a ``*.tfc`` file.

The native side is three kinds of symbols in one object file::

    struct tfir_call { const int64_t *dims; void *const *inputs; void *const *outputs; const uint8_t *weights; uint8_t *arena;
                       int64_t *status; int64_t *profile; };
    void tfir_entry_<name>(const struct tfir_call *call, int64_t worker, int64_t workers, void *pool, uint8_t *scratch, int64_t claim);
    void tfir_kernel_<k>(void **buffers, const int64_t *dims, int64_t share, int64_t workers, uint8_t *scratch, int64_t *status);
    and the worker pool: tfir_pool_create, tfir_pool_run, tfir_pool_patience, tfir_pool_destroy, tfir_pool_next.

``dims`` holds the values of ``Manifest.symbols`` in that order. ``status[0]`` is 0, or 1 + the number of the :class:`Site` whose index was
out of range, and ``status[1]`` the offending index. ``profile`` is null, or receives ``i64[workers, n, 4]``: for each share s and kernel call i of
n the cycle counts when a worker arrived, when it passed the barrier, and when it was done, and the number of that worker. Every base
pointer is 64-byte aligned except inputs and outputs, which are aligned to their element.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from trustformers_ir.ir.dims import Dim, SymbolFact
from trustformers_ir.ir.types import TensorType

ABI_VERSION = 3
ALIGNMENT = 64  # of arena buffers, scratch and packed weights, in bytes
WEIGHT_ALIGNMENT = 4096  # of a weight in the artifact, so that it can be mapped
POOL_SYMBOLS = ("tfir_pool_create", "tfir_pool_run", "tfir_pool_patience", "tfir_pool_destroy", "tfir_pool_next")  # entries call the last one
PREFILL, DECODE = "prefill", "decode"  # entries of language models: read a piece of text, read one token
STEP = "step"  # and where caches have one size for good: read the next tokens, however many
START, PIECE = "start", "piece"  # of that entry: the input of how many tokens were read before, the symbol of how many are next
COMPUTED_KEY = "dims.computed"  # of the manifest's metadata: symbols that the code computes, with what they are at most, as JSON
GENERATION_KEY = "generation"  # of the manifest's metadata: which tokens end a text, as JSON
RECIPE_KEY = "quantize"  # of the manifest's metadata: the quantization recipe
QUANTIZATION_KEY = "quantization"  # of the manifest's metadata: what was decided about each product, as JSON
CALLING_KEY = "calling"  # of the manifest's metadata: how nests of arguments become inputs, as JSON (`ir/calling.py`)
TOKENIZER_KEY = "tokenizer.json"  # of the manifest's metadata: the text of the model's tokenizer


@dataclass(frozen=True)
class LayerName:
    """What something is called that layers have in common which see equally many tokens: ``pages``, or ``pages_512`` of those that see 512."""

    stem: str

    def of(self, window: int | None) -> str:
        """The name for layers of a window; None: they see all tokens."""
        return self.stem if window is None else f"{self.stem}_{window}"

    def matches(self, name: str) -> bool:
        """Whether it is such a name."""
        stem, line, window = name.partition("_")
        return stem == self.stem and (window.isdecimal() or not line)

    def window(self, name: str) -> int | None:
        """The window in such a name."""
        window = name.removeprefix(self.stem).removeprefix("_")
        return int(window) if window else None


PAGES = LayerName("pages")  # the input that says which pages texts have
POOL = LayerName("pool")  # the symbol of how many pages there are


@dataclass(frozen=True)
class Port:
    """One input or output of an entry point."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Site:
    """A place in the model whose indices are checked at run time: the op's mnemonic and the source line of it."""

    op: str
    what: str
    bound: str
    location: str = ""


@dataclass(frozen=True)
class KernelInfo:
    """One kernel call of an entry, for reports: what it computes, what it costs."""

    symbol: str
    label: str
    location: str
    flops: Dim
    bytes: Dim


@dataclass(frozen=True)
class Entry:
    """One callable function of the module. The last ``states`` inputs are memory that a call changes: they are read and written in place."""

    name: str
    symbol: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    arena_bytes: Dim
    scratch_bytes: Dim
    kernels: tuple[KernelInfo, ...] = ()
    barriers: int = 0
    states: int = 0


@dataclass(frozen=True)
class StoredWeight:
    """A weight in the storage layout that the kernels read, at a byte offset of the weights section."""

    name: str
    type: TensorType
    offset: int
    bytes: int


@dataclass(frozen=True)
class TargetInfo:
    """What the code was compiled for. Loading checks that the machine has every feature in ``features``."""

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything about a compiled module except its bytes."""

    name: str
    target: TargetInfo
    symbols: tuple[tuple[str, SymbolFact], ...]
    entries: tuple[Entry, ...]
    weights: tuple[StoredWeight, ...]
    sites: tuple[Site, ...]
    compiler: str
    abi: int = ABI_VERSION
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CompiledModule:
    """A build in memory: the manifest, the object code, and, made when they are first asked for, the optimised graph as text and the bytes
    of each weight. (The text names every weight by its digest, so printing it reads them all.)"""

    manifest: Manifest
    code: bytes
    print_graph: Callable[[], str]
    weights: Mapping[str, Callable[[], np.ndarray]]
    digest: Callable[[str], str]  # ``sha256:<hex>`` of a weight by its name; kept once it is known
    report: Mapping[str, object] = field(default_factory=dict)

    @functools.cached_property
    def graph(self) -> str:
        """The text of the optimised graph."""
        return self.print_graph()
