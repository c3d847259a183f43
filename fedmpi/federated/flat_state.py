"""A model's whole state as a few flat vectors: what travels, and what is averaged.

Parameters and buffers of one dtype lie one after another in one vector, and the model's
tensors are views into it. A model of float32 parameters is one vector; batch norm's step
counters add a second one of int64. Nothing is gathered or scattered to send a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import nn

from fedmpi.comm.frame import DTYPES
from fedmpi.errors import DataError, UsageError


class FlatState:
    """Moves a model's state into flat vectors and keeps the model on them.

    Args:
        model: changed in place; its parameters and persistent buffers become views.
        device: where the vectors live.

    Attributes:
        model: the model, on `device`.
        vectors: one contiguous 1-D tensor per dtype, in order of first appearance.
        numel: elements of all vectors together: the length of an update.
        trained: places in an update of the parameters that require grad, neighbours as one; the
            rest are buffers and frozen parameters.

    Raises:
        UsageError: a state tensor that cannot be averaged (complex, quantized, sparse).
    """

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu") -> None:
        self.model = model.to(device)
        tensors = _state_tensors(model)
        groups: dict[torch.dtype, list[tuple[str, torch.Tensor]]] = {}
        for name, tensor in tensors:
            if (
                tensor.layout != torch.strided
                or tensor.dtype not in DTYPES.values()
                or tensor.is_complex()
            ):
                raise UsageError(f"{name} of the model is {tensor.dtype}, which cannot be averaged")
            groups.setdefault(tensor.dtype, []).append((name, tensor))
        self.vectors: list[torch.Tensor] = []
        self._trained: list[tuple[int, slice]] = []
        begins: dict[int, int] = {}
        for group in groups.values():
            vector = torch.cat([tensor.detach().reshape(-1) for _, tensor in group]).to(device)
            offset = 0
            for _, tensor in group:
                view = vector[offset : offset + tensor.numel()].view(tensor.shape)
                # Parameters and buffers alike: the module keeps its tensor object, and
                # whoever else holds it (a tied weight, say) sees the same memory.
                tensor.data = view
                if tensor.requires_grad:
                    begins[id(tensor)] = sum(p.stop - p.start for _, p in self._trained)
                    self._add_trained(slice(offset, offset + tensor.numel()))
                offset += tensor.numel()
            self.vectors.append(vector)
        self._begins = [(begins[id(p)], p) for p in model.parameters() if p.requires_grad]
        self.numel = sum(v.numel() for v in self.vectors)
        starts = [0, *accumulate(self.lengths())]
        self.trained = [
            slice(starts[k] + place.start, starts[k] + place.stop) for k, place in self._trained
        ]

    def load(self, vectors: list[torch.Tensor]) -> None:
        """Copies other vectors of the same layout into this model."""
        for mine, other in zip(self.vectors, vectors, strict=True):
            mine.copy_(other, non_blocking=True)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The vectors, see `Remembers`."""
        return {str(k): vector for k, vector in enumerate(self.vectors)}

    def load_state_dict(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state_dict` gave.

        Raises:
            DataError: the vectors are those of another model.
        """
        vectors = [saved[str(k)] for k in range(len(self.vectors))]
        for mine, other in zip(self.vectors, vectors, strict=True):
            if mine.dtype != other.dtype or mine.shape != other.shape:
                raise DataError(
                    f"the state of another model: found {other.dtype} {list(other.shape)}, but "
                    f"this one has {mine.dtype} {list(mine.shape)}"
                )
        self.load(vectors)

    def trained_in(self, vectors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Views on the trained parameters in vectors of this layout, as `trained` has them."""
        return [vectors[k][place] for k, place in self._trained]

    def by_parameter(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Views of a vector over the trained parameters, one for each, in the model's order.

        Args:
            flat: [trained], as `trained_in` of this state's vectors, one after another.
        """
        return [flat[at : at + p.numel()].view(p.shape) for at, p in self._begins]

    def dtypes(self) -> list[str]:
        """Names of the vectors' dtypes, as frames write them."""
        return [str(v.dtype).removeprefix("torch.") for v in self.vectors]

    def lengths(self) -> list[int]:
        """Elements of each vector."""
        return [v.numel() for v in self.vectors]

    def _add_trained(self, place: slice) -> None:
        """Notes a place in the vector that is being made, the next after those before."""
        which = len(self.vectors)
        if self._trained and self._trained[-1][0] == which:
            before = self._trained[-1][1]
            if before.stop == place.start:
                self._trained[-1] = which, slice(before.start, place.stop)
                return
        self._trained.append((which, place))


def _state_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers, each once, under the names of `state_dict`."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    return [(name, own[name]) for name in model.state_dict() if name in own]
