"""The compressed-tensors quantizer of transformers, with a door for our own reader.

transformers finds a quantizer by the `quant_method` of config.json, and its entry for compressed-tensors demands the
package of that name and turns all weights into dense ones at the first forward. `CompressedTensorsQuantizer` takes
that entry: a subclass may keep a checkpoint packed, and whatever it declines goes to the original, unchanged.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps as ConversionOps  # for those who import from here
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION, HfQuantizer
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer
from transformers.utils.quantization_config import CompressedTensorsConfig as OriginalConfig
from transformers.utils.quantization_config import QuantizationConfigMixin as QuantizationConfigMixin
from transformers.utils.quantization_config import QuantizationMethod

from llmquant.errors import CheckpointError

if TYPE_CHECKING:  # importing transformers.modeling_utils can import this module, see llmquant.hf.register
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

METHOD = "compressed-tensors"
_ASKED = "dequantize or use_optimized_inference was asked for"
# Up to transformers 5.22 `dequantize` reads packed tensors into packed places first, and is set by itself for a status
# such as "frozen"; from 5.23 on it happens on the way from the file, and needs no places.
_NEEDS_PLACES = "_process_model_after_weight_loading" in vars(CompressedTensorsHfQuantizer)


class CompressedTensorsConfig(OriginalConfig):
    """The `quantization_config` of a checkpoint, kept word for word; the original parses it with its own package.

    It has the name of the original on purpose: transformers compares the names of the classes when a user passes a
    config too, as in `from_pretrained(..., quantization_config=CompressedTensorsConfig(dequantize=True))`.

    Attributes:
        stored: the entry of config.json; saving writes it back.
        dequantize: what the user asks of `from_pretrained`, None if nothing. The stored key of that name is advice to
            readers that cannot keep asymmetric weights packed, and stays in `stored`.
        use_optimized_inference: as `dequantize`.
    """

    def __init__(self, stored: Mapping[str, Any]) -> None:  # not the original's: it needs the package
        self.stored = dict(stored)
        self.dequantize: bool | None = None
        self.use_optimized_inference: bool | None = None
        self.quant_method = QuantizationMethod.COMPRESSED_TENSORS

    @property
    def quantization_config(self) -> Any:
        """What the original's attribute of this name holds (needs the compressed-tensors package)."""
        return self.original().quantization_config

    def original(self) -> OriginalConfig:
        """The config that transformers would have made of the stored entry and the user's wishes."""
        config: Any = OriginalConfig.from_dict(self.stored)
        for name in ("dequantize", "use_optimized_inference"):
            if getattr(self, name) is not None:
                setattr(config, name, getattr(self, name))
        return config

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        config = cls(config_dict.get("quantization_config", config_dict))
        unused = config.update(**kwargs)
        return (config, unused) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self.stored)

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


class CompressedTensorsQuantizer(CompressedTensorsHfQuantizer):
    """Keeps a checkpoint packed where the subclass can, and is the original quantizer otherwise.

    Attributes:
        packed: whether the weights stay packed; False makes every method the original's.
    """

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        self.use_fp8_kernel = False  # the original sets it late, in validate_environment
        self.packed = True
        refusal = self._refuse(quantization_config)
        if refusal is None:
            HfQuantizer.__init__(self, quantization_config, **kwargs)  # the original's own __init__ needs the package
        else:
            self._become_original(quantization_config, refusal, **kwargs)

    def refuse_config(self, stored: Mapping[str, Any]) -> str | None:
        """Why a checkpoint with this `quantization_config` cannot stay packed, or None."""
        raise NotImplementedError

    def swap(self, model: PreTrainedModel, stored: Mapping[str, Any], files: Sequence[str] | None) -> str | None:
        """Replace the quantized modules of a meta-device model; or say why not, leaving the model untouched."""
        raise NotImplementedError

    def check_original(self, model: PreTrainedModel, files: Sequence[str]) -> None:
        """Refuse what the original, which has prepared `model` by now, would not find places for."""
        raise NotImplementedError

    def finish(self, model: PreTrainedModel) -> None:
        """Make a model ready to run whose packed weights have been read."""
        raise NotImplementedError

    def make_dense(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        """Turn all packed weights into dense ones, for `model.dequantize()`."""
        raise NotImplementedError

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.packed:
            super().validate_environment(*args, **kwargs)

    def get_load_operations(self) -> dict[str, Any]:  # asked for from transformers 5.21 on
        return {} if self.packed else super().get_load_operations()

    def update_weight_conversions(  # pyright: ignore[reportIncompatibleMethodOverride]  # up to 5.20 without `model`
        self, weight_conversions: list[Any], *model: Any
    ) -> list[Any]:
        # The original's own, up to transformers 5.20, looks for packed experts also where they were kept.
        if self.packed:
            return HfQuantizer.update_weight_conversions(self, weight_conversions, *model)
        return super().update_weight_conversions(weight_conversions, *model)

    @property
    def is_trainable(self) -> bool:
        """Adapters on it, that is; the Trainer asks separately whether there are any."""
        return self.packed or super().is_trainable

    @property
    def is_qat_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  # a method there, so true
        return not self.packed and super().is_qat_trainable()

    def _convert_model_for_quantization(self, model: PreTrainedModel) -> None:
        # The original swaps experts for its own kind, which finds no weights where experts were kept.
        if not self.packed:
            super()._convert_model_for_quantization(model)

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        if self.packed:
            config: Any = self.quantization_config
            refusal = self.swap(model, config.stored, checkpoint_files)
            if refusal is not None:
                self._become_original(config, refusal)
                self.validate_environment()
                self._convert_model_for_quantization(model)
        if not self.packed:
            super()._process_model_before_weight_loading(model, checkpoint_files=checkpoint_files, **kwargs)
            original: Any = self.quantization_config
            if checkpoint_files is not None and (_NEEDS_PLACES or not original.dequantize):
                self.check_original(model, checkpoint_files)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.packed:
            self.finish(model)
        return super()._process_model_after_weight_loading(model, **kwargs)

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        dtype = dtype or model.dtype
        # save_pretrained leaves the name of the dtype in the config.
        self.make_dense(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        return model

    def _refuse(self, config: Any) -> str | None:
        if not isinstance(config, CompressedTensorsConfig):
            return "its quantization_config was made by other code"
        if config.dequantize or config.use_optimized_inference:
            return _ASKED
        return self.refuse_config(config.stored)

    def _become_original(self, config: Any, reason: str, **kwargs: Any) -> None:
        self.packed = False
        level = logging.INFO if reason == _ASKED else logging.WARNING
        log.log(level, "transformers and compressed-tensors load this checkpoint, it does not stay packed: %s", reason)
        try:
            original = config.original() if isinstance(config, CompressedTensorsConfig) else config
            super().__init__(original, **kwargs)
        except ImportError as error:
            raise CheckpointError(
                f"llmquant cannot keep this checkpoint packed ({reason}), and the compressed-tensors package, which "
                "reads all of its formats, is not installed; pip install compressed-tensors"
            ) from error


class OnLoadQuantizer(HfQuantizer):
    """Quantizes an ordinary checkpoint on its way into a model: what stands before and after the reading of weights."""

    def prepare(self, model: PreTrainedModel, device_map: Any, files: Sequence[str]) -> None:
        """Make places for the packed weights in a meta-device model; `files` are those that will be read."""
        raise NotImplementedError

    def finish(self, model: PreTrainedModel) -> None:
        """Complete a model whose weights have been read."""
        raise NotImplementedError

    @property
    def leaves(self) -> bool:
        """Whether the model is an ordinary one once it is loaded, without a quantizer."""
        return False

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        model = super().postprocess_model(model, **kwargs)
        if self.leaves:
            self.remove_quantization_config(model)
            for module in model.modules():
                config = getattr(module, "config", None)
                if getattr(config, "_is_quantized", False):
                    del config._is_quantized  # pyright: ignore[reportOptionalMemberAccess]
        return model

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, device_map: Any = None, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        self.prepare(model, device_map, checkpoint_files or ())

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        self.finish(model)
        return model


def stays_packed(model: nn.Module) -> bool:
    """Whether a model was loaded by a quantizer of ours and has kept its weights packed."""
    return getattr(getattr(model, "hf_quantizer", None), "packed", False)


def made_in_memory(model: nn.Module) -> Mapping[str, Any] | None:
    """How a model was quantized in memory, which our quantizer says; None of any other model."""
    return getattr(getattr(model, "hf_quantizer", None), "made", None)


def replaced_experts(model: nn.Module) -> list[str]:
    """The modules that transformers replaces in every compressed-tensors model, by one layer for each expert."""
    named = MODULES_TO_PATCH_FOR_QUANTIZATION
    return [
        name
        for name, module in model.named_modules()
        if METHOD in named.get(type(module).__name__, {}).get("quantization_methods", ())
    ]


def take_over(quantizer: type[CompressedTensorsQuantizer]) -> None:
    """Make transformers use `quantizer` for compressed-tensors checkpoints."""
    AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = CompressedTensorsConfig
    AUTO_QUANTIZER_MAPPING[METHOD] = quantizer  # register_quantizer() refuses names that exist


def add_quantizer(method: str, quantizer: type[HfQuantizer]) -> None:
    """Let config objects with this `quant_method` work; checkpoints cannot carry it, as no config class is added."""
    AUTO_QUANTIZER_MAPPING[method] = quantizer


@contextmanager
def weights_tied(model: PreTrainedModel) -> Iterator[None]:
    """Tie the weights of a meta-device model that is being loaded, for as long as one looks at it.

    transformers ties them after loading, and until then wants them apart and makes `tie_weights` do nothing.
    """
    apart = {target: model.get_parameter(target) for target in model.all_tied_weights_keys}
    for target, source in model.all_tied_weights_keys.items():
        _set_parameter(model, target, model.get_parameter(source))
    try:
        yield
    finally:
        for target, parameter in apart.items():
            _set_parameter(model, target, parameter)


def _set_parameter(model: PreTrainedModel, name: str, parameter: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, parameter)


def mark_as_packed(model: PreTrainedModel, quantizer: CompressedTensorsQuantizer) -> None:
    """Let `model` pass as one that `quantizer` loaded, as far as saving, casting and generation look at it."""
    from transformers import PreTrainedModel

    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._is_quantized = True
    attributes: Any = model  # those of nn.Module would have to be tensors
    attributes.config.quantization_config = quantizer.quantization_config
    attributes.hf_quantizer = quantizer
    attributes.quantization_method = quantizer.quantization_config.quant_method
    attributes.is_quantized = True


def remove_decompression(model: nn.Module) -> None:
    """Take away the hook by which compressed-tensors turns all weights dense at the first forward."""
    hook = getattr(model, "ct_decompress_hook", None)
    if hook is not None:
        hook.remove()
        del model.ct_decompress_hook
