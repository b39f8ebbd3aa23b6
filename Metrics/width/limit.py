"""How far networks at initialisation are from the infinitely wide one, against the width.

Both kernels are those of gradient descent at --lr 1, whatever the run's optimizer is:
Θ = Σ_p s_p J_p J_pᵀ with s_p the factors of the parameters' learning rates. At infinite width it is
exact (:mod:`Models.infinite`). For the covariance of the outputs, the finite network's is that over
the readout's random numbers alone, σ_w² Σ x x' + σ_b² with x what the readout reads: that of
the outputs themselves would have to be estimated from a few of them.
"""

from collections.abc import Mapping
from fractions import Fraction

import torch

from Metrics.kernels.measures import relative_norm
from Metrics.width.infinite import LimitCheckpoint
from Metrics.width.members import Group, Member
from Metrics.width.metric import PerLayer, Quantity, Values
from Metrics.width.network import Checkpoint
from Metrics.width.theory import ChainTheory
from Models.infinite import InfiniteNetwork, infinite_network
from Models.parametrization.network import Parametrized
from Training.config import TrainConfig
from Training.rebuild import rebuild_config
from Utils.errors import UserError

TANGENT, COVARIANCE = Quantity("kernel deviation"), Quantity("covariance deviation")


class KernelConvergence(PerLayer):
    """At step 0, |Θ_0 − Θ_∞| / |Θ_∞| and the same of the covariance K, Frobenius.

    Sums over n neurons fluctuate by n^(−½) (Jacot et al. 2018, arXiv 1806.07572, theorem 1, is
    the limit; Hanin and Nica 2020, arXiv 1909.05989, the size of the fluctuations of Θ_0).
    """

    def measure(self, checkpoint: Checkpoint) -> Values:
        if checkpoint.step:
            return {}
        try:
            limit = limit_of(checkpoint.member)
        except UserError:  # for which :meth:`silence` gives the reason
            return {}
        exact = limit.kernels(checkpoint.examples.double())
        assert exact.ntk is not None
        assert exact.nngp is not None
        rates, variances = _factors(checkpoint)
        found = {TANGENT: (checkpoint.weighted_kernel(rates), exact.ntk)}
        if torch.equal(checkpoint.now.outputs[checkpoint.last], checkpoint.now.logits):
            found[COVARIANCE] = checkpoint.weighted_kernel(variances), exact.nngp
        values = {}
        for quantity, (kernel, at_infinity) in found.items():
            theory = at_infinity.cpu().numpy()
            values[quantity] = relative_norm(kernel - theory, theory)
        return values

    def why_no_limit(self, member: Member) -> str:
        return ""

    def measure_limit(self, limit: LimitCheckpoint) -> Values:
        return {} if limit.step else {TANGENT: 0.0, COVARIANCE: 0.0}

    def predicted(self, quantity: Quantity, step: int, theory: ChainTheory) -> Fraction | None:
        return Fraction(-1, 2)

    def silence(self, group: Group, theory: ChainTheory) -> str:
        """Training, which is all that the theory of exponents is about, has not begun."""
        try:
            limit_of(group.members[0])
        except UserError as error:
            return str(error)
        return ""


def limit_of(member: Member) -> InfiniteNetwork:
    """The infinitely wide network of a run.

    Raises:
        UserError: it is not known, or the weights were not drawn.
    """
    config, shape, classes = _described(member)
    if config.restore_path:
        raise UserError(
            "infinite width: the weights are those of --restore-path, not random ones; leave it out"
        )
    return infinite_network(config, shape, classes)


def _described(member: Member) -> tuple[TrainConfig, tuple[int, ...], int]:
    """The configuration of a run, the shape of its examples and the number of outputs."""
    task = member.hyperparameters["task"]
    config = rebuild_config(member.run, dict(member.hyperparameters))
    return config, tuple(task["input_shape"]), task["num_classes"]


def _factors(checkpoint: Checkpoint) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Of all parameters those of learning rates, and of the readout's the initial variances."""
    network = Parametrized(*_described(checkpoint.member))
    rates = {p.name: p.lr for p in network.scales("sgd", "gradient").parameters}
    readout = [name for name in rates if name.rpartition(".")[0] == checkpoint.last]
    return rates, {name: network.initial_std(name) ** 2 for name in readout}
