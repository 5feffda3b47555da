"""OpenVINO: read from torch with static shapes; latency and throughput hints; quantized by NNCF."""

from __future__ import annotations

from typing import Any

import numpy as np

from trustformers_ir.tools.bench.rivals.job import Call, Inputs, Job
from trustformers_ir.tools.bench.rivals.pytorch import checkpoint, tensors


def make(setting: str, job: Job) -> Call:
    import openvino

    model, names = checkpoint(job)
    example = tensors(job.example, names)
    converted = openvino.convert_model(model, example_input=example, input=[tuple(t.shape) for t in example])
    del model
    if setting == "int8":
        import nncf

        data = nncf.Dataset([tuple(inputs[name] for name in names) for inputs in job.calibration])
        converted = nncf.quantize(converted, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(job.calibration))
    # f32 is stated: on CPUs with bf16 instructions the plugin may choose those by itself.
    options = {"INFERENCE_NUM_THREADS": job.threads, "INFERENCE_PRECISION_HINT": "f32"}
    if setting == "throughput":
        return _throughput(converted, names, job, options)
    compiled = openvino.Core().compile_model(converted, "CPU", options | {"PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()

    def call(inputs: Inputs) -> np.ndarray:
        return np.asarray(request.infer([inputs[name] for name in names], share_inputs=True)[0])

    return call


def _throughput(model: Any, names: tuple[str, ...], job: Job, options: dict[str, Any]) -> Call:
    """As many requests at once as the plugin finds best, each with its part of the batch. A batch that does not divide is one request."""
    import openvino

    options = options | {"PERFORMANCE_HINT": "THROUGHPUT"}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    streams = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    batch = job.example[names[0]].shape[0]
    if batch % streams:
        streams = 1
    if streams > 1:
        model.reshape({i: [batch // streams, *job.example[name].shape[1:]] for i, name in enumerate(names)})
        compiled = openvino.Core().compile_model(model, "CPU", options)
    requests = [compiled.create_infer_request() for _ in range(streams)]

    def call(inputs: Inputs) -> np.ndarray:
        cut = {name: np.split(inputs[name], streams) for name in names}
        for i, request in enumerate(requests):
            request.start_async([cut[name][i] for name in names], share_inputs=True)
        for request in requests:
            request.wait()
        return np.concatenate([request.get_output_tensor(0).data for request in requests])

    return call
