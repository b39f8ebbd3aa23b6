"""What the caches of width metrics call their datasets, for who writes and who draws them."""

OF_RUNS = ("widths", "seeds", "data_seeds", "groups", "rates", "diverged", "exponents")
"""One number or text of each run."""

AXES = ("examples", "outputs of it")
"""Of arrays that are kept for figures, behind runs and steps."""

HEAD = {"runs", *OF_RUNS, "steps", "sources", *AXES, "outputs shown"}
"""What tells of runs and steps, and is no quantity."""

AT = "loss at lr "
"""Before a learning rate: the last loss there, whose exponent is 0 where curves collapse."""

WHOLE = "network"
"""What stands for the layer where a quantity is the whole network's."""

FAN_IN, FAN_OUT = "fan in", "fan out"
"""Quantities of layers that tell their roles; no exponents are fitted to them."""
