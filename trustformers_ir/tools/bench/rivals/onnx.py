"""ONNX Runtime: the exported graph, the same after its transformer optimizer, and both quantized."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.tools.bench.rivals.job import Call, Inputs, Job
from trustformers_ir.tools.bench.rivals.pytorch import checkpoint, tensors

FUSED_ATTENTION = "tfir_bench_fused"


def make(setting: str, job: Job) -> Call:
    import onnxruntime

    graph, int8 = setting.removesuffix("-int8"), setting.endswith("-int8")
    path = _optimized(job) if graph == "optimized" else _exported(job)
    if int8:
        path = _quantized(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def call(inputs: Inputs) -> np.ndarray:
        return np.asarray(session.run(None, {name: inputs[name] for name in names})[0])

    return call


def _exported(job: Job, attention: str = "sdpa") -> Path:
    """The ONNX file of the model with static shapes, made once per contest."""
    import torch

    path = job.work / f"{attention}.onnx"
    if path.exists():
        return path
    model, names = checkpoint(job, attention)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of every Python branch in the model
        example = tensors(job.example, names)
        domains = {"com.microsoft": 1} if attention == FUSED_ATTENTION else None
        options = {"dynamo": False, "opset_version": 17, "custom_opsets": domains}
        torch.onnx.export(model, example, str(path), input_names=list(names), output_names=["y"], **options)
    return path


def _optimized(job: Job) -> Path:
    """The graph after ``onnxruntime.transformers.optimizer``.

    The optimizer does not recognise the attention of today's ``transformers`` in any export (torchscript or dynamo, sdpa or eager), so the
    operator that it would put there is written by the export itself.
    """
    path = job.work / "optimized.onnx"
    if path.exists():
        return path
    import onnxruntime.transformers.optimizer as optimizer
    import transformers

    library = _define_attention()
    transformers.AttentionInterface.register(FUSED_ATTENTION, _fused_attention)
    # Without this an attention of our own gets no mask at all: padded texts would be another model.
    transformers.AttentionMaskInterface.register(FUSED_ATTENTION, transformers.masking_utils.sdpa_mask)
    config = transformers.AutoConfig.from_pretrained(job.model)
    model = optimizer.optimize_model(
        str(_exported(job, FUSED_ATTENTION)),
        model_type="vit" if "vit" in config.model_type else "bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        opt_level=1,
    )
    model.save_model_to_file(str(path))
    library._destroy()
    return path


def _define_attention() -> Any:
    """Defines attention over ``[batch, seq, heads * size]`` as an operator that exports as one ``com.microsoft.MultiHeadAttention``. The mask is
    ``[batch, 1, seq, seq]``, true where a query sees a key."""
    import torch

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, heads: int, scale: float) -> torch.Tensor:
        parts = [t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v)]
        return torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=bias, scale=scale).transpose(1, 2).flatten(2)

    @torch.onnx.symbolic_helper.parse_args("v", "v", "v", "v", "i", "f")  # type: ignore[untyped-decorator]
    def symbolic(g: Any, q: Any, k: Any, v: Any, bias: Any, heads: int, scale: float) -> Any:
        nothing = g.op("prim::Constant").setType(torch._C.OptionalType.ofTensor())  # no bias of the products, no mask of keys
        masked = () if torch.onnx.symbolic_helper._is_none(bias) else (nothing, nothing, bias)
        return g.op("com.microsoft::MultiHeadAttention", q, k, v, *masked, num_heads_i=heads, scale_f=scale).setType(q.type())

    library = torch.library.Library("tfir_bench", "FRAGMENT")
    library.define("attention(Tensor q, Tensor k, Tensor v, Tensor? bias, int heads, float scale) -> Tensor")
    library.impl("attention", attention, "CompositeExplicitAutograd")
    torch.onnx.register_custom_op_symbolic("tfir_bench::attention", symbolic, 17)
    return library


def _fused_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **_: Any) -> tuple[Any, None]:
    """What ``transformers`` calls: ``[batch, heads, seq, size]`` in, ``[batch, seq, heads, size]`` out."""
    import torch

    bias = None
    if attention_mask is not None:  # true where a query sees a key; the operator adds numbers
        bias = torch.where(attention_mask, 0.0, torch.finfo(query.dtype).min).to(query.dtype)
    heads, size = query.shape[1], query.shape[3]
    rows = [t.transpose(1, 2).flatten(2) for t in (query, key, value)]
    fused = torch.ops.tfir_bench.attention(*rows, bias, int(heads), float(size**-0.5 if scaling is None else scaling))
    return fused.unflatten(2, (heads, size)), None


def _quantized(path: Path) -> Path:
    """Weights quantized per channel: as fast as one scale per matrix, and less than half the error on MiniLM."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = path.with_suffix(".int8.onnx")
    if not quantized.exists():
        options = {"MatMulConstBOnly": True, "DefaultTensorType": 1}
        quantize_dynamic(str(path), str(quantized), per_channel=True, weight_type=QuantType.QInt8, extra_options=options)
    return quantized
