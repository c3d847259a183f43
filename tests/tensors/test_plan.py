"""Plans: what is recorded computes what the function computes, and runs by one call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fedmpi
from fedmpi.comm.frame import ProtocolError
from fedmpi.errors import DataError, RemoteError, UsageError
from fedmpi.tensors.code import code_of
from fedmpi.tensors.given_numbers import leave_open
from fedmpi.tensors.passes import cancel_transposes, drop_dead
from fedmpi.tensors.pointer import PointerTensor
from fedmpi.tensors.remote_worker import RemoteWorker
from fedmpi.workers.program import Program, Replay, Step
from fedmpi.workers.signature import Callee, Signature

BATCH = 8


@pytest.fixture
def alice() -> Iterator[RemoteWorker]:
    with fedmpi.simulate(workers=1) as (worker,):
        yield worker


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Any, y: Any) -> torch.Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 3))


def cnn() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(10, 3),
    )  # fmt: skip


def batches(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [
        (torch.randn(BATCH, 12, generator=g), torch.randint(0, 3, (BATCH,), generator=g))
        for _ in range(n)
    ]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def differences(
    worker: RemoteWorker, make: Callable[[], nn.Module], optimizer: str, fuse: bool
) -> tuple[float, int]:
    """Largest difference to plain PyTorch after some steps, and how often the function ran."""
    ran = 0

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal ran
        ran += 1
        return train(*arguments)

    plan = fedmpi.plan(counted, fuse=fuse)
    there, here = worker.send(make()), make()
    optimizer_there = OPTIMIZERS[optimizer](there.parameters())
    optimizer_here = OPTIMIZERS[optimizer](here.parameters())
    for x, y in batches(6):
        loss = plan(there, optimizer_there, worker.send(x), worker.send(y))
        expected = train(here, optimizer_here, x, y)
    state = fedmpi.get(there).state_dict()
    found = [loss.get(), *state.values()]
    wanted = [expected, *here.state_dict().values()]
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs), ran


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("optimizer", ["SGD", "momentum", "nesterov", "RMSprop"])
def test_an_unfused_training_step_has_the_bits_of_plain_pytorch(
    alice: RemoteWorker, make: Callable[[], nn.Module], optimizer: str
) -> None:
    assert differences(alice, make, optimizer, fuse=False)[0] == 0


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fused_training_step_is_plain_pytorch_within_rounding(
    alice: RemoteWorker, make: Callable[[], nn.Module], optimizer: str
) -> None:
    largest, ran = differences(alice, make, optimizer, fuse=True)
    assert largest < 2e-6
    assert ran <= 3  # recorded in vain, run to make the optimiser's states, recorded


def test_it_runs_here_too() -> None:
    plan = fedmpi.plan(train)
    model, reference = mlp(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for x, y in batches(5):
        loss = plan(model, optimizer, x, y)
        assert isinstance(loss, torch.Tensor)
        assert not isinstance(loss, PointerTensor)
        torch.testing.assert_close(loss, train(reference, plain, x, y))
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_run_is_one_call(alice: RemoteWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    model = alice.send(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = fedmpi.plan(train)
    [(x, y)] = batches(1)
    there = alice.send(x), alice.send(y)
    plan(model, optimizer, *there)
    calls = []
    call = alice.link.call
    monkeypatch.setattr(alice.link, "call", lambda *a: (calls.append(a), call(*a)))
    plan(model, optimizer, *there)
    assert len(calls) == 1


def test_the_update_of_a_weight_is_one_operator(alice: RemoteWorker) -> None:
    model = alice.send(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    [(x, y)] = batches(1)
    arguments = (model, optimizer, alice.send(x), alice.send(y))
    fused, plain = fedmpi.plan(train).code(*arguments), fedmpi.plan(train, fuse=False)
    assert fused.count("addmm_(state") == 3
    assert "addmm_" not in plain.code(*arguments)
    assert fused.startswith("def train(state0, ")
    assert "detach" not in fused


def test_a_gradient_that_is_wanted_stays(alice: RemoteWorker) -> None:
    @fedmpi.plan
    def step(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        gradient = x.t().mm(x)
        w.add_(gradient, alpha=-0.5)
        return gradient

    w, x = torch.zeros(4, 4), torch.randn(3, 4)
    there = alice.send(w)
    found = step(there, alice.send(x))
    torch.testing.assert_close(found.get(), x.t() @ x)
    torch.testing.assert_close(there.get(), -0.5 * (x.t() @ x))


def test_a_factor_that_changes_in_between_is_not_fused(alice: RemoteWorker) -> None:
    @fedmpi.plan
    def step(w: torch.Tensor, x: torch.Tensor) -> None:
        gradient = x.t().mm(x)
        x.zero_()
        w.add_(gradient)

    w, x = alice.send(torch.zeros(4, 4)), torch.randn(3, 4)
    step(w, alice.send(x))
    torch.testing.assert_close(w.get(), x.t() @ x)


def test_a_weight_that_is_a_factor_of_its_own_update_is_not_fused(alice: RemoteWorker) -> None:
    @fedmpi.plan
    def step(w: torch.Tensor, x: torch.Tensor) -> None:
        w.add_(x.mm(w), alpha=-0.5)
        w.add_(x.mm(w.t()))

    w, x = torch.randn(60, 60), torch.randn(60, 60)
    there = alice.send(w)
    step(there, alice.send(x))
    step.function(w, x)
    torch.testing.assert_close(there.get(), w)
    assert "addmm_" not in step.code(there, alice.send(x))


def test_a_check_that_has_no_result_is_not_dropped(alice: RemoteWorker) -> None:
    inverse = fedmpi.plan(torch.linalg.inv)
    torch.testing.assert_close(inverse(alice.send(2 * torch.eye(3))).get(), 0.5 * torch.eye(3))
    with pytest.raises(RemoteError, match="singular"):
        inverse(alice.send(torch.zeros(3, 3))).get()


def test_another_shape_or_learning_rate_is_recorded_anew(alice: RemoteWorker) -> None:
    ran = []

    @fedmpi.plan
    def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
        ran.append(tuple(x.shape))
        return x * factor

    for shape, factor in [((2,), 3.0), ((2,), 3.0), ((5,), 3.0), ((5,), 4.0), ((2,), 3.0)]:
        assert scale(alice.send(torch.ones(shape)), factor).get().tolist() == [factor] * shape[0]
    assert ran == [(2,), (5,), (5,)]


def test_results_keep_their_structure(alice: RemoteWorker) -> None:
    @fedmpi.plan
    def several(x: torch.Tensor, pair: dict[str, torch.Tensor]) -> Any:
        return {"sum": x + pair["a"], "list": [pair["b"], (x, 7)], "none": None}

    x, a, b = (alice.send(torch.full((2,), float(k))) for k in range(3))
    found = several(x, {"a": a, "b": b})
    assert found["sum"].get().tolist() == [1, 1]
    assert found["list"][0] is b
    assert found["list"][1][0] is x
    assert found["list"][1][1] == 7
    assert found["none"] is None


def test_random_operators_draw_anew_at_each_run(alice: RemoteWorker) -> None:
    @fedmpi.plan
    def noise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.dropout(x), torch.rand_like(x)

    x = alice.send(torch.ones(100))

    def draw(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [t.get() for _ in range(2) for t in noise(x)]

    first, again, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], first[3])
    assert not torch.equal(first[0], other[0])


def test_values_are_not_known_while_recording(alice: RemoteWorker) -> None:
    x = alice.send(torch.ones(3))
    for function in (
        lambda t: t if t.sum() > 0 else -t,
        lambda t: t * t.sum().item(),
        torch.nonzero,
    ):
        with pytest.raises(UsageError, match="values"):
            fedmpi.plan(function)(x)
    assert x.get().tolist() == [1, 1, 1]


def test_a_number_that_is_counted_here_is_refused(alice: RemoteWorker) -> None:
    @fedmpi.plan
    def count(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        n += 1
        return x * n

    with pytest.raises(UsageError, match="changed a number that is here"):
        count(alice.send(torch.ones(3)), torch.tensor(0.0))


def test_an_argument_that_cannot_be_a_constant_is_refused(alice: RemoteWorker) -> None:
    x = alice.send(torch.ones(3))
    with pytest.raises(UsageError, match="an argument of a plan is a ndarray"):
        fedmpi.plan(lambda t, a: t * float(a[0]))(x, torch.ones(3).numpy())


def test_a_plan_has_one_place() -> None:
    add = fedmpi.plan(torch.add)
    with fedmpi.simulate(workers=2) as (alice, bob):
        x = alice.send(torch.ones(2))
        with pytest.raises(UsageError, match="are on two"):
            add(x, bob.send(torch.ones(2)))
        with pytest.raises(UsageError, match="is here: send it to rank 1"):
            add(x, torch.ones(2))


def test_a_step_that_makes_states_has_to_run_before_it_is_recorded(alice: RemoteWorker) -> None:
    model = alice.send(mlp())
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    [(x, y)] = batches(1)
    plan = fedmpi.plan(train)
    with pytest.raises(UsageError, match="call it once"):
        plan.record(model, optimizer, alice.send(x), alice.send(y))


def test_a_saved_plan_runs_in_another_place(tmp_path: Path) -> None:
    path = tmp_path / "step.plan"
    model = mlp()
    [(x, y)] = batches(1)
    with fedmpi.simulate(workers=1) as (alice,):
        there = alice.send(model)
        optimizer = torch.optim.SGD(there.parameters(), lr=0.1)
        recorded = fedmpi.plan(train).record(there, optimizer, alice.send(x), alice.send(y))
        recorded.save(path)
        assert "6 of them states" in repr(recorded)
    loaded = fedmpi.RecordedPlan.load(path)
    assert loaded.code() == recorded.code()
    here = [p.detach().clone() for p in model.parameters()]
    loaded(*here, x, y)
    with fedmpi.simulate(workers=2) as (_, bob):
        loaded.send(bob)
        states = [bob.send(p.detach()) for p in model.parameters()]
        [loss] = loaded(*states, bob.send(x), bob.send(y))
        assert all(torch.equal(s.get(), h) for s, h in zip(states, here, strict=True))
        torch.testing.assert_close(loss.get(), F.cross_entropy(model(x), y).detach())
        with pytest.raises(UsageError, match=r"input 6 of plan train is float32 \[8, 12\]"):
            loaded(*states, bob.send(x[:4]), bob.send(y))
        with pytest.raises(UsageError, match="was given 2 inputs"):
            loaded(x, y)


def saved(path: Path) -> dict[str, Any]:
    recorded = fedmpi.plan(lambda a: a.t() @ a).record(torch.ones(3, 2))
    recorded.save(path)
    content: dict[str, Any] = msgspec.msgpack.decode(path.read_bytes())
    return content


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("format", "pickle", "expected 'fedmpi plan' version 1"),
        ("version", 2, "expected 'fedmpi plan' version 1"),
        ("inputs", [], "inputs or results are not those it names"),
        ("inputs", [[[2], [1], 0, "float7"]], "cannot be run"),
        ("name", 3, "is not a plan of FedMPI"),
        ("name", "\x1b[2J", r"holds a plan of the name '\\x1b\[2J'"),
        ("program", ["\x1b[2J"], "is not a plan of FedMPI"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, key: str, value: Any, reason: str) -> None:
    path = tmp_path / "it.plan"
    content = saved(path) | {key: value}
    path.write_bytes(msgspec.msgpack.encode(content))
    with pytest.raises(DataError, match=reason) as refused:
        fedmpi.RecordedPlan.load(path)
    assert str(refused.value).isprintable()


def test_an_argument_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.plan"
    fedmpi.plan(lambda a: a * 2.5j).record(torch.ones(2)).save(path)
    whole = path.read_bytes()
    content = msgspec.msgpack.decode(whole)
    [[_, operator, arguments, *_]] = content["program"][1]
    assert operator == "mul.Tensor"
    arguments[1] = {"complex": ["x"]}
    path.write_bytes(msgspec.msgpack.encode(content))
    with pytest.raises(DataError, match=r"cannot be run: an argument \{'complex': \['x'\]\}"):
        fedmpi.RecordedPlan.load(path)


def test_a_small_plan_does_not_grow_without_bounds() -> None:
    """Each step that names a signature is a line with all of its arguments."""
    long = Signature("cat", [[{"tensor": 0}] * 2000], {}, 0)
    for steps, refused in ((3, False), (600, True)):
        program = Program([long], [Step(0, [0], [], [-1])] * steps, 1, [], 1, 0)
        if refused:
            with pytest.raises(ProtocolError, match="more than 1,000,000 arguments"):
                Replay(program)
        else:
            Replay(program)


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.plan"
    with pytest.raises(DataError, match="cannot read"):
        fedmpi.RecordedPlan.load(path)
    saved(path)
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            fedmpi.RecordedPlan.load(path)
    with pytest.raises(UsageError, match="cannot write"):
        fedmpi.plan(torch.neg).record(torch.ones(2)).save(tmp_path / "no" / "folder")


def test_saving_writes_through_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in ("it.plan", "it.plan.part"):
        (tmp_path / name).symlink_to(victim)
    fedmpi.plan(torch.neg).record(torch.ones(2)).save(tmp_path / "it.plan")
    assert victim.read_text() == "untouched"
    [found] = fedmpi.RecordedPlan.load(tmp_path / "it.plan")(torch.ones(2))
    assert torch.equal(found, -torch.ones(2))


def program(**changes: Any) -> Program:
    """relu(input), or a spoiled form of it."""
    parts: dict[str, Any] = {
        "signatures": [Signature("relu", [{"tensor": 0}], {}, 0)],
        "steps": [Step(0, [0], [], [1])],
        "inputs": 1,
        "outputs": [1],
        "registers": 2,
        "nbytes": 8,
    }
    return Program(**(parts | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"signatures": [Signature("os.system", ["true"], {}, 0)]},
        {"signatures": [Signature("from_file", ["/etc/passwd"], {}, 0)]},
        {"signatures": [Signature("relu", [{"tensor": 0}], {"x=1);import os#": 1}, 0)]},
        {"signatures": [Signature("relu", [{"tensor": 5}], {}, 0)]},
        {"signatures": [Signature("relu", [{"tensor": "0]; import os; [0"}], {}, 0)]},
        {"signatures": []},
        {"steps": [Step(0, [1], [], [1])]},
        {"steps": [Step(-1, [0], [], [1])]},
        {"steps": [Step(0, [0], [], [7])]},
        {"steps": [Step(0, [0], [], [0])]},
        {"steps": []},
        {"outputs": [3]},
        {"inputs": 10**12, "registers": 10**12},
        {"inputs": -1},
    ],
)
def test_a_hostile_program_is_refused(alice: RemoteWorker, changes: dict[str, Any]) -> None:
    spoiled = program(**changes)
    with pytest.raises((DataError, UsageError, Exception)) as refusal:
        Replay(spoiled)
    assert type(refusal.value).__module__.startswith("fedmpi.")
    plan = fedmpi.plan(torch.relu).record(torch.ones(2))
    plan.signature = spoiled
    x = alice.send(torch.ones(2))
    plan.run([x], alice.link)
    with pytest.raises(RemoteError):
        alice.wait()
    assert x.get().tolist() == [1, 1]


def test_dead_steps_and_double_transposes_go() -> None:
    t = Signature("t", [{"tensor": 0}], {}, 0)
    whole = program(
        signatures=[t, Signature("relu", [{"tensor": 0}], {}, 0)],
        steps=[Step(0, [0], [], [1]), Step(0, [1], [], [2]), Step(1, [2], [], [3])],
        outputs=[3],
        registers=4,
    )
    short = drop_dead(cancel_transposes(whole))
    assert [s.tensors for s in short.steps] == [[0]]
    x = torch.randn(2, 3)
    assert torch.equal(Replay(short)([x], (), 0)[0], Replay(whole)([x], (), 0)[0])


def test_arguments_are_not_changed_by_recording(alice: RemoteWorker) -> None:
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    [(x, y)] = batches(1)
    fedmpi.plan(train).record(model, torch.optim.SGD(model.parameters(), lr=0.1), x, y)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_an_accepted_plan_tells_what_it_makes_of_private_rows(alice: RemoteWorker) -> None:
    @fedmpi.plan
    def mean(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean(0), x[0]

    rows = torch.randn(50, 3)
    x = alice.send(rows, private=True)
    with pytest.raises(RemoteError, match="private"):
        mean(x)[0].get()
    alice.accept(mean.record(x))
    found, row = mean(x)
    assert torch.equal(found.get(), rows.mean(0))
    with pytest.raises(RemoteError, match="private"):
        row.get()  # a view of what is private
    with pytest.raises(RemoteError, match="private"):
        x.get()
    with pytest.raises(RemoteError, match="private"):
        (found + x).get()


def test_numbers_that_each_call_brings() -> None:
    signatures = [
        Signature("add_.Tensor", [{"tensor": 0}, {"tensor": 1}], {"alpha": {"number": 0}}, 0),
        Signature("mul.Tensor", [{"tensor": 0}, {"number": 0}], {}, 0),
    ]
    steps = [
        Step(0, [0, 1], [0.25], [-1]),
        Step(0, [0, 1], [2.0], [-1]),
        Step(1, [0], [0.75], [2]),
    ]
    program = leave_open(Program(signatures, steps, 2, [2], 3, 0), (0.25, 0.75))
    assert [code_of(program).count(f"numbers[{k}]") for k in range(2)] == [1, 1]
    replay = Replay(msgspec.msgpack.decode(msgspec.msgpack.encode(program), type=Program))
    for number, factor in ((0.5, 3.0), (-3.0, -1.0)):
        state = torch.ones(3)
        [result] = replay([state, torch.full((3,), 10.0)], (number, factor), 0)
        assert torch.equal(state, torch.full((3,), 1 + 10 * (number + 2)))
        assert torch.equal(result, state * factor)
    for wrong in ((), (1.0,), (1.0, 2.0, 3.0)):
        with pytest.raises(ProtocolError, match="a plan of 2 numbers was given"):
            replay([state, state], wrong, 0)


@pytest.mark.parametrize("which", [1, -1, "0", None, 0.0, [0]])
def test_a_number_that_no_call_brings_is_refused(which: Any) -> None:
    signature = Signature("mul.Tensor", [{"tensor": 0}, {"given": which}], {}, 0)
    program = Program([signature], [Step(0, [0], [], [1])], 1, [1], 2, 0, numbers=1)
    with pytest.raises(ProtocolError):
        Replay(program)
    callee = Callee(Signature("mul.Tensor", [{"tensor": 0}, {"given": 0}], {}, 0))
    with pytest.raises(ProtocolError, match="outside a plan"):
        callee([torch.ones(1)], (), 0)


def test_one_program_serves_all_batch_sizes(alice: RemoteWorker, tmp_path: Path) -> None:
    ran = []

    def counted(*arguments: Any) -> torch.Tensor:
        ran.append(1)
        return train(*arguments)

    plan = fedmpi.plan(counted, dynamic=True)
    there, here = alice.send(cnn()), cnn()
    optimizer_there = torch.optim.SGD(there.parameters(), lr=0.1)
    optimizer_here = torch.optim.SGD(here.parameters(), lr=0.1)
    for n in (8, 5, 2, 8, 30):
        x, y = torch.randn(n, 12), torch.randint(0, 3, (n,))
        loss = plan(there, optimizer_there, alice.send(x), alice.send(y))
        torch.testing.assert_close(loss.get(), train(here, optimizer_here, x, y))
    assert len(ran) == 3  # at three sizes, before the first call
    x, y = (alice.send(t) for t in batches(1)[0])
    assert "n = input" in plan.code(there, optimizer_there, x, y)
    plan.record(there, optimizer_there, x, y).save(tmp_path / "any.plan")
    loaded = fedmpi.RecordedPlan.load(tmp_path / "any.plan")
    assert loaded.code() == plan.code(there, optimizer_there, x, y)
    state = [*there.parameters(), *there.buffers()]
    [loss] = loaded(*state, alice.send(torch.randn(4, 12)), alice.send(torch.tensor([0, 1, 2, 0])))
    assert loss.get().isfinite()


def test_shapes_follow_the_batch_size(alice: RemoteWorker) -> None:
    @fedmpi.plan(dynamic=True)
    def shapes(x: torch.Tensor) -> list[torch.Tensor]:
        return [x.t(), x.reshape(-1), torch.cat([x, x])[1:], x @ x.t(), x.mean()]

    for n in (2, 3, 7, 1, 0):
        x = torch.randn(n, 4)
        for found, expected in zip(shapes(alice.send(x)), shapes.function(x), strict=True):
            assert (found.shape, found.stride()) == (expected.shape, expected.stride())
            torch.testing.assert_close(found.get(), expected, equal_nan=True)


def test_another_dependence_on_the_batch_size_is_refused(alice: RemoteWorker) -> None:
    x = alice.send(torch.ones(4, 2))
    functions = (lambda t: t * (1 / len(t)), lambda t: t.sum() if len(t) > 4 else t.sum() + 1)
    for function in functions:
        with pytest.raises(UsageError, match="for all batch sizes"):
            fedmpi.plan(function, dynamic=True)(x)


def test_another_module_is_recorded_anew(alice: RemoteWorker) -> None:
    """Also one that takes the place of one that has gone, or one whose parts were changed."""
    x = alice.send(torch.linspace(-1, 1, 5))
    run = fedmpi.plan(lambda module, x: module(x))
    for activation in (nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.ELU(), nn.ReLU6()):
        module = alice.send(nn.Sequential(activation))
        assert torch.equal(run(module, x).get(), activation(x.get()))
        module[0] = nn.Softplus()
        assert torch.equal(run(module, x).get(), F.softplus(x.get()))
        del module
    dropout = alice.send(nn.Sequential(nn.Dropout(0.5)))
    assert not torch.equal(run(dropout, x).get(), x.get())
    dropout[0].eval()
    assert torch.equal(run(dropout, x).get(), x.get())
