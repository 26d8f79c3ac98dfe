"""Confidence-guided coordination (CGC) of gradients, around any optimizer."""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain, combinations
from math import isfinite
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from .._checks import check_choice, check_finite, check_names, check_shape
from .._torch_private import outside_of_compiled_code
from ._parameters import corresponding_parameters
from ._passes import BackwardPasses, Given
from ._processes import check_reduced, put_back, whole
from ._projection import coordinate
from ._wrapper import OptimizerWrapper

Granularity = Literal["row", "tensor", "subspace"]


class CGCReport(NamedTuple):
    """The result of the last step. Tensors stay on their device until they are read.

    Attributes:
        cosine: cosine of the gradients of each pair of subspaces before the coordination [rows]; 0 if a gradient is
            zero or not finite.
        projected: number of rows of each subspace whose gradient was projected, a scalar tensor.
        rows: number of rows that were compared.
        confidence: confidence of each subspace, summed since the last step, a scalar tensor.
    """

    cosine: dict[tuple[str, str], Tensor]
    projected: dict[str, Tensor]
    rows: int
    confidence: dict[str, Tensor]


class CGCOptimizer(OptimizerWrapper):
    r"""Project the gradient of a less confident subspace where it conflicts with that of a more confident one.

    Before each step of the wrapped optimizer, row by row of the corresponding parameters,

    .. math:: g_s \leftarrow g_s - \frac{\langle g_s, g_t \rangle}{\|g_t\|^2}\, g_t
              \quad\text{if } \cos(g_s, g_t) < 0 \text{ and confidence}_s < \text{confidence}_t .

    More than two subspaces are taken in descending confidence. Each gradient becomes the nearest one that conflicts
    with no more confident subspace. Equal confidences change nothing. A parameter without a gradient takes no part, nor
    do parameters of the wrapped optimizer that belong to no subspace.

    The class is a ``torch.optim.Optimizer``. Parameter groups, ``state_dict``, ``zero_grad`` and hooks are those of the
    wrapped optimizer, and nothing is added to its state. A scheduler takes either of the two. ``torch.amp.GradScaler``
    works as usual, also by ``scaler.step(optimizer, confidence=...)``, because a common scale of the gradients changes
    no decision.

    With several processes, confidences are summed over them in one collective per step, so all decide alike. The
    gradients must be equal in all processes, as ``DistributedDataParallel`` leaves them, or be sharded, as
    ``fully_shard`` leaves them: those of the subspaces are gathered at each step. Build the optimizer after
    ``fully_shard``, which replaces the parameters. Steps 1, 2, 4, 8 and so on refuse gradients that nothing has
    reduced, and subspaces without any gradient.

    Args:
        optimizer: optimizer that takes the steps, kept as ``wrapped``.
        subspace_parameters: parameters of each subspace, for example those of its block of a head. They correspond by
            position, have equal shapes there, and belong to ``optimizer``.
        granularity: unit of comparison. ``"row"`` is a row of a parameter along its first dimension, such as a class of
            the head; a parameter of fewer than two dimensions is one row. ``"tensor"`` is a whole parameter.
            ``"subspace"`` is all parameters of a subspace together.
        process_group: processes that train together; all by default.

    Raises:
        TypeError: ``optimizer`` is no optimizer, ``subspace_parameters`` no mapping, or a parameter no
            floating-point tensor.
        ValueError: there are fewer than two subspaces, parameters do not correspond, ``optimizer`` does not have
            one, one is given twice, or ``granularity`` is unknown.

    Source:
        *Disentangled Multi-modal Learning of Histology and Transcriptomics for Cancer Characterization*,
        IEEE TMI 2026, section CGC, equation 6. Projection of conflicting gradients: Yu et al., *Gradient Surgery
        for Multi-Task Learning* (PCGrad), NeurIPS 2020.

    Differs from the source:
        * The projection is that of the paper, onto the orthogonal complement. The released code subtracts it twice,
          which reflects the gradient.
        * The caller gives the confidence. For censored survival, use the likelihood of the observation
          (:meth:`disentangled_mil.DiscreteSurvival.confidence`). The released code takes a softmax over hazard logits.
        * Several processes make one decision, on summed confidences and reduced gradients. The released code decides
          in each process and reduces again.
        * Any number of subspaces and any unit of comparison are possible.

    Example:
        One head sees tumor patches and the other their surroundings. Lymphocytes (channel 0) lie inside the tumor in
        class 1 and around it in class 0, so the gradients of the two heads conflict in both class rows.

        >>> import torch
        >>> from disentangled_mil import CGCOptimizer
        >>> _, labels = torch.manual_seed(0), torch.tensor([0, 1, 0, 1])
        >>> bags = {s: torch.randn(4, 50, 16) for s in ("tumor", "tme")}
        >>> bags["tumor"][labels == 1, :, 0] += 2
        >>> bags["tme"][labels == 0, :, 0] += 2
        >>> score = torch.nn.ModuleDict({s: torch.nn.Linear(16, 1) for s in bags})
        >>> head = torch.nn.ModuleDict({s: torch.nn.Linear(16, 2, bias=False) for s in bags})
        >>> adam = torch.optim.AdamW([*score.parameters(), *head.parameters()], lr=2e-4)
        >>> optimizer = CGCOptimizer(adam, {s: head[s].parameters() for s in bags})
        >>> logits = {s: head[s]((score[s](x).softmax(1) * x).sum(1)) for s, x in bags.items()}  # [4, 2] each
        >>> torch.nn.functional.cross_entropy(sum(logits.values()), labels).backward()
        >>> optimizer.step(confidence={s: x.softmax(1)[range(4), labels].sum() for s, x in logits.items()})
        >>> optimizer.report.projected  # rows of the less confident subspace
        {'tumor': tensor(0), 'tme': tensor(2)}
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        subspace_parameters: Mapping[str, Iterable[Tensor]],
        *,
        granularity: Granularity = "row",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(optimizer)
        check_choice("granularity", granularity, get_args(Granularity))
        parameters = corresponding_parameters(subspace_parameters, optimizer)
        self.subspaces = tuple(parameters)
        self.granularity = granularity
        self.process_group = process_group
        self._parameters = parameters
        self._positions = tuple(zip(*parameters.values(), strict=True))
        self._passes = BackwardPasses(chain.from_iterable(self._positions))
        self._steps = 0
        self._last = self._coordinate([], self._zeros(len(self.subspaces)))

    @outside_of_compiled_code
    def accumulate(self, confidence: Mapping[str, Tensor | float]) -> None:
        """Give the confidences of a micro-batch; those of all micro-batches of a step decide together.

        Use it for gradient accumulation, and for training loops that call ``step()`` without arguments. Call it once
        for each micro-batch, before or after its backward passes. A call counts only if a backward pass of its
        micro-batch is part of the present gradients. So confidences from validation, and of a step that a
        ``GradScaler`` skipped, are left out, however the gradients were cleared. Gradients that no backward pass made
        go with all calls since the last step.

        Args:
            confidence: one number per subspace, summed over the samples of the micro-batch.

        Raises:
            TypeError: ``confidence`` is no mapping, or a value is no number.
            ValueError: the names are not those of the subspaces, a tensor is not a scalar, or a value on the CPU is not
                finite.

        Example:
            >>> import torch
            >>> from disentangled_mil import CGCOptimizer
            >>> a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
            >>> optimizer = CGCOptimizer(torch.optim.SGD([a, b], lr=1.0), {"tumor": [a], "tme": [b]})
            >>> for inputs in ([1.0, 0.0], [0.0, 1.0]):  # two micro-batches
            ...     ((a - b) @ torch.tensor(inputs)).backward()
            ...     optimizer.accumulate({"tumor": 0.5, "tme": 0.25})
            >>> optimizer.step()  # the gradients are opposite, so that of the less confident subspace becomes zero
            >>> a.tolist(), b.tolist()
            ([-1.0, -1.0], [0.0, 0.0])
        """
        self._passes.give(self._checked(confidence))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters of the wrapped optimizer."""
        super().zero_grad(set_to_none)
        self._passes.clear()

    @outside_of_compiled_code
    def _checked(self, confidence: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
        """Confidences as scalars on the device of the parameters."""
        check_names("confidence", confidence, self.subspaces)
        zero = self._zeros()
        numbers = {}
        for name, value in confidence.items():
            if isinstance(value, Tensor):
                check_shape(f"confidence[{name!r}]", value, "")
                check_finite(f"confidence[{name!r}]", value)
                numbers[name] = value.detach().to(zero)
            elif isinstance(value, Real):
                if not isfinite(value):
                    raise ValueError(f"confidence[{name!r}] must be finite, got {value}")
                numbers[name] = torch.full_like(zero, float(value))
            else:
                raise TypeError(f"confidence[{name!r}] must be a number or a scalar tensor, got {type(value).__name__}")
        return numbers

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        confidence: Mapping[str, Tensor | float] | None = None,
    ) -> Any:
        """Coordinate the gradients in place, then step the wrapped optimizer.

        Args:
            closure: function that computes loss and gradients again, for optimizers that call it. Its gradients are
                coordinated after each evaluation, by the confidences from before the step and those that this
                evaluation accumulated.
            confidence: one number per subspace, added to the accumulated ones. An example is the sum over the batch
                of the probability that the subspace alone gives to the true class.

        Returns:
            The result of the wrapped optimizer: the loss of the closure, or None.

        Raises:
            ValueError: no confidence was given or accumulated, or not one number per subspace.
            RuntimeError: processes have different gradients, or a subspace has none in any of several processes.
            TypeError: a gradient is sparse, ``closure`` is not callable, or a confidence is no number.
        """
        if closure is not None and not callable(closure):
            raise TypeError(
                f"closure must be callable, got {type(closure).__name__} "
                "(give confidences by name: step(confidence=...))"
            )
        of_step = None if confidence is None else self._checked(confidence)
        try:
            if closure is not None:
                return self.wrapped.step(self._coordinated(closure, of_step))
            self._coordinate_gradients(of_step)
            return self.wrapped.step()
        finally:
            self._passes.forget()

    @property
    def report(self) -> CGCReport:
        """The result of the last step. Before the first step it has no rows."""
        cosine, projected, confidence = self._last
        pairs = combinations(self.subspaces, 2)
        return CGCReport(
            cosine=dict(zip(pairs, cosine, strict=True)),
            projected=dict(zip(self.subspaces, projected.sum(-1), strict=True)),
            rows=projected.shape[-1],
            confidence=dict(zip(self.subspaces, confidence, strict=True)),
        )

    def __repr__(self) -> str:
        options = f"subspaces={self.subspaces}, granularity={self.granularity!r}"
        return f"{type(self).__name__}({self.wrapped!r}, {options})"

    def _coordinated(self, closure: Callable[[], Any], of_step: dict[str, Tensor] | None) -> Callable[[], Any]:
        known = self._passes.all_given()

        def coordinated() -> Any:
            self._passes.forget(known)
            loss = closure()
            self._coordinate_gradients(of_step, evaluated=True)
            return loss

        return coordinated

    @outside_of_compiled_code
    @torch.no_grad()
    def _coordinate_gradients(self, of_step: dict[str, Tensor] | None, *, evaluated: bool = False) -> None:
        confidence = self._confidence(of_step, evaluated)
        compared = [position for position in self._positions if sum(p.grad is not None for p in position) > 1]
        # A missing gradient is replaced by zeros, which conflict with nothing.
        stored = [tuple(torch.zeros_like(p) if p.grad is None else p.grad for p in position) for position in compared]
        grads = [tuple(whole(grad) for grad in position) for position in stored]
        for grad in chain.from_iterable(grads):
            if grad.layout != torch.strided:
                raise TypeError(f"gradients of subspace_parameters must be dense, got {grad.layout}")
        if dist.is_available() and dist.is_initialized():
            self._steps += 1
            if self._steps.bit_count() == 1:  # 1, 2, 4, 8, ..., because reading the result waits for the device
                check_reduced(grads, self._parameters, confidence.device, self.process_group)
            dist.all_reduce(confidence, group=self.process_group)
        self._last = self._coordinate(grads, confidence)
        for kept, coordinated in zip(chain.from_iterable(stored), chain.from_iterable(grads), strict=True):
            put_back(kept, coordinated)

    def _confidence(self, of_step: dict[str, Tensor] | None, evaluated: bool) -> Tensor:
        """The confidences [S] that belong to the present gradients, which a closure may have evaluated."""
        # Those of the step belong to one backward pass, unless a closure came after them.
        given = self._passes.counted(without_last=of_step is not None and not evaluated)
        if of_step is not None:
            given.append(Given(of_step, []))
        if not given:
            raise ValueError("confidence must be given, to step(confidence=...) or accumulate(...), got none")
        return torch.stack([torch.stack([each.of(name) for each in given]).sum() for name in self.subspaces])

    def _coordinate(self, positions: list[tuple[Tensor, ...]], confidence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinate gradients in place; return cosine [pairs, rows], projected [S, rows], confidence [S]."""
        # A block is what is compared at once: the gradients of one position, or of all positions together.
        blocks = [positions] if self.granularity == "subspace" and positions else [[each] for each in positions]
        count = len(self.subspaces)
        cosines = [self._zeros(count * (count - 1) // 2, 0)]
        projected = [self._zeros(count, 0).bool()]
        for block in blocks:
            rows = [torch.stack([self._rows(grad) for grad in position]) for position in block]  # [S, R, P] each
            stacked = torch.cat(rows, -1)  # [S, R, P of the block]
            result = coordinate(stacked, confidence.to(stacked.device))
            pieces = torch.split(result.gradients, [each.shape[-1] for each in rows], -1)
            for position, piece in zip(block, pieces, strict=True):
                for grad, own in zip(position, piece, strict=True):
                    grad.copy_(own.reshape(grad.shape))
            cosines.append(result.cosine.to(confidence.device))
            projected.append(result.projected.to(confidence.device))
        return torch.cat(cosines, -1), torch.cat(projected, -1), confidence

    def _rows(self, grad: Tensor) -> Tensor:
        count = grad.shape[0] if self.granularity == "row" and grad.dim() > 1 else 1
        return grad.reshape(count, -1)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self._positions[0][0].device)
