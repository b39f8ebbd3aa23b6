"""Metrics on checkpoints over the empirical tangent kernel, and what a linear model predicts.

:mod:`Metrics.kernels.at` gives the network and its kernel at a checkpoint, once for all metrics
of a pass; :mod:`Metrics.kernels.measures` has the formulas, of plain arrays.
"""
