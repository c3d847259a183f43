"""A worker as a program sees it: send, get, move, search."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar, overload

import torch
from torch import nn

from fedmpi.comm.frame import DTYPES
from fedmpi.errors import UsageError
from fedmpi.tensors.layout import layout
from fedmpi.tensors.link import Link
from fedmpi.tensors.making import MakingThere
from fedmpi.tensors.modules import with_tensors
from fedmpi.tensors.pointer import PointerTensor, point
from fedmpi.tensors.recorded_plan import RecordedPlan
from fedmpi.tensors.recurrent import make_there
from fedmpi.tensors.shards import ShardPointers, load_shards
from fedmpi.workers.operate import Accept, Described, Found, Introduce, Introduced, Limit, Look, Put

M = TypeVar("M", bound=nn.Module)

COPIED_BYTES = 2**20
"""A tensor up to here is copied when it is sent, and nobody waits; a longer one is sent out of
its own memory, which the program gets back when the worker has it."""


def start_sending(
    link: Link, what: torch.Tensor, tags: Sequence[str], description: str, private: bool
) -> PointerTensor:
    """Sends a tensor's values; one of more than `COPIED_BYTES` must not change before `flush`.

    Raises:
        UsageError: it is a pointer already.
    """
    if isinstance(what, PointerTensor):
        raise UsageError(f"{what!r} is on a worker already: use move or copy")
    tensor = what.detach()
    remote = link.make()
    sent = tensor if tensor.nbytes > COPIED_BYTES else tensor.clone()
    link.tell(Put(remote.key, list(tags), description, private), [sent])
    return point(remote, tensor)


class RemoteWorker:
    """The owner's handle on one worker.

    Attributes:
        rank: of the worker; also its `id`.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.rank = self.id = link.rank

    def __repr__(self) -> str:
        return f"RemoteWorker(rank {self.rank})"

    @overload
    def send(self, what: M, *, private: bool = False) -> M: ...
    @overload
    def send(
        self,
        what: torch.Tensor,
        *,
        tags: Sequence[str] = (),
        description: str = "",
        private: bool = False,
    ) -> PointerTensor: ...
    def send(
        self,
        what: nn.Module | torch.Tensor,
        *,
        tags: Sequence[str] = (),
        description: str = "",
        private: bool = False,
    ) -> nn.Module | torch.Tensor:
        """Sends a tensor, or all tensors of a module, to the worker.

        Args:
            what: a tensor: the values are sent as they are now, without their history. A
                module: the result is a copy of it whose parameters and buffers are pointers.
            tags: for `search`.
            description: for a person.
            private: the worker does not give the values back, nor what is computed from them.

        Returns:
            A pointer (a leaf that requires grad if the tensor does), or the copied module.

        Raises:
            UsageError: it is a pointer already.
        """
        if isinstance(what, nn.Module):
            sent = with_tensors(what, lambda tensor: self.send(tensor, private=private))
            make_there(sent)
            return sent
        pointer = start_sending(self.link, what, tags, description, private)
        if what.nbytes > COPIED_BYTES:
            self.link.flush_all()
            self.link.crew.endpoint.flush()
        return pointer.requires_grad_(what.requires_grad)

    def as_device(self) -> MakingThere:
        """A context in which `torch.zeros` and the like make their tensors on the worker.

        As `with torch.device(...)` does for a GPU. For functions of PyTorch that make tensors on
        their way: `with alice.as_device(): F.one_hot(labels, 10)`.
        """
        return MakingThere(self.link)

    def load_shard(
        self, folder: str | Path, *, private: bool = False, verify: bool = True
    ) -> ShardPointers:
        """Has the worker open its own shard of a prepared dataset; the rows do not travel.

        They are found with `search("#train", "#x")`, and "#y", "#client" and "#offset", and by
        the source's name ("#mnist5k"), for as long as there are pointers to them.

        Args:
            folder: of the dataset, on a file system that all ranks share.
            private: the worker does not give the rows away, nor what is computed from them.
            verify: whether to compare the shard's SHA-256 with the index.

        Raises:
            UsageError: there are not as many shards as workers.
            DataError: there is no dataset.
            RemoteError: the shard is damaged, or beyond the worker's memory.
        """
        [pointers] = load_shards([self], folder, private=private, verify=verify)
        return pointers

    def search(self, *tags: str) -> list[PointerTensor]:
        """Pointers to the worker's objects that have all of these tags, oldest first."""
        found, _ = self.link.ask(Look(list(tags)), Found)
        return [self.point_at(one) for one in found.objects]

    def objects(self) -> list[Described]:
        """What the worker stores, without the values: ids, shapes, dtypes, tags, bytes."""
        found, _ = self.link.ask(Look([]), Found)
        return found.objects

    def nbytes(self) -> int:
        """Memory that the worker's objects take together."""
        found, _ = self.link.ask(Look([]), Found)
        return found.nbytes

    @cached_property
    def host(self) -> str:
        """Name of the node that the worker runs on; asked for once."""
        introduced, _ = self.link.ask(Introduce(), Introduced)
        return introduced.host

    def clear(self) -> None:
        """Deletes all objects; pointers to them stand for nothing from here on."""
        self.link.clear()

    def limit_memory(self, nbytes: int) -> None:
        """Has the worker refuse what would take its objects beyond so many bytes."""
        self.link.tell(Limit(nbytes))

    def accept(self, plan: RecordedPlan) -> None:
        """Has the worker give the results of this plan away, even if they come of private objects.

        What the plan does is for the worker's side to judge: read `plan.code()`. A mean over
        many rows may be harmless, a copy is not. The states that it changes stay private.
        """
        plan.send(self)
        self.link.tell(Accept(plan.number))

    def wait(self) -> None:
        """Waits until the worker has done all that it was told.

        Raises:
            RemoteError: the first failure since the last wait.
        """
        self.link.wait()

    def point_at(self, one: Described) -> PointerTensor:
        """A pointer to an object that the worker has."""
        there = layout(tuple(one.shape), tuple(one.stride), one.offset, DTYPES[one.dtype])
        return PointerTensor(self.link.adopt(one.key), there)
