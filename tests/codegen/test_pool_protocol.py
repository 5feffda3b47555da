"""The protocol of the worker pool (``codegen/llvm/pool.py``), step by step in Python, under thousands of orders of its threads.

Each thread is a generator that gives way before each access to a shared word, as the native code does one atomic access at a time. What the pool
promises is checked on the way: shares are done once and in order, the fields of a run are read only while it lasts, and nobody waits for
ever. Wrong variants of the protocol show that these orders find what is wrong.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field

import pytest

INTERVALS = (2, 1)  # of each run
FOREVER = 1 << 60
Steps = Generator[str, None, int]  # what the thread does next; None of these steps touches two shared words


class Broken(AssertionError):
    """Something that the pool promises does not hold."""


@dataclass
class Pool:
    """The shared words, and what the runs have seen: ``log[r]`` are the claims done in run r."""

    workers: int
    mutant: str = ""
    phase: int = 5  # epoch 1, closed
    done: int = 0
    base: int = 0
    run: int = -1  # the fields of a run: they change between runs
    sleepers: int = 0
    parked: set[int] = field(default_factory=set)
    claimed: list[int] = field(default_factory=list)
    log: list[list[tuple[int, int]]] = field(default_factory=lambda: [[] for _ in INTERVALS])

    def claim(self, me: int, end: int) -> Steps:
        while True:
            yield "phase"
            phase = self.phase
            epoch = phase >> 2
            if phase & 3 or epoch >= end:
                return -1
            for n in range(self.workers):
                s = (me + n) % self.workers
                yield f"claimed {s}"
                old = self.claimed[s]
                if old < epoch or self.mutant == "claims twice":
                    yield f"take {s}"
                    if self.claimed[s] == old or self.mutant == "no exchange":
                        self.claimed[s] = epoch
                        yield "base"
                        return (epoch - self.base) << 16 | s
            yield "wait"
            while self.phase == phase:
                yield "blocked"

    def execute(self, me: int, first: int) -> Steps:
        yield "fields"
        run, claim = self.run, first
        while claim >= 0:
            interval, share = claim >> 16, claim & 65535
            before = [c for c in self.log[run] if c[0] < interval]
            if run != self.run or not 0 <= interval < INTERVALS[run]:
                raise Broken(f"worker {me} is in interval {interval} of run {run}, the pool in run {self.run}")
            if (interval, share) in self.log[run] or len(before) != interval * self.workers:
                raise Broken(f"share {share} of interval {interval} is done too early or twice")
            yield "work"
            self.log[run].append((interval, share))
            yield "phase"
            phase = self.phase
            end = (phase >> 2) - interval + INTERVALS[run] if self.mutant != "no end" else FOREVER
            yield "done"
            self.done += 1
            if self.done == self.workers:
                self.done = 0
                yield "raise"
                self.phase = phase + 4 | (0 if interval + 1 < INTERVALS[run] else 1)
            claim = yield from self.claim(me, end)
        return 0

    def worker(self, me: int) -> Steps:
        while True:
            claim = yield from self.claim(me, FOREVER)
            if claim >= 0:
                yield from self.execute(me, claim)
                continue
            yield "poll"
            if self.phase & 2:
                return 0
            if not self.phase & 1:
                continue
            yield "check"
            early = self.phase & 3 == 1
            yield "sleepers"
            self.sleepers += 1
            yield "check"
            closed = early if self.mutant == "looks before it says that it sleeps" else self.phase & 3 == 1
            if closed:
                self.parked.add(me)
                while me in self.parked:
                    yield "blocked"
            yield "sleepers"
            self.sleepers -= 1

    def start(self, flags: int) -> Steps:
        yield "open"
        self.phase = self.phase & ~3 | flags
        yield "sleepers"
        if self.sleepers:
            yield "wake"  # with the mutex, so not between a worker's check and its wait
            self.parked.clear()
        return 0

    def caller(self) -> Steps:
        for run in range(len(INTERVALS)):
            yield "fields"
            self.run, self.base = run, self.phase >> 2
            yield from self.start(0)
            claim = yield from self.claim(0, FOREVER)
            if claim >= 0:
                yield from self.execute(0, claim)
            if len(self.log[run]) != INTERVALS[run] * self.workers:
                raise Broken(f"run {run} is over before its shares are done")
        return (yield from self.start(3))


def run(workers: int, seed: int, mutant: str = "") -> None:
    """One order: a thread takes some steps, then another one. ``Broken`` when the threads do not all end, or a promise is broken."""
    rng = random.Random(seed)
    pool = Pool(workers, mutant, claimed=[0] * workers)
    threads = {0: pool.caller(), **{w: pool.worker(w) for w in range(1, workers)}}
    longest = rng.choice((1, 3, 10, 40))
    waiting: set[int] = set()
    while threads:
        t = rng.choice(list(threads))
        for _ in range(rng.randint(1, longest)):
            try:
                blocked = next(threads[t]) == "blocked"
            except StopIteration:
                del threads[t]
                waiting.clear()
                break
            if blocked:
                waiting.add(t)
                break
            waiting.clear()
        if threads and waiting == set(threads):
            raise Broken(f"threads {sorted(waiting)} wait for ever")


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_every_order_does_every_share_once(workers: int) -> None:
    for seed in range(1500):
        run(workers, seed)


MUTANTS = ["claims twice", "no exchange", "no end", "looks before it says that it sleeps"]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_protocol_is_found(mutant: str) -> None:
    with pytest.raises(Broken):
        for seed in range(5000):
            run(2 + seed % 3, seed, mutant)


