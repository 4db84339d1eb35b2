"""The one door to PyTorch: the step loop, exact and float sums, buffers, the probe."""
