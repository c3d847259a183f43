"""Commands on a worker's tensors: compute with them, take them, give them, look for them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch

from fedmpi.comm.endpoint import Channel
from fedmpi.comm.frame import ProtocolError
from fedmpi.comm.threads import Aborted
from fedmpi.decoding import from_msgpack
from fedmpi.errors import FedMPIError
from fedmpi.workers.command import Answer, Command, Reply, handles
from fedmpi.workers.objects import NoSuchObject, ObjectStore, Refused
from fedmpi.workers.program import Program, Replay
from fedmpi.workers.signature import Callee, Number, Signature
from fedmpi.workers.worker import Worker

CALLEES = "callees"
"""Id in a worker's store: the signatures that it knows, by number."""

abandoned: list[Callable[[int, int, str], None]] = []
"""Told of a failed call that other workers make too and wait in: its first number, how many it
has, and why it failed."""


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One operator.

    Attributes:
        number: of the call, counted by the owner per worker; names it in a failure.
        signature: number of a signature that this worker was told.
        tensors: ids that fill its tensor slots.
        numbers: that fill its number slots.
        results: ids of its results, 0 for what has no new object: an input changed in place.
        seed: of a random operator.
        dead: ids to forget before it, so that their memory is free for its results.
    """

    number: int
    signature: int
    tensors: list[int]
    numbers: list[Number]
    results: list[int]
    seed: int = 0
    dead: list[int] = []


class Operate(Command, frozen=True):
    """Learn signatures and programs, call them in order, then forget objects."""

    signatures: list[tuple[int, Signature | Program]]
    calls: list[Call]
    dead: list[int]


class Put(Command, frozen=True):
    """Store the one tensor of this frame."""

    key: int
    tags: list[str]
    description: str
    private: bool


class Fetch(Command, frozen=True):
    """Send an object's tensor to the owner."""

    key: int


class Fetched(Reply, frozen=True):
    """The one tensor of this frame is the object's."""


class Give(Command, frozen=True):
    """Send an object to another worker, straight; forget it here if it is to move."""

    key: int
    to: int
    keep: bool


class Take(Command, frozen=True):
    """Store the object that another worker gives."""

    key: int
    source: int


class Given(Command, frozen=True):
    """From worker to worker: an object, or why there is none."""

    tags: list[str]
    description: str
    private: bool
    refusal: str = ""


class MakePrivate(Command, frozen=True):
    """Do not give this object to the owner any more, nor what is computed from it."""

    key: int


class Accept(Command, frozen=True):
    """Give the results of this plan to the owner, even if they come of private objects."""

    signature: int


class Look(Command, frozen=True):
    """Say which objects have all of these tags."""

    tags: list[str]


class Described(msgspec.Struct, frozen=True, array_like=True):
    """An object, without its values."""

    key: int
    shape: list[int]
    stride: list[int]
    offset: int
    dtype: str
    nbytes: int
    tags: list[str]
    description: str
    private: bool


class Found(Reply, frozen=True):
    """Objects of a worker, in the order of their ids, and the memory of all it has."""

    objects: list[Described]
    nbytes: int


class Clear(Command, frozen=True):
    """Forget all objects."""


class Limit(Command, frozen=True):
    """Take at most so many bytes of tensors."""

    nbytes: int


class Threads(Command, frozen=True):
    """Compute with so many PyTorch threads; the bits of a result depend on it."""

    threads: int


class Introduce(Command, frozen=True):
    """Say on which machine you are."""


class Introduced(Reply, frozen=True):
    """The name of the worker's node."""

    host: str


class Wait(Command, frozen=True):
    """Answer when all before it is done."""


class Done(Reply, frozen=True):
    """All before it is done."""


class Withheld(FedMPIError):
    """A call that failed on what its worker keeps: what PyTorch says of it would tell values."""


# A failed call spoils what depends on it and nothing else: the store knows which ids were
# lost, so these commands go on after a failure.


@handles(Operate, always=True)
def operate(worker: Worker, command: Operate, tensors: list[torch.Tensor]) -> None:
    """A call that fails is noted, and its results stay missing."""
    callees: dict[int, Callee | Replay | Exception] = worker.store.setdefault(CALLEES, {})
    for number, signature in command.signatures:
        try:
            callees[number] = (
                Replay(signature) if isinstance(signature, Program) else Callee(signature)
            )
        except Exception as error:
            callees[number] = error
    objects = worker.objects
    with torch.no_grad():
        for call in command.calls:
            objects.delete(call.dead)
            try:
                _call(objects, callees, call)
            except NoSuchObject as error:
                # That call is the consequence of another, which has been or will be told.
                _lose(worker, callees, call, error, error.why)
            except Aborted:
                raise
            except Withheld as error:
                _lose(worker, callees, call, error, str(error))
            except Exception as error:
                why = f"{_name(callees, call)} failed on rank {worker.rank}: {error}"
                _lose(worker, callees, call, error, why)
    objects.delete(command.dead)


def _lose(
    worker: Worker,
    callees: dict[int, Callee | Replay | Exception],
    call: Call,
    error: Exception,
    why: str,
) -> None:
    worker.objects.lose(call.results, why)
    worker.note_failure(error, call.number)
    callee = callees.get(call.signature)
    if isinstance(callee, Callee | Replay) and callee.numbers:
        for tell in abandoned:
            tell(call.seed, callee.numbers, why)


def _name(callees: dict[int, Callee | Replay | Exception], call: Call) -> str:
    callee = callees.get(call.signature)
    return callee.name if isinstance(callee, Callee | Replay) else "an operator"


def _call(
    objects: ObjectStore, callees: dict[int, Callee | Replay | Exception], call: Call
) -> None:
    callee = callees.get(call.signature)
    if not isinstance(callee, Callee | Replay):
        # Raised once more for each call: its traceback must not grow.
        known = callee and callee.with_traceback(None)
        raise known or ProtocolError(f"a call of an unknown signature {call.signature}")
    if callee.nbytes:
        objects.make_room(callee.nbytes)
    operands = [objects.tensor(key) for key in call.tensors]
    private = objects.any_private and any(objects.is_private(key) for key in call.tensors)
    shared = bool(callee.numbers) or (
        objects.any_shared and any(objects.is_shared(key) for key in call.tensors)
    )
    accepted = isinstance(callee, Replay) and callee.accepted

    def written(key: int) -> None:
        if private:
            objects.make_private(key)
        if shared:
            objects.make_shared(key)

    kept = private or shared
    if kept:
        # Before the operator runs: one that fails halfway has written too.
        for slot in callee.written:
            written(call.tensors[slot])
    versions = [operand._version for operand in operands] if kept else []
    try:
        results = _flat(callee(operands, call.numbers, call.seed))
    except FedMPIError:
        raise  # our own sentences tell shapes and ranks, and no values
    except Exception:
        if not kept:
            raise
        shapes = ", ".join(str(list(operand.shape)) for operand in operands)
        is_kept = "private" if private else "shares"
        raise Withheld(
            f"{callee.name} failed on rank {objects.rank}, on tensors of {shapes}: why is not "
            f"told, since it could tell values that are {is_kept}"
        ) from None
    finally:
        # PyTorch counts what is written, through views and inside a plan too.
        for key, operand, version in zip(call.tensors, operands, versions, strict=False):
            if operand._version != version:
                written(key)
    if len(results) != len(call.results):
        raise ProtocolError(f"{callee.name} has {len(results)} results, not {len(call.results)}")
    for key, result in zip(call.results, results, strict=True):
        if key and result is None:
            objects.lose([key], f"{callee.name} gave no such result")
        elif key:
            objects.put(key, result, private=private and not accepted, shared=shared)


def _flat(result: Any) -> Sequence[Any]:
    """The results of an operator in order, lists among them laid out."""
    if isinstance(result, torch.Tensor):
        return (result,)
    if result is None:
        return ()
    if isinstance(result, list | tuple):
        return [tensor for part in result for tensor in (_flat(part) or [None])]
    raise FedMPIError(f"an operator returned {type(result).__name__}, not a tensor")


@handles(Put, always=True)
def put(worker: Worker, command: Put, tensors: list[torch.Tensor]) -> None:
    """Stores what arrived."""
    [tensor] = tensors
    _keep(worker, command.key, tensor, command)


def _keep(worker: Worker, key: int, tensor: torch.Tensor, about: Put | Given) -> None:
    try:
        worker.objects.put(key, tensor, about.tags, about.description, private=about.private)
    except Refused as error:
        worker.objects.lose([key], str(error))
        raise


@handles(Fetch, replies=True)
def fetch(worker: Worker, command: Fetch, tensors: list[torch.Tensor]) -> Answer:
    """Refuses what is private."""
    tensor = worker.objects.tensor(command.key)
    if worker.objects.is_private(command.key):
        raise Refused(
            f"rank {worker.rank} keeps object {command.key} private: it does not leave the worker"
        )
    if worker.objects.is_shared(command.key):
        raise Refused(
            f"rank {worker.rank} keeps object {command.key} to itself, a share or what was opened "
            "under a mask: reveal() gives the sum of all shares"
        )
    return Answer(Fetched(), [tensor])


@handles(Give, always=True)
def give(worker: Worker, command: Give, tensors: list[torch.Tensor]) -> None:
    """Sends a copy, since what follows here may change that memory; refuses in words."""
    objects = worker.objects
    try:
        stored = objects.stored(command.key)
        if objects.is_shared(command.key):
            raise NoSuchObject(worker.rank, command.key, "a share does not leave its party")
    except NoSuchObject as error:
        given = Given([], "", False, refusal=error.why)
        worker.endpoint.send(command.to, Channel.PEER, given)
        return
    given = Given(list(stored.tags), stored.description, objects.is_private(command.key))
    copy = stored.tensor.clone(memory_format=torch.contiguous_format)
    worker.endpoint.send(command.to, Channel.PEER, given, [copy])
    if not command.keep:
        objects.delete([command.key])


@handles(Take, always=True)
def take(worker: Worker, command: Take, tensors: list[torch.Tensor]) -> None:
    """Waits for the other worker."""
    frame = worker.endpoint.receive(Channel.PEER, command.source)
    given = from_msgpack(frame.message, Given)
    if given.refusal:
        worker.objects.lose([command.key], given.refusal)
        raise NoSuchObject(worker.rank, command.key, given.refusal)
    [tensor] = frame.tensors
    _keep(worker, command.key, tensor, given)


@handles(MakePrivate, always=True)
def make_private(worker: Worker, command: MakePrivate, tensors: list[torch.Tensor]) -> None:
    """From here on."""
    worker.objects.make_private(command.key)


@handles(Accept, always=True)
def accept(worker: Worker, command: Accept, tensors: list[torch.Tensor]) -> None:
    """Of this very program: if another one is learnt under the number, it is not accepted."""
    replay = worker.store.get(CALLEES, {}).get(command.signature)
    if not isinstance(replay, Replay):
        raise ProtocolError(f"there is no plan {command.signature} to accept")
    replay.accepted = True


@handles(Look, replies=True)
def look(worker: Worker, command: Look, tensors: list[torch.Tensor]) -> Found:
    """Tensors do not leave the worker."""
    wanted = set(command.tags)
    objects = worker.objects
    keys = sorted(key for key, stored in objects.items() if wanted <= set(stored.tags))
    return Found([describe(objects, key) for key in keys], objects.nbytes)


def describe(objects: ObjectStore, key: int) -> Described:
    """What the owner may know of an object."""
    stored = objects.stored(key)
    return Described(
        key,
        list(stored.tensor.shape),
        list(stored.tensor.stride()),
        int(stored.tensor.storage_offset()),
        str(stored.tensor.dtype).removeprefix("torch."),
        stored.tensor.nbytes,
        list(stored.tags),
        stored.description,
        objects.is_private(key),
    )


@handles(Clear, replies=True, always=True)
def clear(worker: Worker, command: Clear, tensors: list[torch.Tensor]) -> Done:
    """All of them."""
    worker.objects.clear()
    return Done()


@handles(Limit, always=True)
def limit(worker: Worker, command: Limit, tensors: list[torch.Tensor]) -> None:
    """For all that comes."""
    worker.objects.limit = command.nbytes


@handles(Threads, replies=True, always=True)
def use_threads(worker: Worker, command: Threads, tensors: list[torch.Tensor]) -> Done:
    """Of this rank, or of this thread where the workers are threads."""
    torch.set_num_threads(command.threads)
    return Done()


@handles(Introduce, replies=True)
def introduce(worker: Worker, command: Introduce, tensors: list[torch.Tensor]) -> Introduced:
    """As the node calls itself."""
    return Introduced(socket.gethostname())


@handles(Wait, replies=True)
def wait(worker: Worker, command: Wait, tensors: list[torch.Tensor]) -> Done:
    """Nothing to do but to answer."""
    return Done()
