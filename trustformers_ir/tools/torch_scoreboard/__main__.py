"""``python -m trustformers_ir.tools.torch_scoreboard [--dtype D] [--most N] [--json FILE] [op …]``: all samples, and tables of what came of them.

Ops that end their process, or take too long, are lost, and the others are run (``tools/worker_pool.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trustformers_ir.tools.torch_scoreboard.judge import WAYS, Outcome, Status, run
from trustformers_ir.tools.torch_scoreboard.report import report
from trustformers_ir.tools.torch_scoreboard.samples import DTYPES, Unit, units
from trustformers_ir.tools.worker_pool import rows_of

SECONDS = 1200.0  # for one share
SHARE = 256  # samples of ops that are run together, about
USUAL = 25  # samples of an op at a dtype


def shares(chosen: Sequence[Unit], most: int) -> list[list[Unit]]:
    """Ops of one dtype, of which a process makes programs."""
    size = max(SHARE // min(most or USUAL, USUAL), 1)
    by_dtype = [[u for u in chosen if u.dtype == dtype] for dtype in DTYPES]
    return [some[start : start + size] for some in by_dtype for start in range(0, len(some), size)]


def run_all(dtypes: Sequence[str] = (), ops: Sequence[str] = (), most: int = 0, jobs: int = 1, tell: bool = True, log: Any = None) -> list[Outcome]:
    """What came of every op and dtype; each is written to ``log`` as a line as soon as it is known."""
    work = shares(units(dtypes, ops), most)
    arguments = [*(a for d in dtypes for a in ("--dtype", d)), "--most", str(most), *ops]
    found: dict[int, list[Outcome]] = {}
    for row in rows_of(["trustformers_ir.tools.torch_scoreboard", *arguments], len(work), jobs, SECONDS, tell):
        number = int(row["number"])
        some = [_lost(u, str(row["lost"])) for u in work[number]] if "lost" in row else [Outcome(**o) for o in row["outcomes"]]
        found[number] = some
        for o in some if log is not None else ():
            print(json.dumps(asdict(o)), file=log, flush=True)
    return [o for i in range(len(work)) for o in found[i]]


def _lost(unit: Unit, why: str) -> Outcome:
    outcome = Outcome(unit.op, unit.dtype, 1, bad=[f"{Status.FAILED.value} it, or another of its share: {why}"])
    for way in WAYS:
        outcome.counts[way] = {Status.FAILED.value: 1}
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trustformers_ir.tools.torch_scoreboard", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ops", nargs="*", metavar="op", help="names of op_db's; all when none is given")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="all five when none is given")
    parser.add_argument("--most", type=int, default=0, metavar="N", help="samples of an op and dtype, taken evenly; 0: all (62,000)")
    parser.add_argument("--json", metavar="FILE", help="write a line for each op and dtype there, as they come")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    dtypes = given.dtype or []
    if given.worker is not None:
        work = shares(units(dtypes, given.ops), given.most)
        for number in map(int, given.worker.split(",")):
            print(json.dumps({"number": number, "outcomes": [asdict(o) for o in run(work[number], given.most)]}), flush=True)
        return 0
    started = time.perf_counter()
    log = open(given.json, "w", encoding="utf-8") if given.json else None  # noqa: SIM115
    outcomes = run_all(dtypes, given.ops, given.most, max(1, given.jobs), log=log)
    if log is not None:
        log.close()
    print(report(outcomes))
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    return 0 if all(o.ok for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
