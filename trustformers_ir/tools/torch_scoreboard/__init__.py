"""torch's own samples of its ops through the compiled path: ``python -m trustformers_ir.tools.torch_scoreboard``."""
