"""ONNX models made wrong: by the structure of the message, by that of the protobuf, and by the byte."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnx_seeds
from google.protobuf.message import DecodeError
from mutations import mutated
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

WHOLE = (0, 1, -1, 2, 3, 7, 8, 13, 31, 32, 33, 64, 255, 256, 1000, 4097, 65536, 1 << 20, 1 << 24, 1 << 31, -(1 << 31), 1 << 40, 1 << 48, 1 << 62,
    (1 << 63) - 1,
         -(1 << 63))  # fmt: skip
REAL = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-30, 1e30, 3.4e38, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "y", "w", "true", "body", "a" * 5000, "../x", "\0", "é", "日本", "%s{}", "ai.onnx", "ai.onnx.ml", "own", "float", "linear",
    "cubic", "reflect", "ij,jk->ik",
         "...i,i...", "i" * 60, "\n", "-1", "99999999999999999999", "1e9", "١٢")  # fmt: skip
PLACES = ("../outside.bin", "/etc/passwd", "/dev/zero", "/dev/stdin", "link.bin", "up/outside.bin", "sub/../../outside.bin", "sub", ".", "..", "",
    "w.bin/", "./w.bin", "w.bin\0",
          "W.BIN", "pipe", "sub/w.bin", "no.bin", "C:\\w.bin", "..\\outside.bin", "a" * 300, "a/" * 2000, "file:///etc/passwd", "~/x",
              "empty.bin", "\udcff".encode("utf-8", "replace").decode())  # fmt: skip
OPS = ("Add", "Reshape", "Expand", "Tile", "Pad", "Range", "ConstantOfShape", "Resize", "Gather", "Concat", "Split", "Slice", "Loop", "If",
    "Scan", "Conv", "MaxPool", "Einsum",
       "MatMul", "TopK", "OneHot", "Cast", "Shape", "Squeeze", "Unsqueeze", "Where", "ReduceSum", "Transpose", "EyeLike", "LSTM", "SequenceAt",
           "SequenceConstruct", "Trilu",
       "NonZero", "CumSum", "GridSample", "STFT", "DFT", "Identity", "Optional", "SplitToSequence", "DepthToSpace", "SpaceToDepth", "Upsample",
           "Col2Im", "BitShift", "Mod", "Div",
       "QuantizeLinear", "DequantizeLinear", "Attention", "ImageDecoder", "NoSuchOp", "Constant", "Unique", "RoiAlign", "NonMaxSuppression",
           "HannWindow", "ReverseSequence",
       "CenterCropPad", "MelWeightMatrix", "TensorScatter", "GatherND", "ScatterElements", "Det", "MaxUnpool", "AffineGrid", "BlackmanWindow",
           "SequenceMap",
       "RotaryEmbedding", "GroupNormalization", "BitCast", "StringSplit")  # fmt: skip
LARGEST = 1 << 16  # bytes of a file
Change = Callable[[random.Random, Any, list[Any]], None]


# --- the message -------------------------------------------------------------------------------------------------------------------


def descend(rng: random.Random, proto: Any) -> tuple[Any, Any]:
    """A message in the model, at random, and one of its fields that is there."""
    at = proto
    while True:
        fields = at.ListFields()
        if not fields:
            return at, rng.choice(at.DESCRIPTOR.fields)
        about, value = rng.choice(fields)
        if about.name == "graph" or (about.message_type is not None and rng.random() < 0.85):
            if not about.is_repeated:
                at = value
            elif value:
                at = rng.choice(value)
            continue
        return at, about


def texts_of(proto: Any) -> list[str]:
    """Names that occur in the model."""
    graph = proto.graph
    return [*(n for node in graph.node for n in (*node.input, *node.output, node.op_type)), *(t.name for t in graph.initializer),
        *(i.name for i in graph.input)]


def anything(rng: random.Random, about: Any, proto: Any, others: list[Any]) -> Any:
    """A value for a field of a plain type."""
    if about.enum_type is not None:
        return rng.choice((0, 1, 2, 3, 100))
    kind = about.cpp_type
    if kind == about.CPPTYPE_STRING:
        if about.type == about.TYPE_BYTES:
            return rng.choice((b"", b"\xff\xfe", rng.randbytes(rng.randrange(64)), bytes(300), b"linear", b"reflect", b"SAME_UPPER",
                b"bidirectional", b"add"))
        if about.name == "op_type":
            return rng.choice(OPS)
        return rng.choice(TEXTS) if rng.random() < 0.3 else rng.choice(texts_of(proto) or [""])
    if kind in (about.CPPTYPE_FLOAT, about.CPPTYPE_DOUBLE):
        return rng.choice(REAL)
    whole = rng.choice(WHOLE) if rng.random() < 0.6 else rng.randrange(-3, 30)
    if kind == about.CPPTYPE_INT32:
        return (whole + (1 << 31)) % (1 << 32) - (1 << 31)
    if kind in (about.CPPTYPE_UINT32, about.CPPTYPE_UINT64):
        return abs(whole) % (1 << (32 if kind == about.CPPTYPE_UINT32 else 64))
    return whole


def change_field(rng: random.Random, proto: Any, others: list[Any]) -> None:
    """Any field of any message: another value, one more, one fewer, in another order, gone, or one of another model."""
    at, about = descend(rng, proto)
    name = about.name
    if about.message_type is not None:
        how = rng.randrange(4)
        if how == 0:
            at.ClearField(name)
        elif about.is_repeated:
            rows = getattr(at, name)
            if not rows or how == 1:
                rows.add()
            elif how == 2:
                rows.add().CopyFrom(rng.choice(rows))
            else:
                del rows[rng.randrange(len(rows))]
        else:
            getattr(at, name).SetInParent()
            target = getattr(at, name)
            source = next((m for m in messages(rng.choice(others)) if m.DESCRIPTOR is target.DESCRIPTOR), None)
            if source is not None:
                target.CopyFrom(source)
        return
    if about.is_repeated:
        rows = getattr(at, name)
        how = rng.randrange(6)
        if how == 0 or not rows:
            rows.append(anything(rng, about, proto, others))
        elif how == 1:
            rows[rng.randrange(len(rows))] = anything(rng, about, proto, others)
        elif how == 2:
            del rows[rng.randrange(len(rows))]
        elif how == 3:
            i, j = rng.randrange(len(rows)), rng.randrange(len(rows))
            rows[i], rows[j] = rows[j], rows[i]
        elif how == 4:
            rows.extend([anything(rng, about, proto, others)] * rng.choice((1, 3, 40)))
        else:
            at.ClearField(name)
    elif rng.random() < 0.15:
        at.ClearField(name)
    else:
        setattr(at, name, anything(rng, about, proto, others))


def messages(proto: Any) -> Iterator[Any]:
    yield proto
    for about, value in proto.ListFields():
        if about.message_type is not None:
            for one in value if about.is_repeated else [value]:
                yield from messages(one)


def change_tensor(rng: random.Random, proto: Any, others: list[Any]) -> None:
    """Type, dims and bytes of a stored tensor."""
    tensors = [m for m in messages(proto) if isinstance(m, TensorProto)]
    if not tensors:
        return
    t = rng.choice(tensors)
    how = rng.randrange(8)
    if how == 0:
        t.data_type = rng.randrange(-1, 40)
    elif how == 1:
        t.dims.append(rng.choice(WHOLE))
    elif how == 2 and t.dims:
        t.dims[rng.randrange(len(t.dims))] = rng.choice(WHOLE)
    elif how == 3:
        t.raw_data = t.raw_data[: rng.randrange(len(t.raw_data) + 1)] + rng.randbytes(rng.randrange(9))
    elif how == 4:  # whole numbers that decide over shapes
        if t.data_type == onnx_seeds.I64 and t.raw_data:
            count = len(t.raw_data) // 8
            t.raw_data = struct.pack(f"<{count}q", *(rng.choice(WHOLE) if rng.random() < 0.6 else rng.randrange(-3, 9) for _ in range(count)))
        else:
            t.raw_data = rng.randbytes(len(t.raw_data))
    elif how == 5:
        del t.dims[:]
        t.dims.extend(rng.choice(((1 << 32, 1 << 32), (0, 1 << 62), (1 << 63) - 1 and ((1 << 63) - 1,), [1] * 33, (0,), (1 << 20, 1 << 20), (-1,))))
    elif how == 6:
        t.int64_data.extend(rng.choice(WHOLE) for _ in range(rng.randrange(1, 9)))
        t.ClearField("raw_data")
    else:
        t.segment.begin = rng.choice((0, 5))


def change_external(rng: random.Random, proto: Any, others: list[Any]) -> None:
    """Where a tensor beside the file lies."""
    tensors = [m for m in messages(proto) if isinstance(m, TensorProto)]
    if not tensors:
        return
    t = rng.choice(tensors)
    if rng.random() < 0.8 or t.data_location != TensorProto.EXTERNAL:
        t.data_location = TensorProto.EXTERNAL
    rows = {e.key: e for e in t.external_data}
    for _ in range(rng.choice((1, 2))):
        key = rng.choice(("location", "location", "offset", "length", "checksum", "basepath", "é"))
        row = rows.get(key) if rng.random() < 0.85 else None
        row = row if row is not None else t.external_data.add(key=key)
        numbers = [str(w) for w in WHOLE] + ["", " 4", "4 ", "0x10", "1_0", "1e3", "٣", "+4", "-0", "9" * 5000, "256", "252", "512"]
        row.value = rng.choice(PLACES) if key == "location" else rng.choice(numbers)


def rewire(rng: random.Random, proto: Any, others: list[Any]) -> None:
    """Names of what nodes read and give: cycles, names twice, missing ones."""
    graphs = [m for m in messages(proto) if isinstance(m, GraphProto) and m.node] + [f for f in proto.functions if f.node]
    graph = rng.choice(graphs or [proto.graph])
    if not graph.node:
        return
    node = rng.choice(graph.node)
    names = [n for m in graph.node for n in (*m.input, *m.output)] or ["x"]
    how = rng.randrange(7)
    if how == 0 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif how == 1 and node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice(names)
    elif how == 2 and node.input and node.output:
        node.input[0] = node.output[0]
    elif how == 3:
        node.op_type = rng.choice(OPS)
    elif how == 4:
        node.domain = rng.choice(("", "ai.onnx", "ai.onnx.ml", "own", "com.microsoft", "ai.onnx.preview.training"))
    elif how == 5:
        rows = list(graph.node)
        rng.shuffle(rows)
        copies = [type(r).FromString(r.SerializeToString()) for r in rows]
        del graph.node[:]
        graph.node.extend(copies)
    else:
        node.input.extend(rng.choice(names) for _ in range(rng.choice((1, 2, 20))))


def retype_attribute(rng: random.Random, proto: Any, others: list[Any]) -> None:
    """An attribute of another kind, of another name, twice, or one that is not there."""
    found = [(m, a) for m in messages(proto) if hasattr(m, "op_type") for a in m.attribute]
    if not found:
        return
    node, a = rng.choice(found)
    how = rng.randrange(6)
    if how == 0:
        a.type = rng.randrange(0, 17)
    elif how == 1:
        a.name = rng.choice([b.name for _, b in found] + ["axis", "axes", "value", "mode", "to"])
    elif how == 2:
        node.attribute.add().CopyFrom(a)
    elif how == 3:
        node.attribute.add().CopyFrom(rng.choice(found)[1])
    elif how == 4:
        a.ref_attr_name = rng.choice(("slope", "no", a.name))
    else:
        a.type, a.i, a.f, a.s = rng.choice((1, 2, 3)), rng.choice(WHOLE), rng.choice(REAL), rng.choice((b"", b"linear", b"\xff"))
        a.ints.extend(rng.choice(WHOLE) for _ in range(rng.randrange(4)))


def nest(rng: random.Random, proto: Any, others: list[Any]) -> None:
    """Graphs in graphs, functions that call each other or themselves, operator sets."""
    how = rng.randrange(6)
    graph = proto.graph
    if how == 0 and graph.node:  # the graph within itself
        inner = GraphProto.FromString(graph.SerializeToString())
        for _ in range(rng.choice((1, 2, 12, 25))):
            outer = GraphProto()
            outer.output.extend(graph.output[:1])
            node = outer.node.add(op_type="If", input=["c"], output=[o.name for o in graph.output][:1])
            for name in ("then_branch", "else_branch")[: rng.choice((1, 1, 2))]:
                node.attribute.append(helper.make_attribute(name, inner))
            inner = outer
            if inner.ByteSize() > 1 << 16:
                break
        a = rng.choice(graph.node).attribute.add(name=rng.choice(("then_branch", "body", "else_branch")), type=AttributeProto.GRAPH)
        a.g.CopyFrom(inner)
    elif how == 1 and proto.functions:
        f, g = rng.choice(proto.functions), rng.choice(proto.functions)
        f.node.add(op_type=g.name, domain=g.domain, input=[f.input[0] if f.input else "x"], output=["again"])
    elif how == 2 and graph.node:  # an op of the specification as a function of the file
        node = rng.choice(graph.node)
        f = proto.functions.add(name=node.op_type, domain=node.domain, input=node.input, output=node.output)
        f.node.add().CopyFrom(node)
        f.opset_import.add(domain="", version=21)
    elif how == 3:
        o = rng.choice(proto.opset_import) if proto.opset_import else proto.opset_import.add()
        o.version = rng.choice((*range(-1, 30), 1 << 31, 1 << 62, -(1 << 62)))
    elif how == 4:
        proto.opset_import.add(domain=rng.choice(("", "own", "ai.onnx.ml", "ai.onnx")), version=rng.randrange(30))
    else:
        source = rng.choice(others)
        graph.node.extend(source.graph.node)
        graph.initializer.extend(source.graph.initializer)


def change_ports(rng: random.Random, proto: Any, others: list[Any]) -> None:
    """Types of inputs and outputs."""
    graph = proto.graph
    port = rng.choice([*graph.input, *graph.output]) if graph.input or graph.output else graph.input.add(name="x")
    how = rng.randrange(7)
    type = port.type.tensor_type
    if how == 0:
        type.elem_type = rng.randrange(-1, 40)
    elif how == 1:
        type.shape.dim.add(dim_value=rng.choice(WHOLE))
    elif how == 2:
        type.shape.dim.add(dim_param=rng.choice((*TEXTS, "n", "n*2", "n+1")))
    elif how == 3 and type.shape.dim:
        rng.choice(type.shape.dim).dim_value = rng.choice(WHOLE)
    elif how == 4:
        port.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif how == 5:
        port.type.Clear()
    else:
        (graph.input if rng.random() < 0.5 else graph.output).add().CopyFrom(port)


CHANGES: tuple[Change, ...] = (
    change_field, change_field, change_field, change_tensor, change_tensor, change_external, rewire, retype_attribute, nest, change_ports,
)  # fmt: skip


# --- the protobuf ------------------------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    out = bytearray()
    number %= 1 << 64
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(raw: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = raw[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def records(raw: bytes) -> list[tuple[int, int, bytes]]:
    """The fields of a message: number, wire type, payload (of a length-delimited one without its length)."""
    out, at = [], 0
    while at < len(raw):
        tag, at = read_varint(raw, at)
        kind = tag & 7
        if kind == 2:
            size, at = read_varint(raw, at)
            end = at + size
        elif kind == 0:
            end = read_varint(raw, at)[1]
        else:
            end = at + (8 if kind == 1 else 4)
        if end > len(raw) or kind not in (0, 1, 2, 5):
            raise IndexError
        out.append((tag >> 3, kind, raw[at:end]))
        at = end
    return out


def joined(rows: Iterable[tuple[int, int, bytes]]) -> bytes:
    return b"".join(varint(n << 3 | k) + (varint(len(p)) + p if k == 2 else p) for n, k, p in rows)


def change_wire(rng: random.Random, raw: bytes, depth: int = 0) -> bytes:
    """A field's number, wire type, length or varint is another; lengths around it are right, so that the parser gets there."""
    try:
        rows = records(raw)
    except IndexError:
        return mutated(rng, raw)
    if not rows:
        return raw + varint(rng.randrange(200)) + rng.randbytes(3)
    i = rng.randrange(len(rows))
    if depth == 0:
        i = next((j for j, r in enumerate(rows) if r[0] == 7 and rng.random() < 0.8), i)
    number, kind, payload = rows[i]
    if kind == 2 and payload and rng.random() < (0.95 if depth == 0 else 0.75):
        rows[i] = (number, kind, change_wire(rng, payload, depth + 1))
        return joined(rows)
    how = rng.randrange(7)
    before, after = joined(rows[:i]), joined(rows[i + 1 :])
    one = joined(rows[i : i + 1])
    if how == 0:
        rows[i] = (rng.choice((rng.randrange(1, 30), (1 << 29) - 1)), kind, payload)
        return joined(rows)
    if how == 1:
        return before + varint(number << 3 | rng.randrange(8)) + one[len(varint(number << 3 | kind)) :] + after
    if how == 2:
        return before + varint(number << 3 | 2) + varint(rng.choice((0, 1, 1 << 31, (1 << 63) - 1, len(payload) + rng.randrange(-3,
            4)))) + payload + after
    if how == 3:
        return before + varint(number << 3) + varint(rng.choice(WHOLE)) + after
    if how == 4:
        return before + one * rng.choice((2, 2, 3, 200)) + after
    if how == 5:
        return before + b"\xff" * rng.choice((5, 10, 11)) + b"\x01" + after
    return before + after


# --- one file ----------------------------------------------------------------------------------------------------------------------


class Maker:
    """Makes wrong models out of the seeds."""

    def __init__(self) -> None:
        self.names = list(onnx_seeds.SEEDS)
        self.protos = [make() for make in onnx_seeds.SEEDS.values()]
        self.raw = [p.SerializeToString() for p in self.protos]

    def __call__(self, rng: random.Random) -> tuple[bytes, str]:
        i = rng.randrange(len(self.names))
        kind = rng.random()
        if kind < 0.15:
            return mutated(rng, self.raw[i]), "bytes"
        if kind < 0.3:
            return change_wire(rng, self.raw[i])[:LARGEST], "protobuf"
        proto = ModelProto.FromString(self.raw[i])
        change = rng.choice(CHANGES)
        name = change.__name__
        for turn in range(rng.choice((1, 1, 1, 2, 3))):
            change = change if turn == 0 else rng.choice(CHANGES)
            try:
                change(rng, proto, self.protos)
            except (ValueError, UnicodeError, DecodeError):  # what cannot be written at all
                continue
        return proto.SerializeToString()[:LARGEST], name
