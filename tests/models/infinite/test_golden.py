"""Kernels of neural-tangents, of the same networks written in torch."""

from typing import Any

import pytest
import torch

from Models.infinite import Parametrization, infinite_network
from tests.models.infinite.golden_networks import Net, parametrizations
from tests.neural_tangents import KernelCase, kernel_cases

CASES = kernel_cases()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_those_of_neural_tangents(case: KernelCase) -> None:
    x = torch.from_numpy(case.inputs).movedim(-1, 1)
    if case.name.startswith("activation: Sign; 2"):
        pytest.skip("arcsin of arcsin at 1 leaves a quarter of the digits to both")
    network = Net(case.layers, x.shape[1], x.dim() - 2).double()
    network(x)
    kind: Any = parametrizations(case.layers).pop()
    stds = {name: m.std for name, m in network.named_modules() if hasattr(m, "std")}
    scaling = Parametrization(
        kind,
        {name: float(std[0]) ** 2 for name, std in stds.items()},
        {name: float(std[1]) ** 2 for name, std in stds.items()},
    )
    training = any(layer.get("mode") == "train" for layer in case.layers)
    infinite = infinite_network(network, tuple(x.shape[1:]), scaling=scaling, training=training)
    found = infinite.kernels(x)
    for kernel, expected in ((found.nngp, case.nngp), (found.ntk, case.ntk)):
        assert kernel is not None
        reference = torch.from_numpy(expected)
        known = reference.isfinite()  # neural-tangents' rectified monomials are NaN at |cos| = 1
        assert int(known.sum()) >= known.numel() // 2
        size = float(reference[known].abs().max())
        assert float((kernel - reference)[known].abs().max()) < 1e-6 * size
