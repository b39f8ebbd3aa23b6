"""Parametrizations: how initial weights and learning rates depend on the width, and what follows.

Importing this package costs nothing; ``torch`` is imported by what touches a model.
"""

from Models.parametrization.equivalence import canonical, recognise, symmetry_between
from Models.parametrization.exponents import ABC, Exponents, Family, Role
from Models.parametrization.registry import (
    PARAMETRIZATIONS,
    ParametrizationEntry,
    build_parametrization,
    find_parametrization,
)
from Models.parametrization.theory import Theory, explain

__all__ = [
    "ABC",
    "PARAMETRIZATIONS",
    "Exponents",
    "Family",
    "ParametrizationEntry",
    "Role",
    "Theory",
    "build_parametrization",
    "canonical",
    "explain",
    "find_parametrization",
    "recognise",
    "symmetry_between",
]
