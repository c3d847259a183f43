"""Plans: a function that is recorded once and then runs on a worker by one call.

    @fedmpi.plan
    def step(model, optimizer, x, y):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    loss = step(model, optimizer, x, y)      # everything is on alice: one message

Whatever tensors the arguments hold (of modules and optimisers too) are the plan's inputs;
those that it changes in place live on the worker and are its states.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fedmpi.errors import UsageError
from fedmpi.tensors.assemble import Assembled
from fedmpi.tensors.batch_size import STEPS, generalise
from fedmpi.tensors.layout import layout_of
from fedmpi.tensors.link import Link
from fedmpi.tensors.passes import cancel_transposes, drop_dead, fuse_updates, merge_views, renumber
from fedmpi.tensors.pointer import HasLink, PointerTensor, point
from fedmpi.tensors.record import NewState, Output, is_elsewhere, leaves, record
from fedmpi.tensors.recorded_plan import RecordedPlan, place_of
from fedmpi.tensors.shared import SharedTensor
from fedmpi.workers.operate import Put


class Plan:
    """A function and what was recorded of it, one program per kind of arguments.

    Args:
        function: of tensors, modules, optimisers, and lists, tuples and dicts of them; other
            arguments are constants of the program. Runs once per kind of arguments.
        fuse: also make it faster in ways that change results within float rounding.
        dynamic: one program for all batch sizes from 2 up: for tensors among the arguments
            whose first dimension is that of the first one.
        masks_outside: shared parameters that it does not change are masked once, not in every
            run; what is dealt for beforehand has all masks inside.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        fuse: bool = True,
        dynamic: bool = False,
        masks_outside: bool = True,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.fuse = fuse
        self.dynamic = dynamic
        self.masks_outside = masks_outside
        self._recorded: dict[tuple[Any, ...], tuple[RecordedPlan, Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Runs the plan where its tensors are: on a worker, or here if none is a pointer.

        Returns:
            What the function returns, with pointers for tensors (tensors, if it ran here).

        Raises:
            UsageError: tensors of several workers, or of a worker and here; or the function
                cannot be recorded.
        """
        try:
            inputs, link, recorded, returned = self._ready(arguments)
        except NewState:
            # An optimiser's first step makes its states: operator by operator, this time.
            return self.function(*arguments)
        made = recorded.run(inputs, link)
        _forget_masks(arguments, [inputs[k] for k in recorded.states if k < len(inputs)])
        return fill_outputs(returned, made)

    def record(self, *arguments: Any) -> RecordedPlan:
        """The program for such arguments, whose tensors are its inputs in order.

        Raises:
            UsageError: the function cannot be recorded, or has to run once first, since it
                makes new states.
        """
        try:
            return self._ready(arguments)[2]
        except NewState:
            raise UsageError(
                f"plan {self.name} makes new tensors in its arguments, as an optimiser's first "
                "step does: call it once, then record it"
            ) from None

    def send(self, worker: HasLink, *arguments: Any) -> None:
        """Has a worker learn the program for such arguments now, not at the first call."""
        self.record(*arguments).send(worker)

    def code(self, *arguments: Any) -> str:
        """The program for such arguments, as Python that a person can read."""
        return self.record(*arguments).code()

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function.__name__

    def _ready(
        self, arguments: Sequence[Any]
    ) -> tuple[list[torch.Tensor], Link | None, RecordedPlan, Any]:
        """The inputs, where they are, what is to run, and what it returns."""
        inputs, link = _settled(arguments)
        batch = _batch(arguments) if self.dynamic else []
        ids = [id(t) for t in batch]
        key = tuple(_kind_of_batch(a) if id(a) in ids else kind_of(a) for a in arguments)
        found = self._recorded.get(key)
        if found is None:
            recorded, returned, masked = self._make(arguments, inputs, ids)
            if masked and self.masks_outside:
                # What does not change is masked once, not in every run: recorded anew.
                for tensor in masked:
                    tensor.secret.masked()
                return self._ready(arguments)
            found = self._recorded[key] = recorded, returned
        return inputs, link, *found

    def _make(
        self, arguments: Sequence[Any], inputs: Sequence[torch.Tensor], batch: list[int]
    ) -> tuple[RecordedPlan, Any, list[SharedTensor]]:
        recordings = []
        for more in STEPS if batch else STEPS[:1]:
            layouts = [
                layout_of(_longer(t, more)) if more and id(t) in batch else layout_of(t)
                for t in inputs
            ]
            recordings.append(record(self.function, arguments, inputs, layouts))
        after = [optimised(recording.assembled, self.fuse) for recording in recordings]
        returned, captured = recordings[0].returned, recordings[0].captured
        if not batch:
            plan = recorded_plan(self.name, after[0], captured)
            written = {id(inputs[k]) for k in plan.states if k < len(inputs)}
            masked = [t for t in recordings[0].masked if id(t.secret.share) not in written]
            return plan, returned, masked
        if captured:
            raise UsageError(
                "a plan for all batch sizes cannot hold tensors from outside: leave dynamic=True "
                "out"
            )
        [first, *_] = [k for k, t in enumerate(inputs) if id(t) in batch]
        sizes = [inputs[first].shape[0] + more for more in STEPS]
        return RecordedPlan(self.name, *generalise(after, sizes, first)), returned, []


def _batch(arguments: Sequence[Any]) -> list[torch.Tensor]:
    """The arguments that grow with the batch; none if it is too small to tell."""
    tensors = [a for a in arguments if isinstance(a, torch.Tensor) and a.dim()]
    if any(isinstance(t, SharedTensor) for t in tensors):
        return []  # its gradients' shapes stand in the program
    found = [t for t in tensors if t.shape[0] == tensors[0].shape[0] and t.is_contiguous()]
    return found if found and found[0].shape[0] > 1 else []


def _longer(tensor: torch.Tensor, more: int) -> torch.Tensor:
    """A tensor of more rows, without memory."""
    shape = (tensor.shape[0] + more, *tensor.shape[1:])
    return torch.empty(shape, dtype=tensor.dtype, device="meta")


def _kind_of_batch(tensor: torch.Tensor) -> Any:
    return ("batch", type(tensor), tensor.shape[1:], tensor.dtype, tensor.requires_grad)


def optimised(assembled: Assembled, fuse: bool) -> Assembled:
    """What was recorded, after the passes."""
    program = drop_dead(cancel_transposes(assembled.program))
    program = drop_dead(merge_views(program, assembled.registers))
    if fuse:
        program = drop_dead(fuse_updates(program, assembled.registers))
    return assembled._replace(program=renumber(program))


def recorded_plan(
    name: str, assembled: Assembled, constants: Sequence[PointerTensor] = ()
) -> RecordedPlan:
    """A plan for inputs of one kind."""
    inputs = [assembled.registers[k] for k in range(assembled.program.inputs)]
    return RecordedPlan(name, assembled.program, inputs, assembled.results, constants)


def plan(
    function: Callable[..., Any] | None = None,
    *,
    fuse: bool = True,
    dynamic: bool = False,
    masks_outside: bool = True,
) -> Any:
    """Decorator: see `Plan`."""
    if function is None:
        return functools.partial(plan, fuse=fuse, dynamic=dynamic, masks_outside=masks_outside)
    return Plan(function, fuse, dynamic, masks_outside)


def _forget_masks(arguments: Sequence[Any], written: Sequence[torch.Tensor]) -> None:
    """What was known of the shares that a plan has changed is not true any more."""
    ids = {id(pointer) for pointer in written}
    for tensor in leaves(arguments):
        if isinstance(tensor, SharedTensor) and id(tensor.secret.share) in ids:
            tensor.secret.changed()


def inputs_of(arguments: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors of the arguments, each once, in order."""
    found: dict[int, torch.Tensor] = {}
    for tensor in leaves(arguments):
        if is_elsewhere(tensor):
            for own in tensor.pointers() if isinstance(tensor, SharedTensor) else (tensor,):
                found.setdefault(id(own), own)
    return list(found.values())


def _settled(arguments: Sequence[Any]) -> tuple[list[torch.Tensor], Link | None]:
    """The inputs and where they are, after what has to be there too was sent."""
    inputs = inputs_of(arguments)
    link = place_of(inputs)
    if link is not None and _count_there(arguments, link):
        inputs = inputs_of(arguments)
    return inputs, link


def _count_there(arguments: Sequence[Any], link: Link) -> bool:
    """Sends the step counts of optimisers, as Adam's, to the worker: they are states too.

    In float64, since 1 - beta ** step would lose half its digits in float32.

    Returns:
        Whether there was anything to send.
    """
    sent = False
    for optimizer in arguments:
        if not isinstance(optimizer, torch.optim.Optimizer):
            continue
        for state in optimizer.state.values():
            step = state.get("step")
            if isinstance(step, torch.Tensor) and not isinstance(step, PointerTensor):
                remote = link.make()
                link.tell(Put(remote.key, [], "", False), [step.double()])
                state["step"] = point(remote, step.double())
                for group in optimizer.param_groups:
                    group["capturable"] = True
                sent = True
    return sent


def kind_of(value: Any) -> Any:
    """What the recording depends on, hashable."""
    if isinstance(value, torch.Tensor):
        if isinstance(value, SharedTensor):
            return (value.secret.kind(), value.dtype, value.requires_grad)
        if isinstance(value, PointerTensor):
            return (value.layout_there, value.requires_grad)
        if value.dim():
            return (layout_of(value), value.requires_grad)
        return (value.dtype, value.item())
    if isinstance(value, torch.nn.Module):
        tensors = tuple(kind_of(t) for t in leaves(value))
        # A weak reference: the id of a module that has gone may be another's.
        parts = tuple((type(m), m.training) for m in value.modules())
        return (weakref.ref(value), parts, tensors)
    if isinstance(value, torch.optim.Optimizer):
        groups = tuple((k, v) for g in value.param_groups for k, v in g.items() if k != "params")
        return (
            weakref.ref(value),
            groups,
            tuple(kind_of(t) for t in leaves(value) if is_elsewhere(t)),
        )
    if isinstance(value, list | tuple):
        return (type(value), *(kind_of(v) for v in value))
    if isinstance(value, dict):
        return (dict, *((k, kind_of(v)) for k, v in value.items()))
    try:
        hash(value)
    except TypeError:
        raise UsageError(
            f"an argument of a plan is a {type(value).__name__}: expected tensors, modules, "
            "optimisers, numbers, strings, and lists, tuples and dicts of them"
        ) from None
    return (type(value), value)


def fill_outputs(tree: Any, made: Sequence[torch.Tensor]) -> Any:
    if isinstance(tree, Output):
        pointer: Any = made[tree.at]
        return tree.shared(pointer) if tree.shared else pointer
    if isinstance(tree, list | tuple):
        return type(tree)(fill_outputs(v, made) for v in tree)
    if isinstance(tree, dict):
        return {key: fill_outputs(v, made) for key, v in tree.items()}
    return tree
