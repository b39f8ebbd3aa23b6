"""Reductions of large weights: what is put together from blocks is what the whole gives."""

import pytest
import torch

from Models.symmetry import Reduction, reductions
from Models.symmetry.reductions import in_blocks, squared

TWO = ((0.5, -1.0, 0.0, 2.0, 0.0, 1.0), (1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
PLACES = (((0, 2), (1, 4)), ((3, 5), (5, 3)))

CASES = [
    (Reduction("x", "row"), (6, 4, 3)),
    (Reduction("x", "element"), (6, 4)),
    (Reduction("x", "column"), (6, 4, 3)),
    (Reduction("x", "column", groups=3), (6, 4, 2)),
    (Reduction("x", "column", groups=6), (6, 1, 2)),
    (Reduction("x", "projection", basis=TWO), (6, 5, 2)),
    (Reduction("x", "projection", axis=1, basis=TWO), (5, 6, 2)),
]
GRAMS = [
    (Reduction("x", "gram", places=PLACES), (6, 7)),
    (Reduction("x", "gram", axis=1, places=PLACES), (7, 6)),
    (Reduction("x", "gram", axis=-1, places=PLACES), (6,)),
]


@pytest.fixture(params=[1, 5, 12])
def _small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reductions, "_BLOCK", request.param)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize(("reduction", "shape"), [*CASES, *GRAMS])
def test_blocks_add_up(reduction: Reduction, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sizes: list[int] = []

    def reduce(part: torch.Tensor) -> torch.Tensor:
        sizes.append(part.numel())
        return reduction.form(part, part) if reduction.is_gram else reduction(part)

    whole = reduce(x)
    sizes.clear()
    torch.testing.assert_close(in_blocks(reduction, x, reduce), whole, rtol=1e-13, atol=1e-13)
    assert sum(sizes) == x.numel()
    assert len(sizes) > 1 or x.dim() == 1 or x.shape[1] == 1 or x.numel() <= reductions._BLOCK


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize(("reduction", "shape"), CASES)
def test_squares_in_blocks(
    reduction: Reduction, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    whole = reduction(x.double().square())
    monkeypatch.setattr(reductions, "_CACHED", 5)
    torch.testing.assert_close(squared(x, [reduction]), [whole], rtol=1e-13, atol=1e-13)
