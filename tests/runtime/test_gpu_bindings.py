"""The drivers of CUDA and HIP: the real bindings against a library that looks like the maker's (``fake_driver.c``), on the memory of the CPU.

It is written from the makers' references, checks what it is called with, and hands each kernel to Triton's interpreter, so that whole modules run
through launches and graphs.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_harness import needs_cc
from gpu_harness import encoder_module, launches
from runtime_harness import encoder_inputs, encoder_reference, same

from trustformers_ir.codegen.triton import device
from trustformers_ir.codegen.triton.aot import Wanted
from trustformers_ir.codegen.triton.binary import Binary
from trustformers_ir.ir.abi import CompiledModule
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.runtime import artifact
from trustformers_ir.runtime.gpu import devices
from trustformers_ir.runtime.gpu.driver import Work
from trustformers_ir.runtime.gpu.executable import GpuExecutable, device_module
from trustformers_ir.runtime.gpu.interpreter import Interpreter
from trustformers_ir.runtime.gpu.tables import CUDA, HIP
from trustformers_ir.runtime.gpu.vendor import NoDevice, VendorDriver

pytestmark = needs_cc
SOURCE = Path(__file__).parent / "fake_driver.c"
KINDS = {"cuda": (CUDA, "cuda:sm_90", "libcuda.so.1"), "rocm": (HIP, "rocm:gfx942", "libamdhip64.so")}
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p))
COUNT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)
SHARED, RESERVED, WARPS = 64 << 10, 2, 8


@functools.cache
def library(kind: str) -> bytes:
    """The bytes of the library."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fake.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", *(["-DHIP"] if kind == "rocm" else []), "-o", path, SOURCE], check=True)
        return path.read_bytes()


def code_of_kernels(wanted: Sequence[Wanted], *_: Any) -> list[Binary]:
    """In place of Triton's machine code: nobody runs it here."""
    return [Binary(name, name, b"\x7fELF" + name.encode(), "", SHARED, WARPS, 32, 0, RESERVED, 96, 32) for name in (w.emitted.name for w in wanted)]


@functools.cache
def built(target: str) -> CompiledModule:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "compile_kernels", code_of_kernels)
        return encoder_module(target)


class Fake:
    """The library in a place of its own, and what it has seen."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.table, self.target, name = KINDS[kind]
        self.path = folder / name
        self.path.write_bytes(library(kind))
        self.c = ctypes.CDLL(str(self.path))
        self.module = built(self.target)
        plan = device_module(self.module.code, self.module.manifest)
        self.kernels = {k.name: k for k in plan.kernels}
        self.text, self.gpu = plan.text, Interpreter()
        self._keep = KERNEL(self.run), COUNT(lambda name: len(self.arguments(name.decode())))
        ctypes.c_void_p.in_dll(self.c, "fake_kernel").value = ctypes.cast(self._keep[0], ctypes.c_void_p).value
        ctypes.c_void_p.in_dll(self.c, "fake_count").value = ctypes.cast(self._keep[1], ctypes.c_void_p).value
        self.wrong: list[str] = []

    def arguments(self, name: str) -> range:
        k = self.kernels[name]
        return range(len(k.buffers) + len(k.memory) + len(k.symbols) + k.checks + RESERVED)

    def run(self, name: bytes, grid: int, block: int, shared: int, parameters: Any) -> None:
        """A launch, interpreted. Its words are the runtime's, whose dims have 32 bits of them."""
        kernel = self.kernels[name.decode()]
        if (block, shared) != (WARPS * self.table.warp, SHARED):
            self.wrong.append(f"{name.decode()} on blocks of {block} with {shared} bytes")
        words = [ctypes.c_uint64.from_address(parameters[n]).value for n in self.arguments(kernel.name)]
        function = self.gpu.kernel(kernel, None, b"", self.text, False)
        try:
            self.gpu._run(function, grid, words)
        except BaseException as error:
            self.wrong.append(f"{name.decode()}: {error}")

    def __getitem__(self, name: str) -> int:
        return ctypes.c_long.in_dll(self.c, f"fake_{name}").value

    def set(self, name: str, value: int) -> None:
        ctypes.c_int.in_dll(self.c, f"fake_{name}").value = value

    def driver(self) -> VendorDriver:
        return VendorDriver(self.table, str(self.path))

    def check(self) -> None:
        """Nothing was wrong so far."""
        assert not self.wrong and not (ctypes.c_char * 1024).in_dll(self.c, "fake_wrong").value

    def nothing_left(self) -> None:
        counts = {name: self[name] for name in ("blocks", "modules", "streams", "events", "graphs", "execs", "depth")}
        assert not any(counts.values()), counts


@pytest.fixture(params=KINDS)
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Fake:
    return Fake(request.param, tmp_path)


def right(outputs: Any, inputs: tuple[np.ndarray, np.ndarray]) -> None:
    for got, want in zip(outputs, encoder_reference(inputs[0], float(inputs[1])), strict=True):
        np.testing.assert_allclose(np.asarray(got), want, rtol=2e-5, atol=2e-6)


def test_a_module_runs_through_the_bindings(fake: Fake) -> None:
    exe = GpuExecutable(fake.module, driver=fake.driver())
    assert exe.driver.chip == fake.target and exe.driver.title == "Fake GPU"
    count = launches(exe)
    first = exe(*encoder_inputs())
    right(first, encoder_inputs())
    assert fake.gpu.launches == count and fake["graph_launches"] == 0
    if fake.target.startswith("cuda"):
        assert ctypes.c_long.in_dll(fake.c, "fake_shared").value == SHARED
    for _ in range(2):
        assert same(exe(*encoder_inputs()), first)
    assert fake["graph_launches"] == 2 and fake.gpu.launches == 3 * count and fake["updates"] == 0  # nothing had moved
    outputs = exe(*map(torch.as_tensor, encoder_inputs(2, 5)))
    assert all(isinstance(y, torch.Tensor) and y.device.type == "cpu" for y in outputs)
    right([y.numpy() for y in outputs], encoder_inputs(2, 5))
    fake.check()
    exe.close()
    fake.nothing_left()


def test_indices_out_of_range_are_told(fake: Fake) -> None:
    exe = GpuExecutable(fake.module, driver=fake.driver())
    ids, scale = encoder_inputs()
    ids[2, 1] = 77
    for _ in range(3):
        with pytest.raises(CompilerError, match="is 77, out of range"):
            exe(ids, scale)
        right(exe(*encoder_inputs()), encoder_inputs())
    fake.check()


def test_profiles(fake: Fake) -> None:
    """The seconds between events: 2 ms each, by the clock of the fake."""
    exe = GpuExecutable(fake.module, driver=fake.driver())
    told = exe.profile(*encoder_inputs())
    assert [r.kernel.label for r in told.rows] == [k.label for k in exe.manifest.entries[0].kernels]
    assert [r.seconds for r in told.rows if r.seconds] == pytest.approx([0.002] * launches(exe))  # others compute the same for other sizes
    assert told.seconds == pytest.approx(0.002 * launches(exe)) and dict(told.dims) == {"batch": 3, "seq": 11}
    right(exe(*encoder_inputs()), encoder_inputs())
    fake.check()
    exe.close()
    fake.nothing_left()


def test_nodes_get_new_arguments(fake: Fake) -> None:
    """A graph of two launches, of which one moves to other memory, and back."""
    driver = fake.driver()
    kernel = next(k for k in fake.kernels.values() if not k.checks and not k.memory)
    assert kernel.narrow is not None
    seen: list[list[int]] = []
    fake.run = lambda name, grid, *_: seen.append([grid])  # type: ignore[method-assign]
    keep = KERNEL(lambda name, grid, block, shared, p: seen.append([grid, ctypes.c_uint64.from_address(p[0]).value]))
    ctypes.c_void_p.in_dll(fake.c, "fake_kernel").value = ctypes.cast(keep, ctypes.c_void_p).value
    with driver.current():
        function = driver.kernel(kernel, kernel.narrow, b"\x7fELF", "", False)
        count = len(fake.arguments(kernel.name))
        works = [Work(function, n + 1, [100 * n + k for k in range(count)]) for n in range(2)]
        stream, graph = driver.stream(), driver.graph(works)
        works[1].values[0] = 7
        graph.launch(stream)
        graph.update(1, works[1])
        graph.launch(stream)
        graph.close()
        graph.close()
        driver.end_stream(stream)
        driver.unload()
    assert seen == [[1, 0], [2, 100], [1, 0], [2, 7]] and fake["updates"] == 1
    fake.check()
    fake.nothing_left()


@pytest.mark.parametrize(("status", "code"), [(2, Code.OUT_OF_MEMORY), (700, Code.DEVICE_FAILED)])
def test_every_call_may_fail(fake: Fake, status: int, code: Code) -> None:
    """Each call of the driver in turn; what fails is told, and afterwards everything works and nothing is left."""
    fake.set("fail_with", status)
    fake.run = lambda *_: None  # type: ignore[method-assign]
    ctypes.c_void_p.in_dll(fake.c, "fake_kernel").value = None
    inputs, n, failures = encoder_inputs(), 0, 0
    while True:
        exe = GpuExecutable(fake.module, driver=fake.driver())
        fake.set("fail_after", n)
        said: CompilerError | None = None
        try:
            exe(*inputs)
            exe(*inputs)
        except CompilerError as error:
            said = error
        left = ctypes.c_int.in_dll(fake.c, "fake_fail_after").value
        fake.set("fail_after", -1)
        if left >= 0:
            assert said is None
            break
        assert said is not None, n
        words = "out of memory" if status == 2 else "it burns (error 700)"
        assert (code in said.codes or Code.ARTIFACT_CODE in said.codes) and words in str(said), str(said)
        failures += 1
        n += 1
        if fake["depth"]:  # what failed was to make the context current, or no longer so
            ctypes.c_long.in_dll(fake.c, "fake_depth").value = 0
        exe(*inputs)
        exe.close()
    exe.close()
    assert failures > 40
    fake.check()


def test_code_that_is_none(fake: Fake) -> None:
    driver = fake.driver()
    kernel = next(iter(fake.kernels.values()))
    with driver.current():
        with pytest.raises(CompilerError) as caught:
            driver.kernel(kernel, kernel.narrow, b"PTX of another", "", False)
        assert caught.value.codes == (Code.ARTIFACT_CODE,) and kernel.name in str(caught.value)
        with pytest.raises(CompilerError, match="only its text"):
            driver.kernel(kernel, None, b"", "", False)


def test_a_forked_child_is_told(fake: Fake) -> None:
    exe = GpuExecutable(fake.module, driver=fake.driver())
    right(exe(*encoder_inputs()), encoder_inputs())
    child = os.fork()
    if not child:
        try:
            exe(*encoder_inputs())
        except CompilerError as error:
            os._exit(0 if error.codes == (Code.DEVICE_FAILED,) and "fork" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    right(exe(*encoder_inputs()), encoder_inputs())


def test_machines_without_a_gpu(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(NoDevice, match=f"no driver of {fake.table.maker}"):
        VendorDriver(fake.table, str(tmp_path / "nothing.so"))
    fake.set("devices", 0)
    with pytest.raises(NoDevice, match="finds no GPU"):
        fake.driver()
    fake.set("fail_after", 0)
    fake.set("fail_with", 100)
    with pytest.raises(NoDevice, match=r"finds no GPU: .*it burns"):
        fake.driver()
    old = tmp_path / "old.c"
    old.write_text("int cuInit(int f) { return f; } int hipInit(int f) { return f; }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "old.so", old], check=True)
    with pytest.raises(NoDevice, match="too old: it has no"):
        VendorDriver(fake.table, str(tmp_path / "old.so"))


CHIPS = [("cuda:sm_90", "cuda:sm_90", True), ("cuda:sm_89", "cuda:sm_80", True), ("cuda:sm_80", "cuda:sm_86", False)]
CHIPS += [("cuda:sm_100", "cuda:sm_90", False), ("cuda:sm_120", "cuda:sm_100", False), ("cuda:sm_90", "cuda:sm_80", False)]
CHIPS += [("rocm:gfx942", "rocm:gfx942", True), ("rocm:gfx942", "rocm:gfx90a", False)]


@pytest.mark.parametrize(("chip", "target", "good"), CHIPS)
def test_which_code_a_chip_runs(chip: str, target: str, good: bool) -> None:
    assert devices.runs(chip, target) is good


PROGRAM = """
import sys
import numpy as np
import trustformers_ir as tfir
exe = tfir.load(sys.argv[1])
y = exe(np.zeros((2, 3), np.int64), np.float32(1))
assert [a.shape for a in y] == [(2, 3, 40), (2, 40)]
assert exe.report()["device"] == "Fake GPU" and exe.manifest.target.name == "cuda:sm_90"
print(*sorted({m.partition(".")[0] for m in sys.modules} & {"triton", "torch", "llvmlite", "ml_dtypes", "onnx"}))
exe.close()
"""


def test_loading_and_running_needs_numpy_alone(tmp_path: Path) -> None:
    """In a process where the fake is the machine's libcuda."""
    fake = Fake("cuda", tmp_path)
    artifact.save(fake.module, tmp_path / "m.tfc")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    environment.pop("TFIR_GPU", None)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "m.tfc")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    # the fake counts the arguments of nodes by a callback, which there is none of here: one call makes no graph
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr
    command = [sys.executable, "-m", "trustformers_ir.tools.cli", "targets"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("cuda:sm_90 ")]
    assert line.split()[2] == "yes" and "Fake GPU" in line

