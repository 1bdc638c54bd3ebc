"""Kernels of sparseflow: plain tensors in, plain tensors out. Nothing here knows of sparseflow."""
