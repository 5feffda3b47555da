"""What several files of tests of the runtime start from."""

from __future__ import annotations

import pytest

from trustformers_ir.runtime import executable


@pytest.fixture
def all_calls_use_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small calls, too."""
    monkeypatch.setattr(executable, "ALONE_BELOW", 0)
