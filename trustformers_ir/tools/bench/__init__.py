"""Benchmarks: one module per question, each with a table that says what it measured and against what."""
