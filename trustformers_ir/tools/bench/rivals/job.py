"""What a contestant is asked to do, and what it gives back. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Inputs = Mapping[str, np.ndarray]
Call = Callable[[Inputs], np.ndarray]  # the inputs by name -> the first output of the model


@dataclass(frozen=True)
class Job:
    """One model with inputs of one shape.

    ``model`` is what the user named; peers read checkpoint folders only. ``inputs[0]`` is timed, the others serve to compare outputs.
    ``calibration`` are more of them, for static quantization. ``work`` is a folder that the contestants of one contest share: exports are kept there.
    """

    model: str
    inputs: Sequence[Inputs]
    calibration: Sequence[Inputs]
    threads: int
    work: Path
    quantize: str | None = None
    dtype: str | None = None
    target: str = "cpu"

    @property
    def example(self) -> Inputs:
        return self.inputs[0]
