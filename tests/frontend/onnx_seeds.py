"""Small models that have something of everything the format can say: the seeds of the wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, TensorProto, helper, numpy_helper

F, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(0)


def value(name: str, element: int = F, shape: Sequence[Any] | None = None) -> Any:
    return helper.make_tensor_value_info(name, element, shape)


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> Any:
    """``node("Add", "a b", "c")``; ``-`` is an input that is left out."""
    return helper.make_node(op, ["" if n == "-" else n for n in inputs.split()], outputs.split(), f"the_{op}", domain=domain, **attributes)


def model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: str, opset: int = 21, **weights: Any) -> Any:
    """A model; outputs are named, weights are arrays or lists of whole numbers."""
    stored = [numpy_helper.from_array(np.asarray(a), k) for k, a in weights.items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), [helper.make_empty_tensor_value_info(o) for o in outputs.split()], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def shapes() -> Any:
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s i0", "b", axis=0), node("Unsqueeze", "b a0", "b1"), node("Concat", "b1 rest", "to", axis=0),
        node("Reshape", "x to", "r"), node("Transpose", "r", "t", perm=[0, 2, 1]), node("Slice", "t i1 i2 a0 i2", "u"),
        node("Squeeze", "u", "v"), node("Pad", "t pads zero", "w"), node("Split", "w", "p q", axis=1, num_outputs=2),
        node("Tile", "p three", "y"), node("Expand", "q to3", "z"),
    ]  # fmt: skip
    given = {"i0": np.array(0), "a0": [0], "rest": [2, 8], "i1": [0], "i2": [1], "pads": [0, 1, 0, 0, 1, 0], "zero": np.float32(0), "three": [1,
        2, 1]}
    return model(nodes, [value("x", F, ["n", 16])], "v y z", **given, to3=[1, 5, 2])


def attention() -> Any:
    nodes = [
        node("MatMul", "x w", "q"), node("LayerNormalization", "q g b", "k", axis=-1), node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "s"), node("Mul", "s c", "m"), node("Softmax", "m", "p", axis=-1), node("MatMul", "p q", "o"), node("Gelu", "o", "y"),
    ]  # fmt: skip
    return model(nodes, [value("x", F, ["n", "t", 8])], "y", w=weight(8, 8), g=weight(8), b=weight(8), c=np.float32(0.5))


def made() -> Any:
    """Tensors out of sizes."""
    nodes = [
        node("Range", "i0 i5 i1", "r"), node("ConstantOfShape", "sizes", "c", value=helper.make_tensor("v", I64, [1], [7])),
        node("EyeLike", "m", "e", dtype=F), node("OneHot", "r depth pair", "h"), node("Trilu", "m", "t"), node("CumSum", "r i0", "u"),
        node("NonZero", "c", "nz"), node("Where", "flag c c", "w"), node("TopK", "m k", "v at"), node("Cast", "r", "f", to=F),
        node("Resize", "img - - to", "big", mode="linear"), node("Resize", "img - scales", "more", mode="nearest"),
    ]  # fmt: skip
    given = {"i0": np.array(0), "i5": np.array(5), "i1": np.array(1), "sizes": [2, 3], "depth": np.array(6), "pair": np.float32([0, 1]), "k": [2]}
    more = {"flag": np.array([True, False, True]), "to": [1, 1, 6, 4], "scales": np.float32([1, 1, 2, 2]), "img": weight(1, 1, 3, 4)}
    return model(nodes, [value("m", F, [4, 4])], "e h t u nz w v at f big more", **given, **more)


def images() -> Any:
    nodes = [
        node("Conv", "x w b", "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], group=1),
        node("BatchNormalization", "c s b m v", "n"), node("Relu", "n", "r"), node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[1, 1]),
        node("AveragePool", "r", "a", kernel_shape=[2, 2], ceil_mode=1), node("ConvTranspose", "p w2", "t", strides=[2, 2], output_padding=[1, 1]),
        node("GlobalAveragePool", "t", "g"), node("Flatten", "g", "f"), node("Gemm", "f wl bl", "y", transB=1, alpha=0.5),
        node("InstanceNormalization", "r s b", "i"), node("LRN", "r", "l", size=3), node("DepthToSpace", "d", "ds", blocksize=2),
    ]  # fmt: skip
    given = {"w": weight(4, 3, 3, 3), "b": weight(4), "s": weight(4), "m": weight(4), "v": np.abs(weight(4)), "w2": weight(4, 2, 2, 2)}
    return model(nodes, [value("x", F, ["n", 3, 8, 8]), value("d", F, [1, 4, 2, 2])], "y a i l ds", **given, wl=weight(3, 2), bl=weight(3))


def branches() -> Any:
    then = helper.make_graph([node("Add", "x x", "a")], "then", [], [value("a")])
    other = helper.make_graph([node("Mul", "x w", "m")], "other", [], [value("m")], [numpy_helper.from_array(weight(3), "w")])
    nodes = [node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "c"), node("If", "c", "y", then_branch=then, else_branch=other)]
    return model(nodes, [value("x", F, [3])], "y", zero=np.float32(0))


def loops() -> Any:
    ports = [value("i", I64, []), value("go", BOOL, []), value("v", F, [2])]
    steps = [node("Identity", "go", "on"), node("Add", "v x", "w"), node("Mul", "w w", "k")]
    body = helper.make_graph(steps, "body", ports, [value("on", BOOL, []), value("w", F, [2]), value("k", F, [2])])
    row = helper.make_graph([node("Add", "s e", "n"), node("Identity", "n", "o")], "row", [value("s", F, []), value("e", F, [])], [value("n"),
        value("o")])
    nodes = [node("Loop", "three true x", "l k", body=body), node("Scan", "zero x", "last rows", body=row, num_scan_inputs=1)]
    return model(nodes, [value("x", F, [2])], "l k last rows", three=np.array(3), true=np.array(True), zero=np.float32(0))


def functions() -> Any:
    body = [node("Add", "a b", "s"), node("LeakyRelu", "s", "t")]
    body[1].attribute.add(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT)
    inner = helper.make_function("own", "Inner", ["a", "b"], ["t"], body, [helper.make_opsetid("", 21)], ["slope"])
    calls = [node("Inner", "a a", "u", "own", slope=0.5), node("Inner", "u a", "v", "own", slope=0.1)]
    outer = helper.make_function("own", "Outer", ["a"], ["v"], calls, [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)])
    proto = model([node("Outer", "x", "y", "own"), node("Outer", "y", "z", "own")], [value("x", F, [3])], "z")
    proto.functions.extend([inner, outer])
    proto.opset_import.add(domain="own", version=1)
    return proto


def sequences() -> Any:
    nodes = [
        node("SequenceConstruct", "x x", "s"), node("SequenceInsert", "s x zero", "t"), node("SequenceLength", "t", "n"),
        node("SequenceAt", "t zero", "a"), node("ConcatFromSequence", "t", "c", axis=0), node("SplitToSequence", "c", "p", axis=0, keepdims=0),
        node("SequenceErase", "p", "q"), node("ConcatFromSequence", "q", "y", axis=0, new_axis=1), node("Optional", "x", "o"),
        node("OptionalHasElement", "o", "h"), node("OptionalGetElement", "o", "g"),
    ]  # fmt: skip
    return model(nodes, [value("x", F, [2, 3])], "n a y h g", zero=np.array(0))


def recurrent() -> Any:
    nodes = [
        node("LSTM", "x w r b", "y", hidden_size=2, direction="bidirectional"), node("GRU", "x gw gr", "z", hidden_size=2),
        node("RNN", "x rw rr - lengths", "v", hidden_size=2),
    ]  # fmt: skip
    given = {"w": weight(2, 8, 3), "r": weight(2, 8, 2), "b": weight(2, 16), "gw": weight(1, 6, 3), "gr": weight(1, 6, 2)}
    return model(nodes, [value("x", F, [3, 1, 3])], "y z v", **given, rw=weight(1, 2, 3), rr=weight(1, 2, 2), lengths=np.int32([2]))


def quantized() -> Any:
    nodes = [
        node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"), node("DynamicQuantizeLinear", "x", "u us uz"),
        node("MatMulInteger", "u w uz", "m"), node("DequantizeLinear", "four fs", "f", axis=1, block_size=2),
        node("QLinearMatMul", "q s z w8 s z s z", "k"),
    ]  # fmt: skip
    proto = model(nodes, [value("x", F, [2, 4])], "d m f k", s=np.float32(0.1), z=np.int8(3), w=np.uint8([[1, 2]] * 4), fs=weight(2, 2),
        w8=np.int8([[1], [2], [3], [4]]))
    proto.graph.initializer.append(helper.make_tensor("four", TensorProto.INT4, [2, 4], [1, -2, 3, -4, 5, -6, 7, -8]))
    return proto


ELEMENTS = tuple(i for i in range(1, 27) if i != TensorProto.STRING)


def elements(listed: bool) -> Any:
    """Initializers of all types, in the bytes or in the typed fields."""
    stored, nodes = [], []
    for code in ELEMENTS:
        name = f"t{code}"
        if code == TensorProto.FLOAT8E8M0 or code > 22:
            tensor = TensorProto(name=name, data_type=code, dims=[4])
            count = 4 if code == TensorProto.FLOAT8E8M0 else 2 if code == 23 else 1
            if listed:
                tensor.int32_data.extend([3] * count)
            else:
                tensor.raw_data = bytes([3] * count)
        else:
            tensor = helper.make_tensor(name, code, [4], [1, 0, 1, 3] if code != BOOL else [1, 0, 1, 1])
            if not listed:
                array = numpy_helper.to_array(tensor)
                tensor = numpy_helper.from_array(array, name)
        stored.append(tensor)
        nodes.append(node("Identity" if code in (14, 15) else "Cast", name, f"y{code}", **({} if code in (14, 15) else {"to": F})))
    graph = helper.make_graph(nodes, "g", [], [helper.make_empty_tensor_value_info(n.output[0]) for n in nodes], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])


def beside() -> Any:
    """Weights in another file: ``w.bin`` of 512 bytes."""
    proto = model([node("MatMul", "x w", "m"), node("Add", "m b", "y")], [value("x", F, ["n", 8])], "y", w=weight(8, 8), b=weight(8))
    for tensor, offset in zip(proto.graph.initializer, (0, 256), strict=True):
        length = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", "w.bin"), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(text))
    return proto


def sparse() -> Any:
    proto = model([node("MatMul", "x s", "y")], [value("x", F, [2, 3])], "y")
    values, at = numpy_helper.from_array(np.float32([1, 2]), "s"), numpy_helper.from_array(np.array([[0, 1], [2, 3]]), "s_at")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, [3, 4]))
    proto.graph.node.append(helper.make_node("Constant", [], ["k"], sparse_value=helper.make_sparse_tensor(values, at, [3, 4])))
    proto.graph.output.add(name="k")
    return proto


def strings() -> Any:
    proto = model([node("Identity", "x", "y")], [value("x", F, [2])], "y")
    proto.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"\xff"]))
    proto.graph.input.append(value("text", TensorProto.STRING, [2]))
    proto.graph.node.append(node("StringConcat", "text words", "z"))
    return proto


def signals() -> Any:
    nodes = [
        node("DFT", "c - axis", "d"), node("STFT", "w step win", "s"), node("HannWindow", "n8", "h"), node("MelWeightMatrix",
            "n4 n8 rate low high", "m"),
        node("GridSample", "img grid", "g"), node("Einsum", "a a", "e", equation="ij,kj->ik"), node("AffineGrid", "theta size", "t"),
        node("Unique", "a", "u"), node("Compress", "a flags", "p", axis=0), node("GatherND", "a at", "gn"), node("ScatterND", "a at u2", "sn"),
    ]  # fmt: skip
    given = {"axis": np.array(1), "step": np.array(2), "win": weight(4), "n8": np.array(8), "n4": np.array(4), "rate": np.array(8000),
        "low": np.float32(0)}
    more = {"high": np.float32(4000), "img": weight(1, 1, 3, 3), "grid": weight(1, 2, 2, 2), "theta": weight(2, 2, 3), "size": [2, 1, 2, 2]}
    inputs = [value("c", F, [1, 8, 1]), value("w", F, [1, 16, 1]), value("a", F, [2, 3])]
    return model(nodes, inputs, "d s h m g e t u p gn sn", **given, **more, flags=np.array([True, False]), at=[[0], [1]], u2=weight(2, 3))


def trees() -> Any:
    attributes = {
        "nodes_splits": helper.make_tensor("s", F, [2], [0.5, 1.5]), "nodes_featureids": [0, 1], "nodes_modes": helper.make_tensor("m", 2, [2],
            [0, 0]),
        "nodes_truenodeids": [0, 0], "nodes_falsenodeids": [1, 1], "nodes_trueleafs": [1, 1], "nodes_falseleafs": [0, 1], "tree_roots": [0],
        "leaf_targetids": [0, 1], "leaf_weights": helper.make_tensor("w", F, [2], [1.0, 2.0]), "n_targets": 2,
    }  # fmt: skip
    nodes = [
        node("TreeEnsemble", "x", "y", "ai.onnx.ml", **attributes), node("Scaler", "x", "z", "ai.onnx.ml", offset=[0.5], scale=[2.0]),
        node("TfIdfVectorizer", "i", "t", max_gram_length=2, max_skip_count=1, min_gram_length=1, mode="TF", ngram_counts=[0, 2],
             ngram_indexes=[0, 1, 2], pool_int64s=[1, 2, 1, 2]),
        node("LinearRegressor", "x", "l", "ai.onnx.ml", coefficients=[1.0, 2.0], intercepts=[0.5], targets=1),
    ]  # fmt: skip
    proto = model(nodes, [value("x", F, [2, 2]), value("i", I64, [3])], "y z t l")
    proto.opset_import.add(domain="ai.onnx.ml", version=5)
    return proto


def frozen() -> Any:
    return model([node("Reshape", "x shape", "y")], [value("x", F, [6]), value("shape", I64, [2])], "y")


def old() -> Any:
    nodes = [node("Upsample", "x scales", "u", mode="nearest"), node("Slice", "u", "s", starts=[0], ends=[1], axes=[1]), node("Clip", "s", "y",
        min=0.0)]
    return model(nodes, [value("x", F, [1, 2, 2, 2])], "y", opset=9, scales=np.float32([1, 1, 2, 2]))


SEEDS: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (shapes, attention, made, images, branches, loops, functions, sequences, recurrent, quantized, beside, sparse, strings, signals,
        trees, frozen, old)
}
SEEDS["all types in bytes"] = lambda: elements(False)
SEEDS["all types listed"] = lambda: elements(True)
EXAMPLES = {"shape": np.array([2, 3])}
