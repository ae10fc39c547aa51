"""Actor and engines on the same accelerators take turns: whose turn begins waits until the other gave up its memory."""

from __future__ import annotations

from typing import Protocol


class Tenant(Protocol):
    """One of the two (`ActorGroup`, `RolloutGroup`)."""

    def leave_devices(self) -> None:
        """Free the accelerators' memory, as far as the configuration says."""
        ...


class Turns:
    """Whose turn it is. Both begin their turn before any work on a device, so their memory never adds up.

    Args:
        holder: Whose memory lies on the accelerators now.
    """

    def __init__(self, holder: Tenant) -> None:
        self._holder = holder

    def begin(self, tenant: Tenant) -> bool:
        """Make it this one's turn.

        Returns:
            Whether it was the other's until now.
        """
        if tenant is self._holder:
            return False
        self._holder.leave_devices()
        self._holder = tenant
        return True
