"""Symmetries of a model, found in its graph, and the conservation laws they imply."""

from Models.symmetry.discovery import find_laws
from Models.symmetry.laws import KINDS, Charges, Family, Kind, Laws, Reduction

__all__ = ["KINDS", "Charges", "Family", "Kind", "Laws", "Reduction", "find_laws"]
