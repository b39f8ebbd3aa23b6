"""A checkpoint larger than the memory that a stage may have."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from benchmarks.stages import make_run
from tests.runs import ROOT, flags_of
from Utils.rundir import RunFolder

HEADROOM = 48 << 20
"""Bytes that a stage may take beyond its imports: less than one of the large weights."""

LIMITED = """
import resource, sys
sys.argv = [{stage!r}, *{flags!r}]
import {stage}, {module}
data = next(int(line.split()[1]) for line in open("/proc/self/status") if line[:6] == "VmData")
limit = data * 1024 + {headroom}
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # private and writable memory
{before}
{stage}.main()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with two weights of 64 MB, and their momentum: 256 MB in the checkpoint."""
    run = RunFolder(tmp_path_factory.mktemp("large") / "e" / "x")
    flags = {"model": "fc", "width": "4096", "depth": "4", "dataset": "digits"}
    make_run(run, flags, checkpoints=1)
    assert run.checkpoint(1).stat().st_size > 5 * HEADROOM
    return run


def limited(stage: str, module: str, flags: str, run: RunFolder, before: str = "") -> str:
    """Run a stage with little more memory than its imports take; returns what it complains of."""
    code = LIMITED.format(
        stage=stage,
        module=module,
        flags=[*flags.split(), *flags_of(run)],
        headroom=HEADROOM,
        before=before,
    )
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return process.stderr if process.returncode else ""


def test_extraction_and_caching_take_less_memory_than_one_weight(large: RunFolder) -> None:
    assert limited("extract", "Training.extraction", "--probe none", large) == ""
    content = torch.load(large.checkpoint(1), weights_only=True, mmap=True)
    with h5py.File(large.features(1)) as file:
        for name, tensor in content["model_state_dict"].items():
            assert np.array_equal(file[f"params/{name}"][()], tensor.numpy())
    laws = "scale,rescale,translation,balance,budget,rotation,network"
    assert limited("cache", "Metrics.caching", f"--metrics {laws}", large) == ""
    weights = list(content["model_state_dict"].items())
    with h5py.File(large.cache("rescale")) as file:
        layer = next(iter(file["empirical"]))
        charges = file["empirical"][layer][0]
    (_, first), (_, bias), (_, second) = weights[:3]
    into = first.double().square().sum(1) + bias.double().square()
    expected = into - second.double().square().sum(0)
    np.testing.assert_allclose(np.abs(charges), expected.abs().numpy(), rtol=1e-9, atol=1e-9)


def test_the_limit_notices_a_checkpoint_that_is_loaded_whole(large: RunFolder) -> None:
    loads = (
        "import contextlib, Training.extraction as e\n"
        "whole = lambda path: contextlib.nullcontext(e.load_checkpoint(path, mmap=False))\n"
        "e.stored_checkpoint = whole\n"
    )
    complaint = limited("extract", "Training.extraction", "--probe none --overwrite", large, loads)
    assert "memory" in complaint
