"""What torch.export raises, as diagnostics: a code, the user's line, and what to write instead."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from typing import Any

from trustformers_ir.frontend.torch_export.sites import NOWHERE, Frame, Origin, error_frames, frames_in, origin_of
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where

BRANCH = "choose by elements with torch.where(condition, a, b), or with torch.cond; branch in Python on shapes and settings alone"
NUMBER = "compute on with the tensor instead of .item(), int(), float() or .tolist()"

# What torch says -> the code, our words, and the help. The first that matches counts.
_KNOWN: tuple[tuple[str, Code, str, str], ...] = (
    (
        r"Could not guard on data-dependent expression|data-dependent (?:branching|expression)|GuardOnDataDependent|Cannot use|unbacked",
        Code.TORCH_DATA_DEPENDENT,
        "a branch, a size or a number in Python follows from the numbers in a tensor, which only the run knows",
        BRANCH,
    ),
    (
        r"(?:aten|torch)\S*(?:_local_scalar_dense|item)|\.item\(\)|\.tolist\(\)|Boolean value of Tensor|__bool__|is_nonzero",
        Code.TORCH_DATA_DEPENDENT,
        "Python asks for the number in a tensor, which only the run knows",
        NUMBER,
    ),
    (
        r"[Dd]ynamic(?: output)? shape (?:operator|op)|DynamicOutputShape|data dependent output|DataDependentOutput",
        Code.TORCH_DATA_DEPENDENT,
        "the size of a result follows from the numbers in a tensor, which only the run knows",
        "keep the size: torch.where(mask, x, 0), x.masked_fill(~mask, 0)",
    ),
    (
        r"\.numpy\(\) is not supported|Can't call numpy\(\)|Cannot access data pointer|numpy\(\)|data_ptr",
        Code.TORCH_EXPORT,
        "numpy, or the memory of a tensor, is used inside of forward",
        "use functions of torch: numpy cannot see into the graph",
    ),
    (
        r"Expected all tensors to be on the same device|found at least two devices|Unhandled FakeTensor Device|is on (?:cuda|meta)|"
        r"[Tt]ensor on device|not compiled with CUDA|linked with support|No CUDA GPUs|Found no NVIDIA|device (?:type|string)|Cannot copy out of meta",
        Code.TORCH_DEVICE,
        "tensors of several devices meet, or one is asked for that is not here",
        "keep all on the CPU: no .cuda() or device= inside of forward",
    ),
    (
        r"leaf Variable that requires grad|in-place operation|a view of a leaf|modified by an inplace|"
        r"is being used in an in-place|mutat|cannot be written to|writing to",
        Code.TORCH_MUTATION,
        "the program writes into a tensor that it was given or keeps",
        "make a new tensor: x = x + 1 for x += 1, torch.where or x.index_put(…) for x[i] = …",
    ),
    (r"autograd\.Function|setup_context|requires_grad|\.backward\(|does not require grad", Code.TORCH_EXPORT, "gradients are part of forward",
     "compile the inference alone: leave out backward() and autograd.grad"),
    (
        r"no fake impl|no meta kernel|has no kernel|Missing (?:meta|fake)|fake implementation|unsupported operator|does not have a fake",
        Code.TORCH_OP,
        "an op has no rule by which torch knows its result without running it",
        "write it with functions of torch, or give a fake implementation: torch.library.register_fake",
    ),
    (r"[Ss]parse", Code.TORCH_OP, "sparse tensors", "use dense tensors: x.to_dense()"),
    (r"[Qq]uantiz", Code.TORCH_OP, "quantized tensors of torch", 'compile the float model and let tfir quantize: quantize="int8"'),
)  # fmt: skip

_SHAPES = re.compile(
    r"must match|size mismatch|shapes? cannot be multiplied|[Ss]hape|[Ss]izes? of tensors|dimension|invalid for input of size|broadcast|"
    r"reduction dim|out of range|scalar types|same dtype|"
    r"[Ee]xpected .*(?:rank|dim|size)|index .* out of|dtype|expected scalar type|expected m1 and m2|should be the same"
)


def failure(error: BaseException, model: Any = None) -> CompilerError:
    """The error of the user's program, from what torch raised."""
    if isinstance(error, CompilerError):
        return error
    text = _message(error)
    origin = _origin(error)
    if "in output, which is not a known type" in text:
        return _told(Code.TORCH_RESULT, "forward returns something that is neither a tensor nor a nest of them", text, _return_of(model), "")
    kind = type(error).__name__
    whole = f"{kind}: {text}"
    for pattern, code, words, help in _KNOWN:
        if re.search(pattern, whole):
            return _told(code, words, text, origin, help)
    if kind in ("UserError", "Unsupported", "TorchRuntimeError", "InternalTorchDynamoError"):
        return _told(Code.TORCH_EXPORT, "torch cannot turn this into a graph", text, origin, "")
    if _SHAPES.search(text) and isinstance(error, (RuntimeError, IndexError, ValueError, TypeError)):
        return _told(Code.TRACE_SHAPE, "the shapes or dtypes of the operands do not fit", text, origin, "look at the shapes of the example inputs")
    words = f"forward raised {kind}"
    return _told(Code.TORCH_EXPORT, words, text, origin, "call the module with the example inputs in Python: it has to run there first")


def _told(code: Code, words: str, said: str, origin: Origin, help: str) -> CompilerError:
    location = origin.shown.location
    where = Where() if location is None else Where(location.file, location.line)
    message = f"{words}\ntorch says: {said}" if said else words
    message = f"{message}\n{origin.through}" if origin.through else message
    return CompilerError.of(code, message, where, help, origin.shown.source)


_TRACES = re.compile(
    r"\s*(?:File \"|Traceback|The following call|from user code|User code traceback|To fix|Suggested|For more|Set TORCH|\(_|While executing|"
    r"The error above occurred|Original traceback|Developer debug|Potential framework)"
)


def _message(error: BaseException) -> str:
    """The first sentences of what torch says, without the traces that it prints."""
    lines: list[str] = []
    for line in str(error).strip().splitlines():
        if _TRACES.match(line) or len(lines) == 3:
            break
        if line.strip():
            lines.append(line.strip())
    return " ".join(lines)[:300]


def _return_of(model: Any) -> Origin:
    """The last ``return`` of forward."""
    try:
        lines, first = inspect.getsourcelines(type(model).forward)
        file = inspect.getsourcefile(type(model).forward) or ""
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, AttributeError, SyntaxError):
        return NOWHERE
    returns = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Return)]
    return origin_of([Frame(file, first + max(returns) - 1, "forward")]) if returns else NOWHERE


def _origin(error: BaseException) -> Origin:
    """The user's line: of the traceback, or of the frames that torch prints into its message. The traceback of a cause is nearer to it."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        at = at.__cause__ or at.__context__
    for found in reversed(seen):
        origin = origin_of(error_frames(found))
        if origin is not NOWHERE and origin.shown.location is not None:
            return origin
    for found in seen:
        real = getattr(found, "real_stack", None)
        origin = origin_of(frames_in("".join(real.format()))) if real else NOWHERE
        origin = origin if origin is not NOWHERE else origin_of(frames_in(str(found)))
        if origin is not NOWHERE:
            return origin
    return NOWHERE

