"""Secure computation on additive shares in the ring Z_2^64."""
