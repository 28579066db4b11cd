"""Training in several processes equals training in one."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tensordict import TensorDict
from torch import distributed, multiprocessing

from mage_agent import (
    MAGEModel,
    MAGEPolicy,
    Progress,
    dataset_from_arrays,
    fit,
    parallel,
    stage,
    training,
)
from tests.tiny import ACTION, STATE, tiny_config

STEPS = 8
STAGES = ("value", "tokenizer", "generator", "inverse_dynamics")


def dataset() -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(201, STATE, generator=generator)
    ends = torch.arange(1, 201) % 40 == 0
    return dataset_from_arrays(
        observation[:-1].numpy(),
        observation[:-1, :ACTION].tanh().numpy(),
        observation[:-1, 0].numpy(),
        ends.numpy(),
        torch.zeros_like(ends).numpy(),
        next_observations=observation[1:].numpy(),
    )


def train(**options: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of all steps, and weights, with no random numbers but those of windows and codebook.

    The condition loss samples; all else of the method takes part.
    """
    steps = {f"{stage}_steps": STEPS for stage in STAGES}
    changes = {"condition_guidance": "none", "return_expectile": 0.9, "learning_rate": 1e-3}
    config = tiny_config(**changes, **steps)
    data = dataset()
    model, losses = MAGEModel.from_dataset(data, config), []

    def note(progress: Progress) -> None:
        losses.append(progress.metrics["loss"])

    with patch.object(training, "LOG_INTERVAL", 1), patch.object(stage, "has_bfloat16", no):
        fit(model, data, device="cpu", progress_bar=False, callback=note, **options)
    return losses, model.state_dict()


def no(device: torch.device) -> bool:
    return False


def train_a_share(rank: int, port: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(train(checkpoint_path=folder / f"state-{rank}"), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(train_a_share, (port, tmp_path), nprocs=2)
    (losses, first), (silence, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    expected, _ = train()
    assert len(expected) == len(STAGES) * STEPS
    assert losses == pytest.approx(expected, rel=1e-4)
    assert not silence  # the first process speaks for all
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert (tmp_path / "state-0").exists()
    assert not (tmp_path / "state-1").exists()


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with (
        patch.object(parallel, "processes", lambda: 3),
        pytest.raises(ValueError, match="batch_size is 16, which 3 processes cannot share"),
    ):
        parallel.check_share(16)


@pytest.mark.slow
def test_torchrun_trains_by_the_command_line(minari_dataset: Any, tmp_path: Path) -> None:
    """The same losses as one process has, up to rounding, and one policy."""
    settings = ["--width", "16", "--num-blocks", "1", "--codebook-size", "8", "--batch-size", "8"]
    settings += ["--tokenizer-steps", "3", "--generator-steps", "3", "--dropout", "0"]
    settings += ["--inverse-dynamics-steps", "3"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "--master-port", "0", "--standalone", "-m", "mage_agent", "train"]
    output = tmp_path / "two.mage"
    run = subprocess.run(
        [*command, minari_dataset.spec.dataset_id, "--output", str(output), "--quiet", *settings],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("saved") == 1
    assert MAGEPolicy.load(output, "cpu").config.tokenizer_steps == 3
