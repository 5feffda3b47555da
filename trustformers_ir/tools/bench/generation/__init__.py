"""Reading prompts and writing text, next to llama.cpp: ``python -m trustformers_ir.tools.bench.generation LIBRARIES MODEL.gguf…``."""
