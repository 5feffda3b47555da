"""ONNX files: a function of the graph IR as nodes of standard ops (https://onnx.ai/onnx/operators)."""
