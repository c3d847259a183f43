"""Plans over shared tensors compute what the function computes, with masks that are never stale."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fedmpi
from fedmpi.comm.endpoint import Channel
from fedmpi.errors import UsageError
from fedmpi.spdz.sharing import share
from fedmpi.spdz.table.lift import secret_of
from fedmpi.tensors.remote_worker import RemoteWorker
from tests.comm.worlds import World
from tests.spdz.transcripts import opened, recorded, related
from tests.tensors.programs import lead

Tensor = torch.Tensor
Workers = Sequence[RemoteWorker]


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 4, generator=g), torch.randn(n, 2, generator=g)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, t: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = (model(x) - t).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def openings(workers: Workers, program: Callable[[], object]) -> int:
    """Elements that are opened."""
    return sum(opened(workers, program))


def test_inference(world: World) -> None:
    model, (x, _) = mlp(), batch()

    @fedmpi.plan
    def infer(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)

    def program(workers: Workers) -> None:
        if len(workers) < 2:
            return
        there = share(model, *workers)
        for shift in range(3):
            found = infer(there, share(x + shift, *workers))
            assert torch.allclose(found.reveal(), model(x + shift), atol=1e-3)

    lead(world, program)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("parties", [2, 3, 5])
def test_training(parties: int, optimizer: str) -> None:
    plain, (x, t) = mlp(), batch()
    with fedmpi.simulate(parties) as workers:
        there = share(plain, *workers)
        plain = copy.deepcopy(plain)
        step = fedmpi.plan(train)
        ours, theirs = (OPTIMIZERS[optimizer](m.parameters()) for m in (there, plain))
        xs, ts = share(x, *workers), share(t, *workers)
        for _ in range(4):
            found, want = step(there, ours, xs, ts), train(plain, theirs, x, t)
            assert abs(float(found.reveal()) - float(want)) < 5e-3
        for mine, yours in zip(there.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(mine.reveal(), yours, atol=1e-2)  # type: ignore[attr-defined]


def test_weights_that_stay_are_masked_outside_and_once() -> None:
    @fedmpi.plan
    def infer(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)

    with fedmpi.simulate(2) as workers:
        model = share(nn.Linear(4, 8, bias=False), *workers)
        x = share(batch()[0], *workers)
        counts = [openings(workers, lambda: infer(model, x)) for _ in range(3)]
        assert counts == [32 + 24 + 48, 24 + 48, 24 + 48]


def test_parameters_that_a_plan_changes_forget_their_masks() -> None:
    """Known before, used inside, changed inside, used after: always for the value it has then."""

    @fedmpi.plan
    def double(model: nn.Module) -> Tensor:
        before = model.weight * model.weight
        with torch.no_grad():
            model.weight.mul_(2)
        return before + model.weight * model.weight

    with fedmpi.simulate(2) as workers, torch.no_grad():
        model = share(nn.Linear(2, 2, bias=False), *workers)
        w = model.weight.reveal()  # type: ignore[attr-defined]
        row = model.weight[0]
        for known in (True, False, True):
            if known:
                model.weight * model.weight, row * row
            assert torch.allclose(double(model).reveal(), 5 * w * w, atol=1e-3)
            w = 2 * w
            assert torch.allclose((model.weight * model.weight).reveal(), w * w, atol=1e-3)
            assert torch.allclose((row * row).reveal(), w[0] ** 2, atol=1e-3)


def test_a_view_beside_its_base_is_not_stale_inside() -> None:
    @fedmpi.plan
    def write(base: Tensor, view: Tensor) -> Tensor:
        base.add_(1)
        return view * view

    with fedmpi.simulate(2) as workers:
        base = share(torch.tensor([1.0, 2.0]), *workers)
        view = base[1:]
        view * view  # its mask is an input of the plan
        assert write(base, view).reveal().tolist() == [9.0]


def test_every_run_draws_masks_of_its_own() -> None:
    """The same plan for other values: what is opened in two runs is not related."""

    @fedmpi.plan
    def square(x: Tensor) -> Tensor:
        return x * x

    with fedmpi.simulate(2) as workers:
        runs = [share(torch.full((12800,), v), *workers) for v in (1.0, 1.0, 2.0)]
        square(runs[0])
        for worker in workers:
            worker.wait()
        with recorded() as frames:
            for x in runs:
                square(x)
            for worker in workers:
                worker.wait()
        opened = [f.tensors[0] for f in frames if f.channel == Channel.OPENING and f.source == 1]
        assert len(opened) == 6
        assert related(opened) < 1.6


def test_constants_come_along_and_are_not_saved(tmp_path: Path) -> None:
    constant = torch.tensor([2.0, -3.0, 0.5])

    @fedmpi.plan
    def scaled(x: Tensor) -> Tensor:
        return x * constant + torch.tensor([1.0, 2.0, 3.0])

    with fedmpi.simulate(3) as workers:
        x = share(torch.ones(3), *workers)
        for _ in range(2):
            assert torch.allclose(scaled(x).reveal(), torch.tensor([3.0, -1.0, 3.5]), atol=1e-4)
        with pytest.raises(UsageError, match="tensors from outside, which are not saved"):
            scaled.record(x).save(tmp_path / "plan")


def test_other_batch_sizes_are_recorded_anew() -> None:
    """dynamic=True asks for one program; with secrets, shapes stand in the program."""

    @fedmpi.plan(dynamic=True)
    def infer(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)

    model = mlp()
    with fedmpi.simulate(2) as workers:
        there = share(model, *workers)
        for n in (2, 5, 3, 5):
            x, _ = batch(n)
            found = infer(there, share(x, *workers))
            assert torch.allclose(found.reveal(), model(x), atol=1e-3)


def test_a_value_is_not_revealed_while_a_plan_is_recorded() -> None:
    @fedmpi.plan
    def reveals(x: Tensor) -> Tensor:
        return x * x.reveal()  # type: ignore[attr-defined]

    with fedmpi.simulate(2) as workers:
        x = share(torch.ones(2), *workers)
        with pytest.raises(UsageError, match="its values are not known yet"):
            reveals(x)
        assert secret_of(x).unchanged
        assert (x * x).reveal().tolist() == [1.0, 1.0]  # type: ignore[attr-defined]
