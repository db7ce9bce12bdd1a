"""peft's LoRA around packed layers: `get_peft_model(model, LoraConfig(...))` trains adapters beside integer weights.

Imported once peft is, see hf/__init__.py. What peft offers beyond plain LoRA reads or changes the dense weight, and is
refused.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import layer as lora

from llmquant.errors import QuantizationError
from llmquant.nn.int8_linear import Int8Linear
from llmquant.nn.linear import PackedLinear

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
                f"init_lora_weights={config.init_lora_weights!r} starts from a dense weight, which a {kind} does not "
                'have; use True, False or "gaussian"'
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


LAYERS = {PackedLinear: PackedLoraLinear, Int8Linear: PackedLoraLinear}
