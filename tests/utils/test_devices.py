"""Ways to and from a device; what concerns GPUs only is in tests/training/test_cuda.py."""

import torch

from Utils.devices import allow_tf32, full_products, to_device, to_host


def test_full_products_hold_while_tensorfloat32_is_allowed() -> None:
    matmul = torch.backends.cuda.matmul
    allow_tf32(True)
    try:
        with full_products():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    finally:
        allow_tf32(False)
    assert matmul.fp32_precision == "ieee"
    with full_products():
        assert matmul.fp32_precision == "ieee"
    assert matmul.fp32_precision == "ieee"


def test_both_of_torchs_interfaces_agree_on_tensorfloat32() -> None:
    """torch.compile asks the older one, and fails where the newer says something else."""
    for allowed in (True, False):
        allow_tf32(allowed)
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")


def test_tensors_go_and_come_back() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [torch.arange(3.0), torch.ones(3)]
    moved = [to_device(row, device) for row in rows]
    assert {row.device.type for row in moved} == {device.type}
    assert torch.equal(to_host(moved), torch.stack(rows))
