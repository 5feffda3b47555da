"""The page ``docs/onnx.md``: how ONNX models are read, and the ops, from the table of the frontend."""

from __future__ import annotations

from trustformers_ir.frontend.onnx import rules
from trustformers_ir.frontend.onnx.arithmetic import FOLDS
from trustformers_ir.frontend.onnx.convert import NEWEST
from trustformers_ir.frontend.onnx.elements import ELEMENTS
from trustformers_ir.frontend.onnx.node import ML, RULES, TRAINING

assert rules  # imported for its rules
#: ops that are functions of others by the specification, and read as their bodies
BODIES = (
    *("AffineGrid", "BlackmanWindow", "CausalConvWithState", "CenterCropPad", "FlexAttention", "HammingWindow", "HannWindow"),
    *("LinearAttention", "NegativeLogLikelihoodLoss", "RotaryEmbedding", "SequenceMap", "SoftmaxCrossEntropyLoss", "SwiGLU"),
)
#: ops that are refused, and why
REFUSED = (
    ("Bernoulli, Multinomial, RandomNormal, RandomNormalLike, RandomUniform, RandomUniformLike", "random numbers are not drawn"),
    ("Dropout in training", "it draws random numbers; in inference it is the identity"),
    ("ImageDecoder", "files of images are not decoded"),
    ("RegexFullMatch, StringConcat, StringNormalizer, StringSplit, and strings in other ops", "strings are not compiled"),
    ("Gradient, MaxRoiPool, and what of `ai.onnx.ml` is not above", "not written yet"),
)

TEXT = """\
# ONNX models

<!-- Written by `make docs` from trustformers_ir/tools/pages/onnx.py and the tables of trustformers_ir/frontend/onnx/. Edit those, not this page. -->

```
pip install 'trustformers_ir[onnx]'
tfc compile m.onnx -o m.tfc
tfc run m.onnx --input x=x.npy
```

```python
exe = tfir.compile("m.onnx")            # or an onnx.ModelProto
y = exe(x)                              # inputs in the order of the graph, or by name
```

Opsets 7 to {newest} are read. The names of inputs and outputs are those of the graph, with `_` for what is no letter, digit or `_`. Dims with a name
(`dim_param`) are symbols of that name, dims without name or size are symbols of their own: one compilation serves all sizes. Weights are read where
they lie, in the file or beside it: mapped, never by a path that leaves the folder of the model or passes a symbolic link.

The `onnx` package parses the protobuf; everything else is checked here before anything is made of it. All problems of a model are listed together,
each with the node's name, its op, and the types of its inputs.

A small file does not get to ask for gigabytes or minutes. What is computed while a model is read, the tables that stand for a node (a `Resize`, a
`DFT`) and the operations that functions and unrolled loops make are counted against a budget that grows with the file
(`trustformers_ir/frontend/onnx/budget.py`); beyond it the node is refused by name. `pytest tests/frontend/test_fuzzing.py` reads mutated files
(90,000 models and 110,000 safetensors files in `make test-long`), in a process that may map 1 GiB more than it begins with: each is a module that
verifies, or is refused in our own words within five seconds of the processor, and nothing outside of the model's folder is opened. 170 models of
a few hundred bytes that promise much (`Range`, `Expand`, `Resize`, loops in loops, functions that double, …) go the same way.

## What has to be known to compile

Shapes, axes, paddings, numbers of turns and the like follow from constants and sizes in most models; sizes stay symbolic
(`Shape`, `Gather`, `Mul`, `Concat`, `Reshape` on a dynamic batch gives `reshape` to symbolic dims). Where they depend on the *value* of an input,
compiling asks for it (`TFC2043`):

```python
exe = tfir.compile("m.onnx", example_inputs={{"x": x, "shape": np.array([2, 3])}})
```

That input is then **frozen**: it is still an input, and every call checks that it has the value that the model was compiled for (`TFC5025`).
`exe.manifest.metadata` has an entry `onnx.frozen.<name>` for each. Other inputs are not frozen by being in the examples. A symbolic dim keeps the
size that it has in the examples (`onnx.frozen.dim.<name>`) only where it decides over structure: the steps of an LSTM, the tensors of a sequence.

Sequences and optional values are resolved while the model is read. An input that is a sequence becomes one input for each tensor of its example,
`name_0`, `name_1` …; an optional input whose example is None is left out. Models with such inputs have the shapes of the examples.

`If` with a condition that only the run knows computes both branches and chooses; where they differ in shape the condition is frozen. `Loop`, `Scan`
and recurrent layers are unrolled, so the number of turns has to be known; a `Loop` with a bound may end earlier, by a condition of the run.

Results as large as the data says (`NonZero`, `Compress`, `Unique`, `NonMaxSuppression`, and all that is computed from them) have a dim that the
program computes: memory is planned for the most that it can be, outputs have the size that it is.

## Element types

| ONNX | held in | |
|---|---|---|
{elements}

Types of fewer than 8 bits and 8-bit floats are held in a wider dtype, of which they are a part: whatever makes them rounds to them exactly. Inputs
and outputs of these types are arrays of the wider dtype.

## Conformance

```
python -m trustformers_ir.tools.onnx_scoreboard [--suite node|models] [--filter TEXT] [--json FILE]
```

runs ONNX's own conformance cases (`onnx.backend.test`) through `tfir.compile` for the CPU, each with its inputs as `example_inputs`, and prints a
table per op: passed, refused with a clear error, wrong. Tolerances are those of ONNX's runner; shapes and dtypes have to be equal.

{scores}

## Ops

A Fourier transform of a prime length takes the square of the length; sorting (`TopK`, `Unique`) takes the square of the axis.

Read by a rule of their own ({own}), one file of `trustformers_ir/frontend/onnx/rules/` per family:

{rules}

Read as the body that the specification gives: {bodies}; `Attention` as well where the op `attention` does not say the same.

Besides, any function in the file, and any op of the specification with a body. On sizes, these are computed while the model is read:
{folds}.

| refused | why |
|---|---|
{refused}
"""

SCORES = """\
With onnx 1.23.2, 1,838 of the 1,873 deterministic node cases pass (98.1 %); the other 35 are refused: 26 hold strings, 9 decode images. Eleven more
draw random numbers. Of the 140 stored models (converted from PyTorch, operators of PyTorch, simple ones) 132 pass; 6 with strings and 2 that ask for
gradients are refused. (`pytest -m long tests/frontend/test_onnx_conformance.py` holds that.)"""


def page() -> str:
    rows = []
    for family in sorted({row.rule.__module__.rpartition(".")[2] for row in RULES.values()}):
        names = sorted(_shown(domain, name) for (domain, name), row in RULES.items() if row.rule.__module__.rpartition(".")[2] == family)
        rows.append(f"* `{family}.py`: {', '.join(names)}")
    elements = [f"| {e.name} | `{e.dtype}` | {'' if e.bits >= e.dtype.bits else 'widened'} |" for e in ELEMENTS.values()]
    return TEXT.format(
        elements="\n".join(elements),
        scores=SCORES,
        own=len(RULES),
        rules="\n".join(rows),
        bodies=", ".join(BODIES),
        newest=NEWEST,
        folds=", ".join(sorted({"Shape", "Size", *FOLDS})),
        refused="\n".join(f"| {names} | {why} |" for names, why in REFUSED),
    )


def _shown(domain: str, name: str) -> str:
    short = {"": "", ML: "ml.", TRAINING: "training."}
    return f"{short[domain]}{name}"
