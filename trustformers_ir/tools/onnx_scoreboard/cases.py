"""The conformance cases that the ``onnx`` package brings: generated ones of nodes, and stored models."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: ops that draw random numbers; what they give is compared with nothing
RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})
FOLDERS = ("pytorch-converted", "pytorch-operator", "simple")


@dataclass(frozen=True)
class Case:
    """One model with inputs and what it has to give. ``sets`` loads the data."""

    name: str
    suite: str
    model: Any
    sets: Callable[[], Sequence[tuple[Sequence[Any], Sequence[Any]]]]
    rtol: float = 1e-3
    atol: float = 1e-7

    @property
    def expanded(self) -> bool:
        return "_expanded" in self.name

    @property
    def op(self) -> str:
        """The op that the case is about; of a body of a function its name says it."""
        if self.suite != "node":
            return self.suite
        nodes = self.model.graph.node
        if self.expanded:
            return "(expanded)"
        return "+".join(sorted({n.op_type for n in nodes if n.op_type != "Constant"})) if len(nodes) > 1 else str(nodes[0].op_type)

    @property
    def deterministic(self) -> bool:
        """Whether the specification says what comes out."""
        kinds = {n.op_type for n in self.model.graph.node}
        if kinds & RANDOM:
            return False
        # a mask of dropped elements is drawn: the ratio's default is 0.5, and the cases with the ratio 0 say so by name
        return not ("training_dropout" in self.name and "zero_ratio" not in self.name) and self.name != "test_dropout_random_old"


def node_cases() -> Iterator[Case]:
    """The generated cases of single nodes, and of bodies of functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    for c in found:
        yield Case(c.name, "node", c.model, functools.partial(getattr, c, "data_sets"), c.rtol, c.atol)


def model_cases() -> Iterator[Case]:
    """The models with data that lie in the package."""
    import onnx
    from onnx.backend.test import case as beside

    root = Path(beside.__file__).parent.parent / "data"
    for folder in FOLDERS:
        for path in sorted((root / folder).iterdir()) if (root / folder).is_dir() else ():
            if (path / "model.onnx").is_file():
                model = onnx.load(path / "model.onnx")
                yield Case(f"{folder}/{path.name}", folder, model, functools.partial(_stored, path, model))


def _stored(folder: Path, model: Any) -> list[tuple[list[Any], list[Any]]]:
    made = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in made]
    out = []
    for data in sorted(folder.glob("test_data_set*")):
        count = len(list(data.glob("input_*.pb")))
        kinds = inputs if len(inputs) == count else list(model.graph.input)
        given = [_read(data / f"input_{i}.pb", kinds[i].type) for i in range(count)]
        wanted = [_read(data / f"output_{i}.pb", o.type) for i, o in enumerate(model.graph.output)]
        out.append((given, wanted))
    return out


def _read(path: Path, type: Any) -> Any:
    import onnx
    from onnx import numpy_helper

    content = path.read_bytes()
    kind = type.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def tensor_of(value: Any) -> Any:
    """Data of a case as arrays: some of it is given as protobuf messages."""
    if hasattr(value, "SerializeToString"):
        import onnx
        from onnx import numpy_helper

        return numpy_helper.to_list(value) if isinstance(value, onnx.SequenceProto) else numpy_helper.to_array(value)
    if isinstance(value, (list, tuple)):
        return [tensor_of(v) for v in value]
    return None if value is None else np.asarray(value)
