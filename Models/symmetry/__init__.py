"""Symmetries of a model, found in its graph, and the conservation laws they imply."""

from Models.symmetry.charges import Charges
from Models.symmetry.discovery import find_laws, no_laws
from Models.symmetry.laws import KINDS, Family, Kind, Laws
from Models.symmetry.reductions import Reduction, product_sums

__all__ = [
    "KINDS",
    "Charges",
    "Family",
    "Kind",
    "Laws",
    "Reduction",
    "find_laws",
    "no_laws",
    "product_sums",
]
