"""`llmquant.load`: a checkpoint, quantized or not, as a model that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmquant.compat.border import foreign
from llmquant.compat.foreign_layers import check_readers, decompress
from llmquant.compat.loading import FLOATS
from llmquant.compat.quantizers import stays_packed
from llmquant.compat.remote_code import remote_code_of
from llmquant.engine.output.check_folder import verify_folder
from llmquant.engine.output.folder import JOURNAL, is_finished, read_provenance
from llmquant.errors import CheckpointError, RecipeError
from llmquant.files import check_name
from llmquant.formats import DEFAULT
from llmquant.hf import register
from llmquant.hf.stored import check_shapes
from llmquant.models.checkpoint import Checkpoint
from llmquant.models.skeleton import config_from
from llmquant.nn.accuracy import Accuracy, set_accuracy
from llmquant.words import did_you_mean, dtype_name, listed

log = logging.getLogger(__name__)


def load(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    packed: bool = True,
    accuracy: Accuracy = "exact",
    trust_remote_code: bool = False,
    verify: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load a causal language model; integer weights stay packed.

    Args:
        source: folder, or hub id.
        dtype: of everything but the codes, scales included; "auto" is the dtype in which the checkpoint was quantized.
            In another dtype the dequantized weights are rounded differently.
        device_map: as in `from_pretrained`; "disk" works.
        packed: False turns the weights into dense ones after loading, for code that looks at `weight`.
        accuracy: of the kernels: "exact" or "fast"; `llmquant.nn.accuracy.set_accuracy` changes it later.
        trust_remote_code: run code that comes with the checkpoint, if its architecture needs it.
        verify: read everything first and compare it with the digests in llmquant.json, as `llmquant verify` does.
        options: further arguments of `from_pretrained`, such as `attn_implementation` and `max_memory`.

    Raises:
        CheckpointError: if the checkpoint is missing, unfinished, damaged, incomplete or unsafe, or needs code that is
            not trusted.
        RecipeError: if `dtype` is none that a model can have, or an option makes no sense here.
    """
    register()
    check_dtype(dtype)
    _check_options(options)
    checkpoint = open_model(source, trust_remote_code=trust_remote_code)
    folder = checkpoint.folder
    if verify and (note := verify_folder(folder).note):
        log.warning("%s: %s", folder, note)
    assert checkpoint.config is not None  # open_model
    config = config_from(checkpoint.config, trust_remote_code=trust_remote_code)
    check_shapes(checkpoint, config, trust_remote_code=trust_remote_code)
    advice = "its files are damaged or do not belong together"
    if options:
        advice = f"it takes no such {' or '.join(f'{name}={value!r}' for name, value in options.items())}, or {advice}"
    with foreign(f"{folder}: transformers cannot load it; {advice}"), remote_code_of(source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, device_map=device_map, use_safetensors=True, output_loading_info=True,
            trust_remote_code=trust_remote_code, **options,
        )  # fmt: skip
    model, info = loaded
    if info["missing_keys"]:
        raise CheckpointError(
            f"{folder} has no tensor for {min(info['missing_keys'])}, which transformers filled with random numbers; "
            "fetch or write the checkpoint again"
        )
    with foreign(f"{folder}: compressed-tensors cannot make its weights dense"):
        decompress(model)
    set_accuracy(model, accuracy)
    if not packed and stays_packed(model):
        model = model.dequantize()
    return model


_OPTIONS = (
    "attn_implementation", "experts_implementation", "max_memory", "offload_folder", "offload_buffers",
    "generation_config", "tp_plan", "tp_size", "device_mesh", "distributed_config", "use_kernels", "kernel_config",
    "allow_all_kernels", "key_mapping", "disable_mmap", "fusion_config",
)  # fmt: skip
_FROM_PRETRAINED = "quantize with llmquant.quantize and load the result, or call from_pretrained with a RecipeConfig"
_NO_OPTIONS = {
    "quantization_config": f"the checkpoint says itself how it is quantized; for another, {_FROM_PRETRAINED}",
    "load_in_4bit": _FROM_PRETRAINED,
    "load_in_8bit": _FROM_PRETRAINED,
    "torch_dtype": "it is called dtype",
    "use_safetensors": "weights are read from safetensors only, as loading a pickle can run any code",
}


def _check_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _OPTIONS:
            known = f"; of from_pretrained's arguments it takes {listed(_OPTIONS)}"
            advice = f"; {_NO_OPTIONS[name]}" if name in _NO_OPTIONS else did_you_mean(name, _OPTIONS) or known
            raise RecipeError(f"llmquant.load takes no {name!r}{advice}")


def open_model(source: str | Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Open what `load` would load, quantized or not, and check what costs no time.

    A hub id is fetched, with its Python files if `trust_remote_code`.

    Raises:
        CheckpointError: if the checkpoint is missing, unfinished, damaged by its headers, or unsafe, or a package that
            reads it is missing.
    """
    check_name(Path(source))
    _refuse_unfinished(Path(source).absolute())
    _refuse_format(Path(source).expanduser())
    checkpoint = Checkpoint.open(source, allow_quantized=True, code=trust_remote_code)
    if checkpoint.config is None:
        raise CheckpointError(f"{checkpoint.folder} has no config.json; a Hugging Face model folder has one")
    check_readers(checkpoint.folder, checkpoint.config.data.get("quantization_config"))
    return checkpoint


def check_dtype(dtype: str | torch.dtype) -> None:
    """Refuse what is neither "auto" nor a dtype in which a model can compute.

    Raises:
        RecipeError: naming those that there are.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype not in ("auto", None) and found not in FLOATS:
        names = ", ".join(dtype_name(known) for known in FLOATS)
        raise RecipeError(f"a model cannot compute in the dtype {str(dtype)!r}; give auto or one of {names}")


def _refuse_format(folder: Path) -> None:
    if not is_finished(folder):
        return
    name = read_provenance(folder)["recipe"].get("format", DEFAULT)
    if name != DEFAULT:
        raise CheckpointError(
            f"{folder} is in the format {name}, which llmquant writes and verifies but does not run; quantize with "
            f"`format: {DEFAULT}` for a folder that it runs"
        )


def _refuse_unfinished(folder: Path) -> None:
    for path in (folder, folder.with_name(f"{folder.name}.partial")):
        if (path / JOURNAL).is_file() and not is_finished(folder):
            raise CheckpointError(f"{path} holds an unfinished run; continue it with llmquant quantize --resume")
