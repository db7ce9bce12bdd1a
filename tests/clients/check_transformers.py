"""Reader 1: transformers with compressed-tensors. Are logits bit-equal to those of the dense twin?

Runs under an interpreter that has no llmquant: check_transformers.py JOBS.json RESULTS.json. A job is {"folder",
"twin", "prompts": lists of token ids, "activations": names of layers with 8-bit activations}; results lie under the
folders. The llmquant environment imports `compare` too, and then measures llmquant itself.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM


def compare(job: dict[str, Any]) -> dict[str, Any]:
    """Load a folder and its twin in their own dtype, and compare logits.

    Returns:
        {"error"} if the folder does not load or run; else {"equal", "largest_difference", "missing"} and "packed", the
        number of layers that are still packed after running; and for 8-bit activations, against the twin with inputs
        rounded as compressed-tensors does, "equal_with_activations" and "error_ratio": how far the logits are from
        those of the dense twin, to how far those of the rounded twin are (root mean squares).
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(job["folder"], dtype="auto", output_loading_info=True)
        model, info = loaded
        found = _logits(model, job["prompts"])
    except Exception as error:  # noqa: BLE001 - any failure is a result
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    twin = AutoModelForCausalLM.from_pretrained(job["twin"], dtype="auto")
    wanted = _logits(twin, job["prompts"])
    result: dict[str, Any] = {
        "equal": _equal(found, wanted),
        "largest_difference": max(
            (a.double() - b.double()).abs().max().item() for a, b in zip(found, wanted, strict=True)
        ),
        "missing": sorted(info["missing_keys"]),
        "packed": sum("weight_packed" in module._parameters for module in model.modules()),
    }
    if job["activations"]:
        for name in job["activations"]:
            twin.get_submodule(name).register_forward_pre_hook(lambda _, inputs: (_rounded(inputs[0]),))
        rounded = _logits(twin, job["prompts"])
        result["equal_with_activations"] = _equal(found, rounded)
        result["error_ratio"] = _distance(found, wanted) / _distance(rounded, wanted)
    return result


def _logits(model: Any, prompts: list[list[int]]) -> list[Tensor]:
    # Where weights begin in a file decides how a BLAS sums one row in float32: seen on an AMD EPYC with MKL.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0] for ids in prompts]


def _equal(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def _distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    differences = [a.double() - b.double() for a, b in zip(found, wanted, strict=True)]
    return torch.cat(differences).square().mean().sqrt().item()


def _rounded(inputs: Tensor) -> Tensor:
    """Inputs through 8 bits, with a scale per token."""
    scale = inputs.abs().amax(-1, keepdim=True) / 127.5
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
    return (inputs / scale).round().clamp(-128, 127) * scale


def main(jobs: Path, results: Path) -> None:
    """Run all jobs."""
    if importlib.util.find_spec("llmquant"):
        sys.exit(f"{sys.executable} can import llmquant; this check wants an environment without it")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    names = ("torch", "transformers", "compressed-tensors")
    found: dict[str, Any] = {"versions": {name: importlib.metadata.version(name) for name in names}, "results": {}}
    for job in json.loads(jobs.read_text(encoding="utf-8")):
        found["results"][job["folder"]] = compare(job)
    results.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
