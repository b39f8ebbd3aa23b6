"""The outputs of random networks against the Gaussian that they are at infinite width."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch

from Metrics.width.infinite import LimitCheckpoint, no_ensemble
from Metrics.width.members import Member
from Metrics.width.metric import Array, Cells, Observation, PerLayer, Quantity, Values
from Metrics.width.network import Checkpoint
from Metrics.width.theory import ChainTheory

SECOND, FOURTH = "second moment", "fourth moment"
SIZE, KURTOSIS = "output size", "excess kurtosis"
OUTPUTS = Quantity("outputs")
_EXAMPLES = 64


class InitialDistribution(PerLayer):
    """The outputs and their moments over outputs, by example of the probe batch, at step 0.

    At infinite width the outputs for one input are independent Gaussians with the same
    variance (Neal 1996; Lee et al. 2018, arXiv 1711.00165), so that over outputs and seeds
    E f⁴ / (E f²)² = 3. At width n the last layer's sum of squares still fluctuates, and the
    excess over 3 is Θ(1/n) (Yaida 2020, arXiv 1910.00019).
    """

    def measure(self, checkpoint: Checkpoint) -> Values:
        if checkpoint.step:
            return {}
        f = checkpoint.start.logits.to(torch.float64)[:_EXAMPLES]
        values: dict[Quantity, float | Array] = {OUTPUTS: f.cpu().numpy()}
        for i, example in enumerate(f):
            values[Quantity(SECOND, f"example {i}")] = float(example.square().mean())
            values[Quantity(FOURTH, f"example {i}")] = float(example.pow(4).mean())
        return values

    def why_no_limit(self, member: Member) -> str:
        return no_ensemble(member)

    def measure_limit(self, limit: LimitCheckpoint) -> Values | None:
        """The Gaussian's moments K(x, x) and 3 K(x, x)² of each example."""
        if limit.step:
            return {}
        if limit.ensemble is None:
            return None
        _, variance = limit.ensemble
        values: dict[Quantity, float | Array] = {}
        for i, k in enumerate(variance[:_EXAMPLES, 0].tolist()):
            values[Quantity(SECOND, f"example {i}")] = k
            values[Quantity(FOURTH, f"example {i}")] = 3 * k * k
        return values

    def observations(self, members: Sequence[Member], cells: Cells) -> list[Observation]:
        """The size of every run's outputs, and a kurtosis of each width, over all its seeds."""
        width = {member.name: member.width for member in members}
        seed = {member.name: member.seed for member in members}
        second: dict[str, list[float]] = {name: [] for name in width}
        moments: dict[int, dict[str, dict[str, list[float]]]] = {}
        for cell, value in cells.items():
            name, example = cell.quantity
            if cell.run in width and name in {SECOND, FOURTH}:
                at = moments.setdefault(width[cell.run], {}).setdefault(example, {})
                at.setdefault(name, []).append(value)
                if name == SECOND:
                    second[cell.run].append(value)
        seen = [
            Observation(width[run], seed[run], 0, Quantity(SIZE), float(np.sqrt(np.mean(values))))
            for run, values in second.items()
            if values
        ]
        for n, examples in moments.items():
            means = [(np.mean(m[FOURTH]), np.mean(m[SECOND])) for m in examples.values()]
            ratios = [fourth / second**2 for fourth, second in means if second > 0]
            if ratios:  # not all of its neurons are dead
                seen.append(Observation(n, 0, 0, Quantity(KURTOSIS), float(np.mean(ratios)) - 3))
        return seen

    def predicted(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        if quantity.name == SIZE and theory.places:
            return theory.initial("preactivation", list(theory.places)[-1])
        return None

    def least(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        if quantity.name == SIZE and theory.places:
            return theory.least_initial(list(theory.places)[-1])
        return None
