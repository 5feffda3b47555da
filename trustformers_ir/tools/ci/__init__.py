"""``tfc ci``: models to files, each checked, measured and held to gates: what a release pipeline believes."""
