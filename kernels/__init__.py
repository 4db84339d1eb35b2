"""Numba kernels: array in, array out. They know no MPI, no torch and no files."""
