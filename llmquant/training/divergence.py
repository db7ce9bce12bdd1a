"""Stopping when training has diverged, with the name of the layer where it did."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llmquant.errors import QuantizationError
from llmquant.hf.qat import fake_layers


class Watch:
    """Hooks on a model in training that know what is needed to say where a number stopped being one."""

    def __init__(self, model: nn.Module) -> None:
        self._inputs: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._sums: dict[str, Tensor] = {}  # of gradients, in the order in which the backward pass reaches them
        self._hooks = [model.register_forward_pre_hook(self._keep_inputs, with_kwargs=True)]
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(partial(self._sum, name)))

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def check(self, model: nn.Module, step: int, saved: str) -> None:
        """Look at the gradients that the optimizer is about to use.

        `saved` is the last checkpoint, "" if there is none yet.

        Raises:
            QuantizationError: if one is not finite.
        """
        gradients = [_local(p.grad) for p in model.parameters() if p.grad is not None]
        if not gradients or _finite([gradient.sum() for gradient in gradients]):
            return
        where = spoiled(model) or self._outputs(model) or self._gradients()
        kept = f"{saved} is the last checkpoint" if saved else "there is no checkpoint yet"
        raise QuantizationError(
            f"step {step}: training has diverged, {where}; {kept}; lower learning_rate or scale_learning_rate, or warm "
            "up longer"
        )

    def _keep_inputs(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs = args, kwargs

    def _sum(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._sums[name] = _local(parameter.grad).sum()

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> str:
        """The first module that makes of finite numbers others, on the text of the last forward."""
        found: list[str] = []

        def look(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not _finite([output]):
                found.append(name)

        hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules()]
        args, kwargs = self._inputs
        try:
            model(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        return f"the outputs of {found[0]} are the first that are not finite" if found else ""

    def _gradients(self) -> str:
        for name, total in self._sums.items():
            if not _finite([total]):
                return f"the gradient of {name} is the first on the way back that is not finite"
        return "a gradient of another process is not finite"


def spoiled(model: nn.Module) -> str:
    """What of a model is not finite, in words; "" if all is."""
    for name, layer in fake_layers(model).items():
        change = layer.weight_scale_change
        if change is not None and not _finite([_local(change).exp()]):
            return f"scales of {name} are not finite"
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not _finite([_local(parameter)]):
            return f"{name} is not finite"
    return ""


def _finite(tensors: list[Tensor]) -> bool:
    # A sum is finite only if all that is in it is; one number to wait for, not one for each tensor.
    sums = [tensor.detach().float().sum() for tensor in tensors]
    return bool(torch.stack([each.to(sums[0].device) for each in sums]).isfinite().all())


def _local(tensor: Tensor) -> Tensor:
    """Of a tensor that is spread over processes, the part here."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]
