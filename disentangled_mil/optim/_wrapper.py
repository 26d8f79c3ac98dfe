"""An optimizer around another one, which stays a ``torch.optim.Optimizer`` for every caller."""

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from .._torch_private import unscaled_by_calling_scaler


class OptimizerWrapper(torch.optim.Optimizer):
    """Forward everything but ``step`` to the wrapped optimizer: groups, state, state_dict, zero_grad and hooks.

    What the wrapped optimizer has beyond PyTorch's interface is forwarded too, such as ``train`` and ``eval`` of those
    without a schedule. Subclasses define ``step``. Hooks are called with the wrapped optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        # Optimizer.__init__ is not called: it would build parameter groups and hooks of its own.
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self.wrapped = optimizer

    def __getattr__(self, name: str) -> Any:
        """What only the wrapped optimizer has, except for private names; a copy that is being built has nothing yet."""
        if name.startswith("_") or "wrapped" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.wrapped, name)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the wrapped optimizer."""
        return self.wrapped.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.wrapped.param_groups = value

    @property
    def state(self) -> Any:
        """State of the wrapped optimizer."""
        return self.wrapped.state

    @state.setter
    def state(self, value: Any) -> None:
        self.wrapped.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """Default options of the wrapped optimizer."""
        return self.wrapped.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.wrapped.defaults = value

    def state_dict(self) -> dict[str, Any]:
        """The state dictionary of the wrapped optimizer, which that one can load by itself."""
        return self.wrapped.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of the wrapped optimizer, saved with or without this wrapper."""
        self.wrapped.load_state_dict(state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters of the wrapped optimizer."""
        self.wrapped.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the wrapped optimizer."""
        self.wrapped.add_param_group(param_group)

    def register_step_pre_hook(self, hook: Any) -> RemovableHandle:
        """Register a hook that the wrapped optimizer calls before its step."""
        return self.wrapped.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        """Register a hook that the wrapped optimizer calls after its step."""
        return self.wrapped.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Register a hook that the wrapped optimizer calls before it makes a state dictionary."""
        return self.wrapped.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Register a hook that the wrapped optimizer calls after it made a state dictionary."""
        return self.wrapped.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Register a hook that the wrapped optimizer calls before it loads a state dictionary."""
        return self.wrapped.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Register a hook that the wrapped optimizer calls after it loaded a state dictionary."""
        return self.wrapped.register_load_state_dict_post_hook(hook, prepend)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """False. ``GradScaler.step`` reads it first, so gradients that are unscaled already are refused here.

        The name is a private one of PyTorch: see ``_torch_private``. The scaler knows optimizers by their identity, and
        would divide by the scale again.
        """
        if unscaled_by_calling_scaler(self.wrapped):
            raise RuntimeError(
                "scaler.unscale_ and scaler.step must get the same optimizer, got the wrapped "
                f"{type(self.wrapped).__name__} and this {type(self).__name__}: give both the {type(self).__name__}"
            )
        return False

    def __getstate__(self) -> dict[str, Any]:
        # A scheduler patches `step` on the instance. A copy must not call the step of the original.
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
