"""FusedAdam, and the kernels that Megatron-Core applies to lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

_CHUNK = 2048 * 32  # elements that a kernel takes at a time: without meaning here


def multi_tensor_scale(chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[Any], scale: float) -> None:
    """Write the first list times ``scale`` to the second; the flag becomes 1 where a value is not finite."""
    for source, target in zip(*tensor_lists, strict=True):
        target.copy_(source * scale)
        if not target.isfinite().all():
            noop_flag.fill_(1)


def multi_tensor_l2norm(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: list[Any], per_tensor: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The norm over all tensors of the one list, [1], and that of each."""
    (tensors,) = tensor_lists
    norms = [tensor.float().norm() for tensor in tensors]
    each = torch.stack(norms) if norms else torch.zeros(0)
    return each.norm().reshape(1), each if per_tensor else None


def multi_tensor_adam(*args: Any) -> None:
    raise NotImplementedError("CPU ranks use FusedAdam")


def multi_tensor_applier(
    op: Callable[..., Any], noop_flag_buffer: torch.Tensor, tensor_lists: list[Any], *args: Any
) -> Any:
    """Apply ``op`` to lists of tensors."""
    return op(_CHUNK, noop_flag_buffer, tensor_lists, *args)


class FusedSGD(torch.optim.SGD):
    """Stochastic gradient descent."""


class FusedAdam(torch.optim.Optimizer):
    """Adam (arXiv:1412.6980) and AdamW (arXiv:1711.05101).

    The step counter is in the parameter group, as the distributed optimizer's checkpoints expect.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter | dict[str, Any]],
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        adam_w_mode: bool = True,
        capturable: bool = False,
        master_weights: bool = False,
        master_weight_dtype: torch.dtype = torch.float32,
        exp_avg_dtype: torch.dtype = torch.float32,
        exp_avg_sq_dtype: torch.dtype = torch.float32,
        use_decoupled_grad: bool = False,
        store_param_remainders: bool = False,
        set_grad_none: bool | None = None,
    ) -> None:
        if amsgrad:
            raise RuntimeError("FusedAdam does not support the AMSGrad variant.")
        if master_weights or {exp_avg_dtype, exp_avg_sq_dtype} != {torch.float32}:
            raise NotImplementedError("CPU ranks keep the states of the optimizer in fp32, beside fp32 weights")
        self.adam_w_mode, self.use_decoupled_grad = adam_w_mode, use_decoupled_grad
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()  # type: ignore[misc]
    def step(self, closure: Any = None, grad_scaler: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                gradient = parameter.decoupled_grad if self.use_decoupled_grad else parameter.grad
                if gradient is not None:
                    self._update(parameter, gradient.to(parameter.dtype), group)

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2), lr = self.state[parameter], group["betas"], group["lr"]
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        corrects = group["bias_correction"]
        correction1 = 1 - beta1 ** group["step"] if corrects else 1.0
        correction2 = 1 - beta2 ** group["step"] if corrects else 1.0
        if group["weight_decay"] and self.adam_w_mode:
            parameter.mul_(1 - lr * group["weight_decay"])
        elif group["weight_decay"]:
            gradient = gradient + group["weight_decay"] * parameter
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (state["exp_avg_sq"] / correction2).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["exp_avg"], denominator, value=-lr / correction1)
