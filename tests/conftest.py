"""What tests of every room share."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # Triton asks when it is imported, by whomever
os.environ["TFIR_CACHE"] = "0"  # also for the processes that tests start; those of the compile cache give it a folder of their own
os.environ["TFIR_SCHEDULES"] = "0"  # what was tuned on this machine is not what is tested
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the small real encoder (MiniLM-L6); `make test` and `make model` fetch it."""
    folder = ROOT / ".cache" / "models" / "minilm"
    if not (folder / ".complete").is_file():
        pytest.skip("the model is not there: run `make model`")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of the small real decoder (SmolLM2-135M-Instruct, Q4_1); `make test` and `make models` fetch it."""
    folder = ROOT / ".cache" / "models" / "smollm2"
    if not (folder / ".complete").is_file():
        pytest.skip("the model is not there: run `make models`")
    return next(folder.glob("*.gguf"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported for the tests, torch among it, is millions of objects that stay: no collection is to look at them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def few_objects() -> None:
    """For tests that collect garbage again and again: they look at what they make, not at everything that was imported."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    gc.unfreeze()  # libraries look for leaks when the process ends


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh", action="store_true", help="write golden files anew instead of comparing with them")
    parser.addoption("--case", metavar="NAME", help='run one conformance case alone: "linear#3", or "linear#3 on cpu:avx2"')
