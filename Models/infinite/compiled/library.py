"""The C++ of this room: compiled once by torch's own route, kept in its cache of extensions.

Everything that the result depends on names its folder: source, compiler flags, torch's version
and the processor's instructions. It is compiled in a folder of its own and moved there whole, by
one process at a time; a lock of the system's goes with the process that held it.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

SWITCH = "LEARNING_MECHANICS_COMPILED"
"""Environment variable; 0 computes everything in torch."""

_FOLDER = Path(__file__).parent
_SOURCE = _FOLDER / "slab.cpp"

_NAME = "learning_mechanics_slab"

_FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math")

_INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}
"""By torch's name of what the processor offers; those of others are the compiler's choice."""

_LOG = logging.getLogger("learning-mechanics.compiled")


def is_wanted() -> bool:
    """Whether the user has not switched it off."""
    return os.environ.get(SWITCH, "1") != "0"


@cache
def is_loaded() -> bool:
    """Whether ``torch.ops.learning_mechanics_slab`` is there; compiles it where it is not yet.

    Without a compiler or ninja, or where they fail, says so in one line, once per process.
    """
    try:
        _load(place())
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _LOG.warning(
            "pooled convolutions are computed by torch alone, several times slower: %s (%s=0 hides "
            "this line)",
            reason,
            SWITCH,
        )
        return False
    return True


def place() -> Path:
    """Where the compiled library lies, or will."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path(caches) / "torch_extensions"
    sources = [path.read_text(encoding="utf-8") for path in (_SOURCE, *sorted(_FOLDER.glob("*.h")))]
    facts = (*sources, torch.__version__, sys.platform, platform.machine(), *_flags())
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    return Path(root) / f"{_NAME}_{key}" / f"{_NAME}.so"


def _flags() -> tuple[str, ...]:
    instructions = _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ())
    return (*_FLAGS, *instructions, *_threads())


def _threads() -> list[str]:
    """OpenMP, where the compiler is sure to have it; elsewhere one thread does all."""
    return ["-fopenmp"] if sys.platform == "linux" else []


def _load(library: Path) -> None:
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with alone(library.parent / "lock"):
            if not library.exists():
                _compile(library)
                return
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]


def _compile(library: Path) -> None:
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"there is no C++ compiler ({compiler})")
    with _quiet("torch.utils.cpp_extension"):  # it looks for CUDA
        from torch.utils.cpp_extension import load

    _LOG.warning("compiling %s, once, some 20 s", _SOURCE.name)
    with (
        tempfile.TemporaryDirectory(dir=library.parent) as folder,
        _ninja_of_this_environment(),
    ):
        load(
            _NAME,
            [str(_SOURCE)],
            extra_cflags=list(_flags()),
            extra_ldflags=_threads(),
            build_directory=folder,
            is_python_module=False,
        )
        os.replace(Path(folder) / library.name, library)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Waits for another process that compiles.

    Torch's own lock would outlive a process that was killed, and stop all others for ever.

    Args:
        lock: a file; what matters is which process holds it.
    """
    import fcntl

    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _ninja_of_this_environment() -> Iterator[None]:
    """An environment that was not activated is not on the path."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([before, str(Path(sys.executable).parent)])
    try:
        yield
    finally:
        os.environ["PATH"] = before


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
