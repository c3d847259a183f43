"""The models by name, or a person's own as "package.module:factory".

A model takes a batch of rows [n, *row_shape] and gives logits [n, classes]; for
regression, which is `classes == 0` throughout, it gives one number a row, [n].
"""

from __future__ import annotations

import copy
import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fedmpi.config import nearest
from fedmpi.errors import UsageError

RowShape = tuple[int, ...]
Loss = Callable[[Tensor, Tensor], Tensor]


def build(name: str, row_shape: RowShape, classes: int) -> nn.Module:
    """The model called `name` for these rows, its first weights drawn from PyTorch's generator.

    Args:
        name: a key of `MODELS`, or "package.module:factory".
        row_shape: shape of one row, e.g. (1, 28, 28).
        classes: number of classes; 0 for regression.

    Raises:
        UsageError: an unknown name, rows or a task that the model is not made for, or
            a person's own factory that cannot be imported or called.
    """
    if ":" in name:
        return _build_own(name, row_shape, classes)
    if name not in MODELS:
        raise UsageError(
            f"unknown model {name!r}{nearest(name, MODELS)}: choose one of {', '.join(MODELS)}, "
            "or package.module:factory"
        )
    return MODELS[name](row_shape, classes)


def check(model: nn.Module, name: str, row_shape: RowShape, classes: int) -> None:
    """Refuses a model that does not fit the rows, after a forward of two rows of zeros.

    Raises:
        UsageError: the forward fails, the output has another shape than the task wants,
            or there is nothing to train.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise UsageError(f"model {name} has no parameters to train")
    try:
        output = _forward_zeros(model, row_shape, training=False)
    except Exception as error:
        raise UsageError(
            f"model {name} does not fit rows of shape {list(row_shape)}: {_reason(error)}"
        ) from error
    expected = [2, classes] if classes else [2]
    found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != expected:
        task = f"{classes} classes" if classes else "regression, one number a row"
        raise UsageError(
            f"model {name} gives an output of {found} for 2 rows of shape {list(row_shape)}: "
            f"expected {expected} ({task})"
        )


def uses_random(model: nn.Module, row_shape: RowShape) -> bool:
    """Whether a training step of the model may draw random numbers, as dropout does.

    True also for an operator that could draw but was told not to (dropout of p = 0).
    """
    random = _RandomOperators()
    with random:
        _forward_zeros(model, row_shape, training=True)
    return random.seen


def smallest_batch(model: nn.Module, row_shape: RowShape) -> int:
    """Rows that a training step needs at least: 2 if one alone is refused, as batch norm does."""
    try:
        _forward_zeros(model, row_shape, training=True, rows=1)
    except ValueError:
        return 2
    return 1


def task_loss(classes: int) -> Loss:
    """The loss of the task: cross-entropy on logits, or for regression the mean squared error."""
    return functional.cross_entropy if classes else functional.mse_loss


class _RandomOperators(TorchDispatchMode):
    """Notices operators that draw from a generator."""

    seen: bool = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would import its compiler, which takes 0.6 s, to keep it away from here."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.seen |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _forward_zeros(model: nn.Module, row_shape: RowShape, training: bool, rows: int = 2) -> Any:
    """The output for rows of zeros; weights, buffers and the generator stay as they were."""
    trial = copy.deepcopy(model).cpu().train(training)  # a forward may write to buffers
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return trial(torch.zeros(rows, *row_shape))


# ---- the models ----


def _softmax(row_shape: RowShape, classes: int) -> nn.Module:
    """Softmax regression: one linear layer, the softmax being part of the loss."""
    if not classes:
        raise UsageError("model softmax classifies but the data has no classes: choose linear")
    return nn.Sequential(nn.Flatten(), *_head(prod(row_shape), classes))


def _linear(row_shape: RowShape, classes: int) -> nn.Module:
    """Linear regression."""
    if classes:
        raise UsageError(
            f"model linear is linear regression but the data has {classes} classes: choose softmax"
        )
    return nn.Sequential(nn.Flatten(), *_head(prod(row_shape), classes))


def _2nn(row_shape: RowShape, classes: int) -> nn.Module:
    """The multilayer perceptron of McMahan et al. 2017: 199,210 parameters on MNIST."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(row_shape), 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        *_head(200, classes),
    )


def _cnn(row_shape: RowShape, classes: int) -> nn.Module:
    """The convolutional network of McMahan et al. 2017: 1,663,370 parameters on MNIST."""
    channels, height, width = _image("cnn", row_shape, at_least=4)
    return nn.Sequential(
        *_add_channel(row_shape),
        nn.Conv2d(channels, 32, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(),
        *_head(512, classes),
    )


def _lenet(row_shape: RowShape, classes: int) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with plain average pooling: 61,706 parameters on MNIST.

    The paper pads MNIST's digits to 32x32; here the first convolution pads.
    """
    channels, height, width = _image("lenet", row_shape, at_least=12)
    return nn.Sequential(
        *_add_channel(row_shape),
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2), 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        *_head(84, classes),
    )


def _resnet18(row_shape: RowShape, classes: int) -> nn.Module:
    """ResNet-18 of torchvision, with batch normalisation."""
    return _resnet("resnet18", row_shape, classes, nn.BatchNorm2d)


def _resnet18_gn(row_shape: RowShape, classes: int) -> nn.Module:
    """ResNet-18 with group normalisation, which does not suffer from skewed labels.

    Hsieh et al. 2020 (The Non-IID Data Quagmire) show why; two groups as in Reddi et al.
    2021 (Adaptive Federated Optimization).
    """
    return _resnet("resnet18-gn", row_shape, classes, lambda width: nn.GroupNorm(2, width))


def _resnet(
    name: str, row_shape: RowShape, classes: int, norm_layer: Callable[[int], nn.Module]
) -> nn.Module:
    from fedmpi.torchvision_compat import import_torchvision

    channels, _, _ = _image(name, row_shape, at_least=1)
    model = import_torchvision().models.resnet18(num_classes=classes or 1, norm_layer=norm_layer)
    if channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*_add_channel(row_shape), model, *_flat_output(classes))


def _head(width: int, classes: int) -> list[nn.Module]:
    """The last layer: [n, width] to logits [n, classes], or for regression to [n]."""
    return [nn.Linear(width, classes or 1), *_flat_output(classes)]


def _flat_output(classes: int) -> list[nn.Module]:
    """For regression, [n, 1] to [n]."""
    return [] if classes else [nn.Flatten(0)]


def _add_channel(row_shape: RowShape) -> list[nn.Module]:
    """For images without channels, [n, height, width] to [n, 1, height, width]."""
    return [nn.Unflatten(1, (1, -1))] if len(row_shape) == 2 else []


def _image(name: str, row_shape: RowShape, at_least: int) -> tuple[int, int, int]:
    """Channels, height and width of a row [channels, height, width] or [height, width]."""
    shape = (1, *row_shape) if len(row_shape) == 2 else row_shape
    if len(shape) != 3 or min(shape[1:]) < at_least:
        raise UsageError(
            f"model {name} wants images of shape [channels, height, width] and at least "
            f"{at_least}x{at_least} pixels, the rows have shape {list(row_shape)}: "
            "choose 2nn, softmax or linear"
        )
    return shape


MODELS: dict[str, Callable[[RowShape, int], nn.Module]] = {
    "softmax": _softmax,
    "linear": _linear,
    "2nn": _2nn,
    "cnn": _cnn,
    "lenet": _lenet,
    "resnet18": _resnet18,
    "resnet18-gn": _resnet18_gn,
}


# ---- a person's own ----


def _build_own(name: str, row_shape: RowShape, classes: int) -> nn.Module:
    """What the person's factory makes of (row_shape, classes), of one of the two, or of ()."""
    factory = import_named("model", name, "package.module:factory")
    args, kwargs = _arguments(name, factory, {"row_shape": row_shape, "classes": classes})
    try:
        model = factory(*args, **kwargs)
    except Exception as error:
        raise UsageError(
            f"model {name} cannot be built for rows of shape {list(row_shape)} and "
            f"{classes} classes: {_reason(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name} returns {type(model).__name__}: expected an nn.Module")
    return model


def import_named(what: str, name: str, expected: str) -> Callable[..., Any]:
    """The callable "package.module:attribute" of a person's own code.

    Args:
        what: it is to be, for messages: "model".
        name: of the callable.
        expected: what a name looks like: "package.module:factory".

    Raises:
        UsageError: it cannot be imported, or there is no such callable.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise UsageError(f"{what} {name!r}: expected {expected}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(f"{what} {name}: cannot import {module_name}: {_reason(error)}") from error
    found: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(found):
        public = [word for word in vars(module) if not word.startswith("_") and word != attribute]
        raise UsageError(
            f"{what} {name}: {module_name} has no callable {attribute!r}"
            f"{nearest(attribute, public)}"
        )
    return found


def _arguments(
    name: str, factory: Callable[..., Any], offered: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments by name where the factory has these names, else by position."""
    signature = inspect.signature(factory)
    named = {key: value for key, value in offered.items() if key in signature.parameters}
    for args, kwargs in (((), named), (tuple(offered.values()), {})):
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            continue
        return args, kwargs
    raise UsageError(
        f"model {name} takes {signature}: expected a factory of (row_shape, classes), or of ()"
    )


def _reason(error: Exception) -> str:
    """The error in one line, with the last line of the person's own code that led to it."""
    message = (str(error).strip() or "no reason given").splitlines()[0]
    not_theirs = (str(Path(torch.__file__).parent), "<frozen ", __file__, importlib.__file__)
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(not_theirs)
    ]
    place = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {message}{place}"
