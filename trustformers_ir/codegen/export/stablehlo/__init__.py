"""StableHLO text (openxla.org/stablehlo): the function ``main`` of a module, for XLA, IREE and whatever else reads the dialect."""
