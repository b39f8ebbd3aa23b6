"""Losses of two parameters that can be solved: three symmetries, and the modified equation.

Everything is float64. A point is an array [2]; functions of points take [..., 2].

**Symmetries.** Each toy's loss is invariant under a one-parameter group, so gradient flow
conserves a charge (Kunin et al., ICLR 2021, section 3): the sum of the logits of a softmax, the
norm of weights that are normalised, the difference of squares of two factors.

**The modified equation.** For θ' = θ − η g(θ), with g = Aθ and t = ηn, insert a smooth θ(t) and
expand: θ̇ + (η/2) θ̈ = −g + O(η²). With θ̈ = A²θ + O(η) this is to first order

    θ̇ = −(A + (η/2) A²) θ,

for a symmetric A the gradient flow of the modified loss L + (η/4)|∇L|². Flow from the same point
is O(η) away from gradient descent at a fixed time; modified flow O(η²).

**With momentum**, v' = βv + g, θ' = θ − ηv', that is
θ(t+η) − θ(t) − β(θ(t) − θ(t−η)) = −ηg, the same expansion gives, with D = η(1+β),

    (D/2) θ̈ + (1−β) θ̇ = −g + O(η²),

to lowest order gradient flow at the rate 1/(1−β), and the modified loss
L/(1−β) + η(1+β)/(4(1−β)³)|∇L|² of the slow motion. The expansion knows nothing of the first
1/(1−β) steps, in which v grows from 0. For a constant g they leave θ behind the slow motion by
ηβg/(1−β)²; so do solutions of the equation that begin with θ̇ = −g/(1+β), which is therefore the
initial velocity here. Then this modified flow, too, is O(η²) away from gradient descent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.special import logsumexp, softmax

Array = NDArray[np.float64]

_TARGET = np.array([0.8, 0.2])
_DIRECTION = np.array([0.8, 0.6])


@dataclass(frozen=True)
class Symmetry:
    """A loss of two parameters with a symmetry.

    Attributes:
        name: of the symmetry.
        loss: [..., 2] -> [...].
        gradient: [..., 2] -> [..., 2], of the loss.
        charge: [..., 2] -> [...], what gradient flow conserves.
        formulas: of the loss and of the charge, as mathtext.
    """

    name: str
    loss: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    charge: Callable[[Array], Array]
    formulas: tuple[str, str]


def _product_loss(w: Array) -> Array:
    loss: Array = (1 - w[..., 0] * w[..., 1]) ** 2 / 2
    return loss


def _product_gradient(w: Array) -> Array:
    error = 1 - w[..., :1] * w[..., 1:]
    gradient: Array = -error * w[..., ::-1]
    return gradient


def _angle_loss(w: Array) -> Array:
    loss: Array = 1 - w @ _DIRECTION / np.linalg.norm(w, axis=-1)
    return loss


def _angle_gradient(w: Array) -> Array:
    norm = np.linalg.norm(w, axis=-1, keepdims=True)
    along = (w @ _DIRECTION)[..., None] * w / norm**2
    gradient: Array = -(_DIRECTION - along) / norm
    return gradient


SYMMETRIES = (
    Symmetry(
        "translation",
        lambda w: np.asarray(logsumexp(w, axis=-1) - w @ _TARGET),
        lambda w: np.asarray(softmax(w, axis=-1) - _TARGET),
        lambda w: np.asarray(w[..., 0] + w[..., 1]),
        (r"$-\sum_i p_i \log\,\mathrm{softmax}_i(w)$", r"$w_1 + w_2$"),
    ),
    Symmetry(
        "scale",
        _angle_loss,
        _angle_gradient,
        lambda w: np.asarray(w[..., 0] ** 2 + w[..., 1] ** 2),
        (r"$1 - \langle u, w \rangle / |w|$", r"$w_1^2 + w_2^2$"),
    ),
    Symmetry(
        "rescale",
        _product_loss,
        _product_gradient,
        lambda w: np.asarray(w[..., 0] ** 2 - w[..., 1] ** 2),
        (r"$(1 - w_1 w_2)^2 / 2$", r"$w_1^2 - w_2^2$"),
    ),
)
"""Two logits and a cross-entropy, a normalised vector, and a product of two factors."""


def flow(gradient: Callable[[Array], Array], start: Array, times: Array) -> Array:
    """Gradient flow θ̇ = −g(θ) from a point [2] at ascending times [T], the first 0: [T, 2]."""
    solution = solve_ivp(
        lambda _, w: -gradient(w),
        (times[0], times[-1]),
        start,
        method="DOP853",
        t_eval=times,
        rtol=1e-11,
        atol=1e-13,
    )
    path: Array = solution.y.T
    return path


def descend(
    gradient: Callable[[Array], Array],
    start: Array,
    rate: float,
    steps: int,
    momentum: float = 0.0,
) -> Array:
    """Gradient descent v' = βv + g, θ' = θ − ηv' from a point [2]: [steps + 1, 2]."""
    path, velocity = [start], np.zeros_like(start)
    for _ in range(steps):
        velocity = momentum * velocity + gradient(path[-1])
        path.append(path[-1] - rate * velocity)
    return np.stack(path)


@dataclass(frozen=True)
class Linear:
    """Motion in a linear field, g = Aθ, by gradient descent and by what approximates it.

    Attributes:
        field: A, [2, 2]; symmetric for the gradient of a loss.
        rate: η.
        momentum: β.
        start: θ at step 0, [2].
    """

    field: Array
    rate: float
    start: Array
    momentum: float = 0.0

    def descent(self, steps: int) -> Array:
        """What is approximated, [steps + 1, 2]."""
        return descend(
            lambda w: np.asarray(self.field @ w), self.start, self.rate, steps, self.momentum
        )

    def flow(self, times: Array) -> Array:
        """Flow θ̇ = −g/(1−β) at times t = ηn, [T] -> [T, 2]."""
        return _linear(-self.field / (1 - self.momentum), self.start, times)

    def modified_flow(self, times: Array) -> Array:
        """The modified equation, of first order in time without momentum, of second with it."""
        if not self.momentum:
            corrected = self.field + self.rate / 2 * self.field @ self.field
            return _linear(-corrected, self.start, times)
        inertia = self.rate * (1 + self.momentum) / 2
        zero, one = np.zeros((2, 2)), np.eye(2)
        friction = (1 - self.momentum) / inertia
        system = np.block([[zero, one], [-self.field / inertia, -friction * one]])
        velocity = -self.field @ self.start / (1 + self.momentum)
        return _linear(system, np.concatenate([self.start, velocity]), times)[:, :2]

    @property
    def modified_loss(self) -> Array:
        """The matrix M of the modified loss ½⟨θ, Mθ⟩ of a symmetric field, [2, 2]."""
        slow = 1 - self.momentum
        second = self.rate * (1 + self.momentum) / (2 * slow**3)
        matrix: Array = self.field / slow + second * self.field @ self.field
        return matrix


def _linear(matrix: Array, start: Array, times: Array) -> Array:
    """The solution of ẋ = Mx at times [T]: [T, n]."""
    return np.stack([expm(matrix * t) @ start for t in times])


ROTATION = Linear(np.array([[0.0, 1.0], [-1.0, 0.0]]), 0.1, np.array([1.0, 0.0]))
"""No loss has this field: flow runs on circles, descent out of them."""

QUADRATIC = Linear(np.diag([4.0, 1.0]), 0.1, np.array([1.0, 1.0]))

HEAVY_BALL = Linear(np.diag([4.0, 1.0]), 0.01, np.array([1.0, 1.0]), momentum=0.9)
