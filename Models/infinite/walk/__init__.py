"""From the graph of a finite network to the program of the infinite one."""

from Models.infinite.walk.trace import program_of

__all__ = ["program_of"]
