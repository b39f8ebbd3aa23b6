"""Metrics of a whole experiment: what its runs measure, as powers of their width."""
