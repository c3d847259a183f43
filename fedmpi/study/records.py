"""The files to which the rounds of a run are written while it goes on."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from fedmpi.config import Config
from fedmpi.federated.metrics import ClientMetrics, ClientScore, RoundMetrics
from fedmpi.study.metrics_file import ClientsWriter, MetricsWriter, cut_back
from fedmpi.study.run_folder import RunFolder


class Records:
    """metrics.jsonl, and clients.jsonl and scores.jsonl if they are asked for.

    Args:
        folder: of the run.
        config: of the job.
        go_on_after: round after which the files that are there go on; None: the files are new.
    """

    def __init__(self, folder: RunFolder, config: Config, go_on_after: int | None) -> None:
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._metrics = stack.enter_context(MetricsWriter(folder.metrics, go_on_after))
            self._others: dict[str, ClientsWriter] = {}
            asked = {
                folder.clients: config.federated.evaluate_clients,
                folder.scores: config.federated.detect.score,
            }
            for path, wanted in asked.items():
                if wanted:
                    writer = stack.enter_context(ClientsWriter(path, go_on_after))
                    self._others[path.name] = writer
                elif go_on_after is not None and path.exists():
                    cut_back(path, go_on_after)
            self._clients = self._others.get(folder.clients.name)
            self._scores = self._others.get(folder.scores.name)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def round(self, metrics: RoundMetrics) -> None:
        """Appends a round."""
        self._metrics.write(metrics)

    def clients(self, clients: list[ClientMetrics]) -> None:
        """Appends the clients of a round that were evaluated."""
        if self._clients:
            self._clients.write(clients)

    def scores(self, scores: list[ClientScore]) -> None:
        """Appends the clients of a round that were scored."""
        if self._scores:
            self._scores.write(scores)

    def sync(self) -> None:
        """Waits until all lines are on the disk; from any thread."""
        for writer in (self._metrics, *self._others.values()):
            writer.sync()
