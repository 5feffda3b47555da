"""ONNX models that cannot be compiled: broken files, broken nodes, ops that are not compiled, values that are not known.

Each has the code that an error has to have, and the node or tensor that it has to name. ``test_wrong_programs.py`` compiles all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from onnx_seeds import BOOL, I64, F, model, node, value, weight

X = (value("x", F, ["n", 4]),)
FILE, UNSUPPORTED, NODE, VALUE = "TFC2040", "TFC2041", "TFC2042", "TFC2043"


@dataclass(frozen=True)
class WrongModel:
    """A model, or the bytes of its file; the code, and what the error says of the place."""

    name: str
    make: Callable[[], Any]
    code: str
    place: str


MODELS: list[WrongModel] = []


def wrong(name: str, code: str, place: str, nodes: Sequence[Any], inputs: Sequence[Any] = X, outputs: str = "y", opset: int = 21,
    **weights: Any) -> None:
    MODELS.append(WrongModel(name, lambda: model(nodes, inputs, outputs, opset, **weights), code, place))


def made(name: str, code: str, place: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """A model that a function makes, or the bytes of a file."""

    def put(make: Callable[[], Any]) -> Callable[[], Any]:
        MODELS.append(WrongModel(name, make, code, place))
        return make

    return put


# --- ops that are not compiled -----------------------------------------------------------------------------------------------------

wrong("random numbers", UNSUPPORTED, "'the_Bernoulli'", [node("Bernoulli", "x", "y")])
wrong("random numbers out of nothing", UNSUPPORTED, "'the_RandomNormal'", [node("RandomNormal", "", "y", shape=[2])], ())
wrong("drawing", UNSUPPORTED, "'the_Multinomial'", [node("Multinomial", "x", "y", sample_size=1)])
wrong("dropout in training", UNSUPPORTED, "'the_Dropout'", [node("Dropout", "x r t", "y")], r=np.float32(0.5), t=np.array(True))
wrong("pictures", UNSUPPORTED, "'the_ImageDecoder'", [node("ImageDecoder", "x", "y")], [value("x", TensorProto.UINT8, ["n"])])
wrong("strings", UNSUPPORTED, "'text'", [node("StringConcat", "text text", "y")], [value("text", TensorProto.STRING, [2])])
wrong("a cast to strings", UNSUPPORTED, "'the_Cast'", [node("Cast", "x", "y", to=TensorProto.STRING)])
wrong("an op of another vendor", UNSUPPORTED, "'the_FusedMatMul'", [node("FusedMatMul", "x x", "y", "com.microsoft", transB=1)])
wrong("an op that there is not", UNSUPPORTED, "'the_Softmaxx'", [node("Softmaxx", "x", "y")])
wrong("an op that is not written yet", UNSUPPORTED, "'the_MaxRoiPool'", [node("MaxRoiPool", "x r", "y", pooled_shape=[1, 1])], [value("x", F, [1,
    1, 4, 4]), value("r", F, [1, 5])])
wrong("resizing by a fraction of a symbol", UNSUPPORTED, "'the_Resize'", [node("Resize", "x - s", "y")], s=np.float32([0.37, 1]))
wrong("a symbol in pieces", UNSUPPORTED, "'the_Split'", [node("Split", "x", "y z", axis=0, num_outputs=2)], outputs="y z")
wrong("a Fourier transform of a large prime", UNSUPPORTED, "'the_DFT'", [node("DFT", "x - a", "y")], [value("x", F, [1, 10007, 1])], a=np.array(1))


# --- nodes that do not follow the specification ------------------------------------------------------------------------------------

wrong("products that do not fit", NODE, "'the_MatMul'", [node("MatMul", "x w", "y")], w=weight(5, 2))
wrong("sums that do not fit", NODE, "'the_Add'", [node("Add", "x w", "y")], w=weight(5))
wrong("sums of different dtypes", NODE, "'the_Add'", [node("Add", "x i", "y")], i=np.array([1, 2, 3, 4]))
wrong("joined along no axis", NODE, "'the_Concat'", [node("Concat", "x x", "y", axis=5)])
wrong("joined without an axis", NODE, "'the_Concat'", [node("Concat", "x x", "y")])
wrong("joined with other ranks", NODE, "'the_Concat'", [node("Concat", "x w", "y", axis=0)], w=weight(4))
wrong("reshaped to other counts", NODE, "'the_Reshape'", [node("Reshape", "w s", "y")], (), w=weight(2, 3), s=[4, 2])
wrong("reshaped with two open sizes", NODE, "'the_Reshape'", [node("Reshape", "x s", "y")], s=[-1, -1])
wrong("reshaped to a negative size", NODE, "'the_Reshape'", [node("Reshape", "x s", "y")], s=[-2, 4])
wrong("transposed twice along an axis", NODE, "'the_Transpose'", [node("Transpose", "x", "y", perm=[0, 0])])
wrong("gathered along no axis", NODE, "'the_Gather'", [node("Gather", "x i", "y", axis=7)], i=[0])
wrong("convolved with other channels", NODE, "'the_Conv'", [node("Conv", "x w", "y")], [value("x", F, [1, 3, 8, 8])], w=weight(4, 2, 3, 3))
wrong("convolved with another kernel than it says", NODE, "'the_Conv'", [node("Conv", "x w", "y", kernel_shape=[5, 5])], [value("x", F, [1, 3, 8,
    8])], w=weight(4, 3, 3, 3))
wrong("a window larger than the image", NODE, "'the_MaxPool'", [node("MaxPool", "x", "y", kernel_shape=[9, 9])], [value("x", F, [1, 3, 8, 8])])
wrong("a cast to nothing", NODE, "'the_Cast'", [node("Cast", "x", "y")])
wrong("an attribute of another kind", NODE, "'the_Softmax'", [node("Softmax", "x", "y", axis=0.5)])
wrong("a softmax along no axis", NODE, "'the_Softmax'", [node("Softmax", "x", "y", axis=3)])
wrong("a slice with a step of 0", NODE, "'the_Slice'", [node("Slice", "x a b a c", "y")], a=[0], b=[2], c=[0])
wrong("an axis of size 4 squeezed", NODE, "'the_Squeeze'", [node("Squeeze", "x a", "y")], a=[1])
wrong("an axis put in twice", NODE, "'the_Unsqueeze'", [node("Unsqueeze", "x a", "y")], a=[0, 0])
wrong("pieces that do not add up", NODE, "'the_Split'", [node("Split", "x s", "y z", axis=1)], outputs="y z", s=[3, 3])
wrong("expanded to another size", NODE, "'the_Expand'", [node("Expand", "x s", "y")], s=[1, 3])
wrong("chosen by numbers", NODE, "'the_Where'", [node("Where", "x x x", "y")])
wrong("a range without a step", NODE, "'the_Range'", [node("Range", "a b a", "y")], (), a=np.array(0), b=np.array(9))
wrong("more than there are", NODE, "'the_TopK'", [node("TopK", "x k", "y i", axis=1)], k=[9])
wrong("an einsum that cannot be read", NODE, "'the_Einsum'", [node("Einsum", "x x", "y", equation="ij,jk")])
wrong("padding for other axes", NODE, "'the_Pad'", [node("Pad", "x p", "y")], p=[1, 1])
wrong("depth that does not divide", NODE, "'the_DepthToSpace'", [node("DepthToSpace", "x", "y", blocksize=2)], [value("x", F, [1, 3, 2, 2])])
wrong("an LSTM with another width", NODE, "'the_LSTM'", [node("LSTM", "x w r", "y", hidden_size=2)], [value("x", F, [3, 1, 3])], w=weight(1, 8,
    4), r=weight(1, 8, 2))
wrong("a normalization of other channels", NODE, "'the_BatchNormalization'", [node("BatchNormalization", "x s s s s", "y")], [value("x", F, [1, 3,
    4])], s=weight(5))
wrong("an input left out", NODE, "'the_Add'", [node("Add", "x -", "y")])
wrong("a name that nothing defines", NODE, "'nowhere'", [node("Add", "x nowhere", "y")])
wrong("a cycle", NODE, "'the_Add'", [node("Add", "x b", "a"), node("Mul", "a x", "b"), node("Neg", "b", "y")])
wrong("nodes in the wrong order", NODE, "'the_Neg'", [node("Neg", "h", "y"), node("Abs", "x", "h")])
wrong("an output that nothing makes", NODE, "'z'", [node("Neg", "x", "y")], outputs="y z")
wrong("no outputs", NODE, "outputs", [node("Neg", "x", "y")], outputs="")


@made("a function that calls itself", NODE, "'the_Again'")
def again() -> Any:
    body = [node("Again", "a", "b", "own")]
    proto = model([node("Again", "x", "y", "own")], X, "y")
    proto.functions.append(helper.make_function("own", "Again", ["a"], ["b"], body, [helper.make_opsetid("own", 1)]))
    proto.opset_import.add(domain="own", version=1)
    return proto


@made("an output of another dtype than it says", NODE, "'y'")
def redeclared() -> Any:
    proto = model([node("Neg", "x", "y")], X, "y")
    proto.graph.output[0].CopyFrom(value("y", I64, ["n", 4]))
    return proto


@made("two problems at once", NODE, "'first'")
def twice() -> Any:
    proto = model([node("MatMul", "x w", "a"), node("Concat", "x x", "b", axis=9)], X, "a b", w=weight(7, 2))
    proto.graph.node[0].name, proto.graph.node[1].name = "first", "second"
    return proto


def _loop(going: bool, outputs: str) -> Any:
    ports = [value("i", I64, []), value("go", BOOL, []), value("v", F, ["n", 4])]
    body = helper.make_graph([node("Identity", "go", "on"), node("Add", "v v", "w")], "body", ports, [value(o) for o in outputs.split()])
    return model([node("Loop", "- true x", "y", body=body)], X, "y", true=np.array(going))


made("a loop without an end", UNSUPPORTED, "'the_Loop'")(lambda: _loop(True, "on w"))
made("a loop whose body gives too little", NODE, "'the_Loop'")(lambda: _loop(True, "on"))


@made("branches that give different numbers of results", NODE, "'the_If'")
def branches() -> Any:
    one = helper.make_graph([node("Neg", "x", "a")], "one", [], [value("a")])
    two = helper.make_graph([node("Abs", "x", "b"), node("Neg", "x", "c")], "two", [], [value("b"), value("c")])
    nodes = [node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m zero", "c0"), node("If", "c0", "y", then_branch=one, else_branch=two)]
    return model(nodes, X, "y", zero=np.float32(0))


# --- values that are not known -----------------------------------------------------------------------------------------------------

SHAPE = (*X, value("s", I64, [2]))
wrong("a shape that is an input", VALUE, "'s'", [node("Reshape", "x s", "y")], SHAPE)
wrong("repeated as an input says", VALUE, "'s'", [node("Tile", "x s", "y")], SHAPE)
wrong("a length that is computed from data", VALUE, "'the_Range'", [node("ReduceMax", "x", "m", keepdims=0), node("Range", "zero m one", "y")],
    zero=np.float32(0), one=np.float32(1))
wrong("an LSTM of unknown length", VALUE, "'the_LSTM'", [node("LSTM", "x w r", "y", hidden_size=2)], [value("x", F, ["t", 1, 3])], w=weight(1, 8,
    3), r=weight(1, 8, 2))
wrong("an input without a shape", VALUE, "'x'", [node("Neg", "x", "y")], [value("x", F, None)])


# --- files -------------------------------------------------------------------------------------------------------------------------

made("an empty file", FILE, "m.onnx")(lambda: b"")
made("a text", FILE, "m.onnx")(lambda: b"this is no model\n" * 20)
made("half a file", FILE, "m.onnx")(lambda: model([node("MatMul", "x w", "y")], X, "y", w=weight(4, 40)).SerializeToString()[:500])
made("an operator set of the future", UNSUPPORTED, "m.onnx")(lambda: model([node("Neg", "x", "y")], X, "y", opset=99))


def _stored(change: Callable[[Any], None]) -> Any:
    proto = model([node("MatMul", "x weights", "y")], X, "y", weights=weight(4, 2))
    change(proto.graph.initializer[0])
    return proto


def _external(**entries: str) -> Any:
    def change(tensor: Any) -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in entries.items():
            tensor.external_data.add(key=key, value=text)

    return _stored(change)


made("no operator set", FILE, "m.onnx")(lambda: type(p := model([node("Neg", "x", "y")], X, "y"))(graph=p.graph, ir_version=8))
made("a weight with bytes missing", FILE, 'tensor "weights"')(lambda: _stored(lambda t: setattr(t, "raw_data", t.raw_data[:-3])))
made("a weight of an unknown type", FILE, 'tensor "weights"')(lambda: _stored(lambda t: setattr(t, "data_type", 77)))
made("a weight of negative size", FILE, 'tensor "weights"')(lambda: _stored(lambda t: t.dims.__setitem__(0, -4)))
made("a weight of strings", UNSUPPORTED, 'tensor "weights"')(lambda: _stored(lambda t: setattr(t, "data_type", TensorProto.STRING)))
made("a weight that is part of another", FILE, 'tensor "weights"')(lambda: _stored(lambda t: setattr(t.segment, "begin", 1)))
made("weights that are not there", FILE, 'tensor "weights"')(lambda: _external(location="w.bin"))
made("weights of another folder", FILE, 'tensor "weights"')(lambda: _external(location="../w.bin"))
made("weights beyond the end of their file", FILE, 'tensor "weights"')(lambda: _external(location="m.onnx", offset="1000000", length="32"))
made("weights at an offset that is no number", FILE, 'tensor "weights"')(lambda: _external(location="m.onnx", offset="a", length="32"))


def write(wrong: WrongModel, folder: Path) -> Path:
    """The file of a model."""
    found = wrong.make()
    path = folder / "m.onnx"
    path.write_bytes(found if isinstance(found, bytes) else found.SerializeToString())
    return path
