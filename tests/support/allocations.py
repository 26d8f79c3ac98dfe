"""How much memory something allocates."""

from collections.abc import Callable

import torch


def allocations(action: Callable[[], object]) -> list[int]:
    """Bytes of every allocation of an action on the CPU, the largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    events = record.profiler.kineto_results.events()
    return sorted((event.nbytes() for event in events if event.name() == "[memory]"), reverse=True)
