"""One matrix product on every device and in every dtype, against float64 on the CPU.

XLA runs in a process of its own, ``python -m scripts.health.devices``: it may abort, or wait
for ever for a TPU that another process holds.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.health import INSTALL, Finding, Level, one_line

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]

TOLERANCES: Mapping[str, tuple[float, float]] = {
    "float64": (1e-14, 1e-6),
    "float32": (1e-6, 1e-2),
    "bfloat16": (1e-2, 1e-2),
}
"""Largest ‖AB − reference‖ / ‖reference‖ (Frobenius, A and B 64 × 64): as exact as the dtype
can be, about ten times its rounding error; and the most that passes with a warning, which is
what devices reach that compute in the next narrower format, as TPUs do by default."""


def product_errors(device: "torch.device") -> dict[str, float]:
    """The relative error of a matrix product, by dtype.

    The factors are rounded to the dtype first; the reference is NumPy's product of these, in
    float64, so that only the device's own arithmetic and the rounding of its result count.
    """
    import numpy as np
    import torch

    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(2, 64, 64, dtype=torch.float64, generator=generator)
    errors = {}
    for name in TOLERANCES:
        a, b = exact.to(getattr(torch, name))
        reference = a.double().numpy() @ b.double().numpy()
        result = (a.to(device) @ b.to(device)).cpu().double().numpy()
        errors[name] = float(np.linalg.norm(result - reference) / np.linalg.norm(reference))
    return errors


def judge(what: str, name: str, errors: Mapping[str, float]) -> Finding:
    """What the errors of :func:`product_errors` say of a device.

    Args:
        what: the check's name.
        name: the device's.
        errors: by dtype; an error that is not a number is a failure.
    """
    level: Level = "ok"
    parts, inexact = [], []
    for dtype, error in errors.items():
        exact, usable = TOLERANCES[dtype]
        parts.append(f"{dtype} {error:.0e}")
        if not error <= exact:
            parts[-1] += f" (at most {exact:.0e})"
            inexact.append(dtype)
            level = "warn" if error <= usable and level != "FAIL" else "FAIL"
    found = f"{name}; relative errors of a product: {', '.join(parts)}"
    fix = ""
    if level == "FAIL":
        fix = "this device computes wrongly: update its driver, or use another (--device cpu)"
    elif level == "warn":
        fix = (
            f"{', '.join(inexact)} is computed in a narrower format. On TPUs: "
            'torch_xla.backends.set_mat_mul_precision("highest"); on GPUs: TF32 off'
        )
    return Finding(level, what, found, fix)


def check_cpu() -> Iterator[Finding]:
    """The CPU."""
    import torch

    name = f"{torch.get_num_threads()} threads"
    yield judge("cpu", name, product_errors(torch.device("cpu")))


def check_cuda() -> Iterator[Finding]:
    """Every GPU that torch sees, or why it sees none of those that are there."""
    import torch

    if not torch.cuda.is_available():
        if Path("/dev/nvidia0").exists():
            fix = "see whether nvidia-smi works and torch's CUDA fits the driver it shows"
            yield Finding("FAIL", "cuda", "there is a GPU, but torch cannot use it", fix)
        else:
            yield Finding("ok", "cuda", "no GPU")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", index)
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
        yield judge(f"cuda:{index}", name, product_errors(device))


def check_xla(seconds: float = 90) -> Iterator[Finding]:
    """XLA's device, which ``PJRT_DEVICE`` chooses.

    Args:
        seconds: to wait for it, compilation included.
    """
    if find_spec("torch_xla") is None:
        yield Finding("ok", "xla", "torch-xla is not installed; only TPUs need it")
        return
    command = [sys.executable, "-m", "scripts.health.devices"]
    pjrt = f"PJRT_DEVICE={os.environ.get('PJRT_DEVICE', '')}"
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        fix = (
            "end the process that holds the TPU; on a slice, run this on all hosts at once, with "
            "scripts/run_on_tpu.sh"
        )
        yield Finding("FAIL", "xla", f"{pjrt}: no answer within {seconds:.0f} s", fix)
        return
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        message = next(reversed(done.stderr.strip().splitlines()), f"exit {done.returncode}")
        fix = f"{INSTALL}; without a TPU, PJRT_DEVICE=CPU or unset"
        yield Finding("FAIL", "xla", f"{pjrt}: {message[:200]}", fix)
        return
    answer = json.loads(lines[-1])
    if answer["chips"] and answer["type"] != "TPU":
        text = f"there are {answer['chips']} TPU chips, but XLA uses the {answer['type']}"
        fix = "bash scripts/setup_tpu_host.sh; export PJRT_DEVICE=TPU"
        yield Finding("FAIL", "xla", text, fix)
    name = f"{answer['count']} × {answer['type']}"
    yield judge("xla", name, answer["errors"])


def check_torchvision() -> Iterator[Finding]:
    """torchvision imports, with its compiled operations, and transforms an image."""
    import torch

    fix = INSTALL
    try:
        from torchvision import ops
        from torchvision.transforms import v2

        image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4)
        flipped = v2.Compose([v2.RandomHorizontalFlip(p=1), v2.ToDtype(torch.float32, scale=True)])
        right = torch.allclose(flipped(image) * 255, image.flip(-1).float())
        boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2.1]])
        right &= ops.nms(boxes, torch.tensor([1.0, 0.5]), 0.5).tolist() == [0]
    except Exception as error:
        yield Finding("FAIL", "torchvision", one_line(error), fix)
        return
    if right:
        yield Finding("ok", "torchvision", "a transform and a compiled operation are right")
    else:
        yield Finding("FAIL", "torchvision", "a transform or operation gives wrong values", fix)


def _answer_for_xla() -> None:
    import torch_xla
    import torch_xla.runtime as xr
    from torch_xla._internal import tpu

    answer = {
        "errors": product_errors(torch_xla.device()),
        "type": xr.device_type(),
        "count": xr.global_runtime_device_count(),
        "chips": tpu.num_available_chips(),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    _answer_for_xla()
