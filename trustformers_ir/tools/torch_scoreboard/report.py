"""Tables of what came of torch's samples: per dtype and way, why what is refused is refused, and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from trustformers_ir.frontend.torch_export.registry import ATEN
from trustformers_ir.tools.torch_scoreboard.judge import WAYS, Outcome, Status
from trustformers_ir.tools.torch_scoreboard.samples import DTYPES


def report(outcomes: Sequence[Outcome]) -> str:
    """All of it, as text."""
    return "\n\n".join(part for part in (_wrong(outcomes), _refused(outcomes), _by_dtype(outcomes), _reached(outcomes)) if part)


def _by_dtype(outcomes: Sequence[Outcome]) -> str:
    lines = ["way        dtype      entries  samples" + "".join(s.value.rjust(10) for s in Status) + "   all agree"]
    for way in WAYS:
        for dtype in (*DTYPES, "all"):
            rows = [o for o in outcomes if dtype in (o.dtype, "all")]
            if not rows:
                continue
            whole = sum(o.of(way, Status.AGREES, Status.ROUNDS, Status.OPEN) == o.samples and o.samples > 0 for o in rows)
            counts = "".join(str(sum(o.of(way, s) for o in rows)).rjust(10) for s in Status)
            lines.append(f"{way:10} {dtype:10} {len(rows):7} {sum(o.samples for o in rows):8}{counts} {whole:11}")
    return "\n".join(lines)


def _refused(outcomes: Sequence[Outcome]) -> str:
    lines = []
    for way in WAYS:
        samples: Counter[str] = Counter()
        ops: dict[str, set[str]] = {}
        for o in outcomes:
            for why, count in o.reasons[way].items():
                samples[why] += count
                ops.setdefault(why, set()).add(o.op)
        if samples:
            lines.append(f"refused, {way}: samples, why, entries")
        for why, count in samples.most_common():
            names = sorted(ops[why])
            lines.append(f"{count:7} {why}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}")
    return "\n".join(lines)


def _wrong(outcomes: Sequence[Outcome]) -> str:
    return "\n".join(f"{o.op} {o.dtype} {text}" for o in outcomes for text in o.bad)


def _reached(outcomes: Sequence[Outcome]) -> str:
    """Which of the overloads that the frontend has a function for no sample came to."""
    reached = {name for o in outcomes for name in o.reached}
    missed = sorted(set(ATEN) - reached)
    rest = f"; not these: {', '.join(missed)}" if missed else ""
    return f"{len(ATEN) - len(missed)} of the {len(ATEN)} overloads of the frontend are reached{rest}"
