"""Scores of clients: who stands out in a round, and who keeps standing out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpi.config import Config
from fedmpi.config.federated import cohort_size
from fedmpi.errors import UsageError
from fedmpi.federated.count_sketch import CountSketch
from fedmpi.federated.deviations import (
    SMALLEST_COHORT,
    Signs,
    cosines,
    deviations,
    reason,
    together,
)
from fedmpi.federated.metrics import ClientScore, Suspect
from fedmpi.federated.remembered import as_text, from_text
from fedmpi.federated.robust.distances import Distances
from fedmpi.federated.seeds import derive

ALLOWANCE = 3.5
"""Deviation of a round that an honest client may have for ever without its score growing."""


class Detector:
    """Scores the clients of every round by their updates.

    The score is a cumulative sum (CUSUM, Page 1954, "Continuous inspection schemes"):
    S = max(0, S + deviation - ALLOWANCE), where a deviation counts for at most twice the
    threshold, and S as well. One large deviation makes a suspect at once, small ones that repeat
    do so after some rounds, and a client that behaves again is cleared.

    Args:
        config: of the job.
        rank: of the worker that holds each client.
    """

    def __init__(self, config: Config, rank: dict[int, int]) -> None:
        self.config = config
        self._rank = rank
        self._threshold = config.federated.detect.threshold
        self._score: dict[int, float] = {}
        self._past: dict[int, NDArray[np.float32]] = {}
        self._reasons: dict[int, str] = {}  # of the last time that a score grew

    def begin(self, number: int, clients: Sequence[int]) -> None:
        """A round; the updates of these clients come next, block by block."""
        self._number, self._clients = number, list(clients)
        n = len(clients)
        self._products = Distances(n)
        self._sketch = CountSketch(derive(self.config.seed, "sketch"), n)

    def look(self, columns: slice, block: torch.Tensor) -> None:
        """A block of the updates, float32 [clients, columns], in order of the columns."""
        self._products.add(block)
        self._sketch.add(columns.start, block)

    def scores(self, losses: Sequence[float] | None = None) -> list[ClientScore]:
        """Scores of the round's clients once all blocks have been seen; remembers them.

        Args:
            losses: on the root set of the model with each client's update, if measured.
        """
        signs, twins = self._signs(losses)
        found = deviations(signs)
        total = together(found)
        most = 2 * self._threshold
        median = float(np.median(signs.norm)) or 1.0
        scores = []
        for row, client in enumerate(self._clients):
            deviation, twin = float(total[row]), self._clients[twins[row]]
            score = self._score.get(client, 0.0) + min(deviation, most) - ALLOWANCE
            self._score[client] = min(max(score, 0.0), most)
            if deviation > ALLOWANCE:
                self._reasons[client] = reason(signs, found, row, twin)
            past, loss = float(signs.past[row]), float(signs.root_loss[row])
            scores.append(
                ClientScore(
                    round=self._number,
                    client=client,
                    rank=self._rank[client],
                    score=self._score[client],
                    deviation=deviation,
                    norm=float(signs.norm[row]) / median,
                    cosine=float(signs.cosine[row]),
                    past=None if math.isnan(past) else past,
                    nearest=float(signs.nearest[row]),
                    twin=twin,
                    root_loss=None if math.isnan(loss) else loss,
                )
            )
        return scores

    def suspects(self, scores: Sequence[ClientScore]) -> list[Suspect]:
        """The clients beyond the threshold, ascending.

        Those with the highest scores are excluded, if that is asked for, as long as half of the
        cohort is left: where more are suspects, the scores cannot be right.
        """
        beyond = sorted(
            (s for s in scores if s.score >= self._threshold), key=lambda s: (-s.score, s.client)
        )
        most = len(scores) // 2 if self.config.federated.detect.exclude else 0
        out = {s.client for s in beyond[:most]}
        found = [
            Suspect(s.client, s.rank, s.score, self._reasons[s.client], s.client in out)
            for s in beyond
        ]
        return sorted(found, key=lambda s: s.client)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Scores, reasons and latest updates of the clients seen so far, see `Remembers`."""
        scored, seen = list(self._score), list(self._past)
        past = np.array([self._past[client] for client in seen], dtype=np.float32)
        return {
            "scored": torch.tensor(scored, dtype=torch.int64),
            "score": torch.tensor(list(self._score.values()), dtype=torch.float64),
            "seen": torch.tensor(seen, dtype=torch.int64),
            "past": torch.from_numpy(past),
            "reasons": from_text(json.dumps(self._reasons)),
        }

    def load_state_dict(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state_dict` gave."""
        scored, seen = saved["scored"].tolist(), saved["seen"].tolist()
        self._score = dict(zip(scored, saved["score"].tolist(), strict=True))
        self._past = dict(zip(seen, saved["past"].numpy().copy(), strict=True))
        reasons = json.loads(as_text(saved["reasons"]))
        self._reasons = {int(client): why for client, why in reasons.items()}

    def _signs(self, losses: Sequence[float] | None) -> tuple[Signs, NDArray[np.int64]]:
        gram = self._products.inner().numpy()
        cosine, nearest, twins = cosines(gram)
        past = np.full(len(self._clients), np.nan)
        for row, client in enumerate(self._clients):
            sketch = self._sketch.sums[row]
            if client in self._past:
                past[row] = _cosine(sketch, self._past[client])
            self._past[client] = sketch.astype(np.float32)
        root_loss = np.array(losses) if losses is not None else np.full(len(past), np.nan)
        return Signs(np.sqrt(np.diag(gram)), cosine, past, nearest, root_loss), twins


def detector_of(config: Config, rank: dict[int, int]) -> Detector | None:
    """The detector that a configuration asks for, or none.

    Raises:
        UsageError: a cohort is too small for its clients to be compared.
    """
    if not config.federated.detect.score:
        return None
    cohort = cohort_size(len(rank), config.federated.fraction)
    if cohort < SMALLEST_COHORT:
        raise UsageError(
            f"detect.score with {cohort} of {len(rank)} clients in a round: it takes at least "
            f"{SMALLEST_COHORT} to tell who stands out; raise fraction or clients"
        )
    return Detector(config, rank)


def _cosine(one: NDArray[np.float64], other: NDArray[np.float32]) -> float:
    """Of two sketches, -1 to 1; 0 if one of them is 0."""
    wide = other.astype(np.float64)
    lengths = float(np.linalg.norm(one) * np.linalg.norm(wide))
    return float(np.clip(one @ wide / lengths, -1, 1)) if lengths else 0.0
