"""Tensors that wait on the host while others use the accelerator."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class HostStash:
    """Holds the content of tensors on the host and frees their device memory; the tensors themselves stay.

    What is emptied is the storage, so every view of it (a parameter inside a buffer, a main parameter that is part of
    the parameter) is whole again after `restore`.
    """

    def __init__(self) -> None:
        self._held: list[tuple[torch.UntypedStorage, int, Tensor | None]] = []

    def take(self, tensors: Iterable[Tensor], *, with_content: bool = True) -> None:
        """Empty the storages of tensors.

        Args:
            tensors: Views of one storage count once.
            with_content: False forgets the content: `restore` then brings zeros.
        """
        for tensor in tensors:
            storage = tensor.untyped_storage()
            num_bytes = storage.nbytes()
            if num_bytes == 0:
                continue
            host = None
            if with_content:
                host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=tensor.is_cuda)
                host.copy_(_bytes_of(storage))
            storage.resize_(0)
            self._held.append((storage, num_bytes, host))

    def restore(self) -> None:
        """Bring everything back."""
        for storage, num_bytes, host in self._held:
            storage.resize_(num_bytes)
            if host is None:
                _bytes_of(storage).zero_()
            else:
                _bytes_of(storage).copy_(host)
        self._held.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on the host."""
        return not self._held


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
