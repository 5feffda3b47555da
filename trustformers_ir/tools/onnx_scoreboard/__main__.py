"""``python -m trustformers_ir.tools.onnx_scoreboard [--json FILE] [--filter TEXT] [--jobs N]``: all cases, and a table of what came of them per op.

Each worker process runs a share of the cases and says what came of each; one that dies or takes too long loses the case it was at, and another
goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from trustformers_ir.tools.onnx_scoreboard.cases import Case, model_cases, node_cases
from trustformers_ir.tools.onnx_scoreboard.judge import Outcome, Status, run

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


class _Worker:
    """A process that runs the cases of the given numbers, in order."""

    def __init__(self, numbers: Sequence[int], arguments: Sequence[str]) -> None:
        self.waiting, self.arguments = list(numbers), list(arguments)
        self.process: subprocess.Popen[bytes] | None = None
        self.since = 0.0
        self.ready = False
        self.rest = b""
        self.start()

    def start(self) -> None:
        if not self.waiting:
            return
        command = [sys.executable, "-m", "trustformers_ir.tools.onnx_scoreboard", "--worker", ",".join(map(str, self.waiting)), *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.since, self.ready = time.monotonic(), False

    def lost(self, why: str) -> dict[str, object]:
        """The case that it was at; another process goes on behind it."""
        number = self.waiting.pop(0)
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self.rest = b""
        self.start()
        return {"number": number, "lost": why}

    def rows(self) -> Iterator[dict[str, object]]:
        """What it has said since."""
        if self.process is None or self.process.stdout is None:
            return
        handle = self.process.stdout.fileno()
        while select.select([handle], [], [], 0)[0]:
            content = os.read(handle, 1 << 16)
            if not content:
                code = self.process.wait()
                self.process = None
                if self.waiting:
                    yield self.lost(f"the process ended with {code}")
                return
            *lines, self.rest = (self.rest + content).split(b"\n")
            for line in lines:
                row = json.loads(line)
                self.since, self.ready = time.monotonic(), True
                if row["number"] in self.waiting:
                    self.waiting.remove(row["number"])
                    yield row
        if time.monotonic() - self.since > SECONDS:
            yield self.lost(f"no end after {SECONDS:.0f} s")


def run_all(cases: Sequence[Case], jobs: int, arguments: Sequence[str], tell: bool = True) -> list[Outcome]:
    """What came of every case, in order."""
    workers = [_Worker(range(n, len(cases), jobs), arguments) for n in range(jobs)]
    found: dict[int, Outcome] = {}
    while any(w.process is not None for w in workers):
        for w in workers:
            for row in w.rows():
                number = int(str(row.pop("number")))
                case = cases[number]
                lost = row.get("lost")
                found[number] = Outcome(case.name, case.op, Status.CRASHED, str(lost), case.expanded, case.suite) if lost else of_row(row)
                if tell and sys.stderr.isatty():
                    print(f"\r{len(found)} of {len(cases)}", end="", file=sys.stderr)
        time.sleep(0.02)
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
