"""Building blocks that no family uses yet."""

from __future__ import annotations

import math

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.models.blocks import SinusoidalPositions


@pytest.mark.parametrize("features", [6, 7])
def test_sinusoidal_positions_are_those_of_the_paper(features: int) -> None:
    positions = SinusoidalPositions(40, features)
    module = tfir.trace(lambda x: x + positions.first(x.shape[0]), tfir.f32["n", features], facts={"n": (1, 40)})
    found = tfir.compile(module)(np.zeros((33, features), np.float32))
    for p in (0, 1, 17, 32):
        for i in range(features):
            angle = p / 10000 ** ((i - i % 2) / features)
            assert found[p, i] == pytest.approx(math.cos(angle) if i % 2 else math.sin(angle), abs=1e-6)
