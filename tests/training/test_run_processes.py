"""Two processes on the CPU give what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmquant.engine.output.check_folder import verify_folder
from llmquant.engine.output.folder import read_provenance
from llmquant.errors import DeviceError
from llmquant.hf.qat import convert_qat
from llmquant.training.sharded import check_sharding
from tests.engine.conftest import save_tiny
from tests.training.conftest import prepared
from tests.training.processes import AS_TWO, LOW_RANK, adapter_losses, batches, losses_of, options, qat

pytestmark = pytest.mark.usefixtures("reference_kernels")

ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_cpu_ram_efficient_loading: false
mixed_precision: "no"
num_machines: 1
num_processes: 2
use_cpu: true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Holds dense, text.txt, and what two processes made, as `torchrun` starts them."""
    made = tmp_path_factory.mktemp("processes")
    text = made / "text.txt"
    text.write_text("\n".join(f"{i} times {i + 1} makes {i * (i + 1)}; so it goes on and on." for i in range(60)))
    source = save_tiny(made / "dense")
    file = repository / "tests" / "training" / "processes.py"
    (made / "accelerate.yaml").write_text(ACCELERATE)
    given, config = [str(file), str(source), str(text), str(made)], str(made / "accelerate.yaml")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", *given]
    accelerate = ["accelerate.commands.launch", "--config_file", config, *given, "sharded"]
    environment = os.environ | {
        "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "LLMQUANT_CPU_KERNELS": "reference",
    }  # fmt: skip
    for command in (torchrun, accelerate):
        subprocess.run([sys.executable, "-m", *command], env=environment, check=True, timeout=240)
    return made


@pytest.fixture(scope="module")
def low_rank(folder: Path) -> Path:
    """What one process makes."""
    return qat(folder / "dense", options(**LOW_RANK), str(folder / "text.txt"), folder / "low-rank", **AS_TWO).folder


def test_ddp_gives_what_one_process_gives_with_the_same_batch(folder: Path) -> None:
    one = qat(folder / "dense", options(), str(folder / "text.txt"), folder / "one", **AS_TWO)
    assert_alike(one.folder, folder / "two")


@pytest.mark.parametrize("made", ["two-low-rank", "sharded"])
def test_low_rank_changes_of_ddp_and_of_fsdp2_by_accelerate(made: str, folder: Path, low_rank: Path) -> None:
    assert_alike(low_rank, folder / made)
    assert not list((folder / made).parent.glob(f"{made}.partial"))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")  # peft reads it
def test_adapters_of_peft_on_packed_layers(folder: Path, tmp_path: Path) -> None:
    wanted = adapter_losses(folder / "two", tmp_path)
    assert len(wanted) == 8
    for said in ("two.json", "sharded.json"):
        assert json.loads((folder / said).read_text()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: 2"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading: false"),
        ("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT", "fsdp_state_dict_type: FULL_STATE_DICT"),
    ],
)
def test_settings_of_accelerate_that_cannot_be(name: str, value: str, named: str) -> None:
    good = {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "False",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    }  # fmt: skip
    check_sharding(good)
    check_sharding({name: value})  # not sharded
    with pytest.raises(DeviceError, match=named):
        check_sharding(good | {name: value})


def assert_alike(one: Path, two: Path) -> None:
    """Of one process and of two."""
    assert verify_folder(two).digests
    mine, other = (read_provenance(each)["training"] for each in (one, two))
    assert (mine["processes"], other["processes"]) == (1, 2)
    compared = 0
    for entry, theirs in zip(mine["log"], other["log"], strict=True):
        assert entry.keys() == theirs.keys()
        for key in entry.keys() & {"loss", "eval_loss", "grad_norm"}:
            assert entry[key] == pytest.approx(theirs[key], rel=1e-3)
            compared += 1
    assert compared == 8 * 2 + 2
    a, b = (load_file(each / "model.safetensors") for each in (one, two))
    assert a.keys() == b.keys()
    same = [torch.equal(a[name], b[name]) for name in a if name.endswith("packed")]
    assert len(same) == 21
    assert sum(same) > 15  # a sum in another order may round one weight elsewhere
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
