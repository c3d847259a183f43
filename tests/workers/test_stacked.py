"""A program on models side by side: what a step calls, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedmpi import models
from fedmpi.federated.record_training import record_training
from fedmpi.workers.building import Memory, NotStackable
from fedmpi.workers.program import Program
from fedmpi.workers.stacked import Stacked

K, N, SHAPE = 3, 4, (1, 8, 8)


class Watch(TorchDispatchMode):
    """Counts the operators that are called, and notes those that make memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.makers = 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if all(returned.alias_info is None for returned in func._schema.returns):
            self.makers.append(func)
        return func(*args, **(kwargs or {}))


def inputs() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    torch.manual_seed(0)
    parameters = [p.detach() for p in models.build("2nn", SHAPE, 10).parameters()]
    states = [p.expand(K, *p.shape).clone() for p in parameters]
    x, y = torch.randn(K, N, *SHAPE), torch.randint(0, 10, (K, N))
    return states, [x, y, torch.zeros(K, 1, dtype=torch.float64)]


def program() -> Program:
    model = models.build("2nn", SHAPE, 10)
    return record_training(model, torch.nn.functional.cross_entropy, SHAPE, 10)[1]


def test_a_step_allocates_nothing_and_sees_every_model() -> None:
    states, others = inputs()
    before = [state.clone() for state in states]
    step = Stacked(program(), states, others, Memory())
    assert all(torch.equal(a, b) for a, b in zip(states, before, strict=True))
    with torch.no_grad(), Watch() as watch:
        step(*others, (-0.1,))
    assert watch.makers == []
    assert watch.calls <= 26
    for state, old in zip(states, before, strict=True):
        assert all((state[k] != old[k]).any() for k in range(K))
    assert (others[2] > 0).all()


def test_steps_share_memory_that_grows_without_harm() -> None:
    memory = Memory()
    states, others = inputs()
    few = Stacked(program(), states, [others[0][:, :2], others[1][:, :2], others[2]], memory)
    several = Stacked(program(), states, others, memory)
    expected, batch = [state.clone() for state in states], [t.clone() for t in others]
    apart = Stacked(program(), expected, batch, Memory())
    with torch.no_grad():
        for step, given in ((several, others), (apart, batch)):
            step(*given, (-0.1,))
        few(others[0][:, :2], others[1][:, :2], others[2].clone(), (0.0,))
    assert all(torch.equal(a, b) for a, b in zip(states, expected, strict=True))


def test_programs_that_are_refused() -> None:
    states, others = inputs()
    whole = program()
    with pytest.raises(NotStackable, match="results"):
        Stacked(msgspec.structs.replace(whole, outputs=[0]), states, others, Memory())
    with pytest.raises(NotStackable, match="results"):
        Stacked(whole, states[1:], others, Memory())
    renamed = [
        msgspec.structs.replace(s, operator="tanh") if s.operator == "relu" else s
        for s in whole.signatures
    ]
    with pytest.raises(NotStackable, match="tanh"):
        Stacked(msgspec.structs.replace(whole, signatures=renamed), states, others, Memory())
    [at] = [k for k, s in enumerate(whole.signatures) if s.operator == "nll_loss_backward"]
    [backward] = [step for step in whole.steps if step.signature == at]
    target, total = backward.tensors[2], backward.tensors[-1]
    # The gradient trusts the labels that its loss has looked at, and no others.
    steps = [
        msgspec.structs.replace(step, tensors=[target if r == total else r for r in step.tensors])
        for step in whole.steps
    ]
    with pytest.raises(NotStackable, match="labels of another loss"):
        Stacked(msgspec.structs.replace(whole, steps=steps), states, others, Memory())
    with pytest.raises(NotStackable, match="an argument given"):
        Stacked(_given(whole, "0] + [1"), states, others, Memory())


def _given(whole: Program, what: Any) -> Program:
    """With something else in place of the numbers of a call."""

    def changed(argument: Any) -> Any:
        return {"given": what} if isinstance(argument, dict) and "given" in argument else argument

    signatures = [
        msgspec.structs.replace(
            s,
            arguments=[changed(a) for a in s.arguments],
            keywords={name: changed(a) for name, a in s.keywords.items()},
        )
        for s in whole.signatures
    ]
    assert signatures != whole.signatures
    return msgspec.structs.replace(whole, signatures=signatures)
