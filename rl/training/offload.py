"""Offloading of tensors to host memory while other processes use the accelerator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from rl.errors import TrainingError


class HostStash:
    """Copies the contents of tensors to the host and frees their device memory; the tensor objects stay valid.

    It empties whole storages, so `restore` also restores every view (a parameter inside a buffer, a main parameter that
    is part of a parameter). The contents are in one block of host memory, which is reused.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[torch.UntypedStorage, int, Tensor | None]] = []
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._is_pinned = False

    def offload(self, tensors: Iterable[Tensor], *, discard: Iterable[Tensor] = ()) -> None:
        """Copy tensors to the host and empty their storages.

        Args:
            tensors: Several views of one storage are copied once.
            discard: Tensors to empty without a copy; `restore` fills them with zeros.
        """
        assert self.is_empty, "offload was called twice without restore"
        storages = list(_storages(tensors))
        sizes = [storage.nbytes() for storage in storages]
        self._reserve(sum(sizes), is_pinned=any(storage.device.type == "cuda" for storage in storages))
        copies = self._arena[: sum(sizes)].split(sizes)
        for storage, size, copy in zip(storages, sizes, copies, strict=True):
            copy.copy_(_bytes_of(storage))
            storage.resize_(0)
            self._entries.append((storage, size, copy))
        for storage in _storages(discard):
            self._entries.append((storage, storage.nbytes(), None))
            storage.resize_(0)

    def restore(self) -> None:
        """Restore all storages on the device."""
        for storage, num_bytes, copy in self._entries:
            storage.resize_(num_bytes)
            if copy is None:
                _bytes_of(storage).zero_()
            else:
                _bytes_of(storage).copy_(copy)
        self._entries.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is offloaded."""
        return not self._entries

    @property
    def host_bytes(self) -> int:
        """Size of the reserved host memory, used or not."""
        return self._arena.numel()

    def close(self) -> None:
        """Free the host memory; offloaded contents are lost."""
        self._entries.clear()
        if self._is_pinned:
            torch.cuda.cudart().cudaHostUnregister(self._arena.data_ptr())
        self._arena, self._is_pinned = torch.empty(0, dtype=torch.uint8), False

    def _reserve(self, num_bytes: int, *, is_pinned: bool) -> None:
        """Reserve host memory, pinned by exact size: torch's allocator would round it up to a power of two."""
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
    """Yield each nonempty storage once."""
    seen: set[int] = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() > 0 and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
