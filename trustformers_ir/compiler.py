"""The compiler from end to end: it joins front ends, passes, code generation and runtime. Behind ``api.py``; nothing of it is needed to run
an artifact.

    model --to_module--> graph --passes of the target--> graph of regions --build--> compiled module --> Executable
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.codegen import build as building
from trustformers_ir.codegen.kernel_ir.printer import print_kernel
from trustformers_ir.codegen.llvm.compile import compile_assembly
from trustformers_ir.codegen.llvm.target import Target
from trustformers_ir.codegen.lower import block_choices
from trustformers_ir.codegen.lowered import tuned_table
from trustformers_ir.codegen.triton import build as gpu
from trustformers_ir.codegen.triton import device
from trustformers_ir.codegen.triton.aot import Workers
from trustformers_ir.codegen.triton.target import GpuTarget, is_gpu
from trustformers_ir.frontend.generation import end_tokens
from trustformers_ir.ir import env
from trustformers_ir.ir.abi import (
    CALLING_KEY,
    GENERATION_KEY,
    PREFILL,
    CompiledModule,
    StoredWeight,
    TargetInfo,
)
from trustformers_ir.ir.binding import Shaped, bind_dims
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dims import Facts, SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.machine import memory
from trustformers_ir.ir.mapped import let_go
from trustformers_ir.ir.schedule_table import Choice, ScheduleKey, ScheduleTable, Tables
from trustformers_ir.ir.text import parse_module
from trustformers_ir.ir.types import TensorType
from trustformers_ir.models.cached import CONTIGUOUS, CacheForm
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.int8_error import ErrorReport
from trustformers_ir.passes.manager import Pass, PassManager, Report, parse_pipeline
from trustformers_ir.passes.options import option_fields, option_text
from trustformers_ir.passes.recipes import Recipe, find_recipe
from trustformers_ir.passes.registry import PASSES
from trustformers_ir.passes.weights import mapped_files
from trustformers_ir.quantizer import learnt, measure, told
from trustformers_ir.reader import batches_of, check_weights, dtype_of, examples_of, is_torch, opened, to_module, tokenizer_of
from trustformers_ir.runtime import artifact
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.runtime.gpu import code as device_code
from trustformers_ir.runtime.gpu.devices import KINDS, check_measurable, this_gpu
from trustformers_ir.runtime.gpu.executable import GpuExecutable
from trustformers_ir.runtime.gpu.lane import Block
from trustformers_ir.runtime.memory import Weights, materialise, section_bytes
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.runtime.targets import choose_target
from trustformers_ir.tuner import Search, Tuned, neighbours

LAID_OUT_AT_ONCE = 0.25  # the part of the memory that weights may fill before anybody calls the executable
_LATER_TARGETS = ("metal", "vulkan")


@dataclass(frozen=True)
class Request:
    """How to compile. Raises ``CompilerError`` when a field is not what it should be."""

    target: str = "cpu"
    dtype: DType | str | None = None
    dynamic: Sequence[str] | None = None
    verify: bool | None = None
    quantize: Recipe | None = None
    schedules: Tables = field(default_factory=Tables)
    cache: CacheForm | None = None

    @property
    def generation(self) -> CacheForm | None:
        """How a language model keeps what it has read, for it to write text: where all of its dims are dynamic."""
        return None if self.dynamic is not None else CONTIGUOUS if self.cache is None else self.cache

    @property
    def activations(self) -> bool:
        """Whether products by weights in blocks may take 8-bit activations: not where ``dtype`` says what the model computes in."""
        return self.dtype is None

    def __post_init__(self) -> None:
        if not isinstance(self.target, str):
            raise CompilerError.of(Code.USAGE, f"target is {self.target!r}, which is no text", help='target="cpu"')
        if self.dynamic is not None and (isinstance(self.dynamic, str) or not all(isinstance(d, str) for d in self.dynamic)):
            raise CompilerError.of(Code.USAGE, f"dynamic is {self.dynamic!r}, which is no list of names", help='dynamic=("batch", "seq")')
        if self.verify not in (None, True, False):
            raise CompilerError.of(Code.USAGE, f"verify is {self.verify!r}", help="True, False or None")
        dtype_of(self.dtype)
        if self.cache is not None:
            self._check_cache(self.cache)

    def _check_cache(self, form: CacheForm) -> None:
        if form.paged and any(is_gpu(name) for name in self.target.split(",")):
            raise CompilerError.of(Code.NOT_BUILT, "caches in pages are not built for GPUs yet", help='cache="f16", or a CPU')
        if self.dynamic is not None:
            message = "cache says how a language model keeps what it has read, and with dims of fixed sizes it writes no text"
            raise CompilerError.of(Code.USAGE, message, help="leave out dynamic")

    @classmethod
    def of(
        cls,
        target: str,
        dtype: Any,
        dynamic: Any,
        verify: bool | None,
        quantize: Any,
        calibration: Any = None,
        schedules: Tables | None = None,
        cache: str | None = None,
    ) -> Request:
        """The request whose recipe is an object or a text; ``calibration`` goes into one that is given as text. ``cache``: as a text."""
        return cls(target, dtype, dynamic, verify, find_recipe(quantize, calibration), schedules or Tables(), _cache_form(cache))


def _cache_form(text: str | None) -> CacheForm | None:
    try:
        return None if text is None else CacheForm.parse(text)
    except ValueError as error:
        raise CompilerError.of(Code.USAGE, f"cache is {text!r}", help=str(error)) from error


# --- compiling ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A model that is about to go through the passes of its targets, and what is known of it by then."""

    model: Any
    module: Module
    names: Mapping[str, Sequence[str]]  # of the outputs of each function
    files: Sequence[Any]  # mapped ones that weights lie in
    recipe: Recipe | None
    quantizer: Pass | None
    seconds: Mapping[str, float]

    @classmethod
    def read(cls, model: Any, example_inputs: Any, request: Request, threads: int | None, generation: CacheForm | None = None) -> _Source:
        started = time.perf_counter()
        model, example_inputs = opened(model, example_inputs)
        module = _own_module(model, example_inputs, request, generation)
        if request.cache is not None and PREFILL not in module.functions:
            message = f"'{module.name}' writes no text, so it keeps nothing of what it has read"
            raise CompilerError.of(Code.USAGE, message, help="leave out cache; it is for language models in checkpoints and GGUF files")
        names = {f.name: [v.name for v in f.outputs] for f in module.functions.values()}
        files = mapped_files(module)
        seconds = {"read": time.perf_counter() - started}
        recipe, quantizer = request.quantize, None
        if recipe is not None:
            started = time.perf_counter()
            quantizer = recipe.quantizer(learnt(module, recipe, lambda examples: batches_of(examples, module, model), threads))
            if recipe.calibrated:
                seconds["calibration"] = time.perf_counter() - started
        return cls(model, module, names, files, recipe, quantizer, seconds)

    def metadata(self, report: Report) -> dict[str, str]:
        """What artifacts carry besides code; ``report`` is of the passes."""
        known: dict[str, str] = {}
        if self.recipe is not None and self.quantizer is not None:
            known = told(self.recipe, self.quantizer, next(p.log.rows for p in report.passes if p.name == self.quantizer.name))
        ends = end_tokens(self.model) if len(self.module.functions) > 1 else []
        calling = self.module.calling
        known |= {} if calling is None else {CALLING_KEY: calling.text}
        return tokenizer_of(self.model) | known | ({GENERATION_KEY: json.dumps({"ends": ends})} if ends else {})


def compile_model(model: Any, example_inputs: Any, request: Request, threads: int | None, run: bool = True) -> Runnable:
    """See :func:`trustformers_ir.compile`."""
    if isinstance(model, (str, Path)) and str(model).endswith(".tfc"):
        if request.schedules.asked or replace(request, schedules=Tables()) != Request(verify=request.verify):
            message = f"'{model}' is compiled already: target, dtype, quantize, dynamic and schedules cannot be chosen any more"
            raise CompilerError.of(Code.USAGE, message, Where(file=str(model)), "compile the model itself")
        return artifact.load(str(model), threads, parse=parse_module)
    gpus = _gpu_targets(request.target)
    if gpus:
        return _compile_for_gpus(model, example_inputs, request, gpus)
    return _compile_for_cpus(model, example_inputs, request, threads, run)


def _compile_for_cpus(model: Any, example_inputs: Any, request: Request, threads: int | None, run: bool = True) -> Executable:
    targets = building.find_targets(request.target)
    request.schedules.check([t.kind for t in targets])
    source = _Source.read(model, example_inputs, request, threads, generation=request.generation)
    started = time.perf_counter()
    graphs = _graphs(source.module, targets, source.quantizer, request)
    passed = time.perf_counter()
    executed = _executed([building.target_info(t) for t in targets])
    metadata = source.metadata(graphs[0][1])
    laid_out: list[Weights] = []
    family: list[CompiledModule] = []
    for n, (target, (graph, report)) in enumerate(zip(targets, graphs, strict=True)):

        def lay_out(stored: Sequence[StoredWeight], makers: Mapping[str, Callable[[], np.ndarray]], graph: Module = graph) -> None:
            """Weights are packed while LLVM works, unless nobody will run the code here, or there are so many that who may only save it should not
            hold them all. The pages of the checkpoint that were read go at once: there is one copy of the weights at a time."""
            if run and section_bytes(stored) <= memory() * LAID_OUT_AT_ONCE:
                laid_out.append(materialise(stored, makers, lambda: let_go(source.files)))
                for w in stored:
                    graph.weights[w.name].settle(laid_out[0].array(w))

        meanwhile, table = lay_out if n == executed else None, request.schedules.of(target.kind)
        made = building.build(graph, target, source.names, metadata, meanwhile, _placed(family), table)
        family.append(replace(made, report={"passes": report.as_dict()["passes"], **made.report}))
    seconds = {**source.seconds, "passes": passed - started, "build": time.perf_counter() - passed}
    family = _joined(family, seconds)
    executable = Executable(family[executed], threads, parse=parse_module, weights=laid_out[0] if laid_out else None, family=family)
    executable.calling = source.module.calling or executable.calling
    return executable


def _compile_for_gpus(model: Any, example_inputs: Any, request: Request, targets: Sequence[GpuTarget]) -> GpuExecutable:
    """One graph for all of them. Weights stay where they are until somebody saves or runs the module."""
    request.schedules.check([t.chip for t in targets])
    source = _Source.read(model, example_inputs, request, None, generation=request.generation)
    started = time.perf_counter()
    report = PassManager(pipelines.gpu(source.quantizer), verify=request.verify).run(source.module)
    passed = time.perf_counter()
    metadata, family = source.metadata(report), list[CompiledModule]()
    for target in targets:
        made = device.build(source.module, target, source.names, metadata, _placed(family), request.schedules.of(target.chip))
        family.append(_gpu_module(made, {"passes": report.as_dict()["passes"]}))
    family = _joined(family, {**source.seconds, "passes": passed - started, "build": time.perf_counter() - passed})
    executed = _executed([m.manifest.target for m in family])
    executable = GpuExecutable(family[executed], parse=parse_module, family=family)
    executable.calling = source.module.calling or executable.calling
    return executable


def _gpu_module(made: device.DeviceBuild, told: Mapping[str, object]) -> CompiledModule:
    section = device_code.encode(made.device, made.codes)
    return CompiledModule(made.manifest, section, made.print_graph, made.weights, made.digest, {**told, "schedules": made.schedules})


def _placed(family: Sequence[CompiledModule]) -> tuple[StoredWeight, ...]:
    """The weights that code which is there already reads."""
    return tuple({w.name: w for m in family for w in m.manifest.weights}.values())


def _joined(family: Sequence[CompiledModule], seconds: Mapping[str, float]) -> list[CompiledModule]:
    """The modules with the metadata of all."""
    shared = {name: text for m in family for name, text in m.manifest.metadata.items()}
    return [replace(m, manifest=replace(m.manifest, metadata=shared), report={"seconds": dict(seconds), **m.report}) for m in family]


def _graphs(module: Module, targets: Sequence[Target], quantizer: Pass | None, request: Request) -> list[tuple[Module, Report]]:
    """The module after the passes of each target. Targets of equal passes share the graph, and with it the weights; so that they do, all pack
    weights for the narrowest micro-kernel where the others can read that."""
    panel = building.common_panel(targets)
    lists = [_pipeline(t, panel, quantizer, request) for t in targets]
    alike = all(passes == lists[0] for passes in lists)
    found: list[tuple[Module, Report]] = []
    for n, passes in enumerate(lists):
        if (same := lists.index(passes)) < n:
            found.append(found[same])
            continue
        own = module if alike else clone_module(module)
        found.append((own, PassManager(passes, verify=request.verify).run(own)))
    return found


def _executed(targets: Sequence[TargetInfo]) -> int:
    """For which of the targets the code of a new module is executed; the first when none runs here: it can still be saved."""
    try:
        return choose_target(targets, env.TARGET.get() if len(targets) > 1 else None)
    except CompilerError as error:
        if Code.ARTIFACT_TARGET not in error.codes:
            raise
        return 0


def _pipeline(target: Target, panel: int | None, quantizer: Pass | None, request: Request) -> list[Pass]:
    return pipelines.cpu(panel or building.machine_shape(target).panel, quantizer, request.activations)


def _gpu_targets(names: str) -> list[GpuTarget]:
    """The GPUs in a text such as ``cuda:sm_80,cuda:sm_90``, or ``cuda``, which is that of this machine; the newest first. None for CPUs.
    ``CompilerError`` for an unknown one, one that is not here, and for GPUs beside CPUs."""
    given = [name.strip() for name in names.split(",")]
    later = [name for name in given if name.partition(":")[0] in _LATER_TARGETS]
    if later:
        help = "`tfc targets` lists what this machine can compile for"
        raise CompilerError.of(Code.NOT_BUILT, f"the target '{later[0]}' is not built yet", help=help)
    gpus = [name for name in given if is_gpu(name)]
    if gpus and len(gpus) < len(given):
        message = f"'{names}' is CPUs and GPUs; an artifact for both is not built yet"
        raise CompilerError.of(Code.NOT_BUILT, message, help="make one for each")
    found = [gpu.find_gpu(this_gpu(name) if name in KINDS else name) for name in gpus]
    if len({t.name for t in found}) < len(found):
        raise CompilerError.of(Code.USAGE, f"'{names}' names a GPU twice", help="give each once")
    return sorted(found, key=lambda t: (t.backend, str(t.arch).zfill(8)), reverse=True)


def _own_module(model: Any, example_inputs: Any, request: Request, generation: CacheForm | None = None) -> Module:
    """The graph of a model as it is asked for, with all weights there: one that may be changed, so a copy of a module that was given."""
    module = to_module(model, example_inputs, request.dtype, generation, request.dynamic)
    if module is model:
        module = clone_module(module)
    if not is_torch(model):
        _specialise(module, request.dynamic, example_inputs)
    check_weights(module, str(model) if isinstance(model, (str, Path)) else None)
    return module


def _specialise(module: Module, dynamic: Sequence[str] | None, example_inputs: Any) -> None:
    """Fix the dims that are not dynamic to the sizes in the example inputs."""
    if dynamic is None:
        return
    symbols = module.facts.symbols
    unknown = [name for name in dynamic if name not in symbols]
    if unknown:
        message = f"there is no dim '{unknown[0]}'"
        raise CompilerError.of(Code.USAGE, message, help=f"the dims of the model are {', '.join(symbols) or 'all constant'}")
    fixed = [name for name in symbols if name not in dynamic]
    if not fixed:
        return
    args = module.main.args
    examples = examples_of(example_inputs)
    given = examples if isinstance(examples, Mapping) else dict(zip((a.name for a in args), examples, strict=False))
    arrays = [a for a in args if hasattr(given.get(a.name), "shape") and not isinstance(given[a.name], TensorType)]
    sizes = bind_dims([Shaped(a.name, a.type.shape, tuple(given[a.name].shape)) for a in arrays], Facts(dict(symbols))) if arrays else {}
    for name in fixed:
        if name not in sizes:
            help = "give example_inputs as arrays, or leave the dim dynamic"
            raise CompilerError.of(Code.USAGE, f"dim '{name}' is not dynamic, and nothing says how large it is", help=help)
        symbols[name] = SymbolFact(sizes[name], sizes[name])


# --- quantizing --------------------------------------------------------------------------------------------------------------------


def quantization_error(model: Any, examples: Any, example_inputs: Any, request: Request, threads: int | None) -> ErrorReport:
    """See :func:`trustformers_ir.quantization_error`."""
    recipe = request.quantize
    if recipe is None:
        raise CompilerError.of(Code.USAGE, "an error of quantization without a recipe", help='quantize="int8"')
    model, _ = opened(model)
    module = _own_module(model, example_inputs, request)
    known = learnt(module, recipe, lambda given: batches_of(given, module, model), threads)
    return measure(module, recipe, known, batches_of(examples, module, model), threads)


# --- tuning ------------------------------------------------------------------------------------------------------------------------


def tune(model: Any, inputs: Mapping[str, np.ndarray], request: Request, threads: int | None, budget: float) -> Tuned:
    """See :func:`trustformers_ir.tune`."""
    if isinstance(model, (str, Path)) and str(model).endswith(".tfc"):
        raise CompilerError.of(Code.USAGE, f"'{model}' is compiled already: its schedules stay", Where(file=str(model)), "tune the model itself")
    if "," in request.target:
        raise CompilerError.of(Code.USAGE, f"'{request.target}' is several targets", help="tune for one at a time")
    gpus = _gpu_targets(request.target)
    if gpus:
        return _tune_gpu(model, inputs, request, gpus[0], budget)
    base = _compile_for_cpus(model, inputs, replace(request, schedules=Tables()), threads)
    target = building.find_target(base.manifest.target.name)
    weights, names = base.weights, {e.name: [p.name for p in e.outputs] for e in base.manifest.entries}

    def build(table: ScheduleTable) -> Executable:
        """The model with other schedules, over the same weights."""
        made = building.build(clone_module(base.module), target, names, table=table)
        assert made.manifest.weights == base.manifest.weights, "schedules do not change where weights lie"
        return Executable(made, threads, weights=weights)

    around = functools.partial(neighbours, building.machine_shape(target))
    return Search(build, around, target.kind, inputs, budget).run()


def _tune_gpu(model: Any, inputs: Mapping[str, np.ndarray], request: Request, target: GpuTarget, budget: float) -> Tuned:
    check_measurable(device.target_info(target))
    source = _Source.read(model, inputs, request, None)
    PassManager(pipelines.gpu(source.quantizer), verify=request.verify).run(source.module)
    weights: list[Block] = []
    with Workers() as workers:

        def build(table: ScheduleTable) -> GpuExecutable:
            """The model with other schedules, over the weights of the first that is built."""
            made = device.build(clone_module(source.module), target, source.names, table=table, workers=workers)
            executable = GpuExecutable(_gpu_module(made, {}), weights=weights[0] if weights else None)
            if not weights:
                weights.append(executable.weights)
            return executable

        def usable(choices: Mapping[ScheduleKey, Choice]) -> dict[ScheduleKey, Choice]:
            return gpu.fitting(clone_module(source.module), target, choices, workers)

        around = functools.partial(block_choices.neighbours, gpu.machine_of(target))
        return Search(build, around, target.chip, inputs, budget, usable).run()


# --- looking inside ----------------------------------------------------------------------------------------------------------------


def run_passes(module: Module, pipeline: str) -> Report:
    """Run the passes of a text, or those of a target (``cpu``, ``cpu:avx2``)."""
    name = pipeline.strip()
    cpu = name == "cpu" or name.startswith("cpu:")
    passes = _pipeline(building.find_target(name), None, None, Request()) if cpu else parse_pipeline(pipeline, PASSES)
    return PassManager(passes).run(module)


def list_passes() -> Iterator[str]:
    """One line per pass."""
    texts = {name: name + _options(kind) for name, kind in PASSES.items()}
    width = max(map(len, texts.values()), default=0)
    for name, kind in PASSES.items():
        yield f"{texts[name]:<{width}}  {kind.summary}"


def _options(kind: type[Pass]) -> str:
    options = ",".join(f"{f.name}={option_text(f.default)}" for f in option_fields(kind))
    return f"{{{options}}}" if options else ""


def emit_gpu(model: Any, request: Request, stage: str) -> str:
    """The graph, kernels, Triton functions or assembly of a model for a GPU, which need not be here."""
    target = gpu.find_gpu(request.target)
    request.schedules.check([target.chip])
    source = _Source.read(model, None, request, None)
    PassManager(pipelines.gpu(source.quantizer), verify=request.verify).run(source.module)
    return str(source.module) if stage == "graph" else gpu.lower(source.module, target, table=request.schedules.of(target.chip)).text(stage)


def emit(executable: Runnable, stage: str) -> str:
    """The kernels, LLVM text or assembly behind an executable, made again from its graph, for the target that is executed."""
    target = building.find_target(executable.manifest.target.name)
    table = tuned_table(executable.manifest.metadata, target.kind)
    lowered = building.lower(clone_module(executable.module), target, table=table)
    if stage == "kernels":
        return "\n\n".join(f"// {name}\n{print_kernel(kernel)}" for name, kernel in lowered.kernels.items())
    text = building.llvm_text(lowered)
    return text if stage == "llvm" else compile_assembly(text, target)
