"""ONNX files, written from the beginning to the end: weights are made one after the other, on their way to the file.

A model is one message of protobuf, whose fields may come in any order and whose length stands before them. So everything but the bytes of the weights
is put together first (``onnx``, an optional extra), lengths are added up, and each weight is written when its turn comes (a field ``raw_data`` of a
``TensorProto``). A message ends at 2 GiB: weights of larger models, and of those above a limit that the caller gives, lie in a file beside it, as the
format has it (*external data*), each at a multiple of 4096 bytes so that it can be mapped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import IO, Any

from trustformers_ir.codegen.export.emitting import Stored
from trustformers_ir.codegen.export.onnx import rules_elementwise, rules_nn, rules_quantized, rules_shape
from trustformers_ir.codegen.export.onnx.emitter import ELEMENTS, INT4, NEWEST, OLDEST, USUAL, Emitter, Nibbles, Node
from trustformers_ir.codegen.export.onnx.rules_quantized import BLOCKED
from trustformers_ir.codegen.export.written import Written
from trustformers_ir.ir.atomic import atomic_output
from trustformers_ir.ir.core import Module, Value
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.holes import write_array
from trustformers_ir.ir.ops.blocks import InBlocks
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.version import VERSION

assert rules_elementwise and rules_nn and rules_quantized and rules_shape  # imported for their rules
EXTERNAL_ABOVE = 1 << 30  # bytes of all weights from which on they lie in a file beside the model
SMALL = 1024  # bytes up to which an initializer always lies in the model
PAGE = 4096
IR_VERSION = 10
#: what nodes say in ``metadata_props``: the line of the source; the operation of the graph, ``12:linear``; which results of operations their outputs
#: are, ``12:linear.0``: several with commas between, outputs with semicolons
SOURCE, OPERATION, RESULTS = "source", "operation", "results"


def onnx_module() -> Any:
    """The package ``onnx``. ``MISSING_DEPENDENCY``"""
    try:
        import onnx
    except ImportError as error:
        message = "writing ONNX files needs the package onnx"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, message, help="pip install 'trustformers_ir[onnx]'") from error
    return onnx


def write_onnx(path: str, module: Module, *, opset: int | None = None, external_above: int = EXTERNAL_ABOVE) -> Written:
    """Writes the function ``main`` of ``module``. ``CompilerError`` with all ops that have no form in ONNX; nothing is left half-written."""
    blocked = any(isinstance(o.op, InBlocks) for o in module.main.body)
    chosen = (BLOCKED if blocked else USUAL) if opset is None else opset
    if not OLDEST <= chosen <= NEWEST:
        raise CompilerError.of(Code.USAGE, f"opset {chosen} cannot be written", help=f"give one of {OLDEST} to {NEWEST}")
    onnx = onnx_module()
    emitter = Emitter(onnx, module, module.main, chosen)
    outputs = emitter.run()
    read = {x for node in emitter.nodes for x in node.inputs}
    tensors = [s for s in emitter.stored.values() if s.name in read]
    total = sum(s.bytes for s in tensors)
    outside = total > external_above
    graph = onnx.GraphProto(name=module.main.name)
    results = emitter.results()
    graph.node.extend(_node(onnx, n, results) for n in emitter.nodes)
    graph.input.extend(_port(onnx, name, v) for name, v in zip(emitter.inputs, module.main.args, strict=True))
    graph.output.extend(_port(onnx, name, v) for name, v in zip(outputs, module.main.outputs, strict=True))
    model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="trustformers_ir", producer_version=VERSION)
    model.opset_import.add(domain="", version=chosen)
    for key, value in module.metadata.items():
        model.metadata_props.add(key=key, value=value)
    beside = os.path.basename(path) + ".data"
    places = _places(tensors) if outside else {}
    files = [path]
    if places:
        files.insert(0, os.path.join(os.path.dirname(path), beside))
        with atomic_output(files[0]) as file:
            for n, s in enumerate(s for s in tensors if s.name in places):
                note("writing weights", n, len(places))
                file.seek(places[s.name])
                _put(file, s)
    with atomic_output(path) as file:
        _write_model(onnx, file, model, graph, tensors, places, beside)
    kinds = Counter(_kind(s) for s in tensors)
    return Written(tuple(files), sum(os.stat(f).st_size for f in files), dict(kinds.most_common()), len(emitter.nodes))


def _places(tensors: Sequence[Stored]) -> dict[str, int]:
    """Where each weight begins in the file beside the model."""
    places, at = {}, 0
    for s in tensors:
        if s.bytes > SMALL:
            places[s.name] = at
            at += -(-s.bytes // PAGE) * PAGE
    return places


def _put(file: IO[bytes], s: Stored) -> None:
    """The bytes of a weight, in the order of its rows, little endian."""
    array = s.make()
    assert array.nbytes == s.bytes, s.name
    write_array(file, array)


def _kind(s: Stored) -> str:
    """The type of its elements, for people."""
    return str(s.dtype) if not isinstance(s, Nibbles) else "i4" if s.element == INT4 else "u4"


# -- protobuf ---------------------------------------------------------------------------------------------------------------

_GRAPH, _INITIALIZER, _RAW = 7, 5, 9  # numbers of the fields ModelProto.graph, GraphProto.initializer, TensorProto.raw_data


def _write_model(onnx: Any, file: IO[bytes], model: Any, graph: Any, tensors: Sequence[Stored], places: dict[str, int], beside: str) -> None:
    """The message, with what is in the model of each weight."""
    heads: list[bytes] = []
    sizes: list[int] = []
    for s in tensors:
        proto = onnx.TensorProto(name=s.name, dims=s.shape, data_type=s.element if isinstance(s, Nibbles) else ELEMENTS[s.dtype])
        inside = s.name not in places
        if not inside:
            proto.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", beside), ("offset", places[s.name]), ("length", s.bytes)):
                proto.external_data.add(key=key, value=str(value))
        head = proto.SerializeToString() + (_tag(_RAW) + _varint(s.bytes) if inside else b"")
        heads.append(head)
        sizes.append(len(head) + (s.bytes if inside else 0))
    skeleton = graph.SerializeToString()
    length = len(skeleton) + sum(len(_tag(_INITIALIZER)) + len(_varint(n)) + n for n in sizes)
    file.write(model.SerializeToString() + _tag(_GRAPH) + _varint(length) + skeleton)
    for s, head, size in zip(tensors, heads, sizes, strict=True):
        file.write(_tag(_INITIALIZER) + _varint(size) + head)
        if s.name not in places:
            _put(file, s)


def _tag(field: int) -> bytes:
    """Of a field whose length stands before it."""
    return _varint(field << 3 | 2)


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def _node(onnx: Any, n: Node, results: Mapping[str, Sequence[str]]) -> Any:
    made = onnx.helper.make_node(n.op, n.inputs, n.outputs, name=n.name, **n.attributes)
    if n.place:
        made.metadata_props.add(key=SOURCE, value=n.place)
    if n.operation:
        made.metadata_props.add(key=OPERATION, value=n.operation)
    if any(x in results for x in n.outputs):
        made.metadata_props.add(key=RESULTS, value=";".join(",".join(results.get(x, ())) for x in n.outputs))
    return made


def _port(onnx: Any, name: str, v: Value) -> Any:
    def size(d: Dim) -> int | str:
        return d if isinstance(d, int) else str(d)

    return onnx.helper.make_tensor_value_info(name, ELEMENTS[v.type.dtype], [size(d) for d in v.type.shape])
