"""Parameters that a case does not use take part in it with a gradient of zero."""

import torch
from torch import Tensor, nn


def with_zero_gradients(output: Tensor, *modules: nn.Module) -> Tensor:
    """The output, by which parameters of modules get a gradient of zero.

    ``DistributedDataParallel`` waits for a gradient of every parameter. The sum of none of their entries is added to
    the output: unlike a product with 0, it is 0 also for parameters that are NaN or infinite.

    Args:
        output: tensor of any shape that the loss depends on; a small one, as it is copied.
        *modules: modules that did not compute it.

    Returns:
        The output with equal values; itself where no gradients are recorded.

    Example:
        >>> import torch
        >>> from disentangled_mil.nn.unused import with_zero_gradients
        >>> unused = torch.nn.Linear(2, 1)
        >>> with_zero_gradients(torch.ones(3), unused).sum().backward()
        >>> unused.weight.grad
        tensor([[0., 0.]])
    """
    if not torch.is_grad_enabled():
        return output
    nothing = [parameter.flatten()[:0] for module in modules for parameter in module.parameters()]
    return output + torch.cat([output.new_empty(0), *nothing]).sum().to(output.dtype)
