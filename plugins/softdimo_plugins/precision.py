"""Full precision inside of autocast, for sums that must not be rounded."""

from __future__ import annotations

import torch


def full_precision(device: torch.device) -> torch.autocast:
    """Context in which autocast is off on `device` (any device, also meta)."""
    return torch.autocast(device.type if torch.amp.is_autocast_available(device.type) else "cpu", enabled=False)
