"""Versions of Python and the packages, against pyproject.toml and requirements.txt."""

import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from scripts.health import INSTALL, Finding

ROOT = Path(__file__).resolve().parents[2]


def check_versions(root: Path = ROOT) -> Iterator[Finding]:
    """Python, the packages, and that torch's companions were built for this torch.

    Args:
        root: the folder of pyproject.toml, whose bounds must hold (else a failure), and
            requirements.txt, whose versions are the tested ones (else a warning).
    """
    from packaging.specifiers import SpecifierSet

    project = (root / "pyproject.toml").read_text()
    python = platform.python_version()
    wanted = re.findall(r'^requires-python = "(.*)"', project, re.MULTILINE)[0]
    if not SpecifierSet(wanted).contains(python, prereleases=True):
        fix = "make clean, then make env PYTHON=python3.12 (Python 3.11 to 3.13)"
        yield Finding("FAIL", "python", f"{python} is not {wanted}", fix)
        return  # the packages' own bounds would only repeat it
    yield Finding("ok", "python", python)
    yield from _packages(project, (root / "requirements.txt").read_text())
    yield from _companions()


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _packages(project: str, requirements: str) -> Iterator[Finding]:
    import tomllib

    from packaging.requirements import Requirement

    lines = (line.partition("#")[0].strip() for line in requirements.splitlines())
    tested = {r.name: r for r in map(Requirement, filter(None, lines))}
    bounds = [Requirement(text) for text in tomllib.loads(project)["project"]["dependencies"]]
    wrong = 0
    for bound in bounds:
        found = _installed(bound.name)
        pinned = tested.get(bound.name, bound)
        if found is None or not bound.specifier.contains(found, prereleases=True):
            wrong += 1
            text = f"{found or 'not installed'}; {bound.specifier} is needed"
            yield Finding("FAIL", bound.name, text, INSTALL)
        elif not pinned.specifier.contains(found, prereleases=True):
            wrong += 1
            text = f"{found}; tested with {pinned.specifier}"
            yield Finding("warn", bound.name, text, f'python -m pip install "{pinned}"')
    text = f"{len(bounds) - wrong} of {len(bounds)} are as tested"
    yield Finding("ok", "packages", text)


def _companions() -> Iterator[Finding]:
    """torchvision says itself which torch it needs; torch-xla is of the same minor version."""
    from packaging.requirements import Requirement

    torch, torchvision, xla = map(_installed, ("torch", "torchvision", "torch-xla"))
    if torch is None:
        return
    found = f"torch {torch}"
    if torchvision is not None:
        found += f", torchvision {torchvision}"
        needs = [r for r in map(Requirement, requires("torchvision") or []) if r.name == "torch"]
        for need in needs:
            if not need.specifier.contains(torch, prereleases=True):
                text = f"{torchvision} is made for torch{need.specifier}, not {torch}"
                yield Finding("FAIL", "torchvision", text, INSTALL)
    if xla is None:
        found += ", no torch-xla (only TPUs need it)"
    elif xla.split(".")[:2] != torch.split(".")[:2]:
        text = f"{xla} is made for another torch than {torch}"
        yield Finding("FAIL", "torch-xla", text, f"{INSTALL}, or python -m pip uninstall torch-xla")
    else:
        found += f", torch-xla {xla}"
    yield Finding("ok", "torch", found)
