"""Small models that promise much: each would cost gigabytes or minutes if it were believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx_seeds import BOOL, I64, F, model, node, value, weight

X = [value("x", F, [2])]
BOMBS: dict[str, Callable[[], Any]] = {}
HUGE, BIG = 1 << 40, 1 << 24


def bomb(name: str, nodes: Sequence[Any], outputs: str = "y", inputs: Sequence[Any] = (), opset: int = 21, **weights: Any) -> None:
    BOMBS[name] = lambda: model(nodes, inputs, outputs, opset, **weights)


def decided(*made: Any, **weights: Any) -> list[Any]:
    """Nodes after which the value ``d`` decides over the shape of ``y``: it has to be computed while the model is read."""
    return [*made, node("ReduceSum", "d", "sum", keepdims=0), node("Cast", "sum", "size", to=I64), node("Reshape", "size one", "size1"),
        node("ConstantOfShape", "size1", "y")]


ONE, ZERO, STEP = np.array([1]), np.array(0), np.array(1)
for many in (BIG - 1, (1 << 31) - 1, HUGE, 1 << 62):
    bomb(f"Range of {many}", [node("Range", "a b c", "y")], a=ZERO, b=np.array(many), c=STEP)
    bomb(f"Range of {many} that decides", decided(node("Range", "a b c", "d")), a=ZERO, b=np.array(many), c=STEP, one=ONE)
    bomb(f"ConstantOfShape of {many} that decides", decided(node("ConstantOfShape", "n", "d")), n=[many], one=ONE)
    bomb(f"Expand to {many} that decides", decided(node("Expand", "v n", "d")), n=[many], v=weight(1), one=ONE)
    bomb(f"Tile by {many} that decides", decided(node("Tile", "v n", "d")), n=[many], v=weight(1), one=ONE)
    bomb(f"Pad by {many} that decides", decided(node("Pad", "v n", "d")), n=[0, many], v=weight(1), one=ONE)
    bomb(f"Pad by {many}, wrapped", decided(node("Pad", "v n", "d", mode="wrap")), n=[0, many], v=weight(3), one=ONE)
    bomb(f"OneHot of {many}", decided(node("OneHot", "i n v", "d")), i=np.array([1, 2]), n=np.array(many), v=np.float32([0, 1]), one=ONE)
    bomb(f"Resize to {many}", [node("Resize", "v - - n", "y", mode="linear")], v=weight(1, 1, 4), n=[1, 1, many])
    bomb(f"Resize to {many}, nearest", [node("Resize", "v - - n", "y", mode="nearest")], v=weight(1, 1, 4), n=[1, 1, many])
    bomb(f"Resize to {many}, cropped", [node("Resize", "v roi - n", "y", mode="cubic", coordinate_transformation_mode="tf_crop_and_resize")],
         v=weight(1, 1, 4), n=[1, 1, many], roi=np.float32([0, 0, 0, 1, 1, 1]))  # fmt: skip
    bomb(f"HannWindow of {many}", decided(node("HannWindow", "n", "d")), n=np.array(many), one=ONE)
    bomb(f"DFT of {many}", [node("DFT", "v n axis", "y")], v=weight(1, 4, 1), n=np.array(many), axis=np.array(1))
    bomb(f"Split into {many}", [node("Split", "v", "y", num_outputs=many, axis=0)], v=weight(4))
    bomb(f"CenterCropPad to {many}", decided(node("CenterCropPad", "v n", "d", axes=[0])), v=weight(4), n=[many], one=ONE)
    bomb(f"SplitToSequence of {many}", [node("Expand", "v n", "e"), node("SplitToSequence", "e", "s", keepdims=0), node("SequenceLength", "s",
        "y")], v=weight(1), n=[many])
    bomb(f"Unique of {many}", [node("Expand", "v n", "e"), node("Unique", "e", "y")], v=weight(1), n=[many])
    bomb(f"TopK of {many}", [node("Expand", "v n", "e"), node("TopK", "e one", "y z")], v=weight(1), n=[many], one=ONE)
    bomb(f"AffineGrid to {many}", [node("AffineGrid", "t n", "y")], t=weight(2, 2, 3), n=[2, 1, many, many])
    bomb(f"Col2Im to {many}", [node("Col2Im", "v n b", "y")], v=weight(1, 4, 4), n=[many, many], b=[2, 2])
    bomb(f"LSTM of {many} steps", [node("Expand", "v n", "e"), node("LSTM", "e w r", "y", hidden_size=2)], v=weight(1, 1, 3), n=[many, 1, 3],
        w=weight(1, 8, 3), r=weight(1, 8, 2))
    bomb(f"NonMaxSuppression of {many}", [node("Expand", "v n", "e"), node("Expand", "s m", "c"), node("NonMaxSuppression", "e c", "y")],
         v=weight(1, 1, 4), n=[1, many, 4], s=weight(1, 1, 1), m=[1, 1, many])  # fmt: skip
    bomb(f"EyeLike of {many}", decided(node("Expand", "v n", "e"), node("EyeLike", "e", "d", dtype=F)), v=weight(1, 1), n=[many, many], one=ONE)
    bomb(f"MaxPool of windows of {many}", [node("MaxPool", "x", "y", kernel_shape=[many], pads=[many, many])], inputs=[value("x", F, [1, 1, 8])])
    bomb(f"Conv padded by {many}", [node("Conv", "x w", "y", pads=[many, many])], inputs=[value("x", F, [1, 1, 8])], w=weight(1, 1, 3))
    bomb(f"Conv dilated by {many}", [node("ConvTranspose", "x w", "y", dilations=[many])], inputs=[value("x", F, [1, 1, 8])], w=weight(1, 1, 3))
    bomb(f"STFT of {many}", [node("Expand", "v n", "e"), node("STFT", "e s - l", "y")], v=weight(1, 1, 1), n=[1, many, 1], s=np.array(1),
        l=np.array(many // 2))
    bomb(f"GridSample, {many}", [node("Expand", "g n", "e"), node("GridSample", "v e", "y", mode="cubic")], v=weight(1, 1, 4, 4), g=weight(1, 1,
        1, 2), n=[1, many, 1, 2])
    bomb(f"CumProd of {many}", decided(node("Expand", "v n", "e"), node("CumProd", "e zero", "d")), opset=26, v=weight(1), n=[many], zero=ZERO,
        one=ONE)
    bomb(f"Det of {many}", [node("Expand", "v n", "e"), node("Det", "e", "y")], v=weight(1, 1), n=[many, many])
    bomb(f"TfIdfVectorizer skipping {many}", [node("TfIdfVectorizer", "v", "y", max_gram_length=2, max_skip_count=many, min_gram_length=1,
        mode="TF", ngram_counts=[0, 2],
         ngram_indexes=[0, 1, (1 << 20) - 1], pool_int64s=[1, 2, 1, 2])], v=np.arange(8))  # fmt: skip
    bomb(f"TfIdfVectorizer of few, skipping {many}", [node("TfIdfVectorizer", "v", "y", max_gram_length=2, max_skip_count=many, min_gram_length=1,
         mode="TF", ngram_counts=[0, 2], ngram_indexes=[0, 1, 2], pool_int64s=[1, 2, 1, 2])], v=np.arange(8))  # fmt: skip
    bomb(f"RoiAlign of {many}", [node("RoiAlign", "v r b", "y", output_height=many, output_width=many, sampling_ratio=many)], v=weight(1, 1, 4,
        4), r=weight(1, 4), b=np.array([0]))
    bomb(f"Trilu of {many}", decided(node("Expand", "v n", "e"), node("Trilu", "e", "d")), v=weight(1, 1), n=[many, many], one=ONE)
    bomb(f"ReverseSequence of {many}", [node("Expand", "v n", "e"), node("ReverseSequence", "e l", "y")], v=weight(1, 1), n=[many, 2],
        l=np.array([1, 1]))
    bomb(f"MelWeightMatrix of {many}", [node("MelWeightMatrix", "b p r l h", "y")], b=np.array(4096), p=np.array(min(many, 1 << 20)),
        r=np.array(16000), l=np.float32(0), h=np.float32(8000))

bomb("fills a quarter of a gigabyte with each of many nodes", [
    *(node("ConstantOfShape", "n", f"c{i}", value=helper.make_tensor("v", F, [1], [i])) for i in range(200)),
    *decided(node("Sum", " ".join(f"c{i}" for i in range(200)), "d")),
], n=[BIG], one=ONE)  # fmt: skip
bomb("multiplies large matrices again and again", [
    node("ConstantOfShape", "n", "m0"), *(node("MatMul", f"m{i} m{i}", f"m{i + 1}") for i in range(300)), *decided(node("Identity", "m300", "d")),
], n=[700, 700], one=ONE)  # fmt: skip
bomb("convolves a constant", [
    node("ConstantOfShape", "n", "c"), *(node("Conv", f"{'c' if not i else f'k{i - 1}'} w", f"k{i}", pads=[3] * 4) for i in range(200)),
        *decided(node("Identity", "k199", "d")),
], n=[1, 1, 1000, 1000], w=weight(1, 1, 7, 7), one=ONE)  # fmt: skip
bomb("sorts a constant", [node("ConstantOfShape", "n", "c"), node("TopK", "c k", "v i"), *decided(node("Identity", "v", "d"))], n=[30000],
    k=[30000], one=ONE)


def looping(turns: int, body: int, depth: int = 1) -> Any:
    """Loops in loops, each of many turns."""
    ports = [value("i", I64, []), value("go", BOOL, []), value("v", F, [2])]
    ends = [value("on", BOOL, []), value("w", F, [2])]
    steps = [node("Identity", "go", "on"), *(node("Add", f"{'v' if not j else f'u{j - 1}'} v", f"u{j}") for j in range(body)), node("Identity",
        f"u{body - 1}", "w")]
    graph = helper.make_graph(steps, "body", ports, ends)
    for _ in range(depth - 1):
        graph = helper.make_graph([node("Identity", "go", "on"), node("Loop", "many true v", "w", body=graph)], "around", ports, ends)
    return model([node("Loop", "many true x", "y", body=graph)], X, "y", many=np.array(turns), true=np.array(True))


BOMBS["a loop of 2^62 turns"] = lambda: looping(1 << 62, 1)
BOMBS["a loop of 16,000 turns"] = lambda: looping(16000, 8)
BOMBS["a loop of 1,000 turns of 1,000 nodes"] = lambda: looping(1000, 1000)
BOMBS["loops in loops"] = lambda: looping(10, 2, 20)
BOMBS["loops in loops without a turn"] = lambda: looping(0, 2, 20)


def scanning(length: int) -> Any:
    row = helper.make_graph([node("Add", "s e", "n"), node("Add", "n e", "o")], "row", [value("s", F, []), value("e", F, [])], [value("n"),
        value("o")])
    nodes = [node("Expand", "v n", "e"), node("Scan", "zero e", "last rows", body=row, num_scan_inputs=1)]
    return model(nodes, [], "last rows", n=[length], v=weight(1), zero=np.float32(0))


BOMBS["a scan of 2^40 rows"] = lambda: scanning(1 << 40)
BOMBS["a scan of 16,000 rows"] = lambda: scanning(16000)


def doubling(levels: int, calls: int = 2) -> Any:
    """Functions, each of which calls the next one twice."""
    proto = model([node("F0", "x", "y", "own")], X, "y")
    for i in range(levels):
        op, domain = (f"F{i + 1}", "own") if i + 1 < levels else ("Neg", "")
        names = ["a", *(f"b{j}" for j in range(calls))]
        steps = [node(op, names[j], names[j + 1], domain) for j in range(calls)]
        proto.functions.append(helper.make_function("own", f"F{i}", ["a"], [names[-1]], steps, [helper.make_opsetid("", 21),
            helper.make_opsetid("own", 1)]))
    proto.opset_import.add(domain="own", version=1)
    return proto


BOMBS["functions that double 40 times"] = lambda: doubling(40)
BOMBS["functions that double 14 times"] = lambda: doubling(14)
BOMBS["functions in 300 levels"] = lambda: doubling(300, 1)


def nested(levels: int, op: str = "If") -> Any:
    """If in If, of which both branches are read."""
    graph = helper.make_graph([node("Neg", "x", "z")], "leaf", [], [value("z")])
    for _ in range(levels):
        graph = helper.make_graph([node(op, "c", "z", then_branch=graph, else_branch=graph)], "g", [], [value("z")])
        if graph.ByteSize() > 1 << 20:
            break
    made = model([node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m one", "c")], X, "z", one=np.float32(1))
    made.graph.node.extend(graph.node)
    return made


BOMBS["If in If"] = lambda: nested(14)


def sparse(size: int, count: int = 1) -> Any:
    proto = model([node("Add", "s s", "y")], [], "y")
    for i in range(count):
        values, at = numpy_helper.from_array(np.float32([1]), "s" if not i else f"s{i}"), numpy_helper.from_array(np.array([0]), "at")
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, [size]))
    return proto


BOMBS["a sparse tensor of 2^24 elements"] = lambda: sparse(1 << 24)
BOMBS["a hundred sparse tensors"] = lambda: sparse(1 << 23, 100)
BOMBS["a sparse tensor of 2^62 elements"] = lambda: sparse(1 << 62)


def packed(code: int, size: int) -> Any:
    proto = model([node("Identity", "t", "y")], [], "y")
    proto.graph.initializer.append(TensorProto(name="t", data_type=code, dims=[size], raw_data=b""))
    return proto


BOMBS["4-bit numbers, 2^40"] = lambda: packed(TensorProto.INT4, 1 << 40)
BOMBS["floats, 2^62"] = lambda: packed(F, 1 << 62)
BOMBS["thousands of attributes"] = lambda: model([node("Concat", "x x", "y", axis=0, **{f"a{i}": i for i in range(20000)})], X, "y")
BOMBS["an einsum of many letters"] = lambda: model([node("Einsum", "x " * 25, "y",
    equation=",".join("abcdefghijklmnopqrstuvwxy") + "->abcdefghijklmnopqrstuvwxy")], X, "y")
BOMBS["a dim of 2^62"] = lambda: model([node("Add", "x x", "y")], [value("x", F, [1 << 62])], "y")
BOMBS["dims whose product is 2^90"] = lambda: model([node("MatMul", "x x", "y")], [value("x", F, [1 << 45, 1 << 45])], "y")
BOMBS["symbols multiplied again and again"] = lambda: model([
    node("Shape", "x", "s0"), *(node("Add" if i % 2 else "Mul", f"s{i} s{i}", f"s{i + 1}") for i in range(40)), node("Expand", "x s40", "y"),
], [value("x", F, ["n"])], "y")  # fmt: skip
BOMBS["sums of products of symbols"] = lambda: model([
    node("Shape", "x", "s"), node("ReduceSum", "s", "t0"), node("Add", "s t0", "v0"),
    *(n for i in range(12) for n in (node("Add", f"v{i} s", f"u{i}"), node("Mul", f"u{i} v{i}", f"v{i + 1}"))), node("ConstantOfShape", "v12", "y"),
], [value("x", F, list("abcdef"))], "y")  # fmt: skip
