"""peft's LoRA: beside packed weights, which stay as they are, and inside weights that are rounded with it.

Imported once peft is, see hf/__init__.py. What peft offers beyond plain LoRA reads or changes the dense weight, and is
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from llmquant.errors import QuantizationError
from llmquant.nn.fake_embedding import FakeEmbedding
from llmquant.nn.fake_linear import FakeLinear
from llmquant.nn.int8_linear import Int8Linear
from llmquant.nn.linear import PackedLinear
from llmquant.nn.low_rank import Term, changed

_STARTS = (True, False, "gaussian")  # of adapters; all others of peft's start from the dense weight
_KEEP = (
    "an adapter cannot be merged into a packed weight: its change lies between the integers. Keep the adapter beside "
    "it (save_pretrained of the peft model writes it), or merge it into the 16-bit model and quantize that again; a "
    "recipe with `qat: {lora: ...}` trains an adapter that merges exactly"
)


class PlainLora(lora.Linear):
    """LoRA without the variants that need a dense weight."""

    def update_layer(self, adapter_name: str, *args: Any, config: Any, **kwargs: Any) -> None:
        """Add an adapter."""
        kind = type(self.get_base_layer()).__name__
        if config.init_lora_weights not in _STARTS:
            raise QuantizationError(
                f"init_lora_weights={config.init_lora_weights!r} starts from a dense weight, or changes it, which a "
                f'{kind} does not let it; use True, False or "gaussian"'
            )
        if kwargs.get("parameter_name") is not None:
            raise QuantizationError(f"a {kind} has no dense parameter to adapt; name the layer in target_modules")
        super().update_layer(adapter_name, *args, config=config, **kwargs)

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features

    @property
    def lora_variants(self) -> dict[tuple[str, ...], None]:
        """None: peft refuses whatever else is asked for."""
        return {(): None}


class PackedLoraLinear(PlainLora):
    """`layer(x) + scaling * B A x` around a `PackedLinear` or an `Int8Linear`; only A and B learn.

    Decoder layers run fused only while their adapters are switched off (fused_layers.py).
    """

    def merge(self, *_: Any, **__: Any) -> None:
        raise QuantizationError(_KEEP)


class FakeLoraLinear(PlainLora):
    """A `FakeLinear` whose weight is `fake_quantize(weight + scaling * B A)`, so merging and packing change nothing."""

    def __init__(self, base_layer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(base_layer, *args, **kwargs)
        self._rounded.adapters = self.terms

    @property
    def _rounded(self) -> Any:
        return self.get_base_layer()

    def update_layer(self, adapter_name: str, *args: Any, config: Any, **kwargs: Any) -> None:
        """Add an adapter."""
        layer = self._rounded
        if config.lora_dropout or config.lora_bias:
            raise QuantizationError(
                "an adapter that is rounded with its weight has no inputs of its own to drop, nor a bias; set "
                "lora_dropout=0 and lora_bias=False"
            )
        if layer.tied:
            raise QuantizationError("a head that is tied to an embedding cannot have an adapter alone; leave it out")
        if layer.weight is None:
            raise QuantizationError("with ranges scales-only the codes never change; use other ranges for adapters")
        super().update_layer(adapter_name, *args, config=config, **kwargs)

    def terms(self, names: Sequence[str] | None = None) -> list[Term]:
        """The changes by these adapters; by default those that are active and not merged."""
        if names is None:
            names = [] if self.disable_adapters else [n for n in self.active_adapters if n not in self.merged_adapters]
        known = [name for name in names if name in self.lora_A]
        return [Term(self.lora_B[n].weight, self.lora_A[n].weight, self.scaling[n]) for n in known]  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, *_: Any, **kwargs: Any) -> Tensor:
        """Apply the layer; its weight has the active adapters in it."""
        if kwargs.get("adapter_names") is not None:
            raise QuantizationError("one weight is rounded for a whole batch; adapter_names cannot differ within it")
        if self.disable_adapters and self.merged:
            self.unmerge()
        return self.base_layer(x)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the weight that is rounded; what is computed stays, bit for bit."""
        names = check_adapters_to_merge(self, adapter_names)
        base = self._rounded.base()
        weight = changed(base, self.terms(names))
        if safe_merge and not bool(weight.isfinite().all()):
            raise QuantizationError(f"adapter {' and '.join(names)}: the merged weight is not finite")
        base.copy_(weight)
        self.merged_adapters += names

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take merged adapters out again, within float32."""
        base = self._rounded.base()
        base.copy_(changed(base, [term._replace(scale=-term.scale) for term in self.terms(self.merged_adapters)]))
        self.merged_adapters.clear()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The layer without its adapters; peft asks for it in `unload` and `merge_and_unload`."""
        if merge:
            self.merge(safe_merge, adapter_names)
        layer = self._rounded
        layer.adapters = None
        return layer


def _no_table(*_: Any, **__: Any) -> nn.Module:
    raise QuantizationError("an embedding that is trained rounded takes no adapter of peft; use `qat: {lora: ...}`")


LAYERS: dict[type[nn.Module], Any] = {
    PackedLinear: PackedLoraLinear,
    Int8Linear: PackedLoraLinear,
    FakeLinear: FakeLoraLinear,
    FakeEmbedding: _no_table,
}
