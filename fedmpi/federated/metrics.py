"""What one round leaves behind: the record that becomes a line of metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedmpi.spdz.traffic import Traffic

PHASES = ("broadcast", "train", "aggregate", "evaluate", "wait")


@dataclass(frozen=True)
class Excluded:
    """A client whose update was left out of the round."""

    client: int
    rank: int
    reason: str


@dataclass(frozen=True)
class Suspect:
    """A client that looks like an attacker, whether or not its update was used.

    Attributes:
        client, rank: the client and the worker that holds it.
        score: how far from the other clients, at least 0.
        reason: what stands out, for a person.
        excluded: whether its update was left out.
    """

    client: int
    rank: int
    score: float
    reason: str
    excluded: bool


@dataclass(frozen=True)
class LostWorker:
    """A worker that has died, and what became of its clients.

    Attributes:
        rank: of the worker.
        host: its node.
        reason: what is known of its end.
        moved: (client, rank) of its clients that train on another rank from this round on.
        lost: its clients whose rows nobody else can read: they are in no further round.
    """

    rank: int
    host: str
    reason: str
    moved: list[tuple[int, int]]
    lost: list[int]


@dataclass(frozen=True)
class ClientScore:
    """How far a client is from the others in a round.

    Attributes:
        round: number of the round, from 1.
        client, rank: the client and the worker that holds it.
        score: over all rounds up to this one, see `Detector`.
        deviation: of this round alone.
        norm: of the update, over the median of the cohort.
        cosine: of the update to the sum of the others.
        past: cosine to the client's own last update; None at its first.
        nearest: largest cosine to another client's update.
        twin: that client.
        root_loss: loss on the root set of the model with this update; None if not measured.
    """

    round: int
    client: int
    rank: int
    score: float
    deviation: float
    norm: float
    cosine: float
    past: float | None
    nearest: float
    twin: int
    root_loss: float | None


@dataclass(frozen=True)
class RoundMetrics:
    """One round, as the owner saw it.

    Attributes:
        round: number of the round, from 1.
        clients: clients whose updates are in the new model.
        examples: rows these clients hold together.
        lr: local learning rate of this round.
        train_loss: mean loss over the local steps, weighted by rows; None if nobody is to know.
        test_loss, test_metric: on the held-out rows; None in a round without evaluation.
        metric: what test_metric is: "accuracy" (share, 0..1) or "r2".
        seconds: wall time of the round.
        phases: wall seconds by phase (see PHASES); they add up to `seconds`. `train` is
            the mean over the round's workers, so `wait` holds the imbalance between them.
        train_max: wall seconds that the slowest worker trained.
        idle_seconds, idle_cpu: wall and CPU seconds of the owner while its workers trained;
            idle_cpu / idle_seconds is the share of a core that its waiting costs.
        bytes_sent, messages_sent: by all ranks together in this round.
        excluded: clients left out, with the reason.
        traffic: of a training on shares, what it sent, by operator.
        dropped: clients that dropped out in the middle of the round.
        repeated: how often the round was begun anew, without clients that were lost.
        mask_seconds: wall seconds that the masks of secure aggregation took: the mean over the
            round's workers, who add them, and of the owner, who removes what has not cancelled.
        suspects: clients that look like attackers.
        epsilon: of (epsilon, delta)-differential privacy, spent up to this round.
        clip: norm to which updates were clipped.
        stopped: why training ends with this round, before the last one that was asked for.
        trusted: clients in which the owner has any trust (FLTrust).
        attack_success: share of the held-out rows for which an attack got what it wanted.
        lost: workers that have died in it; it was begun anew without them.
    """

    round: int
    clients: int
    examples: int
    lr: float
    train_loss: float | None
    test_loss: float | None
    test_metric: float | None
    metric: str
    seconds: float
    phases: dict[str, float]
    train_max: float
    bytes_sent: int
    messages_sent: int
    idle_seconds: float = 0.0
    idle_cpu: float = 0.0
    excluded: list[Excluded] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    repeated: int = 0
    mask_seconds: float | None = None
    suspects: list[Suspect] = field(default_factory=list)
    epsilon: float | None = None
    clip: float | None = None
    stopped: str = ""
    attack_success: float | None = None
    trusted: int | None = None
    lost: list[LostWorker] = field(default_factory=list)


@dataclass(frozen=True)
class ClientMetrics:
    """The global model evaluated on one client's own rows.

    Attributes:
        round: number of the round, from 1.
        client, rank: the client and the worker that holds it.
        rows: rows of the client.
        loss, metric: on these rows; metric is what the job's test metric is.
    """

    round: int
    client: int
    rank: int
    rows: int
    loss: float
    metric: float
