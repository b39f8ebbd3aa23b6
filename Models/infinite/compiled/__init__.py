"""Kernels of pooled convolutions in C++, compiled on first use; without it torch does the same."""
