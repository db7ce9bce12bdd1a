"""A tiny random Llama, a perturbed copy of it, and a character tokenizer."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmquant.data.windows import make_windows
from llmquant.eval.evaluate import Subject, evaluate
from llmquant.eval.result import AnatomyPart, EvalReport
from llmquant.eval.throughput import ThroughputOptions

CHARACTERS = "abcdefghijklmnopqrstuvwxyz <>/()\n."


@pytest.fixture(scope="session")
def baseline() -> LlamaForCausalLM:
    """Two layers, hidden 32, vocabulary 40, float32; weights wide enough to make confident predictions."""
    generator = torch.Generator().manual_seed(7)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.35)
    return model


@pytest.fixture(scope="session")
def perturbed(baseline: LlamaForCausalLM) -> LlamaForCausalLM:
    """The baseline with noise on its matrices."""
    return _perturb(baseline, 0.03)


@pytest.fixture(scope="session")
def barely_perturbed(baseline: LlamaForCausalLM) -> LlamaForCausalLM:
    """The baseline with a tenth of that noise."""
    return _perturb(baseline, 0.003)


def _perturb(model: LlamaForCausalLM, amount: float) -> LlamaForCausalLM:
    """A copy with Gaussian noise of that size on all matrices."""
    generator = torch.Generator().manual_seed(11)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * amount)
    return other


def character_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """One token per character; token 0 is <s>."""
    vocabulary = {"<s>": 0, "<unk>": 1, **{character: place for place, character in enumerate(CHARACTERS, 2)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"bos_token": "<s>"} if bos else {}
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Characters, with BOS."""
    return character_tokenizer(bos=True)


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """Characters, without BOS."""
    return character_tokenizer(bos=False)


@pytest.fixture(scope="session")
def text() -> str:
    """700 characters without structure."""
    generator = torch.Generator().manual_seed(3)
    return "".join(CHARACTERS[i] for i in torch.randint(len(CHARACTERS), (700,), generator=generator).tolist())


@pytest.fixture(scope="session")
def report(baseline, perturbed, tokenizer, text, tmp_path_factory) -> EvalReport:
    """A full evaluation of the tiny pair, with every optional part."""
    folder = tmp_path_factory.mktemp("checkpoint")
    perturbed.save_pretrained(folder)
    losses = {
        f"model.layers.{block}.{name}": 0.01 * (block + 1) for block in range(2) for name in ("q_proj", "up_proj")
    }
    subject = Subject(
        name="int4-<b>test</b>",
        baseline_name="tiny & random",
        folder=folder,
        baseline_folder=folder,
        limits={"kl": 1e-6, "perplexity_ratio": 100.0, "bits_per_weight": 40.0},
        anatomy=(AnatomyPart("attention", "int4-g32", 4000), AnatomyPart("mlp", "keep", 9000)),
        anatomy_baseline=(AnatomyPart("attention", "keep", 16000), AnatomyPart("mlp", "keep", 9000)),
        layer_losses={**losses, "lm_head": 0.5},
        recipe_yaml="version: 1\nname: <script>alert(1)</script>\n",
    )
    windows = make_windows([text], tokenizer, source="noise.txt", length=40, context=64)
    options = ThroughputOptions(prompt_tokens=16, decode_tokens=4, seconds=2.0, min_rounds=3)
    found = evaluate(baseline, perturbed, windows, subject, tokenizer=tokenizer, throughput=options, noise_floor=True)
    assert found.speed_protocol is not None
    # A dense model has no kernels of ours; the report shows those of a packed one.
    timed = replace(found.speed_protocol, kernels={"linear_int4: avx2, fast": 14}, accuracy="fast")
    return replace(found, kernels={"linear_int4: avx2, exact": 14}, accuracy="exact", speed_protocol=timed)
