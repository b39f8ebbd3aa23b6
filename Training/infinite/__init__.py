"""Training networks of infinite width: stages 1 and 2 with kernels in place of weights.

θ_t − θ_0 = J(X)ᵀ b_t, so that the dual variables b [N, C] are the run's weights, and its own
optimizers, schedules and mini-batches move them (docs/infinite_training.md).
"""
