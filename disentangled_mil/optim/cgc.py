"""Confidence-guided gradient coordination (CGC) around any optimizer."""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain, combinations
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .._checks import check_choice, check_floating, check_mapping, check_names, check_shape
from ._projection import coordinate

Granularity = Literal["row", "tensor", "subspace"]


class CGCReport(NamedTuple):
    """What the last step did; tensors stay on their device until they are read.

    Attributes:
        cosine: [rows], per pair of subspaces, between their gradients before the coordination; 0 where one of
            them is zero or not finite.
        projected: how many rows of each subspace were changed, a scalar tensor.
        rows: how many rows were compared.
        confidence: the sums by which was decided, scalar tensors.
    """

    cosine: dict[tuple[str, str], Tensor]
    projected: dict[str, Tensor]
    rows: int
    confidence: dict[str, Tensor]


class CGCOptimizer(torch.optim.Optimizer):
    r"""Let the less confident subspace give way where the gradients of two subspaces conflict.

    Before the wrapped optimizer steps, row by row of the corresponding parameters,

    .. math:: g_s \leftarrow g_s - \frac{\langle g_s, g_t \rangle}{\|g_t\|^2}\, g_t
              \quad\text{if } \cos(g_s, g_t) < 0 \text{ and confidence}_s < \text{confidence}_t .

    With more than two subspaces, in falling confidence, each gradient becomes the nearest one that
    conflicts with no more confident one. Equal confidences change nothing. A subspace whose parameter
    has no gradient takes no part there, nor do the parameters of the wrapped optimizer that belong to no
    subspace.

    To everything that asks this is a ``torch.optim.Optimizer``: parameter groups, state, ``state_dict``,
    ``zero_grad`` and hooks are the wrapped optimizer's (hooks are called with that one), and nothing is
    added to the state. Schedulers are built on either; ``torch.amp.GradScaler`` works as usual, also
    through ``scaler.step(optimizer, confidence=...)``, because a common scale of the gradients changes no
    decision.

    With several processes, confidences are summed over them in one collective per step, so that all take
    the same decision. The gradients must already be the same everywhere, as ``DistributedDataParallel``
    leaves them, and whole: parameters sharded over processes are not supported.

    Args:
        optimizer: the optimizer that takes the steps; kept as ``wrapped``.
        subspace_parameters: per subspace its parameters, e.g. those of its block of a head. They correspond
            position by position, must have equal shapes there, and must belong to ``optimizer``.
        granularity: what is compared as one vector: ``"row"``, each row of a parameter along its first
            dimension, such as a class of the head (parameters with fewer than two dimensions are one row);
            ``"tensor"``, each parameter; ``"subspace"``, all parameters of a subspace at once.
        process_group: the processes that train together; all by default.

    Raises:
        TypeError: ``optimizer`` is no optimizer, ``subspace_parameters`` no mapping, or a parameter no
            floating-point tensor or sharded over processes (a DTensor).
        ValueError: fewer than two subspaces, parameters that do not correspond, a parameter that
            ``optimizer`` does not have or that is given twice, or an unknown ``granularity``.

    Source:
        *Disentangled Multi-modal Learning of Histology and Transcriptomics for Cancer Characterization*,
        IEEE TMI 2026, section CGC, eq. 6. Projection of conflicting gradients: Yu et al., *Gradient Surgery
        for Multi-Task Learning* (PCGrad), NeurIPS 2020.

    Differs from the source:
        * The projection is the paper's, onto the orthogonal complement. The released code subtracts it twice,
          which reflects the gradient instead.
        * The confidence is the caller's. For censored survival, use the likelihood of what was observed
          (:meth:`disentangled_mil.DiscreteSurvival.confidence`); the released code takes a softmax over
          hazard logits.
        * With several processes there is one decision, on summed confidences and reduced gradients; the
          released code decides in each process and reduces again.
        * Any number of subspaces, and blocks other than class rows.

    Example:
        >>> import torch
        >>> from disentangled_mil import CGCOptimizer
        >>> names, bag, label = ("tumor", "tme"), torch.randn(500, 16), torch.tensor([2])
        >>> attend = torch.nn.ModuleDict({s: torch.nn.Linear(16, 1) for s in names})
        >>> head = torch.nn.ModuleDict({s: torch.nn.Linear(16, 3, bias=False) for s in names})
        >>> adam = torch.optim.AdamW([*attend.parameters(), *head.parameters()], lr=2e-4)
        >>> optimizer = CGCOptimizer(adam, {s: head[s].parameters() for s in names})
        >>> logits = {s: head[s](attend[s](bag).softmax(0).mT @ bag) for s in names}  # [1, 3] each
        >>> torch.nn.functional.cross_entropy(sum(logits.values()), label).backward()
        >>> optimizer.step(confidence={s: logits[s].softmax(-1)[0, label].sum() for s in names})
        >>> optimizer.report.rows
        3
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        subspace_parameters: Mapping[str, Iterable[Tensor]],
        *,
        granularity: Granularity = "row",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        # Optimizer.__init__ would build parameter groups and hooks of its own; `optimizer` has them already.
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        check_choice("granularity", granularity, get_args(Granularity))
        check_mapping("subspace_parameters", subspace_parameters)
        for name, given in subspace_parameters.items():
            if not isinstance(given, Iterable):
                raise TypeError(f"subspace_parameters[{name!r}] must be several parameters, got {type(given).__name__}")
        parameters = {name: tuple(given) for name, given in subspace_parameters.items()}
        _check_parameters(parameters, optimizer)
        self.wrapped = optimizer
        self.subspaces = tuple(parameters)
        self.granularity = granularity
        self.process_group = process_group
        self._positions = tuple(zip(*parameters.values(), strict=True))
        self._sums: dict[str, Tensor] = {}
        self._last = self._coordinate([], self._zeros(len(self.subspaces)))

    def accumulate(self, confidence: Mapping[str, Tensor | float]) -> None:
        """Add the confidences of a micro-batch to those that the next step decides by.

        For gradient accumulation, and for training loops that call ``step()`` without arguments. The sums are
        cleared by the step, not by ``zero_grad``; a step that a ``GradScaler`` skips leaves them.

        Args:
            confidence: one number per subspace, summed over the samples of the micro-batch.

        Raises:
            TypeError: ``confidence`` is no mapping, or of something else than numbers.
            ValueError: the names are not those of the subspaces, or a tensor is not a scalar.

        Example:
            >>> import torch
            >>> from disentangled_mil import CGCOptimizer
            >>> a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
            >>> optimizer = CGCOptimizer(torch.optim.SGD([a, b], lr=1.0), {"tumor": [a], "tme": [b]})
            >>> for inputs in ([1.0, 0.0], [0.0, 1.0]):  # two micro-batches
            ...     ((a - b) @ torch.tensor(inputs)).backward()
            ...     optimizer.accumulate({"tumor": 0.5, "tme": 0.25})
            >>> optimizer.step()  # the gradients are opposite, so the less confident one vanishes
            >>> a.tolist(), b.tolist()
            ([-1.0, -1.0], [0.0, 0.0])
        """
        check_names("confidence", confidence, self.subspaces)
        zero = self._zeros()
        numbers = {}
        for name, value in confidence.items():
            if isinstance(value, Tensor):
                check_shape(f"confidence[{name!r}]", value, "")
                numbers[name] = value.detach().to(zero)
            elif isinstance(value, Real):
                numbers[name] = torch.full_like(zero, float(value))
            else:
                raise TypeError(f"confidence[{name!r}] must be a number or a scalar tensor, got {type(value).__name__}")
        self._sums.update({name: self._sums.get(name, zero) + number for name, number in numbers.items()})

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        confidence: Mapping[str, Tensor | float] | None = None,
    ) -> Any:
        """Coordinate the gradients in place, then step the wrapped optimizer.

        Args:
            closure: computes loss and gradients anew, for optimizers that ask for it; its gradients are
                coordinated after each evaluation, by the confidences known before and those that this
                evaluation accumulated.
            confidence: one number per subspace, e.g. the sum over the batch of the probability that the
                subspace alone gives to the truth; added to what was accumulated.

        Returns:
            What the wrapped optimizer returns: the closure's loss, or None.

        Raises:
            ValueError: no confidence was given or accumulated, or not one number per subspace.
            TypeError: a gradient is sparse, ``closure`` is not callable, or a confidence no number.
        """
        if closure is not None and not callable(closure):
            raise TypeError(
                f"closure must be callable, got {type(closure).__name__} "
                "(confidences are given by name: step(confidence=...))"
            )
        if confidence is not None:
            self.accumulate(confidence)
        try:
            if closure is not None:
                return self.wrapped.step(self._coordinated(closure))
            self._coordinate_gradients()
            return self.wrapped.step()
        finally:
            self._sums.clear()

    @property
    def report(self) -> CGCReport:
        """What the last step did; without rows before the first step."""
        cosine, projected, confidence = self._last
        pairs = combinations(self.subspaces, 2)
        return CGCReport(
            cosine=dict(zip(pairs, cosine, strict=True)),
            projected=dict(zip(self.subspaces, projected.sum(-1), strict=True)),
            rows=projected.shape[-1],
            confidence=dict(zip(self.subspaces, confidence, strict=True)),
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's parameter groups."""
        return self.wrapped.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.wrapped.param_groups = value

    @property
    def state(self) -> Any:
        """The wrapped optimizer's state."""
        return self.wrapped.state

    @state.setter
    def state(self, value: Any) -> None:
        self.wrapped.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's default options."""
        return self.wrapped.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.wrapped.defaults = value

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state, which it can load by itself."""
        return self.wrapped.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of the wrapped optimizer, saved with or without CGC."""
        self.wrapped.load_state_dict(state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters of the wrapped optimizer."""
        self.wrapped.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the wrapped optimizer; they belong to no subspace."""
        self.wrapped.add_param_group(param_group)

    def register_step_pre_hook(self, hook: Any) -> RemovableHandle:
        """Register with the wrapped optimizer; the hook sees coordinated gradients."""
        return self.wrapped.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        """Register with the wrapped optimizer."""
        return self.wrapped.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Register with the wrapped optimizer."""
        return self.wrapped.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Register with the wrapped optimizer."""
        return self.wrapped.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Register with the wrapped optimizer."""
        return self.wrapped.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Register with the wrapped optimizer."""
        return self.wrapped.register_load_state_dict_post_hook(hook, prepend)

    def __getstate__(self) -> dict[str, Any]:
        # A scheduler hangs a patched `step` on the instance, bound to this very optimizer.
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        options = f"subspaces={self.subspaces}, granularity={self.granularity!r}"
        return f"{type(self).__name__}({self.wrapped!r}, {options})"

    def _coordinated(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        known = dict(self._sums)

        def coordinated() -> Any:
            self._sums.clear()
            self._sums.update(known)
            loss = closure()
            self._coordinate_gradients()
            return loss

        return coordinated

    @torch.no_grad()
    def _coordinate_gradients(self) -> None:
        if not self._sums:
            raise ValueError("confidence must be given, to step(confidence=...) or accumulate(...), got none")
        confidence = torch.stack([self._sums[name] for name in self.subspaces])  # [S]
        compared = [position for position in self._positions if sum(p.grad is not None for p in position) > 1]
        # A missing gradient is one of zeros, which is nobody's rival.
        grads = [tuple(torch.zeros_like(p) if p.grad is None else p.grad for p in position) for position in compared]
        for grad in chain.from_iterable(grads):
            if grad.layout != torch.strided:
                raise TypeError(f"gradients of subspace_parameters must be dense, got {grad.layout}")
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(confidence, group=self.process_group)
        self._last = self._coordinate(grads, confidence)

    def _coordinate(self, positions: list[tuple[Tensor, ...]], confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinate gradients in place; return cosine [pairs, rows], projected [S, rows], confidence [S]."""
        together = self.granularity == "subspace" and positions
        count = len(self.subspaces)
        cosines = [self._zeros(count * (count - 1) // 2, 0)]
        changes = [self._zeros(count, 0).bool()]
        for block in [positions] if together else [[position] for position in positions]:
            rows = [[self._rows(grad) for grad in position] for position in block]  # [R, P] each
            stacked = torch.stack([torch.cat(parts, -1) for parts in zip(*rows, strict=True)])  # [S, R, P]
            result = coordinate(stacked, confidence.to(stacked.device))
            widths = [parts[0].shape[-1] for parts in rows]
            for position, pieces in zip(block, torch.split(result.gradients, widths, -1), strict=True):
                for grad, piece in zip(position, pieces, strict=True):
                    grad.copy_(piece.reshape(grad.shape))
            cosines.append(result.cosine.to(cosines[0].device))
            changes.append(result.projected.to(changes[0].device))
        return torch.cat(cosines, -1), torch.cat(changes, -1), confidence

    def _rows(self, grad: Tensor) -> Tensor:
        count = grad.shape[0] if self.granularity == "row" and grad.dim() > 1 else 1
        return grad.reshape(count, -1)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self._positions[0][0].device)


def _check_parameters(parameters: Mapping[str, tuple[Tensor, ...]], optimizer: torch.optim.Optimizer) -> None:
    if len(parameters) < 2:
        raise ValueError(f"subspace_parameters must name at least two subspaces, got {list(parameters)}")
    first, wanted = next(iter(parameters.items()))
    if not wanted:
        raise ValueError(f"subspace_parameters[{first!r}] must have at least one parameter, got none")
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    seen: dict[int, str] = {}
    for name, given in parameters.items():
        if len(given) != len(wanted):
            raise ValueError(
                f"subspace_parameters[{name!r}] must have as many parameters as {first!r}, {len(wanted)}, "
                f"got {len(given)}"
            )
        for index, parameter in enumerate(given):
            place = f"subspace_parameters[{name!r}][{index}]"
            if not isinstance(parameter, Tensor):
                raise TypeError(f"{place} must be a parameter, got {type(parameter).__name__}")
            check_floating(place, parameter)
            if hasattr(parameter, "full_tensor"):
                raise TypeError(
                    f"{place} must be whole in every process, got a {type(parameter.data).__name__} (leave it out of "
                    "fully_shard by ignored_params, or train with DistributedDataParallel)"
                )
            if parameter.shape != wanted[index].shape:
                raise ValueError(
                    f"{place} must have the shape of {first!r}, {list(wanted[index].shape)}, "
                    f"got {list(parameter.shape)}"
                )
            if id(parameter) not in owned:
                raise ValueError(f"{place} must be a parameter of the optimizer, got one that it does not have")
            if id(parameter) in seen:
                raise ValueError(f"{place} must occur once, got the same parameter as {seen[id(parameter)]}")
            seen[id(parameter)] = place
