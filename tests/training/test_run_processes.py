"""Two processes on the CPU give what one gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmquant.engine.output.check_folder import verify_folder
from llmquant.engine.output.folder import read_provenance
from llmquant.hf.qat import convert_qat
from tests.engine.conftest import save_tiny
from tests.training.conftest import prepared
from tests.training.processes import Options, batches, losses_of, options, qat

pytestmark = pytest.mark.usefixtures("reference_kernels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Holds dense, text.txt, and what two processes made, as `torchrun` starts them."""
    made = tmp_path_factory.mktemp("processes")
    text = made / "text.txt"
    text.write_text("\n".join(f"{i} times {i + 1} makes {i * (i + 1)}; so it goes on and on." for i in range(60)))
    source = save_tiny(made / "dense")
    file = repository / "tests" / "training" / "processes.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(file)]
    environment = os.environ | {
        "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "LLMQUANT_CPU_KERNELS": "reference",
    }  # fmt: skip
    subprocess.run([*command, str(source), str(text), str(made)], env=environment, check=True, timeout=240)
    return made


def test_ddp_gives_what_one_process_gives_with_the_same_batch(folder: Path) -> None:
    alone = Options(per_device=2, save_steps=4)
    one = qat(folder / "dense", options(), str(folder / "text.txt"), folder / "one", device="cpu", options=alone)
    assert verify_folder(folder / "two").digests
    two = read_provenance(folder / "two")
    mine, other = one.provenance["training"], two["training"]
    assert (mine["processes"], other["processes"]) == (1, 2)
    compared = 0
    for entry, theirs in zip(mine["log"], other["log"], strict=True):
        assert entry.keys() == theirs.keys()
        for key in entry.keys() & {"loss", "eval_loss", "grad_norm"}:
            assert entry[key] == pytest.approx(theirs[key], rel=1e-3)
            compared += 1
    assert compared == 8 * 2 + 2
    a, b = (load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    torch.testing.assert_close(a["model.norm.weight"], b["model.norm.weight"])


def test_fsdp2_trains_and_saves_the_same_names(folder: Path) -> None:
    two, model = torch.load(folder / "two.pt"), prepared()
    losses_of(model, batches())
    one = model.state_dict()
    assert two.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    again = prepared()
    again.load_state_dict(two)
    convert_qat(again.eval(), torch.bfloat16).save_pretrained(folder / "out")
    assert verify_folder(folder / "out").tensors == len(load_file(folder / "two" / "model.safetensors"))
