"""OpenVINO: read from torch with static shapes; latency and throughput hints; quantized by NNCF."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trustformers_ir.tools.bench.rivals.job import Call, Inputs, Job
from trustformers_ir.tools.bench.rivals.pytorch import checkpoint, tensors


def make(setting: str, job: Job) -> Call:
    import openvino

    model, names = checkpoint(job)

    def converted(batch: int) -> Any:
        """The model for so many rows. (A model that is converted has its shapes all over; reshaping it later fails.)"""
        example = tuple(t[:batch] for t in tensors(job.example, names))
        return openvino.convert_model(model, example_input=example, input=[tuple(t.shape) for t in example])

    batch = len(job.example[names[0]])
    # f32 is stated: on CPUs with bf16 instructions the plugin may choose those by itself.
    options = {"INFERENCE_NUM_THREADS": job.threads, "INFERENCE_PRECISION_HINT": "f32"}
    if setting == "throughput":
        return _throughput(converted, batch, names, options | {"PERFORMANCE_HINT": "THROUGHPUT"})
    whole = converted(batch)
    if setting == "int8":
        import nncf

        data = nncf.Dataset([tuple(inputs[name] for name in names) for inputs in job.calibration])
        whole = nncf.quantize(whole, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(job.calibration))
    request = openvino.Core().compile_model(whole, "CPU", options | {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()

    # The result is the request's own memory, which the next call overwrites: nothing is copied, neither in nor out.
    def call(inputs: Inputs) -> np.ndarray:
        return np.asarray(request.infer([inputs[name] for name in names], share_inputs=True, share_outputs=True)[0])

    return call


def _throughput(converted: Callable[[int], Any], batch: int, names: tuple[str, ...], options: dict[str, Any]) -> Call:
    """As many requests at once as the plugin finds best, each with its part of the batch. A batch that does not divide is one request."""
    import openvino

    compiled = openvino.Core().compile_model(converted(batch), "CPU", options)
    streams = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    if batch % streams:
        streams = 1
    if streams > 1:
        compiled = openvino.Core().compile_model(converted(batch // streams), "CPU", options)
    requests = [compiled.create_infer_request() for _ in range(streams)]

    def call(inputs: Inputs) -> np.ndarray:
        cut = {name: np.split(inputs[name], streams) for name in names}
        for i, request in enumerate(requests):
            request.start_async([cut[name][i] for name in names], share_inputs=True)
        for request in requests:
            request.wait()
        parts = [request.get_output_tensor(0).data for request in requests]
        return np.concatenate(parts) if streams > 1 else np.asarray(parts[0])

    return call
