"""Executables of GPUs: the plan, the arena, streams, graphs and errors, on Triton's interpreter and the memory of the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gpu_harness import add, compiled, encoder, launches, running
from runtime_harness import encoder as cpu_encoder
from runtime_harness import encoder_inputs, encoder_reference, f32, i64, same

from trustformers_ir.ir import functional as F
from trustformers_ir.ir.device import Condition
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import symbol
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.runtime.gpu import lane, steps
from trustformers_ir.runtime.gpu.executable import GpuExecutable
from trustformers_ir.runtime.gpu.interpreter import Interpreter

SHAPES = ((3, 11), (1, 1), (2, 40), (3, 11), (1, 1))


@pytest.fixture
def exe() -> GpuExecutable:
    return running(encoder())[0]


def right(outputs: Any, inputs: tuple[np.ndarray, np.ndarray]) -> None:
    for got, want in zip(outputs, encoder_reference(inputs[0], float(inputs[1])), strict=True):
        np.testing.assert_allclose(np.asarray(got), want, rtol=2e-5, atol=2e-6)


# --- results -----------------------------------------------------------------------------------------------------------------------


def test_shapes_in_turn(exe: GpuExecutable) -> None:
    """Each shape twice: launch by launch, and as a graph. The bits are the same."""
    first: dict[tuple[int, int], Any] = {}
    for shape in SHAPES:
        inputs = encoder_inputs(*shape)
        outputs = exe(*inputs)
        right(outputs, inputs)
        assert same(outputs, first.setdefault(shape, outputs))


def test_named_inputs_and_entries(exe: GpuExecutable) -> None:
    ids, scale = encoder_inputs()
    assert same(exe(ids, scale), exe.run(ids=ids, scale=scale, entry="main"))
    with pytest.raises(CompilerError, match="there is no entry 'other'"):
        exe.run(ids, scale, entry="other")


def test_a_graph_follows_inputs_and_outputs_that_move(exe: GpuExecutable) -> None:
    """Tensors at ever other places: the nodes that read and write them are told where."""
    kept = []
    for seed in range(4):
        ids, scale = encoder_inputs(3, 11, seed)
        tensors = torch.from_numpy(ids.copy()), torch.tensor(float(scale))
        outputs = exe(*tensors)
        kept.append((tensors, outputs))
        right([y.numpy() for y in outputs], (ids, scale))
    assert len({y.data_ptr() for _, outputs in kept for y in outputs}) == 8
    for (ids, scale), outputs in kept:  # nobody wrote where somebody else's results are
        right([y.numpy() for y in outputs], (ids.numpy(), scale.numpy()))


@pytest.mark.parametrize("graphs", ["0", "1"])
def test_graphs_can_be_left_out(monkeypatch: pytest.MonkeyPatch, graphs: str) -> None:
    monkeypatch.setenv("TFIR_GPU_GRAPHS", graphs)
    made: list[int] = []
    graph = Interpreter.graph
    monkeypatch.setattr(Interpreter, "graph", lambda self, works: made.append(len(works)) or graph(self, works))
    exe, _ = running(encoder())
    for _ in range(3):
        right(exe(*encoder_inputs()), encoder_inputs())
    assert made == ([launches(exe)] if graphs == "1" else [])


def test_wide_code_runs_where_indices_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 2000 elements were too many for 32 bits."""
    monkeypatch.setattr(steps, "NARROW_LIMIT", 2000)
    exe, _ = running(encoder())
    chosen: list[bool] = []
    kernel = Interpreter.kernel
    monkeypatch.setattr(Interpreter, "kernel", lambda self, *args: chosen.append(args[-1]) or kernel(self, *args))
    right(exe(*encoder_inputs(1, 2)), encoder_inputs(1, 2))
    assert not any(chosen)
    right(exe(*encoder_inputs(3, 40)), encoder_inputs(3, 40))
    assert any(chosen)


def test_no_elements() -> None:
    exe, gpu = running(compiled(lambda x: x * 2.0, f32["n"], facts={"n": (0, 100)}))
    assert exe(np.empty(0, np.float32)).shape == (0,) and gpu.launches == 0
    assert exe(torch.empty(0)).shape == (0,)


def test_results_of_inputs_and_constants() -> None:
    """What is handed out without being computed."""
    exe, _ = running(compiled(lambda x: {"a": x, "b": x, "c": F.softmax(x, -1)}, f32["n", 5], facts={"n": (1, 9)}))
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    a, b, c = exe(x)
    assert same((a, b), (x, x)) and not np.shares_memory(a, x)
    np.testing.assert_allclose(c, torch.softmax(torch.from_numpy(x), -1).numpy(), rtol=1e-6)


# --- torch -------------------------------------------------------------------------------------------------------------------------


def test_tensors_are_read_and_written_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero copy: the kernels get the very addresses. (The interpreter shares the memory of the CPU as a GPU shares that of torch.)"""
    exe, gpu = running(add())
    seen: list[list[int]] = []
    launch = Interpreter.launch
    monkeypatch.setattr(Interpreter, "launch", lambda self, work, stream: seen.append(list(work.values)) or launch(self, work, stream))
    x, y = torch.ones(2, 16), torch.full((2, 16), 2.0)
    out = exe(x, y)
    assert gpu.launches == 0  # nothing is checked here, so nobody waits: the result is there when the stream gets to it
    exe.synchronize()
    assert torch.equal(out, torch.full((2, 16), 3.0))
    assert seen[0][:3] == [x.data_ptr(), y.data_ptr(), out.data_ptr()]


def test_a_tensor_at_an_odd_place_is_copied() -> None:
    exe, _ = running(add())
    base = torch.arange(40, dtype=torch.float32)
    x = base[1:33].view(2, 16)
    assert x.data_ptr() % 16
    for _ in range(2):
        out = exe(x, x)
        exe.synchronize()
        assert torch.equal(out, 2 * x)


def test_strided_and_foreign_inputs(exe: GpuExecutable) -> None:
    ids, scale = encoder_inputs()
    want = exe(ids, scale)
    twisted = torch.from_numpy(ids.T.copy()).T
    assert not twisted.is_contiguous() and same([y.numpy() for y in exe(twisted, torch.tensor(0.25))], want)
    assert same(exe(ids[:, ::-1][:, ::-1], 0.25), want)
    assert same([y.numpy() for y in exe(torch.from_numpy(ids), scale)], want)  # numbers beside tensors


def test_streams(exe: GpuExecutable) -> None:
    """Two streams of torch have an arena each; what is on them runs when it is waited for. (Inputs and outputs live until then: torch's allocator
    of a GPU follows streams, that of the CPU does not.)"""
    gpu = exe.driver
    assert isinstance(gpu, Interpreter)
    exe.wait_for_checks = False
    streams = [gpu.stream(), gpu.stream()]
    inputs = [encoder_inputs(2, 9, seed) for seed in range(4)]
    tensors = [tuple(map(torch.as_tensor, given)) for given in inputs]
    results = []
    for n, given in enumerate(tensors):
        gpu.use_stream(streams[n % 2])
        results.append(exe(*given))
    assert gpu.launches == 0
    gpu.wait(streams[1])
    assert gpu.launches == 2 * launches(exe, 2, 9)
    right([y.numpy() for y in results[1]], inputs[1])
    exe.synchronize()
    for outputs, arrays in zip(results, inputs, strict=True):
        right([y.numpy() for y in outputs], arrays)


def test_streams_that_come_and_go(exe: GpuExecutable, monkeypatch: pytest.MonkeyPatch) -> None:
    """More streams than lanes are kept for, by several threads: the lane used longest ago goes, and its memory."""
    monkeypatch.setattr(lane, "TORCH_LANES", 2)
    gpu = exe.driver
    assert isinstance(gpu, Interpreter)
    streams = [gpu.stream() for _ in range(5)]

    def work(n: int) -> None:
        gpu.use_stream(streams[n % 5])
        inputs = encoder_inputs(1, 2, n)
        right([y.numpy() for y in exe(*map(torch.as_tensor, inputs))], inputs)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(15)))
    assert len(exe.prepare().lanes._of_torch) <= 4  # one more for each thread that found no lane free to go
    exe.close()
    assert gpu.blocks == 0


def test_threads(exe: GpuExecutable) -> None:
    """Many threads with shapes of their own, with arrays and with tensors."""
    wrong: list[object] = []

    def work(n: int) -> None:
        inputs = encoder_inputs(1 + n % 3, 2 + n % 5, n)
        given: Any = inputs if n % 2 else tuple(map(torch.as_tensor, inputs))
        try:
            right([np.asarray(y) for y in exe(*given)], inputs)
        except BaseException as error:
            wrong.append(error)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert not wrong
    assert 1 <= len(exe.prepare().lanes._free) <= lane.OWN_LANES


# --- memory ------------------------------------------------------------------------------------------------------------------------


def test_everything_is_given_back() -> None:
    exe, gpu = running(encoder())
    for shape in SHAPES:
        exe(*encoder_inputs(*shape))
    exe(*map(torch.as_tensor, encoder_inputs()))
    assert gpu.blocks > 0
    exe.close()
    assert gpu.blocks == 0 and len(gpu._streams) == 1
    right(exe(*encoder_inputs()), encoder_inputs())
    exe.close()
    exe.close()


def test_recordings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "MAX_RECORDINGS", 2)
    exe, _ = running(encoder())
    for _ in range(2):
        for seq in (5, 3, 8, 2):
            right(exe(*encoder_inputs(1, seq)), encoder_inputs(1, seq))
    (only,) = exe.prepare().lanes._free
    assert len(only._recordings) == 2


def test_the_report_tells_the_arena(exe: GpuExecutable) -> None:
    exe(*encoder_inputs(3, 11))
    (used,) = exe.prepare().lanes._free
    told = exe.report(batch=3, seq=11)["entries"]["main"]  # type: ignore[index]
    assert used._arena is not None and told["arena_bytes"] == used._arena.size and told["last_call_ms"] > 0
    assert exe.report()["device"] == "Triton's interpreter"


def test_what_does_not_fit_is_said_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    exe, _ = running(encoder())
    exe(*encoder_inputs(1, 1))
    monkeypatch.setattr("trustformers_ir.runtime.memory.memory", lambda: 4096)
    with pytest.raises(CompilerError) as caught:
        exe(*encoder_inputs(3, 100))
    assert caught.value.codes == (Code.OUT_OF_MEMORY,)
    monkeypatch.undo()
    right(exe(*encoder_inputs(3, 100)), encoder_inputs(3, 100))


# --- errors ------------------------------------------------------------------------------------------------------------------------


def test_indices_out_of_range(exe: GpuExecutable) -> None:
    """The words of the CPU; the executable goes on working."""
    ids, scale = encoder_inputs()
    ids[1, 2] = 50
    with pytest.raises(CompilerError) as of_cpu:
        Executable(cpu_encoder(), 1)(ids, scale)
    for given in ((ids, scale), tuple(map(torch.as_tensor, (ids, scale)))) * 2:
        with pytest.raises(CompilerError) as of_gpu:
            exe(*given)
        assert str(of_gpu.value) == str(of_cpu.value) and of_gpu.value.codes == (Code.INDEX_OUT_OF_RANGE,)
        right(exe(*encoder_inputs()), encoder_inputs())


def test_who_does_not_wait_is_told_later(exe: GpuExecutable) -> None:
    exe.wait_for_checks = False
    ids, scale = map(torch.as_tensor, encoder_inputs())
    ids[0, 0] = -51
    outputs = exe(ids, scale)
    with pytest.raises(CompilerError, match="is -51, out of range"):
        exe.synchronize()
    exe.synchronize()
    assert len(outputs) == 2


WRONG: dict[str, Callable[[Any], Any]] = {
    "too few": lambda exe: exe(encoder_inputs()[0]),
    "too many": lambda exe: exe(*encoder_inputs(), 1, 2),
    "unknown": lambda exe: exe(*encoder_inputs(), other=3),
    "twice": lambda exe: exe(encoder_inputs()[0], ids=encoder_inputs()[0], scale=1.0),
    "dtype": lambda exe: exe(encoder_inputs()[0].astype(np.int32), 0.5),
    "rank": lambda exe: exe(np.zeros(4, np.int64), 0.5),
    "out of bounds": lambda exe: exe(np.zeros((65, 2), np.int64), 0.5),
    "several": lambda exe: exe(np.zeros((65, 2), np.float32), np.zeros((2, 2), np.float32)),
    "text": lambda exe: exe("ids", 0.5),
    "sparse": lambda exe: exe(torch.zeros(2, 3, dtype=torch.int64).to_sparse(), 0.5),
    "elsewhere": lambda exe: exe(torch.zeros(2, 3, dtype=torch.int64, device="meta"), 0.5),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_refused_as_on_cpus(name: str, exe: GpuExecutable) -> None:
    said = []
    for executable in (exe, Executable(cpu_encoder(), 1)):
        with pytest.raises(CompilerError) as caught:
            WRONG[name](executable)
        said.append(str(caught.value))
    assert said[0] == said[1]
    right(exe(*encoder_inputs()), encoder_inputs())


def test_a_call_inside_a_call(exe: GpuExecutable, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lane.Lane.run

    def interrupted(self: lane.Lane, *args: Any) -> None:
        with pytest.raises(CompilerError) as caught:
            exe(*encoder_inputs())
        assert caught.value.codes == (Code.CALL_IN_CALL,)
        run(self, *args)

    monkeypatch.setattr(lane.Lane, "run", interrupted)
    right(exe(*encoder_inputs()), encoder_inputs())


def test_closing_while_others_call(exe: GpuExecutable) -> None:
    """Whoever calls has what it needs, or takes it again."""
    wrong: list[object] = []

    def work() -> None:
        try:
            for seed in range(3):
                right(exe(*encoder_inputs(1, 3, seed)), encoder_inputs(1, 3, seed))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for _ in range(4):
        exe.close()
    for t in threads:
        t.join()
    assert not wrong


def test_a_plan_that_does_not_fit_is_refused(exe: GpuExecutable) -> None:
    """Sizes of a call are proven against the plan with numbers, whatever the plan says."""
    function, kernels, m = exe.device.functions[0], exe.device.kernels, exe.manifest
    env, entry = {"batch": 3, "seq": 11}, m.entries[0]
    good = steps.Sizes((3 * 11 * 8, 4), (3 * 11 * 40 * 4, 3 * 40 * 4))
    assert len(steps.steps_of(function, kernels, m.weights, entry, env, good).steps) == launches(exe)
    for sizes in (steps.Sizes((3 * 11 * 8 - 1, 4), good.outputs), steps.Sizes(good.inputs, (8, 3 * 40 * 4))):
        with pytest.raises(CompilerError, match="does not fit these shapes"):
            steps.steps_of(function, kernels, m.weights, entry, env, sizes)


def test_profile(exe: GpuExecutable) -> None:
    told = exe.profile(*map(torch.as_tensor, encoder_inputs()))
    assert len(told.rows) == len(exe.device.functions[0].launches) and sum(r.seconds > 0 for r in told.rows) == launches(exe)
    assert told.seconds == pytest.approx(sum(r.seconds for r in told.rows)) and told.trace()
    right(exe(*encoder_inputs()), encoder_inputs())


def test_timed_launches_follow_graphs(exe: GpuExecutable) -> None:
    """The second time there is a graph, which keeps the GPU busy while the launches are put on the stream."""
    gpu, inputs = exe.driver, encoder_inputs()
    assert isinstance(gpu, Interpreter)
    for calls in (2, 3):  # the call that loads the kernels, the launches that are timed, a graph before these
        before = gpu.launches
        exe.profile(*inputs)
        assert gpu.launches == before + calls * launches(exe)
    right(exe(*inputs), inputs)


def test_builds_share_weights(exe: GpuExecutable) -> None:
    gpu, inputs = exe.driver, encoder_inputs()
    assert isinstance(gpu, Interpreter)
    first, weights = exe(*inputs), exe.weights
    other = GpuExecutable(exe.compiled, driver=gpu, weights=weights)
    assert same(other(*inputs), first) and other.weights is weights
    other.close()
    assert same(exe(*inputs), first) and same(other(*inputs), first)
    other.close()
    exe.close()
    assert not gpu.blocks


@pytest.mark.parametrize(("above", "most", "made"), [(0, None, True), (32, 33, True), (33, None, False), (0, 32, False)])
def test_launches_that_depend_on_sizes(exe: GpuExecutable, above: int, most: int | None, made: bool) -> None:
    """Of kernels that compute the same, the size chooses: here ``batch * seq`` is 33."""
    function, m = exe.device.functions[0], exe.manifest
    first = replace(function.launches[0], conditions=(Condition(symbol("batch") * symbol("seq"), above, most),))
    changed = replace(function, launches=(first, *function.launches[1:]))
    sizes = steps.Sizes((3 * 11 * 8, 4), (3 * 11 * 40 * 4, 3 * 40 * 4))
    found = steps.steps_of(changed, exe.device.kernels, m.weights, m.entries[0], {"batch": 3, "seq": 11}, sizes)
    assert len(found.steps) == launches(exe) - (not made)


def test_types_of_indices() -> None:
    exe, _ = running(compiled(lambda t, i: t.gather(0, i), f32["n", 4], i64["m", 4], facts={"n": (1, 99), "m": (1, 99)}))
    table, index = np.arange(40, dtype=np.float32).reshape(10, 4), np.array([[9, 0, -1, 3]])
    np.testing.assert_array_equal(exe(table, index), np.take_along_axis(table, index, 0))
    with pytest.raises(CompilerError, match="is 10, out of range of a size of n = 10"):
        exe(table, np.array([[0, 0, 10, 0]]))
