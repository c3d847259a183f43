"""Modules that cost less on shares, in place of a model's own.

A ReLU takes eight messages one after another and a max pooling as many for each step of its
tree; a polynomial takes two, and an average none. What that does to accuracy and time stands in
docs/secure.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedmpi.config import Activation, Pooling

SIGMOID = (0.5, 0.197, -0.004)
"""0.5 + 0.197 x - 0.004 x^3 is near the sigmoid for |x| < 5, the least squares fit of Kim et al.
2018, "Logistic regression model training based on the approximate homomorphic encryption"."""


class PolynomialSigmoid(nn.Module):
    """A polynomial of degree 3 near the sigmoid."""

    def forward(self, x: Tensor) -> Tensor:
        """Two products, one after the other."""
        constant, linear, cubic = SIGMOID
        return constant + x * (linear + cubic * (x * x))


class Square(nn.Module):
    """The square, as in CryptoNets (Gilad-Bachrach et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """One product."""
        return torch.square(x)


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "polynomial": PolynomialSigmoid,
    "square": Square,
}
_POOLINGS: dict[str, type[nn.MaxPool2d] | type[nn.AvgPool2d]] = {
    "average": nn.AvgPool2d,
    "max": nn.MaxPool2d,
}


def replace_modules(model: nn.Module, activation: Activation, pooling: Pooling) -> nn.Module:
    """Replaces activations and 2-d poolings, wherever they are in the model; returns it."""
    for name, module in model.named_children():
        if isinstance(module, nn.ReLU | nn.Tanh | nn.Sigmoid) and activation != "model":
            setattr(model, name, _ACTIVATIONS[activation]())
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d) and pooling != "model":
            kind, size = _POOLINGS[pooling], module.kernel_size
            setattr(model, name, kind(size, module.stride, module.padding))
        else:
            replace_modules(module, activation, pooling)
    return model
