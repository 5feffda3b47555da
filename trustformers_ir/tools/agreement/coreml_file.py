"""A Core ML package that is verified, in numpy: Apple's runtime is on Apple's systems only.

One with states, a decoder that reads on, is given each text in pieces: half of it, then token by token, then what is left. What it says after each
piece is held against what the source says at that token when it reads the whole text at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trustformers_ir.codegen.export.coreml.evaluate import Package, computes_in_f16
from trustformers_ir.codegen.export.coreml.weights import WEIGHTS_KEY, WeightForm, rounded_module
from trustformers_ir.ir.abi import START
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import argument_names
from trustformers_ir.tools.agreement.llama_cpp import lengths_of
from trustformers_ir.tools.agreement.tolerance import UNITS

Arrays = Mapping[str, np.ndarray]
IDS = "input_ids"
SINGLE = 6  # tokens that are read one by one
ROWS = 2  # of a probe: each is a text of its own


class CoreMlFile:
    """A package, and the model that it is compared with. ``UNREADABLE``, or ``USAGE`` where it has states and the other is no language model."""

    def __init__(self, path: str, source: Module) -> None:
        self.package = Package(path)
        main = source.main
        self._ranks = [v.type.rank for v in main.outputs]
        program = self.package.program
        self.outputs = len(program.functions["main"].outputs)
        self.least = UNITS[DType.f16] if computes_in_f16(program) else 0.0
        form = next((f for f in WeightForm if f.value == self.package.metadata.get(WEIGHTS_KEY)), None)
        #: how the package says that it rounds weights, and the source with its weights rounded so
        self.quantize = "" if form is None else form.value
        self.quantized = None if form is None else rounded_module(source, form)
        self.capacity = min((state.shape[2] for state in self.package.new_state().values() if state.ndim == 4), default=0)
        if self.capacity and (set(self.package.inputs) != {IDS, START} or IDS not in argument_names(main) or self._ranks != [3]):
            message = f"'{path}' keeps states, and only a language model says what they ought to be"
            raise CompilerError.of(Code.USAGE, message, Where(file=path), "name the model that it was made of")

    def run(self, arrays: Arrays) -> list[np.ndarray]:
        """The outputs of one call."""
        made = list(self.package.run(arrays).values())
        return [m if n >= len(self._ranks) or self._ranks[n] else m.reshape(()) for n, m in enumerate(made)]

    def read_on(self, arrays: Arrays) -> list[np.ndarray]:
        """``[pieces, vocabulary]``: what is said after each piece of each text."""
        said = []
        for row, length in self._texts(arrays):
            state, at = self.package.new_state(), 0
            for end in _ends(length):
                given = {IDS: arrays[IDS][row : row + 1, at:end], START: np.array([at])}
                (scores,) = self.package.run(given, state).values()
                said.append(scores[0])
                at = end
        return [np.stack(said)] if said else [np.zeros((0, 1), np.float32)]

    def true_scores(self, arrays: Arrays, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What :meth:`read_on` ought to be, from scores ``[batch, length, vocabulary]``."""
        (scores,) = outputs
        found = [scores[row, end - 1] for row, length in self._texts(arrays) for end in _ends(length)]
        return [np.stack(found)] if found else [np.zeros((0, 1), np.float32)]

    def _texts(self, arrays: Arrays) -> list[tuple[int, int]]:
        """The first rows that are not all padding, and how many tokens of each fit."""
        return [(row, min(n, self.capacity)) for row, n in enumerate(lengths_of(arrays)) if n][:ROWS]


def _ends(length: int) -> list[int]:
    """Where the pieces of a text end."""
    half = -(-length // 2)
    single = list(range(half, min(half + SINGLE, length) + 1))
    return single if single[-1] == length else [*single, length]
