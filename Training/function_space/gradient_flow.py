"""Gradient flow of a linearised network under any loss, by a stiff solver."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from Training.discrete_laws import Floats
from Training.function_space.losses import Loss, loss_hessian, loss_slope
from Training.function_space.modes import Modes
from Training.function_space.trajectory import Trajectory, missing_radial


def gradient_flow(
    kernel: Tensor | Modes,
    outputs: Tensor,
    targets: Tensor,
    loss: Loss,
    times: Sequence[float],
    decay: float = 0.0,
    radial: Tensor | None = None,
    precision: float = 1e-9,
) -> Trajectory:
    """θ̇ = −∇L − μθ for any loss of the outputs, at the given times.

    Solved for q = Λ^{-1/2} Uᵀ(f − f_0), the weights' displacement in an orthonormal basis: an
    error δq moves no output, of training examples or others, by more than its kernel's root
    times |δq|. Weight decay's part (ρ − 1)z is known, ρ = e^{−μt}.

    Args:
        kernel: Θ of the training examples, [N, N] or [N, N, C, C], or its modes.
        outputs: f_0(X) [N, C].
        targets: of the loss, [N, ...].
        loss: a mean over the examples, twice differentiable.
        times: ascending, finite, in units of learning rate times steps.
        decay: μ.
        radial: J(X)θ_0 [N, C], needed for weight decay.
        precision: of the solver: relative, and absolute in units of the outputs.

    Raises:
        UserError: the kernel is no kernel; weights decay, and there is no ``radial``.
        RuntimeError: the solver gave up.
    """
    if decay and radial is None:
        raise missing_radial()
    flow = _Flow(kernel, outputs, targets, loss, decay, radial)
    path = flow.solve(times, precision)  # [T, n, k]
    kept = torch.exp(-decay * torch.tensor(times, dtype=path.dtype, device=path.device))
    moved = [flow.outputs(float(left), q) for left, q in zip(kept, path, strict=True)]
    return Trajectory(torch.stack(moved), flow.dual(path), kept)


class _Flow:
    """The equation of q [n, k]; arguments as of :func:`gradient_flow`."""

    def __init__(
        self,
        kernel: Tensor | Modes,
        outputs: Tensor,
        targets: Tensor,
        loss: Loss,
        decay: float,
        radial: Tensor | None,
    ):
        self._modes = kernel if isinstance(kernel, Modes) else Modes.of(kernel)
        self._roots = self._modes.values.sqrt()[:, None]
        self._start, self._targets = outputs.double(), targets
        self._radial = torch.zeros_like(self._start) if radial is None else radial.double()
        self._loss, self._decay = loss, decay
        self._shape = self._modes.amplitudes(outputs).shape

    def solve(self, times: Sequence[float], precision: float) -> Tensor:
        """q [T, n, k]."""
        size, unit = self._shape.numel(), float(self._roots[-1])
        solution = solve_ivp(
            lambda t, q: self._rate(t, self._tensor(q)),
            (0.0, times[-1] or 1.0),  # it refuses an empty interval
            [0.0] * size,
            method="LSODA",  # of scipy's stiff solvers ten times as fast as BDF, and Radau
            t_eval=times,
            jac=lambda t, q: self._jacobian(t, self._tensor(q)),
            rtol=precision,
            atol=precision / unit if unit else precision,
        )
        if not solution.success:
            raise RuntimeError(f"gradient flow to time {times[-1]:g}: {solution.message}")
        return self._tensor(solution.y.T, len(times))

    def outputs(self, kept: float, q: Tensor) -> Tensor:
        """f = f_0 + U Λ^{1/2} q + (ρ − 1) z, [N, C]."""
        moved = self._modes.outputs(self._roots * q, self._start.shape[1])
        return self._start + moved + (kept - 1) * self._radial

    def dual(self, q: Tensor) -> Tensor:
        """b = U Λ^{-1/2} q, [T, N, C]."""
        amplitudes = torch.where(self._roots > 0, q / self._roots, 0.0)
        return self._modes.outputs(amplitudes, self._start.shape[1])

    def _rate(self, t: float, q: Tensor) -> Floats:
        f = self.outputs(math.exp(-self._decay * t), q)
        pull = self._roots * self._modes.amplitudes(loss_slope(self._loss, f, self._targets))
        rate: Floats = (-pull - self._decay * q).reshape(-1).cpu().numpy()
        return rate

    def _jacobian(self, t: float, q: Tensor) -> Floats:
        """−Λ^{1/2} Uᵀ H U Λ^{1/2} − μ, [nk, nk]."""
        f = self.outputs(math.exp(-self._decay * t), q)
        blocks = loss_hessian(self._loss, f, self._targets)  # [N, C, C]
        examples, classes = f.shape
        root = self._modes.vectors * self._roots.T  # U Λ^{1/2}, [n, n]
        if self._shape[1] == classes:  # every output moves alone
            half = torch.einsum("ni,ncd->icnd", root, blocks)
            bent = torch.einsum("icnd,nj->icjd", half, root)
        else:
            half = blocks @ root.view(examples, classes, -1)
            bent = root.T @ half.view(len(root), -1)
        rate: Floats = -bent.reshape(self._shape.numel(), -1).cpu().numpy()
        rate[np.diag_indices_from(rate)] -= self._decay
        return rate

    def _tensor(self, values: Floats, *leading: int) -> Tensor:
        flat = torch.from_numpy(np.ascontiguousarray(values)).to(self._start)
        return flat.reshape(*leading, *self._shape)
