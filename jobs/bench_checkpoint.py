"""What a checkpoint after every round costs a run.

    python -m jobs.bench_checkpoint          (make bench-checkpoint)

The CNN on the embedded digits of MNIST, E = 1, B = 10, on worker threads. A checkpoint is written
after every second round, so that every second round has the writing beside its training. All rounds
do the same amount of work: the time that a round with writing takes, less the mean of the rounds
before and after it, is what the checkpoint added, and slow drifts of the machine cancel.

Rounds of half the clients take a second here, with a noise larger than what is looked for. What a
checkpoint adds does not depend on how long the round is, but the noise does: so it is measured in
rounds of one client for each worker, and told as a share of the rounds of half the clients. The
copy in memory is taken after every round in any case, and is told beside it. What clients remember
(SCAFFOLD) is written whole at every checkpoint, however few of them trained.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from fedmpi.config import CheckpointConfig, Config, DataConfig, FederatedConfig, StrategyConfig
from fedmpi.federated.checkpoint_file import read_checkpoint, write_checkpoint
from fedmpi.study.recorded_run import Recorded, run
from fedmpi.workers.in_process import in_process_crew


def play(
    options: argparse.Namespace, out: Path, fraction: float, rounds: int, every: int
) -> Recorded:
    """One run, with a checkpoint after every so many rounds, which are then not evaluated."""
    federated = FederatedConfig(
        rounds=rounds,
        fraction=fraction,
        epochs=1,
        lr=0.1,
        eval_every=rounds if every else 1,
        strategy=StrategyConfig(kind=options.strategy),
    )
    config = Config(
        model=options.model,
        data=DataConfig(),
        federated=federated,
        checkpoint=CheckpointConfig(every_rounds=every, every_minutes=0.0),
        out=str(out),
        name=f"every-{every}",
    )
    with in_process_crew(options.workers) as crew:
        return run(config, crew, Console(file=io.StringIO()))


def added(seconds: list[float]) -> list[float]:
    """What rounds 3, 5, 7, ... took beyond the mean of their neighbours, in seconds."""
    found = []
    for i in range(2, len(seconds) - 1, 2):
        before, beside, after = seconds[i - 1 : i + 2]
        found.append(beside - (before + after) / 2)
    return found


def interval_of_median(values: list[float]) -> tuple[float, float]:
    """95 % interval of the median, from 2,000 bootstrap samples."""
    sample = torch.tensor(values, dtype=torch.float64)
    drawn = torch.randint(len(values), (2000, len(values)), generator=torch.Generator())
    low, high = sample[drawn].median(dim=1).values.quantile(torch.tensor([0.025, 0.975]).double())
    return float(low), float(high)


def median_seconds(function: Callable[[], object], times: int = 9) -> float:
    """What a call takes."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--strategy", default="fedavg")
    parser.add_argument("--rounds", type=int, default=401, help="short ones, odd")
    parser.add_argument("--long-rounds", type=int, default=12, help="of half the clients")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        long = play(options, out, 0.5, options.long_rounds, 0)
        one_each = 0.5 * options.workers / long.metrics[0].clients
        short = play(options, out, one_each, options.rounds, 2)
        newest = max(short.folder.checkpoints.glob("round-*.h5"))
        checkpoint, size = read_checkpoint(newest), newest.stat().st_size
        writing = median_seconds(lambda: write_checkpoint(newest.with_name("again.h5"), checkpoint))
        copying = median_seconds(
            lambda: [t.to("cpu", copy=True) for t in checkpoint.state.values()]
        )
    whole = statistics.median(m.seconds for m in long.metrics[1:])
    seconds = [m.seconds for m in short.metrics]
    found = added(seconds)
    median, (low, high) = statistics.median(found), interval_of_median(found)
    print(
        f"{options.model}, {options.strategy}: a round of {long.metrics[0].clients} clients takes "
        f"{whole:.3f} s, of {short.metrics[0].clients} {statistics.median(seconds):.3f} s"
    )
    print(
        f"a checkpoint has {size / 1e6:.1f} MB; alone it takes {1e3 * writing:.1f} ms to write, "
        f"its copy in memory {1e3 * copying:.1f} ms"
    )
    print(
        f"it adds {1e3 * median:.1f} ms to a round it is written beside (median of {len(found)}, "
        f"95 % interval {1e3 * low:.1f} to {1e3 * high:.1f}): {100 * median / whole:.2f} % of a "
        f"round of {long.metrics[0].clients} clients ({100 * low / whole:.2f} to "
        f"{100 * high / whole:.2f})"
    )


if __name__ == "__main__":
    main()
