"""What is wrong, where, and what to do: the catalogue of error codes and the exceptions that carry them.

A problem is a :class:`Diagnostic`; an exception carries one or many of them, all problems of a run together::

    where = Where(file="model.safetensors", tensor="pooler.dense.bias")
    raise CompilerError.of(Code.WEIGHT_MISSING, "the weight is missing", where, "export the checkpoint again")

    error[TFC2020]: the weight is missing
      --> model.safetensors (tensor "pooler.dense.bias")
      help: export the checkpoint again

Three exceptions, three exit codes of ``tfc``: :class:`CheckFailed` (1, a check did not hold), :class:`CompilerError` (2, the input or the
request is at fault), :class:`InternalError` (3, our bug). Use :class:`Collector` to gather problems and raise them at once.
"""

from __future__ import annotations

import enum
import linecache
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self

SOURCE_WIDTH = 120  # a quoted source line is cut to this many characters around its caret


class Code(enum.Enum):
    """The catalogue: one row per situation, ``(number, title, explanation)``. Numbers are never reused."""

    # 1xxx: the IR, its text form, its verifier, its passes
    SYNTAX = (1001, "syntax error", "The text is not a `.tfir` module: a token is not one that may stand here.")
    UNKNOWN_OP = (1002, "unknown op", "The text names an op that has no declaration.")
    UNKNOWN_NAME = (1003, "undefined name", "The text uses a value, function, symbol or weight that nothing above it defines.")
    REDEFINED_NAME = (1004, "name defined twice", "Two values, functions, symbols or weights of one scope carry the same name.")
    BAD_ATTRIBUTE = (1005, "bad attribute", "An attribute is unknown to its op, missing, or of the wrong kind.")
    BAD_TYPE = (1006, "bad type", "A type is malformed: an unknown dtype, a dim that is not one, or an unknown layout.")
    TYPE_MISMATCH = (1007, "type mismatch", "The type written differs from the type that the op infers.")
    VERIFY = (1008, "invalid module", "A numbered rule of the verifier (`V1`, `V2`, …) does not hold.")
    CONSTRAINT = (1009, "constraint of an op", "A numbered constraint of an op (such as `softmax.C1`) does not hold.")
    UNDECIDED_DIM = (1010, "undecided dim", "A question about symbolic dims has no answer; the message names the fact that is missing.")
    TEXT_VERSION = (1011, "version of the text form", "The text was written by another version of the text form.")
    MISSING_BYTES = (1012, "weight without bytes", "The text form names a weight by its digest; its bytes are needed and were not given.")
    TEXT_LIMIT = (1013, "text beyond a limit", "The text is nested deeper, or a token in it is longer, than any sensible module.")
    TEXT_ENCODING = (1014, "not UTF-8", "The file is not UTF-8 text.")
    BAD_DIGEST = (1015, "digest does not match", "The bytes given for a weight are not the ones that the text was written for.")
    UNKNOWN_PASS = (1020, "unknown pass", "No pass has that name.")
    PASS_OPTION = (1021, "bad pass option", "A pass does not have that option, or the option does not take that value.")
    PASS_CONTRACT = (1022, "pass does not apply", "What the pass requires of a module does not hold for this one.")

    # 2xxx: checkpoints and what the frontends read
    CHECKPOINT_NOT_FOUND = (2001, "no such checkpoint", "The folder of the checkpoint does not exist or is not a folder.")
    CONFIG_MISSING = (2002, "no config.json", "The folder holds no `config.json`.")
    CONFIG_INVALID = (
        2003,
        "broken config.json",
        "`config.json` is not JSON, or a field is missing or has the wrong type or an impossible value.",
    )
    UNKNOWN_MODEL_TYPE = (2004, "unknown model_type", "No architecture is registered for the `model_type` of the config.")
    UNSUPPORTED_CONFIG = (2005, "unsupported config", "The config asks for a variant of the architecture that is not written yet.")
    SAFETENSORS_HEADER = (
        2010,
        "broken safetensors header",
        "The header is not the JSON that the format prescribes, or its length is impossible.",
    )
    SAFETENSORS_TRUNCATED = (2011, "truncated safetensors file", "The file ends before the header or the tensors that it announces.")
    SAFETENSORS_OFFSETS = (
        2012,
        "lying safetensors offsets",
        "Byte ranges overlap, leave holes, leave the file, or do not fit shape and dtype.",
    )
    SAFETENSORS_DTYPE = (2013, "unknown safetensors dtype", "A tensor has a dtype that has no counterpart here.")
    SHARD_INDEX = (2015, "broken shard index", "`model.safetensors.index.json` is broken or disagrees with the shards.")
    SHARD_MISSING = (2016, "missing shard", "The shard index names a file that is not there.")
    WEIGHTS_NOT_FOUND = (2017, "no weights", "The folder holds no `*.safetensors` file.")
    WEIGHT_MISSING = (2020, "missing weight", "The architecture needs a weight that the checkpoint does not hold.")
    WEIGHT_UNEXPECTED = (2021, "unexpected weight", "The checkpoint holds a weight for which the architecture has no place.")
    WEIGHT_SHAPE = (2022, "wrongly shaped weight", "A weight has another shape than the config implies.")
    WEIGHT_DTYPE = (2023, "wrong weight dtype", "A weight has a dtype that cannot stand for the one that is needed.")
    GGUF_HEADER = (2024, "not a GGUF file", "The file does not begin like a GGUF file of version 2 or 3, or is big-endian.")
    GGUF_TRUNCATED = (2025, "truncated GGUF file", "The file ends before what it announces: a text, an array, or a tensor.")
    GGUF_METADATA = (2026, "broken GGUF metadata", "A key or its value is not as the specification says, or there twice.")
    GGUF_TENSOR = (2027, "broken GGUF tensor", "A tensor has an unknown type, impossible sizes, a wrong place, or lies across another.")
    GGUF_SPLIT = (2028, "files that do not belong together", "The files over which a GGUF model is spread are not those of one model.")
    TOKENIZER_MISSING = (2030, "no tokenizer", "Text was given, and the model carries no `tokenizer.json`.")
    TOKENIZER_INVALID = (2031, "broken tokenizer", "`tokenizer.json` cannot be read as a tokenizer.")
    ONNX_FILE = (2040, "broken ONNX file", "The file is no ONNX model, or a tensor in it or beside it is not what it announces.")
    ONNX_UNSUPPORTED = (2041, "ONNX op not compiled", "The model has an op, a form of an op or an element type that has no compiled form.")
    ONNX_NODE = (2042, "broken ONNX node", "A node does not follow the specification of its op: attributes, inputs, dtypes or shapes do not fit.")
    ONNX_VALUE = (2043, "value needed to compile", "The value of an input decides over shapes or structure, and was not given.")

    # 3xxx: tracing
    TRACE_CONTROL_FLOW = (
        3001,
        "branch on a tensor",
        "Python asked for the truth or the number of a symbolic tensor, which only the run knows.",
    )
    TRACE_UNSUPPORTED = (3002, "untraceable operation", "The symbolic tensor has no such method, or not with these arguments.")
    TRACE_SHAPE = (
        3003,
        "shapes do not fit",
        "An operation of the traced function gets operands whose shapes or dtypes break a constraint.",
    )
    TRACE_RESULT = (3004, "untraceable result", "The traced function returns something that is not made of symbolic tensors.")
    TRACE_SPEC = (3005, "bad input spec", "An input spec is not a tensor type, or the number of specs is not the number of parameters.")
    TRACE_FOREIGN = (3006, "tensor of another trace", "A symbolic tensor is used outside the function during whose trace it was made.")
    TRACE_FAILED = (3007, "the traced function raised", "The traced function itself raised an exception.")

    TORCH_OP = (3020, "op of torch not compiled", "The program calls an op of torch that is not compiled, or not in this form.")
    TORCH_DATA_DEPENDENT = (
        3021,
        "size or branch that depends on data",
        "A size, or which way a Python branch goes, follows from the numbers in a tensor, which only the run knows.",
    )
    TORCH_EXPORT = (3022, "torch.export failed", "torch could not turn the module into a graph.")
    TORCH_INPUTS = (3023, "example inputs do not fit", "The example inputs are missing, or are not what the module takes.")
    TORCH_MUTATION = (3024, "program writes into what it was given", "The module writes into an input or a buffer, and the write outlives the call.")
    TORCH_TRAINING = (3025, "module in training mode", "In training mode layers of the module are random or learn; compiled code is for inference.")
    TORCH_DYNAMIC = (3026, "dims of a torch module", "`dynamic` names an axis or an input that the module does not have.")
    TORCH_SIZE = (3027, "size without a form", "A size of the program is computed in a way that dims cannot say.")
    TORCH_DEVICE = (3028, "tensor on another device", "A parameter, a buffer or an input is not on the CPU, or has no memory at all.")
    TORCH_RESULT = (3029, "result that is no tensor", "The module returns something that is neither a tensor nor a nest of tensors and plain values.")

    # 4xxx: code generation and targets
    UNSUPPORTED_OP = (4001, "op not compiled", "The target has no way to compile this op, or this form of it.")
    UNSUPPORTED_DTYPE = (4002, "dtype not compiled", "The target has no arithmetic for this dtype.")
    UNKNOWN_TARGET = (4003, "unknown target", "The target string names no target.")
    UNKNOWN_FEATURE = (4004, "unknown CPU feature", "The target string names a CPU feature that does not exist.")
    TARGET_UNAVAILABLE = (4005, "target not available", "The target exists, and this machine or installation cannot build for it.")
    UNKNOWN_RECIPE = (4006, "unknown quantization recipe", "No quantization recipe has that name.")
    UNSUPPORTED_SHAPE = (4007, "shape not compiled", "A dim is of a form that code generation cannot handle.")
    TOO_LARGE = (4008, "too large for the target", "A buffer or an index does not fit the target's address arithmetic.")
    RECIPE_OPTION = (4009, "bad option of a recipe", "A quantization recipe does not have that option, or the option does not take that value.")
    CALIBRATION = (4010, "no calibration data", "Static quantization needs examples to find ranges from, and they are missing or of no use.")
    NOTHING_QUANTIZED = (4011, "nothing to quantize", "A recipe was asked for, and every product of the model has a reason to stay as it is.")
    SCHEDULE_TABLE = (4012, "bad table of schedules", "A table of tuned schedules is not what `tfc tune` writes, or asks for a tile that cannot be.")
    SCHEDULE_TARGET = (4013, "schedules of another target", "A table of tuned schedules was measured for another kind of machine.")

    # 5xxx: artifacts and running them
    NOT_AN_ARTIFACT = (5001, "not an artifact", "The file does not begin as a `.tfc` file does.")
    ARTIFACT_TRUNCATED = (5002, "truncated artifact", "The file ends before the sections that it announces.")
    ARTIFACT_CORRUPT = (5003, "corrupt artifact", "A checksum does not match: bytes have changed since the file was written.")
    ARTIFACT_VERSION = (5004, "version of the artifact", "The file was written by another version of the format.")
    ARTIFACT_TARGET = (5005, "artifact of another machine", "The code in the file needs a CPU or features that this machine lacks.")
    ARTIFACT_MANIFEST = (5006, "broken manifest", "The manifest of the file is malformed or contradicts itself.")
    ARTIFACT_CODE = (5007, "broken object code", "The object code of the file is not any, or lacks what the manifest names.")
    INPUT_COUNT = (5010, "wrong number of inputs", "The call has too few or too many inputs.")
    INPUT_NAME = (5011, "unknown input", "The call names an input that the model does not have, or gives one twice.")
    INPUT_DTYPE = (5012, "wrong input dtype", "An input has another dtype than the model takes.")
    INPUT_SHAPE = (5013, "wrong input shape", "An input has another rank or shape than the model takes.")
    DIM_CONFLICT = (5014, "contradicting dims", "Two inputs give the same symbolic dim two values.")
    DIM_RANGE = (5015, "dim out of range", "A symbolic dim got a value that the model was not compiled for.")
    INDEX_OUT_OF_RANGE = (5016, "index out of range", "An index in an input points outside the tensor that it indexes.")
    OUT_OF_MEMORY = (5017, "out of memory", "The memory that the call needs could not be allocated.")
    UNKNOWN_ENTRY = (5018, "unknown entry point", "The model has no function of that name.")
    OUTPUT_SIZE = (5019, "output too small", "A buffer that is to receive an output of a compiled library is smaller than the output.")
    CALL_IN_CALL = (5020, "call inside a call", "A signal handler or a `__del__` calls the executable whose call it interrupts.")
    DEVICE_FAILED = (5021, "error of the GPU", "A call of the GPU's driver failed, for another reason than want of memory.")
    INPUT_STATE = (5022, "state that cannot be written", "A state of the call, which is written in place, is read-only or has gaps.")
    NO_GENERATION = (5023, "not a language model", "The model has no entries by which text can be written.")
    CACHE_FULL = (5024, "text longer than the cache", "The model has no positions for so many tokens, prompt and continuation together.")
    INPUT_VALUE = (5025, "another value than compiled for", "An input that decides over shapes has another value than the model was compiled for.")

    # 6xxx: requests: the command line, files, the environment
    USAGE = (6001, "bad request", "An option or argument is unknown, missing, or does not take that value.")
    FILE_NOT_FOUND = (6002, "no such file", "A file that was named does not exist.")
    UNREADABLE = (6003, "unreadable file", "A file could not be read.")
    UNWRITABLE = (6004, "unwritable output", "The output could not be written; nothing was left behind.")
    UNKNOWN_FORMAT = (6005, "unknown file format", "The kind of a file cannot be told from its name, or is not one that can be read.")
    NOT_BUILT = (6006, "not built yet", "The request is part of the plan, and this version does not do it yet.")
    MISSING_DEPENDENCY = (6007, "missing dependency", "An optional Python package, or a program of the system, is needed and not installed.")
    BAD_ARRAY = (6008, "broken array file", "A `.npy` file is broken or holds something that is not a plain array.")
    TEXT_TOO_LONG = (6009, "text too long for the model", "A text has more tokens than the model has positions.")
    FACTORY = (6010, "model factory failed", "`module:factory` could not be imported, or the factory raised.")
    RANDOM_MODEL = (6011, "bad random model", "`random:<model_type>[?key=value]` names no architecture, or a field that it does not have.")
    BAD_ENVIRONMENT = (6012, "bad environment variable", "An environment variable has a value that it does not take.")
    FETCH = (6013, "model could not be fetched", "A model package could not be downloaded, or its checksum is wrong.")
    CANNOT_EXPORT = (6014, "model cannot be exported", "The other format has no way to say what the model is, or to hold its numbers.")
    LOCK_FILE = (6015, "bad lock", "A lock is not what `--lock` writes.")
    LOCK_INPUT = (6016, "input of a lock is missing", "A file that the locked build read is not there any more.")
    LOCK_MACHINE = (6017, "lock of another machine", "The locked build was for the machine that it ran on, and this is another one.")
    PIPELINE = (6020, "bad pipeline file", "A file for `tfc ci` is no YAML, or a key of it is unknown, missing, or does not take that value.")
    BASELINE = (6021, "bad baseline", "A file of stored figures is not what `tfc ci --update-baseline` writes.")
    CHECK_FAILED = (6100, "check did not hold", "A comparison or a gate that was asked for did not hold.")

    # 9xxx: our bugs
    INTERNAL = (9001, "internal error", "Something that cannot happen happened: a bug of this project.")
    PASS_BROKE_MODULE = (9002, "a pass broke the module", "The verifier accepted the module before a pass and rejects it after.")
    PLAN_OVERLAP = (9003, "two live buffers share memory", "The verifier of the arena plan found an overlap.")
    KERNEL_INVALID = (9004, "invalid kernel", "The verifier of kernel IR rejects what lowering or a schedule made.")
    LLVM_REJECTED = (9005, "LLVM rejected the code", "LLVM could not parse, verify or compile the text that was emitted.")
    LINK_FAILED = (9006, "linking failed", "The object code could not be linked into the process.")

    @staticmethod
    def of_reading(error: OSError) -> Code:
        """What a file has that the system would not read."""
        return Code.FILE_NOT_FOUND if isinstance(error, FileNotFoundError) else Code.UNREADABLE

    @property
    def number(self) -> int:
        return self.value[0]

    @property
    def id(self) -> str:
        """``"TFC1001"``."""
        return f"TFC{self.value[0]}"

    @property
    def title(self) -> str:
        return self.value[1]

    @property
    def explanation(self) -> str:
        return self.value[2]

    @property
    def advice(self) -> str:
        """What to do, in general."""
        return ADVICE.get(self, REPORT)

    @property
    def group(self) -> str:
        """The title of the thousand that the code belongs to."""
        return GROUPS[self.number // 1000]

    def __str__(self) -> str:
        return self.id


GROUPS = {
    1: "The IR, its text form and its passes",
    2: "Checkpoints",
    3: "Tracing",
    4: "Code generation and targets",
    5: "Artifacts and running them",
    6: "Requests, files and the environment",
    9: "Our bugs",
}


ADVICE = {
    Code.SYNTAX: "docs/ir.md has the grammar; str(module) and `tfc opt` write texts that are right",
    Code.UNKNOWN_OP: "docs/ops.md lists the ops",
    Code.UNKNOWN_NAME: "define it above, or correct the name",
    Code.REDEFINED_NAME: "give one of them another name",
    Code.BAD_ATTRIBUTE: "docs/ops.md lists the attributes of every op",
    Code.BAD_TYPE: "types look like f32[batch, 384]; docs/ir.md has the grammar",
    Code.TYPE_MISMATCH: "write the type that the op infers, or correct its operands",
    Code.VERIFY: "docs/ir.md has the rules of the verifier",
    Code.CONSTRAINT: "docs/ops.md has the constraints of every op",
    Code.UNDECIDED_DIM: "declare the fact of the symbol: its bounds or its divisor",
    Code.TEXT_VERSION: "write the text again with this version",
    Code.MISSING_BYTES: "put the tensors into a .safetensors file of the same name beside the .tfir file",
    Code.TEXT_LIMIT: "no module needs that: write the text again from the model",
    Code.TEXT_ENCODING: "save the file as UTF-8 text",
    Code.BAD_DIGEST: "take the weights that belong to this text",
    Code.UNKNOWN_PASS: "`tfc opt --list` lists the passes",
    Code.PASS_OPTION: "`tfc opt --list` lists the passes and their options",
    Code.PASS_CONTRACT: "run the passes in the order of the pipeline of the target",
    Code.CHECKPOINT_NOT_FOUND: "give the folder that holds config.json and *.safetensors",
    Code.CONFIG_MISSING: "a checkpoint folder holds config.json, as save_pretrained() writes it",
    Code.CONFIG_INVALID: "correct it, or fetch the checkpoint again",
    Code.UNKNOWN_MODEL_TYPE: "give a checkpoint of an architecture that is known",
    Code.UNSUPPORTED_CONFIG: "give a checkpoint of a variant that is known",
    Code.GGUF_HEADER: "give a GGUF file of version 2 or 3",
    Code.GGUF_TRUNCATED: "the download or the copy was cut off: fetch the file again",
    Code.GGUF_METADATA: "download the file again, or write it anew",
    Code.GGUF_TENSOR: "download the file again, or write it anew",
    Code.GGUF_SPLIT: "the files of one model belong together: fetch them again",
    Code.SAFETENSORS_HEADER: "download or export the file again",
    Code.SAFETENSORS_TRUNCATED: "the download or the copy was cut off: fetch the file again",
    Code.SAFETENSORS_OFFSETS: "download or export the file again",
    Code.SAFETENSORS_DTYPE: "convert the tensor to one of the dtypes that are read",
    Code.SHARD_INDEX: "index and shards belong together: fetch the checkpoint again",
    Code.SHARD_MISSING: "index and shards belong together: fetch the checkpoint again",
    Code.WEIGHTS_NOT_FOUND: "save the checkpoint with save_pretrained()",
    Code.WEIGHT_MISSING: "is config.json the one of this checkpoint?",
    Code.WEIGHT_UNEXPECTED: "is config.json the one of this checkpoint?",
    Code.WEIGHT_SHAPE: "is config.json the one of this checkpoint?",
    Code.WEIGHT_DTYPE: "convert the weight to f16, bf16, f32 or f64",
    Code.ONNX_FILE: "export the model again",
    Code.ONNX_UNSUPPORTED: "docs/onnx.md lists what is compiled; export the model with another opset, or leave that part outside of it",
    Code.ONNX_NODE: "onnx.checker.check_model(path, full_check=True) says more",
    Code.ONNX_VALUE: "give it: compile(model, example_inputs={name: array}), or --input name=file.npy",
    Code.TOKENIZER_MISSING: "save it with the checkpoint, or give token ids: --input input_ids=ids.npy",
    Code.TOKENIZER_INVALID: "save it again with the version of tokenizers that is installed",
    Code.TRACE_CONTROL_FLOW: "use where(), or decide before tracing",
    Code.TRACE_UNSUPPORTED: "use the methods and functions of trustformers_ir.ir.functional",
    Code.TRACE_SHAPE: "docs/ops.md has the constraints of every op",
    Code.TRACE_RESULT: "return tensors, or tuples, lists or dicts of them",
    Code.TRACE_SPEC: 'specs look like f32["n", 4], one for each parameter',
    Code.TRACE_FOREIGN: "make the tensor inside of the function that is traced",
    Code.TRACE_FAILED: "the traceback of --debug shows the line",
    Code.TORCH_OP: "docs/torch_ops.md lists the ops that are compiled",
    Code.TORCH_DATA_DEPENDENT: "keep sizes fixed, and choose by elements: torch.where(condition, a, b)",
    Code.TORCH_EXPORT: "torch.export.export(model, args, strict=False) shows what torch says",
    Code.TORCH_INPUTS: "give what forward takes: a tuple in its order, or a dict by name",
    Code.TORCH_MUTATION: "return the new value instead, and write x = x + 1 for x += 1 of an input",
    Code.TORCH_TRAINING: "call model.eval() before compiling",
    Code.TORCH_DYNAMIC: 'dynamic=("batch", "seq"), or {"input_ids": {0: "batch", 1: "seq"}}',
    Code.TORCH_SIZE: "compute sizes with + - * // %, min and max of shapes",
    Code.TORCH_DEVICE: "move it: model.to('cpu'), x.cpu()",
    Code.TORCH_RESULT: "return tensors, or tuples, lists, dicts or dataclasses of them",
    Code.UNSUPPORTED_OP: "tfir.evaluate() runs every op in the interpreter",
    Code.UNSUPPORTED_DTYPE: "compute in f32, or use tfir.evaluate()",
    Code.UNKNOWN_TARGET: "`tfc targets` lists what this machine can compile for",
    Code.UNKNOWN_FEATURE: "`tfc targets` lists what this machine can compile for",
    Code.TARGET_UNAVAILABLE: "`tfc targets` lists what this machine can compile for",
    Code.UNKNOWN_RECIPE: "docs/quantization.md lists the recipes",
    Code.UNSUPPORTED_SHAPE: "give the dim a constant size: dynamic=",
    Code.TOO_LARGE: "declare bounds of the dims, or make the model smaller",
    Code.RECIPE_OPTION: "docs/quantization.md lists the options of each recipe",
    Code.CALIBRATION: "give some: --calibrate texts.txt, or Int8(calibration=…)",
    Code.NOTHING_QUANTIZED: "leave the recipe out, or change what it keeps: docs/quantization.md",
    Code.SCHEDULE_TABLE: "`tfc tune` writes tables that are right; docs/kernels.md says what the fields mean",
    Code.SCHEDULE_TARGET: "compile for the machine that they were tuned for, or leave them out",
    Code.NOT_AN_ARTIFACT: "make one: tfc compile MODEL -o FILE.tfc",
    Code.ARTIFACT_TRUNCATED: "the copy was cut off: copy the file again",
    Code.ARTIFACT_CORRUPT: "compile the model again, or copy the file again",
    Code.ARTIFACT_VERSION: "compile the model again",
    Code.ARTIFACT_TARGET: "compile the model on this machine, or for a smaller target such as --target cpu:avx2",
    Code.ARTIFACT_MANIFEST: "compile the model again, or copy the file again",
    Code.ARTIFACT_CODE: "compile the model again, or copy the file again",
    Code.INPUT_COUNT: "`tfc inspect` shows the inputs of a model",
    Code.INPUT_NAME: "`tfc inspect` shows the inputs of a model",
    Code.INPUT_DTYPE: "`tfc inspect` shows the inputs of a model",
    Code.INPUT_SHAPE: "`tfc inspect` shows the inputs of a model",
    Code.DIM_CONFLICT: "`tfc inspect` shows the inputs of a model",
    Code.DIM_RANGE: "`tfc inspect` shows the dims of a model and their bounds",
    Code.INDEX_OUT_OF_RANGE: "indices count from 0; negative ones count from the end",
    Code.INPUT_VALUE: "compile the model again with this value in example_inputs",
    Code.OUT_OF_MEMORY: "give smaller inputs, or run where there is more memory",
    Code.UNKNOWN_ENTRY: "`tfc inspect` shows the entries of a model",
    Code.OUTPUT_SIZE: "ask for the shapes of the outputs first",
    Code.INPUT_STATE: "give an array of numpy.zeros, and keep it from call to call",
    Code.NO_GENERATION: "compile a checkpoint or a GGUF file of a language model, for a CPU",
    Code.CACHE_FULL: "give a shorter prompt, or ask for fewer tokens",
    Code.CALL_IN_CALL: "let the signal handler or __del__ note what is to be done, and call later",
    Code.DEVICE_FAILED: "look at the driver's message; `TFIR_GPU=interpreter` runs the same plan without a GPU",
    Code.USAGE: "`tfc COMMAND --help` shows what there is",
    Code.FILE_NOT_FOUND: "look at the path",
    Code.UNREADABLE: "look at the path and its permissions",
    Code.UNWRITABLE: "name an output in a folder that exists, is writable and has room",
    Code.UNKNOWN_FORMAT: "give a checkpoint folder, a .tfir or a .tfc file",
    Code.NOT_BUILT: "CHANGELOG.md lists what each version does",
    Code.MISSING_DEPENDENCY: "install the package: with pip, or with the package manager of the system",
    Code.BAD_ARRAY: "write it with numpy.save, without pickled objects",
    Code.TEXT_TOO_LONG: "shorten it, or cut it with --truncate (truncate=True)",
    Code.FACTORY: "import the module in Python and call the factory to see more",
    Code.RANDOM_MODEL: "they look like random:bert?hidden_size=96&num_hidden_layers=2",
    Code.BAD_ENVIRONMENT: "docs/environment.md lists the variables",
    Code.FETCH: "look at the network, and try again",
    Code.CANNOT_EXPORT: "docs/gguf.md says what GGUF files can hold",
    Code.LOCK_FILE: "build again with --lock",
    Code.LOCK_INPUT: "put the file back where it was, or build again with --lock",
    Code.LOCK_MACHINE: "name a target when you lock, for instance --target cpu:avx2",
    Code.PIPELINE: "docs/ci.md describes the file",
    Code.BASELINE: "take it from the repository again, or delete it and write it anew",
    Code.CHECK_FAILED: "look at the differences that were printed",
}
"""What to do about a problem whose diagnostic has no better help. Bugs of ours (9xxx) are to be reported."""

REPORT = "this is a bug of tfc: please report it with what `tfc --debug …` prints"


@dataclass(frozen=True)
class Where:
    """A place: any of a file, a line and column (from 1), a tensor, a byte offset (from 0) and an op; or the request itself, a command line."""

    file: str | None = None
    line: int | None = None
    column: int | None = None
    tensor: str | None = None
    offset: int | None = None
    op: str | None = None
    request: str | None = None

    def __str__(self) -> str:
        place = printable(self.file or self.request or "")
        if self.line is not None:
            place = f"{place}:{self.line}" if place else f"line {self.line}"
            if self.column is not None:
                place += f":{self.column}"
        details = []
        if self.op is not None:
            details.append(f"op {printable(self.op)}")
        if self.tensor is not None:
            details.append(f'tensor "{printable(self.tensor)}"')
        if self.offset is not None:
            details.append(f"byte {self.offset}")
        return " ".join(filter(None, (place, f"({', '.join(details)})" if details and place else ", ".join(details))))


@dataclass(frozen=True)
class Diagnostic:
    """One problem. Without ``help`` the advice of the code is shown. ``source`` is the text of the line at ``where``; without it the line is
    looked up in the file, when there is one."""

    code: Code
    message: str
    where: Where = field(default_factory=Where)
    help: str = ""
    source: str = ""

    label: ClassVar[str] = "error"

    def __str__(self) -> str:
        lines = [f"{self.label}[{self.code.id}]: {_indented(self.message, '  ')}"]
        place = str(self.where)
        if place:
            lines.append(f"  --> {place}")
        lines += self._quotation()
        lines.append(f"  help: {_indented(self.help or self.code.advice, '        ')}")
        return "\n".join(lines)

    def _quotation(self) -> list[str]:
        """The source line with a caret under the column."""
        line, column = self.where.line, self.where.column
        if line is None:
            return []
        source = self.source
        if not source and self.where.file is not None:
            linecache.checkcache(self.where.file)  # it may have been written anew since it was last quoted
            source = linecache.getline(self.where.file, line)
        source = source.splitlines()[0].replace("\t", " ") if source.strip() else ""
        if not source:
            return []
        if column is None:
            source = source.strip()
            return [f"{line:>5} | {printable(source[:SOURCE_WIDTH])}{'…' if len(source) > SOURCE_WIDTH else ''}"]
        start = 0 if column <= SOURCE_WIDTH * 3 // 4 else column - SOURCE_WIDTH // 2
        shown = printable(source[start : start + SOURCE_WIDTH])
        head = "…" if start else ""
        tail = "…" if start + SOURCE_WIDTH < len(source) else ""
        margin = len(head) + len(printable(source[start : column - 1]))
        return [f"{line:>5} | {head}{shown}{tail}", f"      | {' ' * margin}^"]

    def as_dict(self) -> dict[str, object]:
        """Plain data for ``--json``; absent parts are left out."""
        place = {k: v for k, v in vars(self.where).items() if v is not None}
        row: dict[str, object] = {"code": self.code.id, "title": self.code.title, "message": self.message}
        return row | ({"where": place} if place else {}) | {"help": self.help or self.code.advice}


class DiagnosticError(Exception):
    """Base of the exceptions that carry diagnostics. ``str`` lists all of them."""

    exit_code: ClassVar[int] = 3

    def __init__(self, *diagnostics: Diagnostic) -> None:
        if not diagnostics:
            raise ValueError("an error without a diagnostic")
        super().__init__(*diagnostics)
        self.diagnostics: tuple[Diagnostic, ...] = diagnostics

    @classmethod
    def of(cls, code: Code, message: str, where: Where | None = None, help: str = "", source: str = "") -> Self:
        """The error of a single diagnostic."""
        return cls(Diagnostic(code, message, where or Where(), help, source))

    @property
    def codes(self) -> tuple[Code, ...]:
        return tuple(d.code for d in self.diagnostics)

    def __str__(self) -> str:
        return "\n".join(str(d) for d in self.diagnostics)


class CheckFailed(DiagnosticError):
    """A check that the user asked for did not hold (``tfc`` exits with 1)."""

    exit_code = 1


class CompilerError(DiagnosticError):
    """The input or the request is at fault (``tfc`` exits with 2)."""

    exit_code = 2


class InternalError(DiagnosticError):
    """A bug of this project (``tfc`` exits with 3)."""

    exit_code = 3


class Collector:
    """Gathers problems and raises them at once::

    problems = Collector()
    for name in missing:
        problems.add(Code.WEIGHT_MISSING, f"weight '{name}' is missing", Where(file=path, tensor=name))
    problems.check()

    As a context manager it checks at the end of the block; a :class:`CompilerError` that leaves the block is raised together with what was
    gathered before it.
    """

    def __init__(self) -> None:
        self._diagnostics: list[Diagnostic] = []

    def add(self, code: Code, message: str, where: Where | None = None, help: str = "", source: str = "") -> None:
        self._diagnostics.append(Diagnostic(code, message, where or Where(), help, source))

    def extend(self, diagnostics: Iterable[Diagnostic]) -> None:
        self._diagnostics.extend(diagnostics)

    @property
    def empty(self) -> bool:
        """Whether nothing was gathered."""
        return not self._diagnostics

    def check(self) -> None:
        """Raises when anything was gathered."""
        if self._diagnostics:
            raise CompilerError(*self._diagnostics)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, CompilerError) and self._diagnostics:
            raise CompilerError(*self._diagnostics, *error.diagnostics) from error
        if error is None:
            self.check()

    def __bool__(self) -> bool:
        return bool(self._diagnostics)

    def __len__(self) -> int:
        return len(self._diagnostics)

    def __iter__(self) -> Iterator[Diagnostic]:
        return iter(self._diagnostics)


def printable(text: str) -> str:
    """The text with control characters, line breaks among them, written as escapes: names come from files that nobody has checked."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text)


def _indented(text: str, indent: str) -> str:
    return ("\n" + indent).join(printable(line) for line in text.split("\n"))
