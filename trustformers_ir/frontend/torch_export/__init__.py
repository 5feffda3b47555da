"""Modules of torch, through ``torch.export``.

    nn.Module --export.py--> ExportedProgram --decompositions.py--> core ATen ops, and those that we have whole
              --importer.py, with a function of aten/ for each op--> our graph

Errors of torch and ours become diagnostics at the user's line (``failures.py``, ``sites.py``); sizes become dims (``sizes.py``), parameters and
buffers weights without a copy (``weights.py``), nests of tuples, dicts and classes a ``Calling`` (``nests.py``). ``docs/torch.md`` lists the ops.
"""
