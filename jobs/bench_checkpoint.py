"""What a checkpoint after every round costs a run.

    python -m jobs.bench_checkpoint          (make bench-checkpoint)

The CNN on the embedded digits of MNIST, 28 clients, half of them a round, E = 1, B = 10, on worker
threads. A run without checkpoints and one with a checkpoint after every round take turns, so that
a slow moment of the machine hits both. The two do the same work to the bit, so that each round is
compared with the same round of the run beside it.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console

from fedmpi.config import CheckpointConfig, Config, DataConfig, FederatedConfig, StrategyConfig
from fedmpi.federated.checkpoint_file import read_checkpoint, write_checkpoint
from fedmpi.study.recorded_run import Recorded, run
from fedmpi.workers.in_process import in_process_crew

PLANS = {
    "none": CheckpointConfig(every_minutes=0.0),
    "every round": CheckpointConfig(every_rounds=1),
}


def play(options: argparse.Namespace, out: Path, name: str, turn: int) -> Recorded:
    federated = FederatedConfig(
        rounds=options.rounds,
        epochs=1,
        lr=0.1,
        strategy=StrategyConfig(kind=options.strategy),
    )
    config = Config(
        model=options.model,
        data=DataConfig(),
        federated=federated,
        checkpoint=PLANS[name],
        out=str(out),
        name=f"{name.replace(' ', '-')}-{turn}",
    )
    with in_process_crew(options.workers) as crew:
        return run(config, crew, Console(file=io.StringIO()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--strategy", default="fedavg")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.pairs):
            # Whoever comes second finds the caches warm: they change places.
            order = list(PLANS) if turn % 2 else list(reversed(PLANS))
            done = {name: play(options, Path(folder), name, turn) for name in order}
            pairs = zip(done["every round"].metrics, done["none"].metrics, strict=True)
            # The first round has nothing to write beside it.
            ratios += [kept.seconds / plain.seconds for kept, plain in list(pairs)[1:]]
            latest = done["every round"]
        round_seconds = statistics.median(m.seconds for m in latest.metrics)
        [path] = list(latest.folder.checkpoints.glob(f"round-{options.rounds:06}.h5"))
        checkpoint, size = read_checkpoint(path), path.stat().st_size
        begun = time.perf_counter()
        write_checkpoint(path.with_name("again.h5"), checkpoint)
        writing = time.perf_counter() - begun
    ratios.sort()
    print(f"{options.model}, {options.strategy}: a round takes {round_seconds:.3f} s")
    print(f"a checkpoint has {size / 1e6:.1f} MB and takes {1e3 * writing:.0f} ms to write, alone")
    print(
        f"with a checkpoint after every round / without: median {statistics.median(ratios):.4f} of "
        f"{len(ratios)} rounds ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


if __name__ == "__main__":
    main()
