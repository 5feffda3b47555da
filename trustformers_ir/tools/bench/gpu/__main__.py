"""All scripts: ``python -m trustformers_ir.tools.bench.gpu``."""

from __future__ import annotations

from trustformers_ir.tools.bench.gpu import attention, bert_large, decode, norms, w4a16
from trustformers_ir.tools.bench.gpu.contest import run

SCRIPTS = (bert_large, attention, norms, decode, w4a16)

if __name__ == "__main__":
    run(*(script.works for script in SCRIPTS))
