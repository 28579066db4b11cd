"""Folders that nobody may write to: a clear error, and what is there stays as it is."""

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym
import pytest
from tensordict import TensorDict

from benchmarks import command
from mage_agent import MAGEPolicy, fit, record
from tests.tiny import tiny_config


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Take the right to write anywhere (CAP_DAC_OVERRIDE) from a root on Linux, for a while.

    Root stays the owner of its files: an installation that only root can read is still found.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, this thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    assert libc.capget(header, before) == 0, os.strerror(ctypes.get_errno())
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~(1 << 1)
    assert libc.capset(header, without) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def policy(toy_dataset: TensorDict) -> MAGEPolicy:
    steps = {f"{stage}_steps": 1 for stage in ("tokenizer", "generator")}
    return MAGEPolicy.from_dataset(toy_dataset, tiny_config(**steps), device="cpu")


@pytest.fixture
def folder(policy: MAGEPolicy) -> Iterator[Path]:
    """A read-only folder with a policy in it; it binds root, too."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy.save(folder / "policy.mage")
        before = (folder / "policy.mage").read_bytes()
        folder.chmod(0o555)
        try:
            with bound_by_permissions():
                yield folder
        finally:
            folder.chmod(0o755)
        assert (folder / "policy.mage").read_bytes() == before
        assert [path.name for path in folder.iterdir()] == ["policy.mage"]


@pytest.mark.parametrize("name", ["policy.mage", "new.mage", "new/policy.mage"])
def test_a_policy_is_not_saved(policy: MAGEPolicy, folder: Path, name: str) -> None:
    with pytest.raises(PermissionError, match=f"cannot write to {(folder / name).parent}"):
        policy.save(folder / name)


def test_training_does_not_begin(policy: MAGEPolicy, folder: Path, toy_dataset: TensorDict) -> None:
    log: list[object] = []
    with pytest.raises(PermissionError, match=f"cannot write to {folder}"):
        fit(
            policy.model,
            toy_dataset,
            checkpoint_path=folder / "training.mage",
            progress_bar=False,
            callback=log.append,
        )
    assert not log


def test_a_suite_does_not_begin(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--datasets", "local/pen/expert-v0", "--methods", "bc", "--seeds", "1"]
    for output in (folder, folder / "new"):
        with pytest.raises(SystemExit) as stop:
            command.main([*arguments, "--output", str(output)])
        assert stop.value.code == 2
        assert f"cannot write to {output}" in capsys.readouterr().err


def test_no_episode_is_run_for_a_dataset_that_cannot_be_saved(folder: Path) -> None:
    def environment() -> gym.Env[object, object]:
        pytest.fail("an environment was made")

    with pytest.raises(PermissionError, match=f"cannot write to {folder}"):
        record(
            lambda observation: observation, environment, "local/x/y-v0", episodes=2, root=folder
        )
