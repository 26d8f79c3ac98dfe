"""The private interfaces of PyTorch that the package uses, and what happens where a release lacks one.

No other module may use a private name of PyTorch; ``tests/test_torch_private.py`` enforces it. One name is given to
PyTorch instead of taken from it: ``optim/_wrapper.py`` has a property ``_step_supports_amp_scaling``. ``GradScaler``
reads it before a step, so :class:`~disentangled_mil.CGCOptimizer` can refuse gradients that are unscaled already. If
a release no longer reads it, such a step is not refused.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef as CustomOpDef
else:
    CustomOpDef = Any  # torch.library.custom_op returns it; only type checkers need the name.

Function = TypeVar("Function", bound=Callable[..., Any])

try:
    from torch.utils import _pytree
except ImportError:
    _pytree = None  # type: ignore[assignment]


def register_pytree_node(
    kind: type, flatten: Callable[..., Any], unflatten: Callable[..., Any], **options: Any
) -> None:
    """Register a container with ``torch.export`` and ``tree_map``, which have no public registration for it.

    Without the interface nothing is registered: eager code and ``torch.compile`` work, ``torch.export`` does not.
    """
    if _pytree is not None:
        _pytree.register_pytree_node(kind, flatten, unflatten, **options)


def attribute_key(name: str) -> Any:
    """The key by which error messages of ``torch.export`` name an attribute; without the interface, its name."""
    return name if _pytree is None else _pytree.GetAttrKey(name)


def is_transformed() -> bool:
    """Whether a transform or a dispatch mode is active, under which values of tensors must not be read.

    Returns:
        The answer; True without the interface, so that checks of values are skipped.
    """
    try:
        return bool(torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack())
    except AttributeError:
        return True


def register_batched(
    registered: "CustomOpDef", rule: Callable[[int, Sequence[Any], Sequence[Any]], tuple[Any, Any]]
) -> None:
    """Register a batching rule with ``torch.vmap`` and with ``torch.autograd.grad(..., is_grads_batched=True)``.

    The latter has an implementation of its own, without a public registration. Where a release lacks its interface,
    only ``torch.vmap`` knows the rule.

    Args:
        registered: operator.
        rule: function of the number of elements, the batched dimension of every argument (None for an argument that is
            not batched) and the arguments. It returns the results and their batched dimensions.
    """
    registered.register_vmap(lambda info, dims, *arguments: rule(info.batch_size, dims, arguments))
    try:
        is_batched, grow, shrink = (
            torch._C._functorch.is_legacy_batchedtensor,
            torch._C._vmapmode_increment_nesting,
            torch._C._vmapmode_decrement_nesting,
        )
        into, out_of = torch.ops.aten._add_batch_dim, torch.ops.aten._remove_batch_dim
    except AttributeError:
        return

    def legacy(*arguments: Any) -> Any:
        sizes: list[int] = []

        def unpacked(part: Any) -> Any:
            if isinstance(part, (list, tuple)):
                return type(part)(unpacked(each) for each in part)
            if not (isinstance(part, Tensor) and is_batched(part)):
                return part
            whole = out_of(part, level, 1, 0)
            sizes.append(len(whole))
            return whole

        def dims(part: Any) -> Any:
            if isinstance(part, (list, tuple)):
                return [dims(each) for each in part]
            return 0 if isinstance(part, Tensor) and is_batched(part) else None

        level = shrink() + 1  # Outside of the level, random numbers can be drawn.
        try:
            whole = unpacked(arguments)
            found, _ = rule(sizes[0], dims(arguments), whole)
        finally:
            grow()
        if isinstance(found, Tensor):
            return into(found, 0, level)
        return type(found)(into(each, 0, level) for each in found)

    # Registered with the operator's own library, which lives as long as the operator.
    registered._lib.impl(registered._opoverload, legacy, "Batched")  # type: ignore[no-untyped-call]


def smaller(a: int, b: int) -> int:
    """The smaller of two sizes, which may be those of an exporter; the public function has no types."""
    least: int = torch.sym_min(a, b)  # type: ignore[no-untyped-call]
    return least


def larger(a: int, b: int) -> int:
    """The larger of two sizes, which may be those of an exporter; the public function has no types."""
    most: int = torch.sym_max(a, b)  # type: ignore[no-untyped-call]
    return most


def side_of(length: Tensor) -> int:
    """The side of a canvas from a tensor that holds one, which an exporter may take to be at least 1.

    Without the interface, the exporter refuses what depends on the side.

    Args:
        length: integer tensor of one number.

    Returns:
        The side.
    """
    side: int = length.item()  # type: ignore[assignment]  # int() would end the exporter's size.
    if hasattr(torch, "_check"):
        torch._check(side >= 1)  # type: ignore[no-untyped-call]
    return side


def has_tangent(tensor: Tensor) -> bool:
    """Whether a tensor takes part in forward-mode differentiation; ``unpack_dual`` is public and always there."""
    return unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def softmax_backward(gradient: Tensor, weights: Tensor) -> Tensor:
    """The gradient of scores from that of ``weights = scores.softmax(-1)``, in one pass; otherwise in three."""
    try:
        into_scores: Tensor = torch.ops.aten._softmax_backward_data(gradient, weights, -1, weights.dtype)
    except AttributeError:
        into_scores = weights * (gradient - (gradient * weights).sum(-1, keepdim=True))
    return into_scores


def relu_backward(gradient: Tensor, activation: Tensor) -> Tensor:
    """The gradient of x from that of ``activation = relu(x)``, in one pass; otherwise in two."""
    try:
        into_input: Tensor = torch.ops.aten.threshold_backward(gradient, activation, 0)
    except AttributeError:
        into_input = gradient.masked_fill(activation <= 0, 0)
    return into_input


def grid_sample_backward(
    gradient: Tensor, table: Tensor, place: Tensor, *, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of ``grid_sample(table, place, align_corners=True, padding_mode="border")``.

    Autograd does not record inside an operator, so that PyTorch's own formula has to be called.

    Args:
        gradient: gradient of the values that were read.
        table: tables that were read.
        place: places where they were read.
        wanted: two flags: whether the gradients of the table and of the places are needed.

    Shape:
        ``gradient`` [G, I, Y, X], ``table`` [G, I, R, S], ``place`` [G, Y, X, 2].

    Returns:
        The gradients of table and places; one that is not wanted is undefined.

    Raises:
        RuntimeError: PyTorch has no such formula.
    """
    try:
        formula = torch.ops.aten.grid_sampler_2d_backward
    except AttributeError as error:
        raise RuntimeError(
            f"the gradient of a tabulated bias needs aten::grid_sampler_2d_backward, which PyTorch {torch.__version__} "
            'lacks; backend="reference" does without it'
        ) from error
    into_table, into_place = formula(gradient, table, place, 0, 1, True, list(wanted))
    return into_table, into_place


def outside_of_compiled_code(function: Function) -> Function:
    """Let ``torch.compile`` call a function and not trace it; without the interface it traces it.

    The public ``torch.compiler.disable`` imports the whole compiler at once.

    Args:
        function: function or method.

    Returns:
        The function to use in its place.
    """
    try:
        from torch._compile import _disable_dynamo
    except ImportError:
        return function
    return _disable_dynamo(function)  # type: ignore[return-value]


def unscaled_by_calling_scaler(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the ``GradScaler`` that called the caller has unscaled an optimizer since its last update.

    A scaler keeps its state by optimizer object and hands itself to no one, so it is found as the caller.

    Args:
        optimizer: optimizer.

    Returns:
        Whether it was unscaled; False where a release lacks the interface.
    """
    scaler = sys._getframe(2).f_locals.get("self")
    states = getattr(scaler, "_per_optimizer_states", {}) if isinstance(scaler, torch.amp.GradScaler) else {}
    stage = states[id(optimizer)].get("stage") if id(optimizer) in states else None
    return getattr(stage, "name", "") == "UNSCALED"
