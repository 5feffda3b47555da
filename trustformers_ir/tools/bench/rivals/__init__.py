"""Peers that run the same checkpoint, for ``tfc bench --against``: one file per family, each rival in the setting in which it is fastest."""
