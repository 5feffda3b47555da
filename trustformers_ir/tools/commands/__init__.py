"""The commands of ``tfc``, one module each."""
