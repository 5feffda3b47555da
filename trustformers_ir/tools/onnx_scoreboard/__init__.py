"""ONNX's own conformance cases through the compiled path: ``python -m trustformers_ir.tools.onnx_scoreboard``."""
