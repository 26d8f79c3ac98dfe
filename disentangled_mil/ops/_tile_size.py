"""Sizes of tiles on a CPU and elsewhere."""

import torch

# Tiles fit the caches of a CPU. On other devices every launch has a cost, and tiles are larger by this factor; all that
# is made of one tile then takes some 300 MB in float32.
DEVICE_FACTOR = 32


def on_device(size: int, device: torch.device) -> int:
    """The size of a tile on a device, from that on a CPU."""
    return size if device.type == "cpu" else DEVICE_FACTOR * size
