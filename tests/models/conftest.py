"""What the tests of models share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _the_same_numbers_every_time() -> None:
    """Random inputs and weights are drawn anew in each test, but not differently in each run."""
    torch.manual_seed(0)
