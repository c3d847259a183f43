"""Federated learning and secure computation for PyTorch, simulated over MPI."""

__version__ = "0.1.0"
