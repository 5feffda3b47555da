"""torch: eager, Inductor, and Inductor on a model quantized for x86."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from trustformers_ir.tools.bench.rivals.job import Call, Inputs, Job


def checkpoint(job: Job, attention: str = "sdpa") -> tuple[Any, tuple[str, ...]]:
    """The model as a torch module from positional tensors to its first output, and the names of those tensors.

    Left out are an attention mask of ones and token types of zeros: without them attention needs no mask, which is faster.
    """
    import torch
    import transformers

    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModel.from_pretrained(job.model, attn_implementation=attention, dtype=torch.float32).eval()
    if hasattr(model, "pooler"):
        model.pooler = None  # makes the second output, which nobody reads
    taken = inspect.signature(model.forward).parameters
    names = tuple(name for name in job.example if name in taken and not _trivial(name, job))

    class FirstOutput(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            return self.model(**dict(zip(names, tensors, strict=True)))[0]

    return FirstOutput().eval(), names


def _trivial(name: str, job: Job) -> bool:
    value = {"attention_mask": 1, "token_type_ids": 0}.get(name)
    return value is not None and all((inputs[name] == value).all() for inputs in (*job.inputs, *job.calibration))


def tensors(inputs: Inputs, names: tuple[str, ...]) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names)


def make(setting: str, job: Job) -> Call:
    import torch

    model, names = checkpoint(job)
    if setting == "eager":
        return _caller(model, names, torch.inference_mode)
    # Freezing turns weights into constants: they are packed for oneDNN or the C++ GEMM template once.
    with contextlib.suppress(ImportError):
        import torch._inductor.config

        torch._inductor.config.freezing = True
    mode = None
    if setting == "max-autotune":
        mode = setting
    elif setting != "default":
        model = _quantized(model, names, job, dynamic=setting == "dynamic-int8")
    return _caller(torch.compile(model, mode=mode, dynamic=False), names, torch.no_grad)


def _quantized(model: Any, names: tuple[str, ...], job: Job, dynamic: bool) -> Any:
    """PyTorch 2 Export quantization with the quantizer that Inductor's x86 kernels are made for."""
    import torch
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    with torch.no_grad():
        exported = torch.export.export(model, tensors(job.example, names), strict=False).module()
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
        prepared = prepare_pt2e(exported, quantizer)
        for inputs in job.calibration:
            prepared(*tensors(inputs, names))
        converted = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)
    return converted


def _caller(model: Any, names: tuple[str, ...], mode: Callable[[], Any]) -> Call:
    def call(inputs: Inputs) -> np.ndarray:
        with mode():
            return np.asarray(model(*tensors(inputs, names)).numpy())

    return call
