"""The table of commands: what is in it is obeyed, everything else is refused."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fedmpi.federated.client_memory as client_memory
import fedmpi.federated.commands as federated
import fedmpi.federated.encrypting as encrypting
import fedmpi.federated.kept as kept
import fedmpi.federated.masking as masking
import fedmpi.federated.taking_over as taking_over
import fedmpi.workers.logs as logs
import fedmpi.workers.operate as operate
import fedmpi.workers.vectors as vectors
from fedmpi.comm.frame import ProtocolError
from fedmpi.config import Config, Recipe
from fedmpi.data.normalise import Normalisation
from fedmpi.federated.attacks import Appoint
from fedmpi.federated.checkpoint_file import ClientsFile
from fedmpi.federated.ckks_parameters import Parameters
from fedmpi.federated.encrypted_sum import Plan
from fedmpi.federated.local_privacy import ChooseNoise
from fedmpi.workers import command as table
from fedmpi.workers.command import Command, Stop, decode_command, entry_of
from fedmpi.workers.load_shard import LoadShard
from fedmpi.workers.program import Program, Step
from fedmpi.workers.seal import ConfirmSeal, ReadKey, Seal
from fedmpi.workers.shards import WriteShards
from fedmpi.workers.signature import Signature
from fedmpi.workers.vectors import Route

ROUTE = Route([0, 1, 2], "tree", 4096)
SET_UP = federated.SetUp(Config(), "data/x", [1, 28, 28], 10, False, 1)
ADD = Signature("add_.Tensor", [{"tensor": 0}, {"tensor": 1}], {"alpha": {"given": 0}}, 0)
PROGRAM = Program([ADD], [Step(0, [0, 1], [], [-1])], 2, [], 2, 0, numbers=1)
COMMANDS: list[Command] = [
    Stop(3),
    federated.Borrow({7: 0, 9: 2}),
    vectors.Broadcast("model", ROUTE, ["float32", "int64"], [1000, 3]),
    vectors.ReduceSum("sum", ROUTE, 1003),
    ReadKey("key"),
    Seal([b"a", b"b"]),
    ConfirmSeal(),
    WriteShards(Recipe(), 3, "data/x", [0, 2]),
    SET_UP,
    federated.SetUpScattered(SET_UP, Normalisation()),
    federated.LearnStep([PROGRAM]),
    federated.Train(1, [3, 5], [0.25, 0.75], 0.1, {"update": 7}),
    federated.Hop(1, [3], 0.1, 0, 2, 4096),
    federated.Report(),
    logs.OpenLog("runs/it/logs"),
    taking_over.TakeShard("data/x", 2),
    taking_over.TakeRows(Normalisation()),
    federated.EvaluateClients(),
    kept.TrainAndKeep(1, [3, 5], [0.25, 0.75], 0.1),
    kept.GiveBlock([3, 5], 0, 1000),
    kept.PutBlock([3, 5], 1000),
    kept.SumKept([3], [0.5]),
    client_memory.KeepMemory("runs/x", 3),
    client_memory.RecallMemory("runs/x", [ClientsFile("x.h5", "ab", [3])]),
    masking.Agree(1, 0, [3, 5], [1, 2]),
    masking.MaskSum(),
    masking.Unmask(1, 0, [5]),
    encrypting.MakeKeys(Parameters(8192, 44), [0, 2], [1]),
    encrypting.TakeKeys(Parameters(8192, 44), 1, False),
    encrypting.EncryptSum(Plan(1, 1000, [1, 2], 0, [1])),
    Appoint([3]),
    ChooseNoise(20),
    operate.Operate(
        [(0, Signature("add.Tensor", [{"tensor": 0}, 2], {}, 8))],
        [operate.Call(1, 0, [1], [0.5, 3], [2], 7)],
        [1],
    ),
    operate.Put(1, ["#x"], "rows", True),
    operate.Fetch(1),
    operate.Give(1, 2, False),
    operate.Take(1, 2),
    operate.MakePrivate(1),
    operate.Accept(3),
    operate.Look(["#x"]),
    operate.Clear(),
    operate.Limit(2**40),
    operate.Threads(2),
    operate.Introduce(),
    operate.Wait(),
    LoadShard("data/x", [1, 2, 3, 4], True, True),
]
NAMES = [type(command).__name__ for command in COMMANDS]


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_every_command_arrives_as_it_was_sent(command: Command) -> None:
    assert decode_command(raw(command)) == command


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_every_command_but_stop_has_a_handler(command: Command) -> None:
    if not isinstance(command, Stop):
        assert callable(entry_of(command).handler)


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_a_field_of_a_wrong_type_is_refused(command: Command) -> None:
    fields = msgspec.to_builtins(command)
    for field in fields:
        for wrong in (None, [[{}]]):
            with pytest.raises(ProtocolError, match="a frame without a known command"):
                decode_command(raw({**fields, field: wrong}))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"type": "Exec", "code": "import os"},
        {"type": "stop"},
        {"type": "Command"},
        {"type": ["Stop"]},
        {"type": "Failure", "sentence": "", "exit_status": 0, "traceback": ""},  # a reply
        {"type": "Train", "round": 1},
        {"type": "Train", "round": 1.5, "clients": [], "weights": [], "lr": 0.1},
        {"type": "ReduceSum", "key": "s", "length": 1,
         "route": {"group": [0], "topology": "ring", "chunk_bytes": 1}},
        {"type": "ReduceSum", "key": "s", "length": 1,
         "route": {"group": [0, 1], "topology": [0], "chunk_bytes": 1}},
        {**msgspec.to_builtins(SET_UP), "config": {"seed": -1}},
        "Stop",
        7,
    ],
    ids=str,
)  # fmt: skip
def test_what_no_owner_sends_is_refused(fields: Any) -> None:
    with pytest.raises(ProtocolError, match="a frame without a known command"):
        decode_command(raw(fields))


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(COMMANDS), st.data())
def test_random_fields_are_refused_or_a_command(command: Command, data: st.DataObject) -> None:
    fields = msgspec.to_builtins(command)
    for field in data.draw(st.sets(st.sampled_from(sorted(fields)))):
        fields[field] = data.draw(anything)
    refused_or_a_command(raw(fields))


@given(st.binary(max_size=100))
@example(b"")
@example(b"\x82\xa4type\xa4Stop\xa1x" + b"\x91" * 500_000)
@example(b"\x81\xa4type\xa3\xff\xff\xff")
def test_random_bytes_are_refused(message: bytes) -> None:
    refused_or_a_command(msgspec.Raw(message))


def refused_or_a_command(message: msgspec.Raw) -> None:
    with suppress(ProtocolError):
        assert isinstance(decode_command(message), Command)


def test_no_command_goes_untested() -> None:
    import fedmpi.federated.obeyed  # noqa: F401 - all of them

    rooms = ("fedmpi.workers.", "fedmpi.federated.")
    known = {t.__name__ for t in table._handlers if t.__module__.startswith(rooms)}
    assert known == {*NAMES} - {"Stop"}
