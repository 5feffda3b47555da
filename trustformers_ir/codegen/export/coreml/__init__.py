"""Core ML packages: a function of the graph IR as an ML program (https://apple.github.io/coremltools), and an evaluator of such packages."""
