"""What the ``onnx`` package knows of ops: whether there is one of a name, and the bodies of those that are functions of others."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trustformers_ir.frontend.onnx.values import Item, Missing, Row

if TYPE_CHECKING:
    from trustformers_ir.frontend.onnx.node import Node


def standard(domain: str, name: str) -> bool:
    """Whether ONNX has an op of that name."""
    from onnx import defs

    return bool(defs.has(name, domain))


@functools.cache
def came_later(domain: str, name: str, version: int) -> int | None:
    """With which operator set the first op of that name came, where that is after ``version``; None where it did not."""
    from onnx import defs

    if not version or not defs.has(name, domain) or defs.has(name, max_inclusive_version=version, domain=domain):
        return None
    return min(int(s.since_version) for s in defs.get_all_schemas_with_history() if s.name == name and s.domain == domain)


@functools.cache
def attribute_kinds(domain: str, name: str, version: int) -> Mapping[str, int]:
    """The kinds (``AttributeProto.AttributeType``) of the attributes of an op; empty for one that ONNX does not have."""
    from onnx import defs

    try:
        schema = defs.get_schema(name, version, domain) if version else defs.get_schema(name, domain)
    except Exception:  # onnx.defs.SchemaError is not exported by every version
        return {}
    return {key: int(getattr(a.type, "value", a.type)) for key, a in schema.attributes.items()}


def expansion(n: Node) -> Any:
    """The function that an op stands for, by the specification; None where it is a primitive one."""
    import onnx
    from onnx import defs

    domain = "" if n.proto.domain == "ai.onnx" else n.proto.domain
    try:
        schema = defs.get_schema(n.op, n.version, domain) if n.version else defs.get_schema(n.op, domain)
    except Exception:  # onnx.defs.SchemaError is not exported by every version
        return None
    found = None
    if schema.has_function:
        found = schema.function_body
    elif schema.has_context_dependent_function:
        types = [_type(v).SerializeToString() for v in n.inputs]
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= n.version] or schema.context_dependent_function_opset_versions
        node = onnx.NodeProto()
        node.CopyFrom(n.proto)
        for i, a in reversed(list(enumerate(node.attribute))):
            if a.ref_attr_name:
                actual = n.scope.attribute(n.proto, a.name)
                if actual is None:
                    del node.attribute[i]
                else:
                    name = a.name
                    node.attribute[i].CopyFrom(actual)
                    node.attribute[i].name = name
        text = schema.get_context_dependent_function_with_opset_version(max(versions), node.SerializeToString(), types)
        found = onnx.FunctionProto()
        found.ParseFromString(text)
    if found is None or not found.node:
        return None
    made = onnx.FunctionProto()
    made.CopyFrom(found)
    present = {o.domain for o in made.opset_import}
    if "" not in present:
        made.opset_import.add(domain="", version=n.scope.opsets.get("", n.version))
    given = {a.name for a in made.attribute_proto} | {a.name for a in n.proto.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            made.attribute_proto.add().CopyFrom(attribute.default_value)
    return made


def _type(value: Any) -> Any:
    import onnx

    made = onnx.TypeProto()
    if value is None or isinstance(value, Missing):
        return made
    if isinstance(value, Row):
        made.sequence_type.elem_type.tensor_type.elem_type = value.element.code if value.element else 1
        return made
    assert isinstance(value, Item)
    made.tensor_type.elem_type = value.element.code
    shape = made.tensor_type.shape
    for d in value.shape:
        entry = shape.dim.add()
        if isinstance(d, int):
            entry.dim_value = d
        else:
            entry.dim_param = str(d)
    return made
