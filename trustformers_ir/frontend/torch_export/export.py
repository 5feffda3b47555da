"""A module of torch as a program of core ATen ops, with as many axes left open as its code allows.

What is tried, in this order: all dynamic axes open, from an example in which each has at least two elements; the same from the example as it is;
batches alone; nothing. Which axes ended up with the size of the example is said aloud (a warning, and ``report()["torch"]``).
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trustformers_ir.frontend.torch_export.decompositions import decompositions
from trustformers_ir.frontend.torch_export.examples import Examples, examples_of
from trustformers_ir.frontend.torch_export.failures import failure
from trustformers_ir.frontend.torch_export.sites import whole_traces
from trustformers_ir.ir.diagnostics import Code, CompilerError, Diagnostic, Where
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.tracing import shown_path


@dataclass(frozen=True)
class Exported:
    """A program of core ATen ops, the examples it was made from (None: it was given as a program), and what is to be said of it."""

    program: Any
    examples: Examples | None
    notes: tuple[str, ...] = ()
    specs: tuple[Any, Any] | None = None  # of what the module takes and gives, where the program has flat lists instead


def export(model: Any, given: Any, dynamic: Any) -> Exported:
    """The program of a module. ``CompilerError`` with the user's line for one that torch cannot export."""
    _register_caches(model)
    examples = examples_of(model, given, dynamic)
    _check_devices(model, examples)
    trained = _trained(model)
    modes = {m: m.training for m in model.modules()}
    try:
        model.eval()
        found = _tried(model, examples)
    except CompilerError as error:
        raise CompilerError(*trained, *error.diagnostics) from error.__cause__
    finally:
        for m, mode in modes.items():
            m.training = mode
    if trained:
        raise _Trained(found, trained)
    return found


class _Trained(CompilerError):
    """A module in training mode; the program of its inference, so that what else is wrong can be told as well."""

    def __init__(self, exported: Exported, diagnostics: list[Diagnostic]) -> None:
        super().__init__(*diagnostics)
        self.exported = exported


def _tried(model: Any, examples: Examples) -> Exported:
    """The first of the attempts that succeeds; the error of the first where none does."""
    note("exporting the module")
    attempts: list[tuple[Examples, str]] = [(examples.grown(("batch", "seq")) if examples.single else examples, "")]
    if examples.single:
        attempts += [(examples.grown(("batch",)), "the axes of one element that are no batches"), (examples, "the axes of one element")]
    if any(examples.axes):
        attempts += [
            (examples.grown(("batch",)).fixed(("seq",)), "sequences: torch could not leave them open"),
            (examples.fixed(_every_role(examples)), "every axis: torch could not leave one open"),
        ]
    first: BaseException | None = None
    for attempt, told in attempts:
        try:
            program, specs = _exported(model, attempt)
        except Exception as error:
            first = first or error
            if any(c is Code.TORCH_DATA_DEPENDENT for c in failure(error).codes):
                break
            continue
        notes = [f"of the sizes of the example are {told}"] if told else []
        return Exported(_decomposed(program), attempt, (*notes, *_specialised(program, attempt)), specs)
    assert first is not None
    raise failure(first, model) from first


def narrowed(model: Any, examples: Examples) -> Iterator[Exported]:
    """Programs with fewer open axes: without sequences, then without any."""
    modes = {m: m.training for m in model.modules()}
    kinds = {a.role for axes in examples.axes for a in axes.values()}
    for fixed in [("seq",), tuple(kinds)] if "seq" in kinds and "batch" in kinds else [tuple(kinds)] if kinds else []:
        try:
            model.eval()
            made, specs = _exported(model, examples.fixed(fixed))
            program = _decomposed(made)
        except Exception:
            continue
        finally:
            for m, mode in modes.items():
                m.training = mode
        yield Exported(program, examples.fixed(fixed), (f"of the size of the example are all axes of {' and '.join(sorted(fixed))}",), specs)


def _register_caches(model: Any) -> None:
    """Makes torch's pytrees know the caches of transformers, where that is what the model is of. ``DynamicCache`` first, by its keys and values."""
    if "transformers" not in sys.modules or not any(type(m).__module__.startswith("transformers.") for m in model.modules()):
        return
    with contextlib.suppress(ImportError, AttributeError):
        from transformers.integrations.executorch import register_dynamic_cache_export_support

        register_dynamic_cache_export_support()
    with contextlib.suppress(ImportError, AttributeError):
        from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model

        register_cache_pytrees_for_model(model)


def _every_role(examples: Examples) -> tuple[str, ...]:
    return tuple({a.role for axes in examples.axes for a in axes.values()})


def _exported(model: Any, examples: Examples) -> tuple[Any, tuple[Any, Any] | None]:
    """The program. With classes among the arguments (caches) it takes and gives flat lists, and the specs of both are beside it: torch would run the
    code of those classes again for every transformation of the program."""
    import torch
    import torch.utils._pytree as pytree

    with torch.no_grad(), _quiet(), whole_traces():
        if examples.plain:
            shapes = examples.shapes(model, examples.args, examples.kwargs)
            return torch.export.export(model, examples.args, examples.kwargs, dynamic_shapes=shapes, strict=False), None
        leaves, spec = pytree.tree_flatten((examples.args, examples.kwargs))
        given: list[Any] = []
        flat = _flat(model, spec, given)
        shapes = examples.shapes(flat, tuple(leaves), {})
        program = torch.export.export(flat, tuple(leaves), dynamic_shapes=shapes, strict=False)
        return program, (spec, given[-1])


def _flat(model: Any, spec: Any, given: list[Any]) -> Any:
    """A module that takes the leaves of the arguments, and gives the leaves of what the other gives, the spec of which goes into ``given``."""
    import torch
    import torch.utils._pytree as pytree

    class Flat(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *leaves: Any) -> list[Any]:
            args, kwargs = pytree.tree_unflatten(list(leaves), spec)
            found, out = pytree.tree_flatten(self.model(*args, **kwargs))
            given.append(out)
            return list(found)

    return Flat()


def decomposed(program: Any) -> Exported:
    """A program that the user exported."""
    return Exported(_decomposed(program), None)


def _decomposed(program: Any) -> Any:
    note("taking ops of torch apart")
    with _quiet():
        try:
            return program.run_decompositions(decompositions())
        except Exception as error:
            raise failure(error) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch warns and logs of its own workings; what matters to the user is told as errors and notes."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.export", "torch._export", "torch.fx", "torch._dynamo")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)


def _specialised(program: Any, examples: Examples) -> list[str]:
    """The axes that were to stay open and that the module's code fixed."""
    import torch

    notes: list[str] = []
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    inputs = [s.arg for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    for spec, path, leaf, axes in zip(inputs, examples.paths, examples.leaves, examples.axes, strict=False):
        fake = values.get(getattr(spec, "name", ""))
        if not isinstance(fake, torch.Tensor):
            continue
        known = {a for a in axes if isinstance(fake.shape[a], int) or fake.shape[a].node.expr.is_number}
        fixed = [a for a in axes if a in known]
        if len([a for a in axes if axes[a].role == "seq"]) > 1:  # features: one of the two is the sequence
            fixed = [a for a in fixed if axes[a].role != "seq" or all(b in known for b in axes if axes[b].role == "seq")]
        notes += [f"axis {a} ({axes[a].role}) of '{path}' is fixed to {leaf.shape[a]}: the code of the module asks for that size" for a in fixed]
    return notes


# --- what is wrong before anything is exported -------------------------------------------------------------------------------------


def _check_devices(model: Any, examples: Examples) -> None:
    import torch

    named = [("parameter", *item) for item in model.named_parameters()] + [("buffer", *item) for item in model.named_buffers()]
    named += [("input", path, x) for path, x in zip(examples.paths, examples.leaves, strict=True) if isinstance(x, torch.Tensor)]
    wrong = [(kind, name, t) for kind, name, t in named if t.device.type != "cpu"]
    if wrong:
        kind, name, tensor = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        message = f"{kind} '{name}'{more} is on the device {tensor.device}"
        help = "load the numbers first: the model has no memory yet" if tensor.device.type == "meta" else "move all to the CPU: model.cpu(), x.cpu()"
        raise CompilerError.of(Code.TORCH_DEVICE, message, Where(tensor=name), help)


RANDOM_LAYERS = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout", "RReLU")
LEARNING_LAYERS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")


def _trained(model: Any) -> list[Diagnostic]:
    """What is to be said of a module in training mode: which of its layers behave otherwise then."""
    found: dict[str, list[str]] = {}
    for name, m in model.named_modules():
        kind = type(m).__name__
        random = kind in RANDOM_LAYERS and getattr(m, "p", 1.0) > 0
        if m.training and (random or kind in LEARNING_LAYERS):
            found.setdefault(kind, []).append(name or "the module itself")
    if not found:
        return []
    parts = "; ".join(f"{kind} ({len(names)}): {', '.join(names[:3])}{' …' if len(names) > 3 else ''}" for kind, names in found.items())
    message = f"{type(model).__name__} is in training mode, in which some layers are random or learn: {parts}"
    return [Diagnostic(Code.TORCH_TRAINING, message, _class_line(model), "call model.eval() before compiling")]


def _class_line(model: Any) -> Where:
    try:
        file = inspect.getsourcefile(type(model)) or ""
        return Where(shown_path(file), inspect.getsourcelines(type(model))[1]) if file else Where()
    except (OSError, TypeError):
        return Where()
