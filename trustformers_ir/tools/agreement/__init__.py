"""Do files compute what their source computes? What ``tfc verify`` is made of (docs/verify.md)."""
