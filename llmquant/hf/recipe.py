"""`RecipeConfig` quantizes an ordinary checkpoint while transformers loads it, by the quantizer behind it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace as replace_field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmquant.algorithms.rounding.base import LayerResult
from llmquant.compat.loading import map_keys
from llmquant.compat.quantizers import (
    CompressedTensorsConfig,
    ConversionOps,
    OnLoadQuantizer,
    QuantizationConfigMixin,
    add_quantizer,
    mark_as_packed,
    weights_tied,
)
from llmquant.compat.remote_code import runs_remote_code
from llmquant.data.calibration import CalibrationData, check_vocabulary, context_limit, load_calibration
from llmquant.device import resolve_device, rounding_device
from llmquant.engine.in_memory import quantize_loaded
from llmquant.engine.layer import check_statistics, needs_calibration, quantize_layer
from llmquant.engine.output.finalize import describe
from llmquant.engine.output.units import check_alone
from llmquant.engine.prepare import load_tokenizer
from llmquant.errors import CheckpointError, LlmquantError, PlanError, RecipeError
from llmquant.formats import DEFAULT
from llmquant.formats.compressed_tensors.codec import encode
from llmquant.formats.compressed_tensors.config import model_quantization_config
from llmquant.hf.packed import PackedQuantizer
from llmquant.hf.place import finish, place_empty, stand_in
from llmquant.hf.qat import place_fake
from llmquant.hf.stored import check_stored, read_headers
from llmquant.hf.ties import replace, share_with_heads
from llmquant.models.edits import apply_edits
from llmquant.models.safetensors_header import TensorInfo
from llmquant.models.skeleton import take_inventory
from llmquant.nn.embedding import PackedEmbedding
from llmquant.nn.linear import PackedLinear
from llmquant.nn.storage import PackedStorage
from llmquant.progress import Progress
from llmquant.recipe.load import load_recipe
from llmquant.recipe.plan import MatrixRow, Plan, make_plan
from llmquant.recipe.schema import Recipe
from llmquant.spec import Scheme

log = logging.getLogger(__name__)

METHOD = "llmquant"  # of the config object in memory only; no checkpoint ever carries it


class RecipeConfig(QuantizationConfigMixin):
    """Quantize by a recipe in `from_pretrained(..., quantization_config=RecipeConfig("int4-g128"))`.

    Data-free recipes are applied tensor by tensor while the weights are read; recipes that need calibration data, or
    transform blocks, are applied after the whole model is loaded (`llmquant.quantize` does it without ever holding the
    whole model). `save_pretrained` then writes the tensors and the config.json of `llmquant.quantize`, but no tokenizer
    and no llmquant.json.

    A recipe with a section `qat` gives a model for the `Trainer` instead: its layers compute with rounded weights and
    learn, and `llmquant.convert_qat` packs them (see `prepare_qat`).

    Args:
        recipe: name of a preset, path of a recipe file, or a recipe as a mapping.
        tokenizer: for recipes that need calibration data: a tokenizer, or the folder or hub id of one. By default the
            one beside the model.
        device: that does the work: "auto" (a GPU where there is one, else the CPU), "cuda:1", "cpu". The model itself
            goes where `device_map` says.

    Raises:
        RecipeError: if the recipe does not exist or is malformed.
        DeviceError: if there is no such device.
    """

    def __init__(
        self, recipe: str | Path | Mapping[str, Any] | Recipe, *, tokenizer: Any = None, device: str = "auto"
    ) -> None:
        add_quantizer(METHOD, RecipeQuantizer)
        self.quant_method = METHOD  # pyright: ignore[reportAttributeAccessIssue]  # an enum of transformers' own
        self.recipe = load_recipe(recipe)
        self.tokenizer = tokenizer
        self.device = resolve_device(device)

    def to_dict(self) -> dict[str, Any]:
        """For messages only: a model that was quantized by it carries a compressed-tensors config instead."""
        return {"quant_method": METHOD, "recipe": self.recipe.model_dump(mode="json")}


class RecipeQuantizer(OnLoadQuantizer):
    """Plans on the meta-device model, then quantizes each tensor as it is read, or all of them after loading.

    Attributes:
        layers: what happened to each, as llmquant.json says it.
        error: the first that a weight caused.
    """

    quantization_config: RecipeConfig

    def __init__(self, quantization_config: RecipeConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.plan: Plan | None = None
        self.layers: dict[str, dict[str, Any]] = {}
        self.error: LlmquantError | None = None
        self._calibration: CalibrationData | None = None
        self._results: dict[str, LayerResult] = {}  # what training starts from
        self._pending: dict[str, MatrixRow] = {}  # by the name of the weight that is still to be read

    @property
    def by_block(self) -> bool:
        """Whether layers are quantized block by block, which has to wait for the whole model."""
        assert self.plan is not None
        recipe, rows = self.plan.recipe, self.plan.quantized
        return self.trains or needs_calibration(recipe, rows) or bool(rows and recipe.transforms)

    @property
    def trains(self) -> bool:
        """Whether the recipe gives a model for training."""
        return self.quantization_config.recipe.qat is not None

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  # abstract, without a type
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.trains

    @property
    def is_qat_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  # a method there, so true
        return self.trains

    @property
    def leaves(self) -> bool:
        """A model in training is an ordinary one: what is saved of it has no quantizer, and FSDP's state is its own."""
        return self.trains

    def param_needs_quantization(
        self,
        model: PreTrainedModel,  # noqa: ARG002 - here and below the signatures are the base class's
        param_name: str,
        **kwargs: Any,  # noqa: ARG002
    ) -> bool:
        return param_name in self._pending

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        return 0 if param_name in self._pending else super().param_element_size(model, param_name, param)

    def get_quantize_ops(self) -> ConversionOps:
        return _QuantizeOnLoad(self)

    def quantize(self, model: PreTrainedModel, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Quantize the weight `name`; the tensors of its packed layer under their full names."""
        row = self._pending.pop(name)
        module = model.get_submodule(row.module.name)
        del module.weight
        module.weight = stand_in()
        device = weight.device if weight.device.type != "cpu" else self.quantization_config.device
        device = rounding_device(device)
        result = quantize_layer(row, weight.to(device), None, weight.dtype).to(weight.device)
        self._record(row, result)
        return encode(row.module.name, result.quantized, row.scheme)

    def prepare(self, model: PreTrainedModel, device_map: Any, files: Sequence[str]) -> None:
        _refuse_own_text(self.quantization_config.recipe)
        with weights_tied(model):
            inventory = take_inventory(model)
        plan = make_plan(self.quantization_config.recipe, inventory)
        _check_plan(plan)
        self.plan = plan
        if files and all(file.endswith(".safetensors") for file in files):
            _check_source(model, plan, read_headers(files))
        if self.by_block:
            _require_one_device(device_map)
            if needs_calibration(plan.recipe, plan.quantized):
                self._calibration = self._load_calibration(model, plan)  # before gigabytes are read in vain
            return
        weights = {row.module.name: model.get_submodule(row.module.name).weight for row in plan.quantized}
        place_empty(model, {row.module.name: row.scheme for row in plan.quantized}, model.dtype)
        for row in plan.quantized:
            # The loader drops tensors for which the model has no parameter of the same name.
            module = model.get_submodule(row.module.name)
            del module.weight
            module.register_parameter("weight", weights[row.module.name])  # pyright: ignore[reportArgumentType]
            self._pending[f"{row.module.name}.weight"] = row

    def finish(self, model: PreTrainedModel) -> None:
        assert self.plan is not None
        if self.error is not None:
            raise self.error
        if self._pending:
            raise CheckpointError(f"the checkpoint lacks {next(iter(self._pending))}")
        if self.by_block:
            self._quantize_blocks(model, self.plan)
        self._complete(model, self.plan)

    def quantize_loaded(
        self,
        model: PreTrainedModel,
        progress: Progress | None = None,
        dtype: torch.dtype | None = None,
        kept: Path | None = None,
    ) -> None:
        """Quantize a dense model that is complete already, in place; if it fails, the model is as it was.

        `dtype` is that in which the result will be stored, by default the model's; `kept` a folder for finished blocks,
        see `engine.in_memory`.
        """
        inventory = take_inventory(model)
        inventory = replace_field(inventory, dtype=dtype) if dtype else inventory
        self.plan = plan = make_plan(self.quantization_config.recipe, inventory)
        _check_plan(plan)
        if needs_calibration(plan.recipe, plan.quantized):
            self._calibration = self._load_calibration(model, plan)
        self._quantize_blocks(model, plan, progress, kept)
        self._complete(model, plan)

    def _complete(self, model: PreTrainedModel, plan: Plan) -> None:
        made = self._made(model, plan)
        if made["counters"]:
            log.warning(
                "while quantizing: %s", ", ".join(f"{name} {n}" for name, n in sorted(made["counters"].items()))
            )
        if self.trains:
            place_fake(model, plan, made, self._results)
            self._results = {}
            return
        finish(model)
        quantizer = PackedQuantizer(CompressedTensorsConfig(model_quantization_config(plan)))
        quantizer.made = made
        mark_as_packed(model, quantizer)

    def _load_calibration(self, model: PreTrainedModel, plan: Plan) -> CalibrationData:
        assert plan.recipe.calibration is not None
        tokenizer = self.quantization_config.tokenizer
        if tokenizer is None:  # whoever trusts the model's code trusts that of the tokenizer beside it
            tokenizer = load_tokenizer(str(model.name_or_path), trust_remote_code=runs_remote_code(model))
        elif isinstance(tokenizer, (str, Path)):
            tokenizer = load_tokenizer(tokenizer)
        data = load_calibration(plan.recipe.calibration, tokenizer, context=context_limit(model.config))
        check_vocabulary(data.windows, model)
        if data.note:
            log.warning("calibration: %s", data.note)
        return data

    def _quantize_blocks(
        self, model: PreTrainedModel, plan: Plan, progress: Progress | None = None, kept: Path | None = None
    ) -> None:
        windows = self._calibration.windows if self._calibration else None
        done = quantize_loaded(model, plan, windows, self.quantization_config.device, progress, kept)
        if self.trains:
            apply_edits(model, done.edits)
            self._results = done.results
            for row in plan.quantized:
                self._record(row, done.results[row.name])
            return
        packed = {row.matrix.key for row in plan.quantized}
        apply_edits(model, [edit for edit in done.edits if edit.name not in packed])
        for row in plan.quantized:
            module, result = model.get_submodule(row.module.name), done.results.pop(row.name)
            self._record(row, result)
            weight = model.get_parameter(row.matrix.key)
            replace(model, row.module.name, _packed(module, result.to(weight.device), row.scheme))
        share_with_heads(model)

    def _record(self, row: MatrixRow, result: LayerResult) -> None:
        counters = {name: count for name, count in result.counters.items() if count}
        record = {"scheme": row.scheme.name, "method": row.rounding.method, "loss": result.loss, "counters": counters}
        self.layers[row.name] = record

    def _made(self, model: PreTrainedModel, plan: Plan) -> dict[str, Any]:
        identity = {name: version(name) for name in ("llmquant", "torch", "transformers")}
        return describe(plan, source_of(model), identity, self._calibration, self.layers)


class _QuantizeOnLoad(ConversionOps):
    """Quantizes one tensor between reading it and giving it to the model, so that only one is held in full."""

    def __init__(self, quantizer: RecipeQuantizer) -> None:
        self._quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],  # noqa: ARG002
        target_patterns: list[str],  # noqa: ARG002
        *,
        model: PreTrainedModel,
        missing_keys: set[str] | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> dict[str, Any]:
        loaded = {}
        for name, value in input_dict.items():
            if not self._quantizer.param_needs_quantization(model, name):
                loaded[name] = value
                continue
            weight = value[0] if isinstance(value, list) else value
            if missing_keys is not None:
                missing_keys.discard(name)  # else memory for the whole weight would be taken
            if self._quantizer.error is not None:
                continue
            try:
                loaded.update(self._quantizer.quantize(model, name, weight))
            except LlmquantError as error:  # the loader would bury it in a RuntimeError; it is raised after loading
                self._quantizer.error = error
        return loaded


def source_of(model: PreTrainedModel) -> str:
    """Where a model came from, as a run tells it: the whole path of a folder, a hub id, or its class in parentheses."""
    name = str(model.name_or_path or "")
    if not name:
        return f"({type(model).__name__})"
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _packed(module: nn.Module, result: LayerResult, scheme: Scheme) -> PackedStorage:
    if isinstance(module, nn.Embedding):
        table = PackedEmbedding.from_quantized(result.quantized, scheme)
        return table.stand_for(module)
    assert module.bias is None or isinstance(module.bias, nn.Parameter)
    return PackedLinear.from_quantized(result.quantized, scheme, module.bias)


def _check_plan(plan: Plan) -> None:
    if plan.recipe.format != DEFAULT:
        raise PlanError(
            f"a model in memory has the layout of {DEFAULT}, not of {plan.recipe.format}; drop `format:` from the "
            "recipe, or write files with llmquant.quantize"
        )
    check_statistics(plan)
    for row in plan.quantized:
        if row.scheme.activations and plan.recipe.qat is None:
            raise PlanError(
                f"{row.module.name}: {row.scheme} cannot be made while a model loads; write a checkpoint with "
                "llmquant.quantize and load that, or use a weight-only scheme such as int8"
            )


def _check_source(model: PreTrainedModel, plan: Plan, tensors: Mapping[str, TensorInfo]) -> None:
    check_stored(model, tensors)
    rows = {f"{row.module.name}.weight": row for row in plan.quantized}
    for key, parameter in map_keys(model, tensors).parameter.items():
        if parameter in rows:
            check_alone(key, plan.format.names(key, rows[parameter].scheme), tensors)


def _refuse_own_text(recipe: Recipe) -> None:
    if recipe.training_text is not None:
        raise RecipeError(
            f"recipe {recipe.name!r} trains on its own text, which loading does not do: llmquant.quantize(source, "
            "recipe, out) does; or drop `text:` from its section qat for a model that your Trainer trains"
        )


def _require_one_device(device_map: Any) -> None:
    if isinstance(device_map, Mapping) and (len(set(device_map.values())) > 1 or "disk" in device_map.values()):
        raise PlanError(
            "a recipe with calibration or transforms works on a model on one device, but device_map spreads it over "
            f"{device_map}; drop device_map, or use llmquant.quantize, which holds one block at a time"
        )
