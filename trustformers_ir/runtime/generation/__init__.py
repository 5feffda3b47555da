"""Writing text with a compiled language model: caches and calls (``session.py``), the choice of a token (``sampling.py``), beams (``beams.py``), and
the loop over them (``loop.py``)."""
