"""Tensors that wait on the host while others use the accelerator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from rl.errors import TrainingError


class HostStash:
    """Holds the content of tensors on the host and frees their device memory; the tensors themselves stay.

    What is emptied is the storage, so every view of it (a parameter inside a buffer, a main parameter that is part of
    the parameter) is whole again after `restore`. The content lies in one block of host memory, which is kept for the
    next time.
    """

    def __init__(self) -> None:
        self._held: list[tuple[torch.UntypedStorage, int, Tensor | None]] = []
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._is_pinned = False

    def take(self, tensors: Iterable[Tensor], *, forgotten: Iterable[Tensor] = ()) -> None:
        """Empty the storages of tensors.

        Args:
            tensors: Views of one storage count once.
            forgotten: Tensors of which no content is kept: `restore` brings zeros.
        """
        assert self.is_empty, "restored before"
        storages = list(_storages(tensors))
        sizes = [storage.nbytes() for storage in storages]
        self._make_room(sum(sizes), is_pinned=any(storage.device.type == "cuda" for storage in storages))
        places = self._arena[: sum(sizes)].split(sizes)
        for storage, size, place in zip(storages, sizes, places, strict=True):
            place.copy_(_bytes_of(storage))
            storage.resize_(0)
            self._held.append((storage, size, place))
        for storage in _storages(forgotten):
            self._held.append((storage, storage.nbytes(), None))
            storage.resize_(0)

    def restore(self) -> None:
        """Bring everything back."""
        for storage, num_bytes, place in self._held:
            storage.resize_(num_bytes)
            if place is None:
                _bytes_of(storage).zero_()
            else:
                _bytes_of(storage).copy_(place)
        self._held.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on the host."""
        return not self._held

    @property
    def host_bytes(self) -> int:
        """Host memory that it has, whether something lies there or not."""
        return self._arena.numel()

    def close(self) -> None:
        """Give the host memory back; what lies there is lost."""
        self._held.clear()
        if self._is_pinned:
            torch.cuda.cudart().cudaHostUnregister(self._arena.data_ptr())
        self._arena, self._is_pinned = torch.empty(0, dtype=torch.uint8), False

    def _make_room(self, num_bytes: int, *, is_pinned: bool) -> None:
        """Pin exactly these bytes: torch's own pinned memory comes in powers of two, which is up to twice as much."""
        if num_bytes <= self._arena.numel():
            return
        self.close()
        self._arena = torch.empty(num_bytes, dtype=torch.uint8)
        if is_pinned:
            status = int(torch.cuda.cudart().cudaHostRegister(self._arena.data_ptr(), num_bytes, 0))
            if status != 0:
                raise TrainingError(
                    f"generate_config.offload_train_*: cannot pin {num_bytes / 1024**3:.1f} GiB of host memory, CUDA "
                    f"error {status}. Raise the container's memory and memlock limits, or set those keys to false."
                )
            self._is_pinned = True


def _storages(tensors: Iterable[Tensor]) -> Iterator[torch.UntypedStorage]:
    """Each storage once, those without bytes left out."""
    seen: set[int] = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() > 0 and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
