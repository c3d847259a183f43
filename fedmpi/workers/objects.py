"""A worker's tensors: by id, with tags, what they take of the memory, and who may fetch them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from fedmpi.comm.frame import DTYPES, LARGEST_RANK
from fedmpi.errors import FedMPIError, UsageError

_DTYPES = frozenset(DTYPES.values())


class NoSuchObject(FedMPIError):
    """An id that stands for nothing on this worker: deleted, moved away, or never made.

    Attributes:
        why: the first cause, without the ids that were lost on the way.
    """

    def __init__(self, rank: int, key: int, why: str) -> None:
        super().__init__(f"rank {rank} holds no object {key}: {why}")
        self.why = why


class Refused(UsageError):
    """What a worker does not give, or does not take."""


@dataclass
class Stored:
    """A tensor in the store.

    Attributes:
        tensor: detached; may be a view of another object's memory.
        tags: for `search`.
        description: for a person.
    """

    tensor: torch.Tensor
    tags: tuple[str, ...] = ()
    description: str = ""


@dataclass
class _Memory:
    """Memory that one or several objects look at."""

    nbytes: int
    users: int = 0
    private: bool = False
    shared: bool = False


class ObjectStore:
    """Tensors by the id that the owner gave them.

    Privacy belongs to memory: a view of a private tensor is private, and so is whatever a
    private tensor was written into. So it is with what members of a secure computation share:
    their shares and what they open under masks.

    Args:
        rank: of the worker, for messages.
        limit: most bytes that the tensors may take together.

    Attributes:
        nbytes: memory of all objects; what several look at counts once.
        any_private: whether anything was ever private here.
        any_shared: whether anything was ever shared here.
    """

    def __init__(self, rank: int, limit: int) -> None:
        self.rank = rank
        self.limit = limit
        self.nbytes = 0
        self.any_private = False
        self.any_shared = False
        self._objects: dict[int, Stored] = {}
        self._memory: dict[int, _Memory] = {}
        self._lost: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: int) -> bool:
        return key in self._objects

    def items(self) -> Iterator[tuple[int, Stored]]:
        """All objects with their ids."""
        return iter(self._objects.items())

    def stored(self, key: int) -> Stored:
        """An object.

        Raises:
            NoSuchObject: deleted or moved away, never made, or the operator that was to
                make it failed.
        """
        found = self._objects.get(key)
        if found is None:
            why = self._lost.get(key, "it was deleted, moved away, or belongs to another job")
            raise NoSuchObject(self.rank, key, why)
        return found

    def tensor(self, key: int) -> torch.Tensor:
        """The tensor of an object; raises as `stored`."""
        found = self._objects.get(key)
        return self.stored(key).tensor if found is None else found.tensor

    def put(
        self,
        key: int,
        tensor: torch.Tensor,
        tags: Iterable[str] = (),
        description: str = "",
        private: bool = False,
        shared: bool = False,
    ) -> None:
        """Stores a tensor.

        Raises:
            Refused: the id is taken or none, the tensor could never be sent, or the memory
                limit is passed.
        """
        if key < 1:
            raise Refused(f"rank {self.rank} keeps no object {key}: ids count from 1")
        if key in self._objects:
            raise Refused(f"rank {self.rank} has an object {key} already")
        if (
            tensor.layout != torch.strided
            or tensor.is_meta
            or tensor.dtype not in _DTYPES
            or tensor.dim() > LARGEST_RANK
        ):
            raise Refused(
                f"rank {self.rank} keeps no tensor of {tensor.dtype}, {tensor.layout}, "
                f"{tensor.device}, {tensor.dim()} dimensions: it could not be sent"
            )
        storage = tensor.untyped_storage()
        at = storage._cdata
        memory = self._memory.get(at)
        if memory is None:
            memory = _Memory(storage.nbytes())
            self.make_room(memory.nbytes)
            self._memory[at] = memory
            self.nbytes += memory.nbytes
        memory.users += 1
        if private:
            memory.private = self.any_private = True
        if shared:
            memory.shared = self.any_shared = True
        self._objects[key] = Stored(tensor, tuple(tags), description)

    def delete(self, keys: Iterable[int]) -> None:
        """Forgets objects; ids that stand for nothing are passed over."""
        for key in keys:
            self._lost.pop(key, None)
            stored = self._objects.pop(key, None)
            if stored is None:
                continue
            at = stored.tensor.untyped_storage()._cdata
            memory = self._memory[at]
            memory.users -= 1
            if not memory.users:
                del self._memory[at]
                self.nbytes -= memory.nbytes

    def clear(self) -> None:
        """Forgets all objects."""
        self.delete(list(self._objects))
        self._lost.clear()

    def lose(self, keys: Iterable[int], why: str) -> None:
        """Notes why these ids will never stand for anything."""
        for key in keys:
            if key not in self._objects:
                self._lost[key] = why

    def make_room(self, nbytes: int) -> None:
        """Refuses memory beyond the limit, before it is taken.

        Raises:
            Refused: so many bytes more are too many.
        """
        if self.nbytes + nbytes > self.limit:
            raise Refused(
                f"rank {self.rank} holds {self.nbytes:,} bytes of tensors, and {nbytes:,} more "
                f"are beyond its limit of {self.limit:,}: delete pointers, or raise "
                "--memory-mib"
            )

    def is_private(self, key: int) -> bool:
        """Whether an object may not be fetched."""
        storage = self.stored(key).tensor.untyped_storage()
        return self._memory[storage._cdata].private

    def make_private(self, key: int) -> None:
        """Forbids to fetch an object, its views, and what is computed from it."""
        storage = self.stored(key).tensor.untyped_storage()
        self._memory[storage._cdata].private = self.any_private = True

    def is_shared(self, key: int) -> bool:
        """Whether an object belongs to a secure computation: it leaves as part of a sum only."""
        storage = self.stored(key).tensor.untyped_storage()
        return self._memory[storage._cdata].shared

    def make_shared(self, key: int) -> None:
        """From here on the object, its views, and what is computed from them are shared."""
        storage = self.stored(key).tensor.untyped_storage()
        self._memory[storage._cdata].shared = self.any_shared = True
