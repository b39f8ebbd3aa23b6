"""Infinitely wide layers."""
