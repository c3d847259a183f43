"""The offline phase: what was dealt beforehand gives the results of dealing at once, one time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch
from torch import nn

import fedmpi as fm
from fedmpi.errors import DataError, UsageError
from fedmpi.spdz.material import Material, deal
from fedmpi.tensors.recorded_plan import RecordedPlan
from tests.launch import ROOT


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))


@fm.plan(masks_outside=False)
def infer(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = network(x)
    return found


def saved(folder: Path, parties: int) -> Path:
    """The plan of the model, recorded by so many parties."""
    path = folder / "mlp.plan"
    with fm.simulate(workers=parties) as workers:
        x = fm.share(torch.randn(3, 5), *workers)
        infer.record(fm.share(model(), *workers), x).save(path)
    return path


@pytest.mark.parametrize("parties", [2, 3])
def test_runs_take_what_was_dealt(parties: int, tmp_path: Path) -> None:
    path = tmp_path / "material"
    deal(RecordedPlan.load(saved(tmp_path, parties)), path, parties, runs=3)
    assert path.stat().st_mode & 0o077 == 0
    network = model()
    with fm.simulate(workers=parties) as workers:
        shared = fm.share(network, *workers)
        with fm.material(path, *workers) as dealt:
            for _ in range(2):
                x = torch.randn(3, 5)
                found = infer(shared, fm.share(x, *workers)).reveal()
                torch.testing.assert_close(found, network(x), atol=1e-3, rtol=0)
            assert (dealt.taken, dealt.left) == (2, 1)
            assert dealt.offline_bytes > 0
        # After it, the dealer deals at once again; the file goes on where it was left.
        x = torch.randn(3, 5)
        again = infer(shared, fm.share(x, *workers)).reveal()
        torch.testing.assert_close(again, network(x), atol=1e-3, rtol=0)
        with fm.material(path, *workers) as dealt:
            infer(shared, fm.share(x, *workers)).reveal()
            with pytest.raises(UsageError, match="used up after 1 runs"):
                infer(shared, fm.share(x, *workers))
        with (
            pytest.raises(UsageError, match="used up: all its 3 runs"),
            fm.material(path, *workers),
        ):
            pass


def test_other_plans_are_dealt_for_at_once(tmp_path: Path) -> None:
    path = tmp_path / "material"
    deal(RecordedPlan.load(saved(tmp_path, 2)), path, 2, runs=1)
    with fm.simulate(workers=2) as workers, fm.material(path, *workers) as dealt:
        x = torch.randn(4, 4)
        torch.testing.assert_close((2 * fm.share(x, *workers)).reveal(), 2 * x, atol=1e-3, rtol=0)
        assert dealt.taken == 0


CRASH = """
import os, signal, sys
from fedmpi.spdz import material
synced, sync = [], os.fsync
os.fsync = lambda file: (sync(file), synced.append(os.fstat(file).st_ino))
drawn = material.Material(sys.argv[1])
print(synced == [os.stat(sys.argv[1]).st_ino], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_crash_uses_all_up(tmp_path: Path) -> None:
    """That all runs are used is on the disk before any is drawn."""
    path = tmp_path / "material"
    deal(RecordedPlan.load(saved(tmp_path, 2)), path, 2, runs=5)
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "True\n"), done.stderr
    with pytest.raises(UsageError, match="used up"):
        Material(path)


def test_the_file_is_closed_to_others_from_the_start(tmp_path: Path) -> None:
    plan, umask, seen = RecordedPlan.load(saved(tmp_path, 2)), os.umask(0), []

    def note(run: int) -> None:
        [temporary] = tmp_path.glob(".material.tmp-*")
        seen.append(temporary.stat().st_mode & 0o777)

    try:
        deal(plan, tmp_path / "material", 2, runs=2, progress=note)
    finally:
        os.umask(umask)
    assert seen == [0o600, 0o600]
    assert (tmp_path / "material").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o777])
def test_a_file_that_is_open_to_others(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "material"
    deal(RecordedPlan.load(saved(tmp_path, 2)), path, 2, runs=2)
    path.chmod(mode)
    with pytest.raises(UsageError, match=rf"open to others \(mode {mode:o}\): chmod 600"):
        Material(path)
    path.chmod(0o600)
    opened = Material(path)
    assert opened.left == 2  # nothing was used up by the refusal
    opened.close()


def test_two_programs_do_not_draw_from_one_file(tmp_path: Path) -> None:
    path = tmp_path / "material"
    deal(RecordedPlan.load(saved(tmp_path, 2)), path, 2, runs=3)
    first = Material(path)
    first.take()
    with pytest.raises(UsageError, match="another program draws from"):
        Material(path)
    first.close()
    second = Material(path)
    assert (second.left, second.take() - first._first) == (2, first._steps)
    second.close()


def test_a_file_that_takes_the_place_of_one_in_use(tmp_path: Path) -> None:
    """What was taken of the old one is not written into the new one."""
    path, plan = tmp_path / "material", RecordedPlan.load(saved(tmp_path, 2))
    deal(plan, path, 2, runs=3)
    old = Material(path)
    deal(plan, path, 2, runs=3)
    new = Material(path)
    new.take()
    new.close()
    with pytest.raises(DataError, match="was replaced by another file"):
        old.close()
    again = Material(path)
    assert again.left == 2
    again.close()


def test_each_file_has_keys_and_numbers_of_its_own(tmp_path: Path) -> None:
    plan = RecordedPlan.load(saved(tmp_path, 2))
    found = []
    for name in ("one", "two"):
        deal(plan, tmp_path / name, 2, runs=1)
        with h5py.File(tmp_path / name) as file:
            found.append((file["keys"][:].tobytes(), int(file.attrs["first"])))
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_what_cannot_be_dealt_for(tmp_path: Path) -> None:
    plan = RecordedPlan.load(saved(tmp_path, 2))
    for parties, runs in ((1, 1), (2, 0)):
        with pytest.raises(UsageError, match="expected at least 2 and 1"):
            deal(plan, tmp_path / "material", parties, runs)
    with fm.simulate(workers=2) as workers:
        outside = fm.plan(lambda network, x: network(x))
        network, x = fm.share(model(), *workers), fm.share(torch.randn(3, 5), *workers)
        with pytest.raises(UsageError, match="masks_outside=False"):
            deal(outside.record(network, x), tmp_path / "material", 2, 1)
        clear = fm.plan(lambda x: x + 1).record(torch.randn(3))
        with pytest.raises(UsageError, match="no secret in it"):
            deal(clear, tmp_path / "material", 2, 1)
    assert not (tmp_path / "material").exists()


def test_another_number_of_parties_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "material"
    deal(RecordedPlan.load(saved(tmp_path, 2)), path, 2, runs=4)
    with fm.simulate(workers=3) as workers:
        with (
            pytest.raises(UsageError, match="dealt for 2 parties, but 3"),
            fm.material(path, *workers),
        ):
            pass
        with pytest.raises(DataError, match="cannot open"), fm.material(tmp_path / "no", *workers):
            pass
        (tmp_path / "text").write_text("no HDF5")
        with (
            pytest.raises(DataError, match="not an HDF5"),
            fm.material(tmp_path / "text", *workers),
        ):
            pass
    assert Material(path).left == 4  # nothing was used up by the refusal


def test_the_command(tmp_path: Path) -> None:
    plan = saved(tmp_path, 2)
    command = [sys.executable, "-m", "fedmpi", "deal", str(plan), "--runs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 runs for 2 parties" in " ".join(done.stdout.split())
    assert Material(tmp_path / "mlp.plan.material").left == 2
    missing = subprocess.run(
        [*command[:4], str(tmp_path / "no.plan")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert missing.returncode == 2
    assert "cannot read" in missing.stderr
    assert "Traceback" not in missing.stderr
