"""The paper's curves out of the integrals that neural-mechanics' ``custom_sgd`` kept.

With d_k the step of update k (d = g + λθ without momentum, the velocity v with it) and h =
η(1−α) the time it covers, ``--save-buffers sgd`` and ``mom`` keep, element by element,

    integral_buffer   Σ_k e^{2λhk} d_k²
    integral_buffer_1 Σ_k e^{γhk} cos(δhk) d_k²,   Σ_k e^{γhk} d_k²,      Σ_k e^{−α₊hk} d_k²
    integral_buffer_2 Σ_k e^{γhk} sin(δhk) d_k²,   Σ_k e^{γhk} hk d_k²,   Σ_k e^{−α₋hk} d_k²

for an underdamped, critically damped and overdamped oscillator ``q̈ + 2γq̇ + ω²q = 2|θ̇|²`` with
γ = (1−β)/D, ω² = 4λ/D, D = h(1+β), δ² = |γ² − ω²| and α± = −γ ± δ. The curves are those of
:func:`Training.discrete_laws.paper_quadratic_step` (Kunin et al. 2021, section 6 and appendix),
that is with the factor 1/(1−α)² of the velocity's square that neural-mechanics leaves out.

All functions are element-wise over laws [K] in float64.
"""

import math

from Training.discrete_laws import Coefficients, Floats


def paper_from_integral(
    start: Floats, added: Floats, c: Coefficients, first: int, steps: int
) -> Floats:
    """The paper's prediction without momentum, ``steps`` updates after update ``first``.

    Args:
        start: the prediction at update ``first``, [K].
        added: what ``integral_buffer`` has grown by since, as charges, [K].
        c: the coefficients of these steps.
        first: updates before them; the buffer's clock is η times the number of all updates.
        steps: how many they are.
    """
    rate = 2 * c.wd * c.lr
    moved: Floats = math.exp(-rate * steps) * (start + c.lr**2 * math.exp(-rate * first) * added)
    return moved


def paper_from_two_integrals(
    start: Floats, one: Floats, two: Floats, c: Coefficients, steps: int
) -> Floats:
    """The paper's prediction with momentum after ``steps`` updates.

    Args:
        start: the charges at update 0, [K].
        one, two: ``integral_buffer_1`` and ``integral_buffer_2`` as charges, [K].
        c: the coefficients of all steps.
        steps: how many they are.
    """
    h = c.lr * (1 - c.dampening)
    t, d = h * steps, h * (1 + c.momentum)
    # as custom_sgd computes them, so that both take the same of the three branches
    gamma, omega = (1 - c.momentum) / d, math.sqrt(4 * c.wd / d)
    kick = 2 * c.lr / (1 - c.dampening)
    if gamma < omega:
        delta = math.sqrt(omega**2 - gamma**2)
        cosine, sine = math.cos(delta * t), math.sin(delta * t)
        free = cosine + gamma / delta * sine
        forced = (sine * one - cosine * two) / delta
        return math.exp(-gamma * t) * (free * start + kick * forced)
    if gamma == omega:
        return math.exp(-gamma * t) * ((1 + gamma * t) * start + kick * (t * one - two))
    delta = math.sqrt(gamma**2 - omega**2)
    slow, fast = -gamma + delta, -gamma - delta
    grown, fallen = math.exp(slow * t), math.exp(fast * t)
    free = slow * fallen - fast * grown
    return (free * start + kick * (grown * one - fallen * two)) / (2 * delta)
