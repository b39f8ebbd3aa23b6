"""First checks of the interface."""

import torch
from torch import nn

from Metrics.tangent import tangent_kernel
from Metrics.tangent.reference import dense_kernels


def test_jacobian_route() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    for mode in (True, False):
        model.train(mode)
        exact = dense_kernels(model, x)
        full = tangent_kernel(model, x, form="full", per_layer=True)
        for layer, kernel in exact.items():
            torch.testing.assert_close(full.layers[layer], kernel, rtol=1e-10, atol=1e-12)
        traced = tangent_kernel(model, x).total
        trace = sum(exact.values()).diagonal(dim1=2, dim2=3).mean(-1)
        torch.testing.assert_close(traced, trace, rtol=1e-10, atol=1e-12)
