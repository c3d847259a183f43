"""The models: sizes of the papers, misfits in one sentence, and a person's own factories."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fedmpi import models
from fedmpi.errors import UsageError

MNIST = (1, 28, 28)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "row_shape", "count"),
    [
        ("softmax", MNIST, 7_850),
        ("2nn", MNIST, 199_210),  # McMahan et al. 2017
        ("cnn", MNIST, 1_663_370),  # McMahan et al. 2017
        ("lenet", MNIST, 61_706),  # LeCun et al. 1998, with all 16 x 6 feature maps connected
        ("resnet18", (3, 32, 32), 11_181_642),  # torchvision's 11,689,512 with a head for 10
        ("resnet18-gn", (3, 32, 32), 11_181_642),  # normalises with as many parameters
        ("resnet18", MNIST, 11_175_370),
    ],
)
def test_number_of_parameters(name: str, row_shape: tuple[int, ...], count: int) -> None:
    model = models.build(name, row_shape, 10)
    assert parameters(model) == count
    models.check(model, name, row_shape, 10)


@pytest.mark.parametrize("name", [name for name in models.MODELS if name != "linear"])
@pytest.mark.parametrize("row_shape", [MNIST, (28, 28)])
def test_every_classifier_takes_mnist_with_and_without_a_channel(
    name: str, row_shape: tuple[int, ...]
) -> None:
    models.check(models.build(name, row_shape, 10), name, row_shape, 10)


@pytest.mark.parametrize("name", [name for name in models.MODELS if name != "softmax"])
def test_regression_gives_one_number_a_row(name: str) -> None:
    model = models.build(name, MNIST, 0).eval()
    assert model(torch.zeros(3, *MNIST)).shape == (3,)
    models.check(model, name, MNIST, 0)


def test_group_norm_replaces_every_batch_norm() -> None:
    model = models.build("resnet18-gn", MNIST, 10)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert sum(isinstance(m, nn.GroupNorm) for m in model.modules()) == 20


def test_the_seed_gives_the_weights() -> None:
    torch.manual_seed(7)
    one = models.build("2nn", MNIST, 10)
    torch.manual_seed(7)
    two = models.build("2nn", MNIST, 10)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "row_shape", "classes", "sentence"),
    [
        ("2n", MNIST, 10, r"unknown model '2n' \(did you mean '2nn'\?\): choose one of softmax, "),
        (
            "softmax",
            (10,),
            0,
            "model softmax classifies but the data has no classes: choose linear",
        ),
        ("linear", (10,), 3, "but the data has 3 classes: choose softmax"),
        ("cnn", (30,), 2, r"model cnn wants images of shape .* the rows have shape \[30\]"),
        ("lenet", (8, 8), 10, r"at least 12x12 pixels, the rows have shape \[8, 8\]"),
    ],
)
def test_a_model_that_cannot_be_built(
    name: str, row_shape: tuple[int, ...], classes: int, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        models.build(name, row_shape, classes)


def test_check_tells_what_the_rows_are_and_what_the_model_wanted() -> None:
    model = models.build("2nn", MNIST, 10)
    with pytest.raises(UsageError, match=r"model 2nn does not fit rows of shape \[30\]: .*784x200"):
        models.check(model, "2nn", (30,), 10)
    with pytest.raises(UsageError, match=r"gives an output of \[2, 10\] .*: expected \[2, 3\]"):
        models.check(model, "2nn", MNIST, 3)
    with pytest.raises(UsageError, match=r"expected \[2\] \(regression, one number a row\)"):
        models.check(nn.Linear(5, 1), "own:net", (5,), 0)
    with pytest.raises(UsageError, match="no parameters to train"):
        models.check(nn.Flatten(), "own:net", (5,), 5)
    with pytest.raises(UsageError, match="gives an output of tuple"):
        models.check(nn.LSTM(5, 5), "own:net", (5,), 5)


def test_uses_random() -> None:
    plain = nn.Linear(6, 3)
    assert not models.uses_random(plain, (6,))
    for layer in (nn.Dropout(0.1), nn.AlphaDropout(), nn.RReLU()):
        assert models.uses_random(nn.Sequential(plain, layer), (6,))
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert models.uses_random(attention, (4, 8))


def test_trials_leave_model_and_generator_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    models.check(model, "own:net", (6,), 3)
    assert models.uses_random(model, (6,))
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_task_loss() -> None:
    assert models.task_loss(10) is nn.functional.cross_entropy
    assert models.task_loss(0) is nn.functional.mse_loss


OWN = """
from torch import nn

def both(row_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(row_shape[0], classes))

def by_position(shape, outputs):
    return both(shape, outputs)

def one(classes=2, hidden=4):
    return nn.Sequential(nn.Linear(6, hidden), nn.Linear(hidden, classes))

class Fixed(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(6, width)

    def forward(self, x):
        return self.layer(x)

def wants_more(row_shape, classes, depth):
    return None

def gives_none():
    return None

def fails():
    raise RuntimeError("no weights here\\nand more")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of a person's own in the working folder."""
    (tmp_path / "own_nets.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import torch\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_nets"
    for name in ("own_nets", "own_broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("factory", ["both", "by_position", "one", "Fixed"])
def test_own_factory(own: str, factory: str) -> None:
    name = f"{own}:{factory}"
    models.check(models.build(name, (6,), 3), name, (6,), 3)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("own_nets:wants_more", r"takes \(row_shape, classes, depth\): expected a factory of"),
        ("own_nets:gives_none", r"returns NoneType: expected an nn\.Module"),
        ("own_nets:fails", r"RuntimeError: no weights here \(.*own_nets\.py, line 28\)$"),
        ("own_nets:Fixd", r"has no callable 'Fixd' \(did you mean 'Fixed'\?\)"),
        (
            "own_broken:net",
            r"cannot import own_broken: ZeroDivisionError: .*own_broken\.py, line 2",
        ),
        ("no_such_nets:net", r"cannot import no_such_nets: .*No module named 'no_such_nets'$"),
        (":net", "expected package.module:factory"),
        ("own_nets:", "expected package.module:factory"),
    ],
)
def test_own_factory_that_fails(own: str, name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        models.build(name, (6,), 3)
    assert re.fullmatch(r"[^\n]+", str(caught.value)), "one sentence on one line"
