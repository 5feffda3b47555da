"""``python -m trustformers_ir.tools.onnx_scoreboard [--json FILE] [--filter TEXT] [--jobs N]``: all cases, and a table of what came of them per op.

A case that ends its process, or takes too long, is lost, and the others are run (``tools/worker_pool.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from trustformers_ir.tools.onnx_scoreboard.cases import Case, model_cases, node_cases
from trustformers_ir.tools.onnx_scoreboard.judge import Outcome, Status, run
from trustformers_ir.tools.worker_pool import rows_of

SECONDS = 120.0  # for one case


def chosen(suites: Sequence[str], text: str) -> list[Case]:
    """The cases of the suites whose name has the text in it."""
    found: list[Case] = []
    if "node" in suites:
        found += node_cases()
    if "models" in suites:
        found += model_cases()
    return [c for c in found if text in c.name]


def as_row(outcome: Outcome) -> dict[str, object]:
    return {**asdict(outcome), "status": outcome.status.value}


def of_row(row: dict[str, object]) -> Outcome:
    return Outcome(**{**row, "status": Status(row["status"])})  # type: ignore[arg-type]


def run_all(cases: Sequence[Case], jobs: int, arguments: Sequence[str], tell: bool = True) -> list[Outcome]:
    """What came of every case, in order."""
    found: dict[int, Outcome] = {}
    for row in rows_of(["trustformers_ir.tools.onnx_scoreboard", *arguments], len(cases), jobs, SECONDS, tell):
        number = int(row.pop("number"))
        case = cases[number]
        lost = row.get("lost")
        found[number] = Outcome(case.name, case.op, Status.CRASHED, str(lost), case.expanded, case.suite) if lost else of_row(row)
    return [found[i] for i in range(len(cases))]


def table(outcomes: Sequence[Outcome]) -> str:
    """Counts per op, those that did not pass with their reasons, and the sum."""
    columns = list(Status)
    lines = []
    by_op: dict[str, Counter[Status]] = {}
    for o in outcomes:
        by_op.setdefault(o.op, Counter())[o.status] += 1
    width = max(map(len, by_op), default=2) + 2
    lines.append("op".ljust(width) + "".join(s.value.rjust(9) for s in columns))
    for op, counts in sorted(by_op.items()):
        lines.append(op.ljust(width) + "".join((str(counts[s]) if counts[s] else "").rjust(9) for s in columns))
    lines.append("")
    for o in outcomes:
        if o.status not in (Status.PASSED, Status.RANDOM):
            lines.append(f"{o.status.value:9} {o.name}: {o.detail[:200]}")
    lines.append("")
    lines.append(summary(outcomes))
    return "\n".join(lines)


def summary(outcomes: Sequence[Outcome]) -> str:
    total = Counter(o.status for o in outcomes)
    counted = [o for o in outcomes if o.status is not Status.RANDOM]
    passed = total[Status.PASSED]
    share = 100 * passed / max(len(counted), 1)
    rest = ", ".join(f"{total[s]} {s.value}" for s in Status if s is not Status.PASSED and total[s])
    return f"{passed} of {len(counted)} deterministic cases pass ({share:.1f} %); {rest or 'none else'}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trustformers_ir.tools.onnx_scoreboard", description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write all outcomes there")
    parser.add_argument("--filter", default="", help="only cases with this in their name")
    parser.add_argument("--suite", action="append", choices=["node", "models"], help="node, models; both when not given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    suites = given.suite or ["node", "models"]
    cases = chosen(suites, given.filter)
    if given.worker is not None:
        for number in map(int, given.worker.split(",")):
            print(json.dumps({"number": number, **as_row(run(cases[number]))}), flush=True)
        return 0
    started = time.perf_counter()
    arguments = ["--filter", given.filter, *(a for s in suites for a in ("--suite", s))]
    outcomes = run_all(cases, max(1, given.jobs), arguments)
    print(table(outcomes))
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    if given.json:
        with open(given.json, "w", encoding="utf-8") as stream:
            json.dump([as_row(o) for o in outcomes], stream, indent=1)
    return 0 if all(o.status in (Status.PASSED, Status.RANDOM, Status.REFUSED) for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
