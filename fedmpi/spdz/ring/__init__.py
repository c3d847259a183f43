"""Exact arithmetic in the ring Z_2^64: products of matrices, convolutions, and their kernels."""
