"""What training a linearised network leads to, at any example."""

from dataclasses import dataclass

from torch import Tensor

from Training.function_space.kernels import apply, as_matrix
from Utils.errors import UserError


@dataclass(frozen=True)
class Trajectory:
    """Weights θ_t = ρ_t θ_0 + J(X)ᵀ b_t of a linearised network, without the weights.

    Every step of SGD and every gradient flow stays in this space: gradients are J(X)ᵀ times
    slopes of the loss, and weight decay pulls along θ_t itself.

    Attributes:
        train: f_t(X) [T, N, C].
        dual: b_t [T, N, C].
        kept: ρ_t [T], what weight decay left of the initial weights; 1 without.
    """

    train: Tensor
    dual: Tensor
    kept: Tensor

    def at(self, cross: Tensor, outputs: Tensor, radial: Tensor | None = None) -> Tensor:
        """f_t(x) = f_0(x) + Θ(x, X) b_t + (ρ_t − 1) J(x)θ_0, [T, E, C].

        Args:
            cross: Θ(x, X), [E, N] or [E, N, C, C].
            outputs: f_0(x) [E, C].
            radial: J(x)θ_0 [E, C]; needed where weights decayed.

        Raises:
            UserError: weights decayed and there is no ``radial``.
        """
        moved = outputs.double() + apply(as_matrix(cross), self.dual)
        if radial is None:
            if (self.kept != 1).any():
                raise missing_radial()
            return moved
        return moved + (self.kept - 1)[:, None, None] * radial.double()


def missing_radial() -> UserError:
    """Weight decay was asked for, and what it does to the outputs is not known."""
    return UserError(
        "weight decay of a linearised network needs its radial derivative Jθ_0; "
        "give it, or zeros for a decay towards the initial weights"
    )
