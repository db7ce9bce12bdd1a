"""Train the bundled demo model: a small Llama on the Python standard library.

    python examples/demo_model/train.py --out examples/demo_model --minutes 120

The training split of `llmquant.engine.builtin_text` is all it sees; calibration and evaluation text come from other
modules. Hidden matrices are trained with Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), the rest with
AdamW; the learning rate holds and then falls linearly to zero over the last 40 % of the given time. Stop and restart
freely: the state is kept beside the output until training has finished.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmquant.engine.builtin_text import python_documents

VOCAB, CONTEXT, BATCH, BOS = 2048, 256, 16, "<|bos|>"


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[BOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, model_max_length=CONTEXT, clean_up_tokenization_spaces=False
    )


def build_model(vocab: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        initializer_range=0.03,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized by five Newton-Schulz steps, in float32."""

    def __init__(self, params, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * 0.02)
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonalize(g: torch.Tensor) -> torch.Tensor:
    tall = g.shape[0] > g.shape[1]
    x = g.T if tall else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


def batches(stream: torch.Tensor, seed: int):
    """Windows of CONTEXT tokens that start with BOS, at a fresh random offset each epoch."""
    rng = random.Random(seed)
    while True:
        offset = rng.randrange(CONTEXT - 1)
        starts = list(range(offset, len(stream) - CONTEXT, CONTEXT - 1))
        rng.shuffle(starts)
        for i in range(0, len(starts) - BATCH, BATCH):
            rows = torch.stack([stream[s : s + CONTEXT - 1] for s in starts[i : i + BATCH]])
            yield torch.cat([torch.zeros(BATCH, 1, dtype=torch.long), rows], 1)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, stream: torch.Tensor, windows: int = 64) -> float:
    rows = stream[: windows * (CONTEXT - 1)].view(windows, -1)
    rows = torch.cat([torch.zeros(windows, 1, dtype=torch.long), rows], 1)
    losses = [model(input_ids=part, labels=part).loss.item() for part in rows.split(16)]
    return sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train, held_out = python_documents("train"), python_documents("eval")
    tokenizer = train_tokenizer(train)

    def stream(documents: list[str]) -> torch.Tensor:
        return torch.tensor([t for e in tokenizer(documents).input_ids for t in e], dtype=torch.long)

    train_stream, eval_stream = stream(train), stream(held_out)
    model = build_model(len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train_stream):,} training tokens", flush=True)

    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [Muon(hidden, lr=0.02), torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)]
    bases = [0.02, 3e-3]

    state_file = args.out / "state.pt"
    spent, step = 0.0, 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for o, s in zip(optimizers, state["optimizers"], strict=True):
            o.load_state_dict(s)
        spent, step = state["spent"], state["step"]

    forward = torch.compile(model)
    source = batches(train_stream, args.seed + step)
    running, log = None, []
    while (progress := spent / (args.minutes * 60)) < 1:
        began = time.monotonic()
        scale = min(1.0, (step + 1) / 100, max(0.02, (1 - progress) / 0.4))
        for optimizer, base in zip(optimizers, bases, strict=True):
            optimizer.param_groups[0]["lr"] = base * scale
        ids = next(source)
        loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        step += 1
        spent += time.monotonic() - began
        if step % 100 == 0:
            model.eval()
            held = evaluate(model, eval_stream)
            model.train()
            log.append({"step": step, "minutes": round(spent / 60, 2), "train": running, "held_out": held})
            print(f"step {step} {spent / 60:.1f} min  train {running:.4f}  held-out {held:.4f} ppl {math.exp(held):.2f}", flush=True)
            torch.save(
                {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "spent": spent, "step": step},
                state_file,
            )

    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    held = evaluate(model.float(), eval_stream)
    facts = {"steps": step, "tokens_seen": step * BATCH * CONTEXT, "minutes": round(spent / 60, 1), "seed": args.seed,
             "held_out_nll": held, "log": log[-1:]}  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    state_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
