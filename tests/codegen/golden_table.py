"""Tables of what compilers made of kernels, in files: those of another version of Triton say nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="pip install triton")

FOLDER = Path(__file__).parent / "golden"


def check_golden(file: str, prefix: str, found: Mapping[str, Any], config: pytest.Config) -> None:
    """The rows of a table whose names begin with ``prefix`` are those found; ``--refresh`` makes them so."""
    path = FOLDER / file
    golden = json.loads(path.read_text()) if path.exists() else {}
    if config.getoption("--refresh"):
        kept = {k: v for k, v in golden.items() if not k.startswith(prefix)}
        path.write_text(json.dumps(dict(sorted({**kept, **found, "triton": triton.__version__}.items())), indent=1) + "\n")
    elif golden["triton"] == triton.__version__:
        assert {k: v for k, v in golden.items() if k.startswith(prefix)} == found
