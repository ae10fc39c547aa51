"""Actor and engines on shared accelerators take turns: each frees its memory before the other's turn begins."""

from __future__ import annotations

from typing import Protocol


class Tenant(Protocol):
    """A user of the shared accelerators (`ActorGroup` or `RolloutGroup`)."""

    def leave_devices(self) -> None:
        """Free the accelerators' memory, as far as the configuration says."""
        ...


class Turns:
    """Tracks whose turn it is. Both must begin their turn before any work on a device.

    Args:
        holder: The tenant whose memory is on the accelerators now.
    """

    def __init__(self, holder: Tenant) -> None:
        self._holder = holder

    def begin(self, tenant: Tenant) -> bool:
        """Begin a tenant's turn.

        Returns:
            Whether it was the other's turn until now.
        """
        if tenant is self._holder:
            return False
        self._holder.leave_devices()
        self._holder = tenant
        return True
