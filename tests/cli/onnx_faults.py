"""Faults for ONNX files: one of six kinds at a place that is drawn, and which operation of the source has it; and twelve tiny architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

SIZES = "num_hidden_layers=2&hidden_size=32&intermediate_size=48&num_attention_heads=4&vocab_size=99"
GROUPED = f"{SIZES}&num_key_value_heads=2"
MODELS = {
    "bert": f"random:bert?{SIZES}",
    "llama": f"random:llama?{GROUPED}&architecture=LlamaForCausalLM",
    "mistral": f"random:mistral?{GROUPED}&architecture=MistralForCausalLM&sliding_window=5",
    "gemma2": f"random:gemma2?{GROUPED}&head_dim=8&architecture=Gemma2ForCausalLM&sliding_window=5",
    "phi3": f"random:phi3?{GROUPED}&architecture=Phi3ForCausalLM",
    "qwen2": f"random:qwen2?{GROUPED}&architecture=Qwen2ForCausalLM",
    "mixtral": f"random:mixtral?{GROUPED}&architecture=MixtralForCausalLM&num_local_experts=4",
    "falcon": "random:falcon?num_hidden_layers=2&hidden_size=32&num_attention_heads=4&vocab_size=99&alibi=true&architecture=FalconForCausalLM",
    "gpt_neox": f"random:gpt_neox?{SIZES}&architecture=GPTNeoXForCausalLM",
    "cohere": f"random:cohere?{GROUPED}&architecture=CohereForCausalLM",
    "gpt2": "random:gpt2?n_layer=2&n_embd=32&n_head=4&vocab_size=99&architecture=GPT2LMHeadModel",
    "vit": "random:vit?num_hidden_layers=2&hidden_size=32&intermediate_size=48&num_attention_heads=2&image_size=16&patch_size=4",
}
Change = Callable[[], None]


def operation(node: Any) -> str:
    """``12:linear``: what the exporter says that a node is a part of."""
    return {p.key: p.value for p in node.metadata_props}.get("operation", "")


def initializers(model: Any) -> dict[str, Any]:
    return {t.name: t for t in model.graph.initializer}


def _put(model: Any, node: Any, number: int, array: np.ndarray) -> None:
    """An input of one node as another array: others keep theirs."""
    name = f"fault_{number}"
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    node.input[number] = name


def permutations(model: Any) -> Iterator[tuple[Any, Change]]:
    """Two axes are not exchanged before a reshape: the same number of elements in another order."""
    readers = {x: n for n in model.graph.node for x in n.input}
    for node in model.graph.node:
        following = readers.get(node.output[0])
        if node.op_type == "Transpose" and following is not None and following.op_type == "Reshape":
            perm = node.attribute[0]

            def change(perm: Any = perm) -> None:
                perm.ints[:] = sorted(perm.ints)

            yield node, change


def weights(model: Any) -> Iterator[tuple[Any, Change]]:
    """A square matrix is transposed."""
    known = initializers(model)
    for node in model.graph.node:
        for n, name in enumerate(node.input):
            t = known.get(name)
            if node.op_type in ("MatMul", "Gemm", "DequantizeLinear") and t is not None and len(t.dims) == 2 and t.dims[0] == t.dims[1]:

                def change(node: Any = node, n: int = n, t: Any = t) -> None:
                    _put(model, node, n, numpy_helper.to_array(t).T)

                yield node, change


def epsilons(model: Any) -> Iterator[tuple[Any, Change]]:
    """The epsilon of a norm is 0.01."""
    known = initializers(model)
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            epsilon = next(a for a in node.attribute if a.name == "epsilon")

            def change(epsilon: Any = epsilon) -> None:
                epsilon.f = 0.01

            yield node, change
        elif "rms_norm" in operation(node) and node.op_type == "Add":
            for n, name in enumerate(node.input):
                if name in known and not known[name].dims and 0 < float(numpy_helper.to_array(known[name])) < 1e-3:

                    def widened(node: Any = node, n: int = n, t: Any = known[name]) -> None:
                        _put(model, node, n, np.full_like(numpy_helper.to_array(t), 0.01))

                    yield node, widened


def masks(model: Any) -> Iterator[tuple[Any, Change]]:
    """A comparison of positions one off, or a mask the other way round."""
    turned = {"LessOrEqual": "Less", "GreaterOrEqual": "Greater", "Less": "LessOrEqual", "Greater": "GreaterOrEqual"}
    for node in model.graph.node:
        if node.op_type in turned:

            def change(node: Any = node) -> None:
                node.op_type = turned[node.op_type]

            yield node, change
        elif node.op_type == "Where" and operation(node).partition(":")[2].startswith(("attention", "where", "select", "scaled", "sdpa")):

            def exchange(node: Any = node) -> None:
                a, b = node.input[1], node.input[2]
                node.input[1], node.input[2] = b, a

            yield node, exchange


def constants(model: Any) -> Iterator[tuple[Any, Change]]:
    """A factor is 10 % too large."""
    known = initializers(model)
    for node in model.graph.node:
        for n, name in enumerate(node.input):
            t = known.get(name)
            if node.op_type in ("Mul", "Div") and t is not None and not t.dims and t.data_type == onnx.TensorProto.FLOAT:

                def change(node: Any = node, n: int = n, t: Any = t) -> None:
                    _put(model, node, n, np.asarray(numpy_helper.to_array(t) * np.float32(1.1), np.float32))

                yield node, change


def scales(model: Any) -> Iterator[tuple[Any, Change]]:
    """What the codes of one output, or of one block of an output, are multiplied by is 10 % too large."""
    known = initializers(model)
    widened = {n.output[0]: n for n in model.graph.node if n.op_type == "Cast"}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in known:
            reader, number = (widened[node.input[1]], 0) if node.input[1] in widened else (node, 1)

            def change(reader: Any = reader, number: int = number, t: Any = known[reader.input[number]]) -> None:
                array = numpy_helper.to_array(t).copy()
                array[(..., 0) if array.ndim > 1 else 0] *= array.dtype.type(1.1)
                _put(model, reader, number, array)

            yield node, change


KINDS = (permutations, weights, epsilons, masks, constants, scales)


def inject(path: Path, to: Path, seed: int) -> tuple[str, str]:
    """Writes the file with one fault; its kind, and the operation that has it (``12:linear``)."""
    model = onnx.load(str(path))
    random = np.random.default_rng(seed)
    found = [(kind.__name__, list(kind(model))) for kind in KINDS]
    found = [(name, places) for name, places in found if places]
    name, places = found[int(random.integers(len(found)))]
    node, change = places[int(random.integers(len(places)))]
    change()
    onnx.save(model, str(to))
    return name, operation(node)
