"""Normalisation: measured once on the training rows, applied whenever rows are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import Normalise
from fedmpi.data.rows import Array
from fedmpi.data.source import Source
from fedmpi.errors import UsageError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Normalisation:
    """`(x - mean) / std`, and the same for the targets of a regression.

    Attributes:
        kind: none, unit (mean 0, std the largest pixel value) or standard.
        mean: one number for all values, one for each channel, or one for each feature.
        std: as many, none of them 0.
        y_mean: mean of the training targets; 0 for a classification.
        y_std: their standard deviation; 1 for a classification.
    """

    kind: Literal["none", "unit", "standard"] = "none"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    y_mean: float = 0.0
    y_std: float = 1.0

    def fits(self, row_shape: tuple[int, ...]) -> bool:
        """Whether there are as many numbers as rows of that shape need, and no std is 0."""
        counts = {1, int(np.prod(_statistics_shape(row_shape)))}
        numbers = (*self.mean, *self.std, self.y_mean, self.y_std)
        return (
            len(self.mean) == len(self.std)
            and len(self.mean) in counts
            and bool(np.isfinite(numbers).all())
            and all(self.std)
            and bool(self.y_std)
        )

    def x(self, rows: Array) -> Floats:
        """Raw rows [n, *row_shape] as new, normalised float32 rows of the same shape."""
        shape = _statistics_shape(rows.shape[1:]) if len(self.mean) > 1 else ()
        out = rows.astype(np.float32)
        out -= np.array(self.mean, np.float32).reshape(shape)
        out /= np.array(self.std, np.float32).reshape(shape)
        return out

    def y(self, labels: Array) -> Array:
        """Classes as they are, int64 [n]; targets normalised, float32 [n]."""
        if labels.dtype.kind != "f":
            return labels.astype(np.int64)
        out = labels.astype(np.float32)
        out -= np.float32(self.y_mean)
        out /= np.float32(self.y_std)
        return out


def measure(source: Source, normalise: Normalise) -> Normalisation:
    """The normalisation that a recipe asks for; `standard` reads the training rows once.

    Args:
        source: the source; only its training rows count.
        normalise: auto is unit for uint8 images and standard for everything else.

    Raises:
        UsageError: unit for rows that are not uint8, whose largest value is not known.
        DataError: the source is damaged.
    """
    if normalise == "none":
        return Normalisation()
    y_mean, y_std = (0.0, 1.0) if source.classes else _target_statistics(source)
    if normalise == "unit" or (normalise == "auto" and source.images and source.dtype == np.uint8):
        if source.dtype != np.uint8:
            raise UsageError(
                f"normalise = 'unit' divides uint8 pixels by {source.peak} but {source.name} "
                f"has {source.dtype} values: use standard or none"
            )
        return Normalisation("unit", (0.0,), (float(source.peak),), y_mean, y_std)
    mean, std = _row_statistics(source)
    return Normalisation("standard", _numbers(mean), _numbers(std), y_mean, y_std)


def _statistics_shape(row_shape: tuple[int, ...]) -> tuple[int, ...]:
    """One number for each channel of an image, else one for each feature."""
    return (row_shape[0], 1, 1) if len(row_shape) == 3 else row_shape


def _row_statistics(source: Source) -> tuple[Array, Array]:
    """Mean and standard deviation float64, by the pairwise update of Chan et al. 1979.

    It streams and, unlike a sum of squares, does not cancel for features far from 0.
    """
    axes = (0, 2, 3) if source.images else (0,)
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for x, _ in source.blocks("train"):
        values = x.astype(np.float64)
        block_mean = values.mean(axis=axes, keepdims=True)
        block_squares = np.square(values - block_mean).sum(axis=axes, keepdims=True)
        block_count = values.size // block_mean.size
        total, shift = count + block_count, block_mean - mean
        squares = squares + block_squares + np.square(shift) * (count * block_count / total)
        mean = mean + shift * (block_count / total)
        count = total
    return mean[0], _usable_std(mean[0], np.sqrt(squares[0] / count))


def _target_statistics(source: Source) -> tuple[float, float]:
    targets = source.labels().astype(np.float64)
    mean = targets.mean()
    return float(np.float32(mean)), float(np.float32(_usable_std(mean, targets.std())))


def _usable_std(mean: Array, std: Array) -> Array:
    """1 in place of a deviation that is 0, or only the rounding of a constant feature."""
    constant = (std <= 1e-7 * np.abs(mean)) | (std < np.finfo(np.float32).tiny)
    return np.where(constant, 1.0, std)


def _numbers(values: Array) -> tuple[float, ...]:
    """The float32 values that are applied, which JSON keeps exactly."""
    return tuple(values.astype(np.float32).ravel().tolist())
