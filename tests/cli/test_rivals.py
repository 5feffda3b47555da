"""The rivals of `tfc bench` compute the same model, padded texts included: a rival that leaves something out would win by it. They are an optional
extra (`pip install 'trustformers_ir[peers]'`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trustformers_ir.tools.bench.models import write_random
from trustformers_ir.tools.bench.rivals.job import Job
from trustformers_ir.tools.bench.rivals.table import OURS, OWN, RIVALS

NAMES = ("eager", "onnxruntime", "onnxruntime-opt", "openvino", "openvino-throughput")
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SIZES |= {"vocab_size": 200, "max_position_embeddings": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("rivals") / "model"
    write_random(folder, "bert", SIZES)
    return str(folder)


def texts(padded: bool) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(1, 200, (4, 16))
    mask = np.ones_like(ids)
    if padded:
        mask[1, 10:] = 0
        mask[2, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@pytest.mark.long
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_rival_computes_the_model(name: str, padded: bool, model: str, tmp_path: Path) -> None:
    pytest.importorskip({"eager": "transformers"}.get(name, name.partition("-")[0]))
    job = Job(model, [texts(padded)], [texts(padded)], 2, tmp_path)
    want = OWN[OURS].make(job)(job.example)
    got = RIVALS[name].make(job)(job.example)
    real = job.example["attention_mask"] == 1
    np.testing.assert_allclose(got[real], want[real], atol=1e-5)
