"""ONNX models, compiled: dynamic sizes, frozen inputs, weights beside the file, problems listed together, and files that were tampered with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import SymExpr

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
F, I64 = 1, 7


def model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[str], weights: dict[str, np.ndarray] | None = None, **more: Any) -> Any:
    """A model; inputs are (name, element type, shape), outputs f32 of any shape unless they say more."""
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_empty_tensor_value_info(o) for o in outputs],
        [numpy_helper.from_array(a, k) for k, a in (weights or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", more.pop("opset", 21))], **more)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """``node("Add", "a b", "c")``; ``-`` is an input that is left out."""
    names = ["" if n == "-" else n for n in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=attributes.pop("name", f"the_{op}"), **attributes)


def attention_block() -> Any:
    """Heads split and joined by shapes computed from the input, as exporters write it."""
    w = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    return model(
        [
            node("MatMul", "x w", "q"),
            node("Shape", "x", "s"),
            node("Gather", "s zero", "batch", axis=0),
            node("Gather", "s one", "length", axis=0),
            node("Unsqueeze", "batch axis0", "b1"),
            node("Unsqueeze", "length axis0", "l1"),
            node("Concat", "b1 l1 heads", "split", axis=0),
            node("Reshape", "q split", "r"),
            node("Transpose", "r", "t", perm=[0, 2, 1, 3]),
            node("Transpose", "r", "k", perm=[0, 2, 3, 1]),
            node("MatMul", "t k", "scores"),
            node("Softmax", "scores", "p", axis=-1),
            node("MatMul", "p t", "o"),
            node("Transpose", "o", "u", perm=[0, 2, 1, 3]),
            node("Mul", "heads_n size_n", "width"),
            node("Concat", "b1 l1 width", "joined", axis=0),
            node("Reshape", "u joined", "y"),
        ],
        [("x", F, ["batch", "seq", 16])], ["y"],
        {
            "w": w, "zero": np.array(0), "one": np.array(1), "axis0": np.array([0]), "heads": np.array([4, 4]),
            "heads_n": np.array([4]), "size_n": np.array([4]),
        },
    )  # fmt: skip


def reference(proto: Any, *inputs: np.ndarray) -> Any:
    from onnx.reference import ReferenceEvaluator

    names = [i.name for i in proto.graph.input]
    return ReferenceEvaluator(proto).run(None, dict(zip(names, inputs, strict=True)))


def test_dynamic_models_stay_dynamic(tmp_path: Path) -> None:
    proto = attention_block()
    onnx.save(proto, tmp_path / "m.onnx")
    exe = tfir.compile(tmp_path / "m.onnx")
    assert str(exe.outputs[0].type) == "f32[batch, seq, 16]"
    for shape in ((1, 3, 16), (2, 7, 16)):
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        np.testing.assert_allclose(exe(x), reference(proto, x)[0], rtol=1e-4, atol=1e-5)


def test_dims_can_be_fixed() -> None:
    x = np.zeros((2, 5, 16), np.float32)
    exe = tfir.compile(attention_block(), {"x": x}, dynamic=("batch",))
    assert exe(np.zeros((4, 5, 16), np.float32)).shape == (4, 5, 16)
    with pytest.raises(CompilerError):
        exe(np.zeros((4, 6, 16), np.float32))


def resized() -> Any:
    return model([node("Reshape", "x shape", "y")], [("x", F, [6]), ("shape", I64, [2])], ["y"])


def test_an_input_that_decides_over_shapes_is_frozen_and_checked() -> None:
    with pytest.raises(CompilerError) as caught:
        tfir.compile(resized())
    assert caught.value.codes == (Code.ONNX_VALUE,)
    assert "example_inputs" in str(caught.value)
    x, shape = np.arange(6, dtype=np.float32), np.array([2, 3])
    exe = tfir.compile(resized(), {"x": x, "shape": shape})
    assert [key for key in exe.manifest.metadata if "frozen" in key] == ["onnx.frozen.shape"]
    np.testing.assert_array_equal(exe(x, shape), x.reshape(2, 3))
    with pytest.raises(CompilerError) as caught:
        exe(x, np.array([3, 2]))
    assert caught.value.codes == (Code.INPUT_VALUE,)
    assert "'shape'" in str(caught.value)


def test_results_as_large_as_the_data_says() -> None:
    proto = model([node("NonZero", "x", "at"), node("Transpose", "at", "y")], [("x", F, ["n", 4])], ["y"])
    exe = tfir.compile(proto)
    for n in (1, 5):
        x = (np.random.default_rng(n).random((n, 4)) < 0.4).astype(np.float32)
        np.testing.assert_array_equal(exe(x), np.argwhere(x))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_symbolic_sizes(mode: str) -> None:
    how = {"mode": mode, "coordinate_transformation_mode": "half_pixel"}
    proto = model([node("Resize", "x - scales", "y", **how)], [("x", F, ["b", 3, "h", "w"])], ["y"], {"scales": np.array([1, 1, 2, 2], np.float32)})
    exe = tfir.compile(proto)
    assert str(exe.outputs[0].type) == "f32[b, 3, 2*h, 2*w]"
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(exe(x), reference(proto, x)[0], rtol=1e-5, atol=1e-6)


def test_functions_of_the_file_are_read_in_place() -> None:
    body = [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("LeakyRelu", ["s"], ["t"])]
    body[1].attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    function = helper.make_function("own", "AddLeaky", ["a", "b"], ["t"], body, [helper.make_opsetid("", 21)], ["slope"])
    proto = model([helper.make_node("AddLeaky", ["x", "x"], ["y"], domain="own", slope=0.5)], [("x", F, [3])], ["y"], functions=[function])
    proto.opset_import.add(domain="own", version=1)
    x = np.array([-1.0, 0.0, 2.0], np.float32)
    np.testing.assert_allclose(tfir.compile(proto)(x), [-1.0, 0.0, 4.0])


def test_a_function_that_calls_itself_is_refused() -> None:
    body = [helper.make_node("Again", ["a"], ["b"], domain="own")]
    function = helper.make_function("own", "Again", ["a"], ["b"], body, [helper.make_opsetid("own", 1)])
    proto = model([helper.make_node("Again", ["x"], ["y"], domain="own")], [("x", F, [3])], ["y"], functions=[function])
    proto.opset_import.add(domain="own", version=1)
    with pytest.raises(CompilerError, match="calls itself"):
        tfir.compile(proto)


def test_all_problems_are_listed_with_node_shapes_and_dtypes() -> None:
    proto = model(
        [
            node("Add", "x y", "a", name="first"),
            node("NoSuchOp", "x", "b", name="second"),
            node("Relu", "b", "c", name="behind"),
            node("Concat", "x y", "d", axis=5, name="third"),
        ],
        [("x", F, [2, 3]), ("y", F, [4])], ["a", "c", "d"],
    )  # fmt: skip
    with pytest.raises(CompilerError) as caught:
        tfir.compile(proto)
    text = str(caught.value)
    assert caught.value.codes == (Code.ONNX_NODE, Code.ONNX_UNSUPPORTED, Code.ONNX_NODE)
    for part in ("'first'", "'second'", "'third'", "x: float[2, 3], y: float[4]", "NoSuchOp"):
        assert part in text
    assert "behind" not in text, "what follows from another problem is none of its own"


# --- weights beside the file -------------------------------------------------------------------------------------------------------


def stored_beside(folder: Path, location: str = "w.bin", **keys: str) -> Path:
    weight = np.arange(256, dtype=np.float32).reshape(16, 16)
    proto = model([node("MatMul", "x w", "y")], [("x", F, ["n", 16])], ["y"], {"w": weight})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "64", "length": "1024", **keys}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "w.bin").write_bytes(bytes(64) + weight.tobytes())
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def test_weights_beside_the_file(tmp_path: Path) -> None:
    x = np.eye(16, dtype=np.float32)[:3]
    np.testing.assert_array_equal(tfir.compile(stored_beside(tmp_path))(x), np.arange(48, dtype=np.float32).reshape(3, 16))


@pytest.mark.parametrize(
    ("location", "keys"),
    [
        ("../w.bin", {}), ("/etc/passwd", {}), ("missing.bin", {}), ("", {}), ("sub/../w.bin", {}), ("link.bin", {}), ("a\0b", {}), ("..", {}),
        (".", {}),
        ("w.bin", {"offset": "-1"}), ("w.bin", {"offset": "65"}), ("w.bin", {"length": "1020"}), ("w.bin", {"length": "99999999999999999999"}),
        ("w.bin", {"offset": "x"}), ("w.bin", {"length": "-4"}),
    ],
)  # fmt: skip
def test_what_lies_outside_is_not_read(tmp_path: Path, location: str, keys: dict[str, str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(2048))
    path = stored_beside(tmp_path / "model", location, **keys)
    os.symlink(tmp_path / "w.bin", tmp_path / "model" / "link.bin")
    with pytest.raises(CompilerError) as caught:
        tfir.compile(path)
    assert caught.value.codes == (Code.ONNX_FILE,)


# --- broken files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\x08", b"not a model at all", bytes(1000)])
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(CompilerError) as caught:
        tfir.compile(tmp_path / "m.onnx")
    assert caught.value.codes == (Code.ONNX_FILE,)


def test_sizes_are_checked_before_anything_is_made() -> None:
    proto = model([node("Add", "x w", "y")], [("x", F, [1])], ["y"], {"w": np.zeros(4, np.float32)})
    for dims in ([1 << 40], [-1], [1 << 62, 1 << 62], [5]):
        del proto.graph.initializer[0].dims[:]
        proto.graph.initializer[0].dims.extend(dims)
        with pytest.raises(CompilerError) as caught:
            tfir.compile(proto)
        assert caught.value.codes == (Code.ONNX_FILE,)


def test_loops_that_never_end_are_refused() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["w"])], "body",
        [helper.make_tensor_value_info("i", I64, []), helper.make_tensor_value_info("go", 9, []), helper.make_tensor_value_info("v", F, [1])],
        [helper.make_tensor_value_info("on", 9, []), helper.make_tensor_value_info("w", F, [1])],
    )  # fmt: skip
    proto = model([node("Loop", "- true x", "y", body=body)], [("x", F, [1])], ["y"], {"true": np.array(True)})
    with pytest.raises(CompilerError, match="more than"):
        tfir.compile(proto)


def test_shapes_in_reports_are_those_of_the_model() -> None:
    module = tfir.compile(attention_block()).module
    assert all(isinstance(d, (int, SymExpr)) for a in module.main.args for d in a.type.shape)
    assert "the_Softmax" in str(module), "operations carry the names of nodes"


def test_a_dim_that_decides_over_structure_is_frozen() -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in {"w": (1, 12, 4), "r": (1, 12, 3)}.items()}
    proto = model([node("LSTM", "x w r", "y", hidden_size=3)], [("x", F, ["steps", "batch", 4])], ["y"], weights)
    with pytest.raises(CompilerError) as caught:
        tfir.compile(proto)
    assert caught.value.codes == (Code.ONNX_VALUE,)
    exe = tfir.compile(proto, {"x": np.zeros((5, 2, 4), np.float32)})
    assert exe.manifest.metadata["onnx.frozen.dim.steps"] == "5"
    x = rng.standard_normal((5, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(exe(x), reference(proto, x)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(CompilerError) as caught:
        exe(np.zeros((6, 3, 4), np.float32))
    assert caught.value.codes == (Code.DIM_RANGE,)


# --- files that others write -------------------------------------------------------------------------------------------------------

SMALL = {
    "bert": "hidden_size=64&num_hidden_layers=2&num_attention_heads=4&intermediate_size=128&vocab_size=100",
    "gpt2": "n_embd=64&n_layer=2&n_head=4&vocab_size=100",
    "llama": "hidden_size=64&num_hidden_layers=2&num_attention_heads=4&num_key_value_heads=2&intermediate_size=96&vocab_size=100",
    "vit": "hidden_size=64&num_hidden_layers=2&num_attention_heads=4&intermediate_size=128&image_size=32&patch_size=8",
}


@pytest.mark.parametrize("kind", SMALL)
def test_models_out_to_onnx_and_back(tmp_path: Path, kind: str) -> None:
    name = f"random:{kind}?{SMALL[kind]}"
    tfir.export(name, str(tmp_path / "m.onnx"))
    ours, back = tfir.compile(name), tfir.compile(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    for sizes in ({"batch": 1, "seq": 4}, {"batch": 3, "seq": 9}):
        feed = {}
        for port in back.inputs:
            shape = port.type.concrete(sizes)
            whole = rng.integers(0, 2 if "type" in port.name else 100, shape) if "mask" not in port.name else np.ones(shape)
            feed[port.name] = whole.astype(port.type.dtype.numpy)
        wanted, got = (exe(**feed) for exe in (ours, back))
        for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (wanted, got)), strict=False):
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_models_that_torch_exports(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Recurrent(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 16, 2, bidirectional=True, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.lstm(x)[0]

    image = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 16, 3, padding=1, groups=2),
        nn.Hardswish(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.ConvTranspose2d(16, 4, 2, 2), nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
    )  # fmt: skip
    anywhere = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="nearest"))
    cases = {
        "image": (image, (2, 3, 32, 32), {0: "b"}, (3, 3, 32, 32)),
        "anywhere": (anywhere, (2, 3, 32, 32), {0: "b", 2: "h", 3: "w"}, (1, 3, 64, 48)),
        "recurrent": (Recurrent(), (2, 5, 8), {0: "b"}, (3, 5, 8)),
    }
    for name, (net, shape, axes, other) in cases.items():
        net.eval()
        path = tmp_path / f"{name}.onnx"
        torch.onnx.export(net, (torch.randn(*shape),), str(path), input_names=["x"], dynamic_axes={"x": axes}, dynamo=False, opset_version=17)
        exe = tfir.compile(path)
        for given in (shape, other):
            x = torch.randn(*given)
            with torch.no_grad():
                np.testing.assert_allclose(exe(x.numpy()), net(x).numpy(), rtol=1e-3, atol=1e-4)
    with pytest.raises(CompilerError) as caught:  # no window fits into so small an image
        tfir.compile(tmp_path / "anywhere.onnx")(np.zeros((1, 3, 1, 1), np.float32))
    assert caught.value.codes == (Code.DIM_RANGE, Code.DIM_RANGE)


def test_an_operator_set_of_the_future_is_refused() -> None:
    with pytest.raises(CompilerError, match="newest that is known") as caught:
        tfir.compile(model([node("Relu", "x", "y")], [("x", F, [2])], ["y"], opset=99))
    assert caught.value.codes == (Code.ONNX_UNSUPPORTED,)


@pytest.mark.parametrize(("op", "opset", "first"), [("Gelu", 13, 20), ("Attention", 22, 23)])
def test_an_op_that_came_later_is_refused(op: str, opset: int, first: int) -> None:
    ports = [("q", F, [1, 2, 3, 4])] * (1 if op == "Gelu" else 3)
    with pytest.raises(CompilerError, match=f"came with operator set {first}, and the model follows {opset}"):
        tfir.compile(model([node(op, "q" if op == "Gelu" else "q q q", "y")], ports[:1], ["y"], opset=opset))


def test_attention_is_one_op_where_it_can_be() -> None:
    ports = [(name, F, ["b", 4, "s", 8]) for name in "qkv"]
    proto = model([node("Attention", "q k v", "y", is_causal=1)], ports, ["y"], opset=24)
    exe = tfir.compile(proto)
    assert "attention(" in str(exe.module)
    q, k, v = (np.random.default_rng(i).standard_normal((2, 4, 5, 8)).astype(np.float32) for i in range(3))
    np.testing.assert_allclose(exe(q, k, v), reference(proto, q, k, v)[0], rtol=1e-4, atol=1e-5)
