"""Tensors that live elsewhere: what a person writes programs with."""
