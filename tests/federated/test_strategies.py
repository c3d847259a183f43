"""Every strategy: against a plain reference, to the bit between worlds, and what it refuses."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fedmpi.config import (
    DEFAULTS,
    CommConfig,
    Config,
    DetectConfig,
    FederatedConfig,
    Recipe,
    StrategyConfig,
)
from fedmpi.errors import DataError, UsageError
from fedmpi.federated.client_step import ClientStep
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.job import Job, Observer
from fedmpi.federated.strategies import STRATEGIES
from fedmpi.federated.strategies.fedprox import FedProx
from fedmpi.federated.strategies.scaffold import CONTROL, Controlled
from fedmpi.federated.strategies.server import FedAdam
from fedmpi.federated.strategy import Cohort, Mean, Strategy
from fedmpi.workers.crew import Crew
from fedmpi.workers.in_process import in_process_crew
from tests.comm.worlds import World
from tests.federated import reference, reference_strategies
from tests.federated.factories import Mixed
from tests.federated.lab import (
    BAD,
    Played,
    bits,
    config_of,
    furthest,
    known,
    play,
    play_alone,
    with_path,
)
from tests.federated.strategies_of_mine import ProximalMomentum

OWN = "tests.federated.factories:"
MINE = "tests.federated.strategies_of_mine:"
KINDS = [kind for kind in DEFAULTS if kind != "fedavg"]
OPTIONS = {"fedprox": {"mu": 0.5}, "fedavgm": {"server_lr": 0.7}, "scaffold": {"server_lr": 0.8}}
"""Others than the defaults, so that each is seen to be used."""


def chosen(kind: str, **options: float) -> StrategyConfig:
    return StrategyConfig(kind, **{**OPTIONS.get(kind, {}), **options})


def job(folder: Path, workers: int, kind: str, **how) -> Config:
    how = {"rounds": 3, "batch_size": 9, "fraction": 0.4, "strategy": chosen(kind), **how}
    return config_of(folder, workers, **how)


def numbers(strategy: StrategyConfig, kind: str) -> dict[str, float]:
    filled = strategy.filled(DEFAULTS[kind])
    return {name: filled.number(name) for name in DEFAULTS[kind]}


def strategy_in(played: Played) -> Strategy:
    return played.job._rounds.strategy


# ---- against the reference ----


@pytest.mark.parametrize(("model", "epochs"), [("softmax", 2), (OWN + "small_resnet", 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_it_agrees_with_the_plain_reference(
    tmp_path: Path, kind: str, model: str, epochs: int
) -> None:
    """Running statistics and counters of batch norm follow the plain mean of the updates.

    More steps of a model with a ReLU magnify the last bit: see test_tutorials.
    """
    config = job(tmp_path, 3, kind, model=model, epochs=epochs)
    played = play_alone(config, 3)
    start = known(config)
    first, options = deepcopy(start.model), numbers(config.federated.strategy, kind)
    reference_strategies.play(
        kind, start.model, start.clients, start.cohorts, config.federated, 10, config.seed, options
    )
    assert furthest(played.model, start.model) <= 2e-6
    # It is not FedAvg by another name.
    reference.fed_avg(first, start.clients, start.cohorts, config.federated, 10, config.seed)
    assert furthest(played.model, first) > 1e-4


@pytest.mark.parametrize("kind", ["fedavg", "fedprox", "fednova"])
def test_clients_with_momentum_and_weight_decay(tmp_path: Path, kind: str) -> None:
    how = {"model": "softmax", "epochs": 2, "momentum": 0.6, "weight_decay": 0.05}
    config = job(tmp_path, 3, kind, **how)
    played, start = play_alone(config, 3), known(config)
    options = {} if kind == "fedavg" else numbers(config.federated.strategy, kind)
    reference_strategies.play(
        kind, start.model, start.clients, start.cohorts, config.federated, 10, config.seed, options
    )
    assert furthest(played.model, start.model) <= 2e-6
    without = job(tmp_path, 3, kind, **how | {"momentum": 0.0})
    assert furthest(played.model, play_alone(without, 3).model) > 1e-4


def test_momentum_with_control_variates_is_refused() -> None:
    with pytest.raises(UsageError, match=r"momentum = 0\.5 with strategy scaffold"):
        Config(federated=FederatedConfig(momentum=0.5, strategy=StrategyConfig("scaffold")))


def test_no_pull_and_no_momentum_are_fedavg(tmp_path: Path) -> None:
    plain = bits(play_alone(job(tmp_path, 2, "fedavg"), 2).model)
    for strategy in (chosen("fedprox", mu=0.0), chosen("fedavgm", momentum=0.0, server_lr=1.0)):
        assert bits(play_alone(job(tmp_path, 2, "fedavg", strategy=strategy), 2).model) == plain


def test_one_client_has_nothing_to_normalise(tmp_path: Path) -> None:
    how = {"fraction": 0.01, "rounds": 3}
    nova, plain = (play_alone(job(tmp_path, 2, k, **how), 2).model for k in ("fednova", "fedavg"))
    assert furthest(nova, plain) <= 1e-6


@pytest.mark.parametrize("kind", ["fedadam", "fedprox", "scaffold", "fednova"])
def test_a_state_of_many_dtypes(tmp_path: Path, kind: str) -> None:
    """Tied weights, bfloat16, frozen and unused parameters, counters and flags."""
    config = job(tmp_path, 2, kind, model=OWN + "mixed", rounds=2, fraction=1.0)
    state = play_alone(config, 2).model.state_dict()
    assert state["unused"].tolist() == [7.0] * 3
    assert state["frozen"].tolist() == [5.0] * 2
    assert state["started"].tolist() == [True, True]
    assert torch.equal(state["again.weight"], state["decode.weight"])
    assert int(state["seen"]) > 0


# ---- the same bits, however it runs ----


@pytest.mark.parametrize("kind", KINDS)
def test_three_workers_and_a_star_give_the_bits_of_one(tmp_path: Path, kind: str) -> None:
    config = job(tmp_path, 1, kind, model=OWN + "small_resnet", epochs=1, rounds=2)
    expected = bits(play_alone(config, 1).model)
    three = with_path(config, tmp_path, 3)
    assert bits(play_alone(three, 3).model) == expected
    star = replace(three, comm=CommConfig(topology="star", chunk_kib=64))
    assert bits(play_alone(star, 3).model) == expected


@pytest.mark.parametrize("kind", ["fedyogi", "fedprox", "scaffold", "fednova"])
def test_every_world_gives_the_bits_of_one_worker(world: World, folder: Path, kind: str) -> None:
    def scenario(crew: Crew) -> None:
        expected = bits(play_alone(job(folder, 1, kind, evaluate_clients=True), 1).model)
        config = job(folder, len(crew.ranks), kind, evaluate_clients=True)
        assert bits(play(config, crew).model) == expected

    world.lead(scenario)


# ---- SCAFFOLD's control variates ----


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Controlled]:
    """The client steps of the workers of this process."""
    made: list[Controlled] = []
    original = Controlled.__init__

    def kept(self: Controlled, trainer: object) -> None:
        original(self, trainer)
        made.append(self)

    monkeypatch.setattr(Controlled, "__init__", kept)
    return made


def test_the_owners_variate_is_the_mean_of_the_clients(
    tmp_path: Path, steps: list[Controlled]
) -> None:
    config = job(tmp_path, 3, "scaffold", model="softmax", fraction=0.3)
    played = play_alone(config, 3)
    start = known(config)
    server = reference_strategies.play(
        "scaffold", start.model, start.clients, start.cohorts, config.federated, 10, config.seed,
        {"server_lr": 0.8},
    )  # fmt: skip
    found = {client: c_k for step in steps for client, c_k in step._variates.items()}
    assert sorted(found) == sorted({c for cohort in start.cohorts for c in cohort})
    for client, c_k in found.items():
        expected = torch.cat([t.flatten() for t in server.clients[client].values()])
        torch.testing.assert_close(c_k.double(), expected, rtol=1e-5, atol=1e-5)
    c = strategy_in(played).memory[CONTROL]
    mean = sum(c_k.double() for c_k in found.values()) / len(start.clients)
    torch.testing.assert_close(c, mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["fednova", "fedyogi"])
def test_a_client_that_is_left_out_is_as_if_it_had_not_been_there(
    tmp_path: Path, spoiled: Recipe, kind: str
) -> None:
    how = {"fraction": 1.0, "rounds": 3, "lr": 0.05, "batch_size": 7, "strategy": chosen(kind)}
    config = config_of(tmp_path, 2, spoiled, **how)
    played = play_alone(config, 2)
    start = known(config)
    cohorts = [[c for c in cohort if c != BAD] for cohort in start.cohorts]
    options = numbers(config.federated.strategy, kind)
    reference_strategies.play(
        kind, start.model, start.clients, cohorts, config.federated, 3, config.seed, options
    )
    assert [[e.client for e in m.excluded] for m in played.rounds] == [[BAD]] * 3
    assert furthest(played.model, start.model) <= 2e-5


def test_the_variate_of_a_client_that_is_left_out_does_not_change(
    tmp_path: Path, spoiled: Recipe, steps: list[Controlled]
) -> None:
    how = {"fraction": 1.0, "rounds": 3, "lr": 0.05, "strategy": chosen("scaffold")}
    played = play_alone(config_of(tmp_path, 2, spoiled, **how), 2)
    assert [[e.client for e in m.excluded] for m in played.rounds] == [[BAD]] * 3
    found = {client: c_k for step in steps for client, c_k in step._variates.items()}
    assert sorted(found) == [0, 1, 3, 4]
    mean = sum(c_k.double() for c_k in found.values()) / 5  # that of client 2 is still 0
    torch.testing.assert_close(strategy_in(played).memory[CONTROL], mean, rtol=0, atol=1e-6)


# ---- what the owner remembers ----


@pytest.mark.parametrize("kind", ["fedavgm", "fedyogi", "scaffold"])
def test_memory_comes_back(kind: str) -> None:
    model = Mixed(6, 3)
    state = FlatState(model)
    config = Config(federated=replace(Config().federated, strategy=chosen(kind)))
    torch.manual_seed(0)
    cohort = Cohort([0, 1], [5, 5], [1, 1], 4)

    def mean(strategy: Strategy) -> Mean:
        update = torch.linspace(-1, 1, state.numel, dtype=torch.float64)
        parts = {n: torch.ones(k, dtype=torch.float64) for n, k in strategy.parts().items()}
        return Mean(update, cohort, parts)

    first = STRATEGIES[kind](config, state)
    first.apply(mean(first))
    saved = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    vectors = [v.clone() for v in state.vectors]
    first.apply(mean(first))
    expected = [v.clone() for v in state.vectors]

    state.load(vectors)
    second = STRATEGIES[kind](config, state)
    second.load_state_dict(saved)
    second.apply(mean(second))
    assert all(torch.equal(a, b) for a, b in zip(state.vectors, expected, strict=True))
    assert {t.dtype for t in saved.values()} == {torch.float64}


def test_memory_of_another_strategy_is_refused() -> None:
    strategy = FedAdam(
        Config(federated=replace(Config().federated, strategy=chosen("fedadam"))),
        FlatState(torch.nn.Linear(2, 2)),
    )
    with pytest.raises(DataError, match=r"found none, but FedAdam .* has torch.float64 \[6\]"):
        strategy.load_state_dict({})
    longer = {name: torch.zeros(7, dtype=torch.float64) for name in strategy.state_dict()}
    with pytest.raises(DataError, match=r"found torch.float64 \[7\], but FedAdam"):
        strategy.load_state_dict(longer)
    with pytest.raises(DataError, match=r"other of .*: found torch.float32 \[1\], but .* has none"):
        strategy.load_state_dict(strategy.state_dict() | {"other": torch.zeros(1)})


# ---- a person's own ----


def play_own(config: Config, own: type[Strategy], workers: int) -> Played:
    with in_process_crew(workers) as crew:
        played = Played(Job(config, crew, own), [], [])
        played.job.run(Observer(played.rounds.append, played.clients.append))
    return played


def test_a_class_in_a_module(tmp_path: Path) -> None:
    """FedProx on the clients, FedAvgM at the owner; options from the configuration."""
    strategy = StrategyConfig(kind=MINE + "ProximalMomentum", mu=0.5, momentum=0.0)
    played = play_alone(job(tmp_path, 2, "fedavg", strategy=strategy), 2)
    assert played.job.config.federated.strategy == replace(strategy, server_lr=1.0)
    assert bits(played.model) == bits(play_alone(job(tmp_path, 2, "fedprox"), 2).model)
    # Its defaults: momentum 0.9, mu 0.01.
    by_class = play_own(job(tmp_path, 2, "fedavg", strategy=chosen("fedavg")), ProximalMomentum, 2)
    by_name = replace(strategy, mu=0.01, momentum=0.9)
    again = play_alone(job(tmp_path, 2, "fedavg", strategy=by_name), 2)
    assert bits(by_class.model) == bits(again.model) != bits(played.model)


def test_a_class_that_no_other_process_could_import(tmp_path: Path) -> None:
    """Its owner's side is its own; what it brings to the clients stands in a module."""

    class Half(FedProx):
        defaults = FedProx.defaults | {"server_lr": 0.5}

        def apply(self, mean: Mean) -> None:
            mean.update.mul_(self.options.number("server_lr"))
            super().apply(mean)

    config = job(tmp_path, 3, "fedavg", rounds=1)
    found = play_own(config, Half, 3)
    whole = play_alone(replace_strategy(config, StrategyConfig("fedprox")), 3)
    start = known(config).model.state_dict()
    for name, tensor in found.model.state_dict().items():
        middle = (start[name].double() + whole.model.state_dict()[name].double()) / 2
        torch.testing.assert_close(tensor.double(), middle, rtol=0, atol=1e-6)
    recorded = found.job.config.federated.strategy
    assert recorded.kind.endswith("<locals>.Half")
    assert (recorded.mu, recorded.server_lr) == (0.01, 0.5)


def test_parts_of_a_persons_own(tmp_path: Path) -> None:
    """FedExP in one round: the step is half the mean squared norm over that of the mean."""
    config = job(tmp_path, 3, "fedavg", rounds=1, strategy=StrategyConfig(MINE + "FedExP"))
    found = play_alone(config, 3).model
    plain = play_alone(replace_strategy(config, StrategyConfig()), 3).model
    start = known(config)
    norms = []
    for client in start.cohorts[0]:
        local = deepcopy(start.model)
        seeds = reference.seeds_of(config.seed, 1, client)
        reference.client_update(local, start.clients[client], config.federated, 0.1, 10, seeds)
        rows = len(start.clients[client][1])
        norms.append((rows, float((flat(local) - flat(start.model)).square().sum())))
    mean = sum(n * norm for n, norm in norms) / sum(n for n, _ in norms)
    update = flat(plain) - flat(start.model)
    step = max(1.0, mean / (2 * float(update.square().sum())))
    assert step > 1
    torch.testing.assert_close(flat(found), flat(start.model) + step * update, rtol=0, atol=1e-5)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def replace_strategy(config: Config, strategy: StrategyConfig) -> Config:
    return replace(config, federated=replace(config.federated, strategy=strategy))


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (StrategyConfig("nowhere_at_all:Mine"), "cannot import nowhere_at_all: ModuleNotFound"),
        (StrategyConfig(MINE + "FedExp"), r"no callable 'FedExp' \(did you mean 'FedExP'\?\)"),
        (StrategyConfig(MINE + "NoStrategy"), "expected a class derived from fedmpi.Strategy"),
        (StrategyConfig("torch:sum"), "strategy torch:sum: expected a class derived from"),
        (StrategyConfig("__main__:Mine"), "is a class of a script: run that script again"),
        (StrategyConfig(MINE + "FedExP", tau=0.1), "FedExP, which does not use it: it has no opt"),
        (StrategyConfig(MINE + "ProximalMomentum", tau=0.1), "are server_lr, momentum, mu"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_class_that_cannot_be(tmp_path: Path, strategy: StrategyConfig, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        play_alone(job(tmp_path, 1, "fedavg", strategy=strategy), 1)


def test_a_client_step_without_its_option_is_refused(tmp_path: Path) -> None:
    strategy = StrategyConfig(MINE + "Forgets")
    with pytest.raises(UsageError, match=r"strategy\.mu = 'auto', but strategy .*Forgets has no"):
        play_alone(job(tmp_path, 2, "fedavg", strategy=strategy), 2)


def test_a_client_step_that_workers_cannot_import_is_refused(tmp_path: Path) -> None:
    class Local(Strategy):
        client_step = ClientStep

    with pytest.raises(UsageError, match=r"client_step of .*Local runs on the workers, who cannot"):
        play_own(job(tmp_path, 1, "fedavg"), Local, 1)


def test_two_strategies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"kind = 'fedadam' with strategy=FedProx: name one"):
        play_own(job(tmp_path, 1, "fedadam"), FedProx, 1)
    cyclic = config_of(tmp_path, 1, mode="cyclic")
    with pytest.raises(UsageError, match=r"federated\.strategy\.kind with mode = 'cyclic'"):
        play_own(cyclic, FedProx, 1)


def test_parts_that_nobody_would_see_to_are_refused(tmp_path: Path) -> None:
    how = {"strategy": StrategyConfig(MINE + "FedExP"), "detect": DetectConfig(score=True)}
    with pytest.raises(UsageError, match=r"FedExP' with detect\.score"):
        play_alone(config_of(tmp_path, 1, **how), 1)
