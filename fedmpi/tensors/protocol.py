"""Protocols: a function over several workers, recorded once as plans with moves in between.

    @fedmpi.protocol
    def average(a, b):                      # a on alice, b on bob
        return (a + b.copy(alice)) / 2

A call of the protocol is one message per plan and two per move; no worker waits for the owner.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from fedmpi.errors import UsageError
from fedmpi.tensors.assemble import Recorded, assemble
from fedmpi.tensors.layout import Layout, layout_of
from fedmpi.tensors.link import Link
from fedmpi.tensors.plan import fill_outputs, inputs_of, kind_of, optimised, recorded_plan
from fedmpi.tensors.pointer import PointerTensor
from fedmpi.tensors.record import Recorder, stand_in, take_outputs
from fedmpi.tensors.recorded_plan import RecordedPlan
from fedmpi.workers.command import Command
from fedmpi.workers.operate import Give, Take

Place = tuple[int, int]
"""A worker's number in the protocol, and an id on it."""


class Run(NamedTuple):
    """A plan on one worker.

    Attributes:
        actor: number of the worker.
        plan: what it runs.
        inputs: ids of the plan's inputs.
        outputs: ids of its outputs.
    """

    actor: int
    plan: RecordedPlan
    inputs: list[int]
    outputs: list[int]


class Move(NamedTuple):
    """An object from one worker to another; forgotten on the first unless it is kept."""

    source: Place
    target: Place
    keep: bool


class _Call(NamedTuple):
    actor: int
    call: Recorded


class _Actor(Recorder):
    """Stands in for the link of one worker while a protocol is recorded."""

    def __init__(self, scene: _Scene, number: int, link: Link) -> None:
        super().__init__()
        self.scene = scene
        self.number = number
        self.link = link

    def peer(self, link: Link) -> Any:
        """The stand-in of another worker."""
        return self.scene.actor(link)

    def call(self, *call: Any) -> None:
        self.scene.events.append(_Call(self.number, Recorded(*call[:-1])))

    def tell(self, command: Command, *tensors: Any) -> Any:
        if isinstance(command, Give):
            self.scene.given = (self.number, command.key), command.keep
        elif isinstance(command, Take):
            source, keep = self.scene.given
            self.scene.events.append(Move(source, (self.number, command.key), keep))
        else:
            super().tell(command)


class _Scene:
    """All workers of a protocol while it is recorded."""

    def __init__(self) -> None:
        self.actors: dict[int, _Actor] = {}
        self.events: list[_Call | Move] = []
        self.given: tuple[Place, bool] = ((0, 0), True)

    def actor(self, link: Any) -> _Actor:
        """The stand-in for a link; a stand-in stands for itself."""
        if isinstance(link, _Actor):
            return link
        return self.actors.setdefault(id(link), _Actor(self, len(self.actors), link))


class _Script(NamedTuple):
    """A recorded protocol: what happens, between which workers, what comes out."""

    acts: list[Run | Move]
    links: list[Link]
    inputs: list[Place]
    outputs: list[Place]
    returned: Any


class Protocol:
    """A function of tensors on several workers; recorded once per kind of arguments.

    Args:
        function: of tensors, modules, and lists, tuples and dicts of them; moves tensors with
            `pointer.move(worker)` and `pointer.copy(worker)`.
        fuse: as for a plan.
    """

    def __init__(self, function: Callable[..., Any], fuse: bool = True) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.fuse = fuse
        self._scripts: dict[tuple[Any, ...], _Script] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Runs the protocol; returns what the function returns, with pointers for tensors.

        Raises:
            UsageError: a tensor is here, or the function cannot be recorded.
        """
        inputs = inputs_of(arguments)
        script = self._script(arguments, inputs)
        there: dict[Place, Any] = dict(zip(script.inputs, inputs, strict=True))
        for act in script.acts:
            if isinstance(act, Move):
                source, target = there[act.source], script.links[act.target[0]]
                there[act.target] = source.give(target, act.keep)
                continue
            given = [there[act.actor, key] for key in act.inputs]
            made = act.plan.run(given, script.links[act.actor])
            for key, pointer in zip(act.outputs, made, strict=True):
                there[act.actor, key] = pointer
        return fill_outputs(script.returned, [there[place] for place in script.outputs])

    def code(self, *arguments: Any) -> str:
        """The plans and moves for such arguments, as a person can read them."""
        script = self._script(arguments, inputs_of(arguments))
        lines = []
        for act in script.acts:
            if isinstance(act, Move):
                (source, key), (target, new) = act.source, act.target
                verb = "copy" if act.keep else "move"
                ranks = script.links[source].rank, script.links[target].rank
                lines.append(f"{verb} object {key} of rank {ranks[0]} to rank {ranks[1]} as {new}")
            else:
                rank = script.links[act.actor].rank
                lines.append(f"on rank {rank}, objects {act.inputs} to objects {act.outputs}:")
                lines.append(act.plan.code())
        return "\n".join(lines)

    def _script(self, arguments: Sequence[Any], inputs: Sequence[torch.Tensor]) -> _Script:
        for tensor in inputs:
            if not isinstance(tensor, PointerTensor):
                raise UsageError(
                    f"a protocol runs on workers, but one of its tensors {list(tensor.shape)} is "
                    "here: send it first"
                )
        links = tuple(t.remote.link for t in inputs if isinstance(t, PointerTensor))
        key = (links, *(kind_of(a) for a in arguments))
        if key not in self._scripts:
            self._scripts[key] = _record(self.function, arguments, inputs, self.fuse)
        return self._scripts[key]


def protocol(function: Callable[..., Any] | None = None, *, fuse: bool = True) -> Any:
    """Decorator: see `Protocol`."""
    if function is None:
        return functools.partial(protocol, fuse=fuse)
    return Protocol(function, fuse)


def _record(
    function: Callable[..., Any], arguments: Sequence[Any], inputs: Sequence[Any], fuse: bool
) -> _Script:
    scene = _Scene()
    stand_ins: dict[int, Any] = {
        id(t): stand_in(scene.actor(t.remote.link), t, layout_of(t)) for t in inputs
    }
    places = [_place(stand_ins[id(t)]) for t in inputs]
    with torch.random.fork_rng(devices=[]):
        returned = function(*copy.deepcopy(tuple(arguments), stand_ins))
    outputs: list[PointerTensor] = []
    tree = take_outputs(returned, outputs)
    wanted = [_place(pointer) for pointer in outputs]
    layouts = {place: layout_of(t) for place, t in zip(places, inputs, strict=True)}
    acts = _acts(scene.events, layouts, wanted, fuse)
    return _Script(acts, [a.link for a in scene.actors.values()], places, wanted, tree)


def _place(pointer: PointerTensor) -> Place:
    actor: Any = pointer.remote.link
    return actor.number, pointer.remote.key


def _acts(
    events: Sequence[_Call | Move], layouts: dict[Place, Layout], wanted: list[Place], fuse: bool
) -> list[Run | Move]:
    """Calls between the moves become plans, as few as the moves allow."""
    acts: list[Run | Move] = []
    waiting: dict[int, list[Recorded]] = {}

    def close(actor: int, later: Sequence[_Call | Move]) -> None:
        calls = waiting.pop(actor, [])
        if not calls:
            return
        needed = _needed(actor, later) | {key for a, key in wanted if a == actor}
        made = [key for call in calls for key in call.results if key]
        used = {key for call in calls for key in call.tensors} - set(made)
        inputs = {key: layouts[actor, key] for key in sorted(used)}
        outputs = [key for key in made if key in needed]
        assembled = assemble(calls, inputs, outputs)
        plan = recorded_plan(f"part{len(acts)}", optimised(assembled, fuse))
        acts.append(Run(actor, plan, list(inputs), outputs))

    for position, event in enumerate(events):
        if isinstance(event, Move):
            close(event.source[0], events[position:])
            acts.append(event)
            layouts[event.target] = _arrived(layouts[event.source])
            continue
        actor, call = event
        waiting.setdefault(actor, []).append(call)
        for key, there in zip(call.results, call.known.results, strict=True):
            if isinstance(there, Layout):
                layouts[actor, key] = there
    for actor in list(waiting):
        close(actor, ())
    return acts


def _needed(actor: int, later: Sequence[_Call | Move]) -> set[int]:
    """Ids of a worker that are read after this."""
    found: set[int] = set()
    for event in later:
        if isinstance(event, Move):
            found |= {event.source[1]} if event.source[0] == actor else set()
        elif event.actor == actor:
            found.update(event.call.tensors)
    return found


def _arrived(there: Layout) -> Layout:
    """The layout of an object after a move: contiguous."""
    return layout_of(torch.empty(there.shape, dtype=there.dtype, device="meta"))
