"""Sizes of tiles on a CPU and elsewhere."""

import torch

# Tiles fit the caches of a CPU. On other devices every launch has a cost, and tiles are larger by this factor. In
# float32, the temporary tensors of one tile then take about 300 MB.
DEVICE_FACTOR = 32


def tile_size(on_cpu: int, device: torch.device) -> int:
    """The size of a tile on a device, from that on a CPU."""
    return on_cpu if device.type == "cpu" else DEVICE_FACTOR * on_cpu
