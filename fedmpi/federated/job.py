"""A federated job: set up once, then rounds until the end. What `fedmpi run` runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from fedmpi import models
from fedmpi.config import Config, DataConfig
from fedmpi.data.shard import Batch
from fedmpi.errors import UsageError
from fedmpi.federated.attacks import appoint, check_attack
from fedmpi.federated.averaging import Averaging
from fedmpi.federated.backdoor import attack_success
from fedmpi.federated.clipped_gradients import refuse_shared_statistics
from fedmpi.federated.cohort import cohort_of_round
from fedmpi.federated.commands import ClientsEvaluated, EvaluateClients
from fedmpi.federated.cyclic import Cyclic
from fedmpi.federated.datasets import Dataset, open_dataset
from fedmpi.federated.device import pick
from fedmpi.federated.evaluate import Evaluation, evaluate, metric_name
from fedmpi.federated.examined import Examined
from fedmpi.federated.flat_state import FlatState
from fedmpi.federated.local_privacy import LocalPrivacy
from fedmpi.federated.metrics import ClientMetrics, ClientScore, RoundMetrics
from fedmpi.federated.needs import keeps_updates
from fedmpi.federated.remembered import Remembers
from fedmpi.federated.root_set import RootSet, draw_root
from fedmpi.federated.rounds import Home, Outcome, Rounds
from fedmpi.federated.seeds import derive
from fedmpi.federated.strategies import for_workers, settled
from fedmpi.federated.strategy import Strategy
from fedmpi.federated.survivors import Survivors
from fedmpi.workers.crew import Crew


@dataclass(frozen=True)
class Observer:
    """What is told of a job while it runs.

    Attributes:
        round: after every round.
        clients: after a round whose clients were evaluated: all of them.
        scores: after a round whose clients were scored: those of the cohort.
        ended: after a round of which all has been told: a job may be left here, and go on later.
        keeps: whether the state after a round will be kept: it is then evaluated at once.
    """

    round: Callable[[RoundMetrics], None]
    clients: Callable[[list[ClientMetrics]], None]
    scores: Callable[[list[ClientScore]], None] = lambda scores: None
    ended: Callable[[int], None] = lambda number: None
    keeps: Callable[[int], bool] = lambda number: False


class Job:
    """Owner and workers, ready for rounds: data opened and checked, models built.

    Args:
        config: of the job.
        crew: idle workers, at least one.
        strategy: a class of the caller's own, in place of the one that the configuration names.
        dataset: of the caller's own, likewise.

    Attributes:
        config: with what was left open filled in, so that it says how to do the same again.
        remarks: what a person should know before the first round, a line each.
        model: the owner's; its first weights depend on the seed alone.
        dataset: what is trained and evaluated on.
        evaluated: rows that are evaluated: all held-out rows but the owner's root set.
        attackers: clients that attack.
        home: where the clients live.
        played: rounds that have ended.

    Raises:
        UsageError, DataError: what the configuration names cannot be, or does not fit.
        RemoteError: the same, found by a worker.
    """

    def __init__(
        self,
        config: Config,
        crew: Crew,
        strategy: type[Strategy] | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        config, strategy = settled(config, strategy)
        self.config = config
        self.crew = crew
        torch.set_num_threads(config.compute.threads)
        self.dataset: Dataset = dataset or open_dataset(config, crew)
        if config.federated.target_accuracy and not self.dataset.classes:
            raise UsageError(
                f"target_accuracy = {config.federated.target_accuracy} with a regression, which "
                "has no accuracy: leave it out"
            )
        check_attack(config.attack, self.dataset.row_shape, self.dataset.classes)
        self.model = self._make_model()
        home = self.dataset.set_up_workers(for_workers(config, strategy), crew, self.model)
        self.home, self.begun, self.played = home, 0, 0
        self.attackers = appoint(config, crew, home.rank)
        device = pick(config.compute.device, crew.endpoint.transport.local_rank)
        self.config = resolved(config, self.dataset, crew, device)
        state = FlatState(self.model, device)
        self._rounds = _make_rounds(config, crew, home, state, strategy)
        self._unevaluated: RoundMetrics | None = None
        self.remarks = self._rounds.remarks()
        local = config.federated.privacy.kind == "local"
        self._privacy = LocalPrivacy(config, crew, home) if local else None
        self._survivors = Survivors(config, crew, self.dataset, home, self.attackers)
        self._device, self._test = device, self.dataset.test()
        if config.federated.needs_root:
            rows, self._test = draw_root(config, self._test)
            classes, trained = self.dataset.classes, for_workers(config, strategy)
            self._rounds.root = RootSet(trained, rows, self.model, classes, device)
            self.remarks.append(
                f"{len(rows[1])} of the held-out rows are the owner's root set, "
                f"{self.evaluated} are evaluated"
            )

    @property
    def evaluated(self) -> int:
        return self._test.rows

    def _make_model(self) -> nn.Module:
        name, shape, classes = self.config.model, self.dataset.row_shape, self.dataset.classes
        torch.manual_seed(derive(self.config.seed, "model"))
        model = models.build(name, shape, classes)
        models.check(model, name, shape, classes)
        if self.config.federated.privacy.kind == "local":
            refuse_shared_statistics(model, name, shape)
        return model

    def carried(self) -> dict[str, Remembers]:
        """What the owner carries from round to round: what clients do stays with the workers."""
        local = {"local_privacy": self._privacy} if self._privacy else {}
        return self._rounds.carried() | local

    @property
    def gone(self) -> list[int]:
        """Clients that died with a worker, ascending."""
        return self._survivors.gone

    def go_on_after(self, number: int, gone: list[int]) -> None:
        """Goes on after a round, without the clients that had died by then."""
        self.begun = self.played = number
        self._survivors.leave_out(gone)

    def run(self, observer: Observer) -> None:
        """Trains on up to the configured rounds, the target accuracy or the privacy budget.

        Raises:
            RemoteError: a worker failed.
            FedMPIError: an update could not be used and the job is to stop at that.
        """
        try:
            self._play_all(observer)
        finally:
            # The round after it failed before it could be evaluated.
            if self._unevaluated:
                observer.round(self._unevaluated)

    def _play_all(self, observer: Observer) -> None:
        federated, clock = self.config.federated, time.perf_counter
        ended, sent = clock(), self._rounds.traffic()
        for number in range(self.played + 1, federated.rounds + 1):
            begun, sent_before = clock(), sent
            self.begun = number
            lr = federated.lr * federated.lr_decay ** (number - 1)
            cohort, outcome = self._survivors.insist(partial(self._play, number, lr, observer))
            played = clock()
            if self._privacy:
                outcome.findings["epsilon"] = self._privacy.after_round(cohort)
            stopped = "" if number == federated.rounds else self._exhausted(number)
            due = number % federated.eval_every == 0 or number == federated.rounds or bool(stopped)
            last = number == federated.rounds or bool(stopped)
            # What a checkpoint holds has been evaluated.
            later = due and not last and federated.overlap_evaluation and not observer.keeps(number)
            evaluate_all = partial(self._evaluate, number, observer)
            found = self._survivors.insist(evaluate_all) if due and not later else None
            opened = self._attack_success() if due and not later else None
            now, sent = clock(), self._rounds.traffic()
            phases = dict(outcome.phases)
            phases["evaluate"] += now - played
            # While the owner wrote the last round's records, the workers waited.
            phases["wait"] += begun - ended
            tell = self._leave if later else observer.round
            tell(
                RoundMetrics(
                    round=number,
                    clients=outcome.clients,
                    examples=outcome.examples,
                    lr=lr,
                    train_loss=outcome.train_loss,
                    test_loss=found.loss if found else None,
                    test_metric=found.metric if found else None,
                    metric=metric_name(self.dataset.classes),
                    seconds=now - ended,
                    phases=phases,
                    train_max=outcome.train_max,
                    idle_seconds=outcome.idle_seconds,
                    idle_cpu=outcome.idle_cpu,
                    bytes_sent=sent[0] - sent_before[0],
                    messages_sent=sent[1] - sent_before[1],
                    excluded=outcome.excluded,
                    stopped=stopped,
                    attack_success=opened,
                    lost=self._survivors.take_lost(),
                    **outcome.findings,
                )
            )
            if self._rounds.scores:
                observer.scores(self._rounds.scores)
            ended, self.played = now, number
            observer.ended(number)
            if stopped or (found and 0 < federated.target_accuracy <= found.metric):
                break

    def _play(self, number: int, lr: float, observer: Observer) -> tuple[list[int], Outcome]:
        """A round over a cohort of the clients that there are."""
        federated, clients = self.config.federated, self._survivors.clients
        cohort = cohort_of_round(
            self.config.seed, number, clients, federated.fraction, federated.sampling
        )
        meanwhile = partial(self._catch_up, observer) if self._unevaluated else None
        return cohort, self._rounds.play(number, cohort, lr, meanwhile)

    def _exhausted(self, number: int) -> str:
        """Why there can be no round after this one; empty if there can be one."""
        return self._privacy.exhausted(number) if self._privacy else self._rounds.exhausted()

    def _evaluate(self, number: int, observer: Observer) -> Evaluation:
        found = evaluate(self.model, self._attended(), self.dataset.classes, self._device)
        if self.config.federated.evaluate_clients:
            with self._rounds.broadcast(self.crew.ranks):
                self.crew.tell_all(self.crew.ranks, EvaluateClients())
            replies = self.crew.hear(self.crew.ranks, ClientsEvaluated)
            clients = [
                ClientMetrics(number, client, rank, rows, loss, metric)
                for rank, reply in zip(self.crew.ranks, replies, strict=True)
                for client, rows, loss, metric in reply.clients
            ]
            observer.clients(sorted(clients, key=lambda c: c.client))
        return found

    def _attended(self) -> Iterator[Batch]:
        """The evaluated rows; between two blocks, what is under way to the workers goes on."""
        for block in self._test:
            self.crew.endpoint.attend()
            yield block

    def _leave(self, metrics: RoundMetrics) -> None:
        """Evaluates a round later, while the workers train the next one."""
        self._unevaluated = metrics

    def _catch_up(self, observer: Observer) -> None:
        """Evaluates the round before, whose model the owner still has, and tells of it."""
        assert self._unevaluated is not None
        found, opened = self._evaluate(self._unevaluated.round, observer), self._attack_success()
        metrics, self._unevaluated = self._unevaluated, None
        observer.round(
            replace(metrics, test_loss=found.loss, test_metric=found.metric, attack_success=opened)
        )

    def _attack_success(self) -> float | None:
        attack = self.config.attack
        if attack.kind != "backdoor":
            return None
        return attack_success(self.model, self._test, attack, self._device)


def _make_rounds(
    config: Config, crew: Crew, home: Home, state: FlatState, strategy: type[Strategy]
) -> Rounds:
    if config.federated.mode == "cyclic":
        return Cyclic(config, crew, home, state)
    kind = Examined if keeps_updates(config) else Averaging
    return kind(config, crew, home, state, strategy(config, state))


def resolved(config: Config, dataset: Dataset, crew: Crew, device: torch.device) -> Config:
    """The configuration with what was left open filled in: it says how to do the same again."""
    data = config.data
    return replace(
        config,
        data=DataConfig(
            **vars(dataset.recipe), path=data.path, cache_mib=data.cache_mib, verify=data.verify
        ),
        comm=replace(config.comm, workers=len(crew.ranks)),
        compute=replace(config.compute, device="cpu" if device.type == "cpu" else "cuda"),
    )
