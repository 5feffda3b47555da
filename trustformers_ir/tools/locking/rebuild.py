"""A locked build once more: into a folder beside its outputs, of which nothing takes the place of the outputs unless it is what was locked."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.digests import file_digest
from trustformers_ir.tools.locking.inputs import input_files
from trustformers_ir.tools.locking.lock import File, Lock
from trustformers_ir.tools.locking.request import build, check_machine
from trustformers_ir.tools.locking.versions import versions


@dataclass(frozen=True)
class Compared:
    """A file or a version then and now; None where there is none."""

    name: str
    locked: str | None
    found: str | None

    @property
    def same(self) -> bool:
        return self.locked == self.found

    def as_dict(self) -> dict[str, str | None]:
        return {"name": self.name, "locked": self.locked, "found": self.found}


@dataclass(frozen=True)
class Rebuilt:
    """What came of building again: digests of outputs, of inputs, and versions, then and now; the passes of the pipeline then and now."""

    outputs: tuple[Compared, ...]
    inputs: tuple[Compared, ...]
    versions: tuple[Compared, ...]
    pipeline: Compared

    @property
    def same(self) -> bool:
        return all(c.same for c in self.outputs)

    @property
    def changed(self) -> list[str]:
        """What is not as it was, besides outputs, a line each."""
        lines = [f"the input '{c.name}' {_how(c)}" for c in self.inputs if not c.same]
        lines += [f"{c.name} was {c.locked or 'not there'}, and is {c.found or 'not there'}" for c in self.versions if not c.same]
        return lines + ([] if self.pipeline.same else [f"the passes were {self.pipeline.locked}, and are {self.pipeline.found}"])

    def as_dict(self) -> dict[str, object]:
        """Plain data for ``--json``."""
        changed = {name: [c.as_dict() for c in getattr(self, name) if not c.same] for name in ("inputs", "versions")}
        return {"same": self.same, "outputs": [{**c.as_dict(), "same": c.same} for c in self.outputs], "changed": changed}


def _how(c: Compared) -> str:
    return "has other bytes" if c.locked and c.found else "is new" if c.found else "is not read any more"


def rebuild(lock: Lock, path: str, *, in_place: bool) -> Rebuilt:
    """Builds what ``path`` locked again and compares. ``in_place``: outputs that are what they were take the place of those on the disk.
    ``LOCK_INPUT`` with all files that are not there, ``LOCK_MACHINE``, and what the build itself raises."""
    folder = Path(path).resolve().parent / lock.directory
    if not folder.is_dir():
        raise CompilerError.of(Code.LOCK_INPUT, f"the folder '{lock.directory}' of the lock is not there", Where(file=path))
    with _working_in(folder):
        with Collector() as problems:
            for file in lock.inputs:
                if not os.path.isfile(file.path):
                    problems.add(Code.LOCK_INPUT, f"the input '{file.path}' is not there", Where(file=path))
        check_machine(lock.request, lock.targets)
        with contextlib.ExitStack() as until:
            places = {name: until.enter_context(_beside(name)) / os.path.basename(os.path.normpath(name)) for name in lock.request.outputs}
            made = build(lock.request, [str(p) for p in places.values()])
            found = {_original(Path(name), places): file_digest(name) for name in made.files}
            result = Rebuilt(
                outputs=_compared({f.path: f.sha256 for f in lock.outputs}, found),
                inputs=_compared({f.path: f.sha256 for f in lock.inputs}, _digests(lock)),
                versions=_compared(lock.versions, versions(lock.request)),
                pipeline=Compared("pipeline", ",".join(lock.pipeline), ",".join(made.pipeline)),
            )
            if in_place and result.same:
                for name, place in places.items():
                    _move(place.parent, Path(os.path.dirname(name) or "."))
    return result


def _digests(lock: Lock) -> dict[str, str]:
    """The inputs of now."""
    return {name: File.of(name).sha256 for name in input_files(lock.request)}


def _compared(locked: Mapping[str, str], found: Mapping[str, str]) -> tuple[Compared, ...]:
    return tuple(Compared(name, locked.get(name), found.get(name)) for name in sorted({*locked, *found}))


def _original(made: Path, places: Mapping[str, Path]) -> str:
    """What a file in the folder of the rebuild is in the folder of the outputs."""
    name, place = next((name, place) for name, place in places.items() if made.is_relative_to(place.parent))
    return os.path.join(os.path.dirname(name), made.relative_to(place.parent))


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _beside(output: str) -> Iterator[Path]:
    """An empty folder on the disk of the output, which has room for it; where that cannot be written, one for temporary files."""
    parent = os.path.dirname(os.path.abspath(output))
    with tempfile.TemporaryDirectory(prefix=".rebuild.", dir=parent if os.access(parent, os.W_OK) else None) as made:
        yield Path(made)


def _move(made: Path, target: Path) -> None:
    """Everything in a folder to another, on the same disk: by renaming, what belongs to the others first. A file appears whole; a folder that is
    there is put aside before."""
    for path in sorted(made.iterdir(), key=lambda p: p.stat().st_size if p.is_file() else 0, reverse=True):
        place = target / path.name
        if place.is_dir():
            aside = made / f"{path.name}.old"
            place.rename(aside)
            path.rename(place)
            shutil.rmtree(aside)
        else:
            os.replace(path, place)


