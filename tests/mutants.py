"""Damaged files, many of them, and what becomes of whoever reads them.

Mutants are read in another process, which may take little time and memory. Each either loads or is
refused by an error that we document; anything else is a fault.
"""

import contextlib
import json
import multiprocessing
import random
import resource
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer
from tensordict import TensorDict

from benchmarks import records
from mage_agent import (
    MAGEConfig,
    MAGEModel,
    MAGEPolicy,
    checkpoint,
    dataset_from_arrays,
    fit,
    load_dataset,
)
from tests.tiny import tiny_config, tiny_model

MEMORY = 2**30
"""Bytes that reading a file of some 50 KB may take."""
SECONDS = 120.0
"""That it may take; it is less than one on an idle machine."""
MINARI_ID = "toy/mutant-v0"

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.mutants"])


@cache
def toy() -> TensorDict:
    rng = np.random.default_rng(0)
    ends = np.arange(1, 41) % 10 == 0
    observation, action = rng.normal(size=(40, 3)), rng.uniform(-1, 1, size=(40, 2))
    return dataset_from_arrays(observation, action, rng.normal(size=40), ends, ends & False)


# ------------------------------------------------------------------------------- sound files


def write_policy(folder: Path) -> Path:
    checkpoint.save(tiny_model(), folder / "policy.mage", {"seed": 3, "target_return": 1.5})
    return folder / "policy.mage"


def write_training(folder: Path) -> Path:
    path = folder / "training.mage"
    model = MAGEModel.from_dataset(toy(), tiny_config())
    fit(model, toy(), device="cpu", checkpoint_path=path, progress_bar=False)
    return path


def write_d4rl(folder: Path) -> Path:
    data, path = toy(), folder / "log.hdf5"
    with h5py.File(path, "w") as file:
        names = {"observations": "observation", "actions": "action", "rewards": ("next", "reward")}
        names |= {"terminals": ("next", "terminated"), "timeouts": ("next", "truncated")}
        for name, key in names.items():
            column = data[key].numpy()
            file.create_dataset(name, data=column, chunks=True, compression="gzip")
        file["metadata/algorithm"] = "SAC"
    return path


def write_minari(folder: Path) -> Path:
    data = toy()
    episodes = []
    for start in range(0, 40, 10):
        part = data[start : start + 10]
        seen = torch.cat([part["observation"], part["next", "observation"][-1:]])
        outcome = part["next"]
        episodes.append(
            EpisodeBuffer(
                observations=seen.numpy(),
                actions=part["action"].numpy(),
                rewards=outcome["reward"].squeeze(-1).numpy(),
                terminations=outcome["terminated"].squeeze(-1).numpy(),
                truncations=outcome["truncated"].squeeze(-1).numpy(),
            )
        )
    with environment(folder):
        made = minari.create_dataset_from_buffers(
            MINARI_ID,
            episodes,
            observation_space=gym.spaces.Box(-9, 9, (3,)),
            action_space=gym.spaces.Box(-1, 1, (2,)),
            env="Pendulum-v1",
            algorithm_name="a",
            author="b",
            author_email="c",
            code_permalink="d",
            description="e",
        )
    return Path(made.storage.data_path) / "main_data.hdf5"


def write_config(folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(MAGEConfig.preset("antmaze-small").to_dict()))
    return path


def write_records(folder: Path) -> Path:
    path = folder / "records.jsonl"
    record = {"method": "mage", "dataset": "pen", "seed": 0, "score": 2.0, "scores": [1.0, 3.0]}
    record |= {"training_seconds": 9.0, "asked": {"1.0": 2.0, "2.0": 3.0}}
    path.write_text("".join(json.dumps(record | {"seed": seed}) + "\n" for seed in range(3)))
    return path


# ----------------------------------------------------------------------------------- readers


@contextlib.contextmanager
def environment(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        yield


def read_policy(path: Path) -> None:
    policy = MAGEPolicy.load(path, device="cpu")
    assert policy.predict(np.zeros(3, dtype=np.float32), deterministic=True)[0].shape == (2,)


def read_training(path: Path) -> None:
    model = MAGEModel.from_dataset(toy(), tiny_config())
    fit(model, toy(), device="cpu", checkpoint_path=path, resume=True, progress_bar=False)


def read_minari(path: Path) -> None:
    with environment(path.parents[3]):
        load_dataset(MINARI_ID, download=False)


def read_config(path: Path) -> None:
    MAGEConfig.from_dict(json.loads(path.read_bytes()))


def read_scores(path: Path) -> None:
    records.latest(records.read(path))


Write, Read = Callable[[Path], Path], Callable[[Path], Any]
KINDS: dict[str, tuple[Write, Read, str]] = {  # how to write and to read it, and its name in errors
    "policy": (write_policy, read_policy, "policy.mage"),
    "training": (write_training, read_training, "training.mage"),
    "d4rl": (write_d4rl, load_dataset, "log.hdf5"),
    "minari": (write_minari, read_minari, MINARI_ID),
    "minari metadata": (
        lambda folder: write_minari(folder).with_name("metadata.json"),
        read_minari,
        MINARI_ID,
    ),
    "config": (write_config, read_config, ""),
    "records": (write_records, read_scores, "records.jsonl"),
}

# --------------------------------------------------------------------------------- mutations

ODD: list[Any] = [None, True, -1, 0, 1.5, 10**6, 10**18, 10**400, 1e308, float("nan"), "", "x"]
ODD += [[], {}, [[]], [1, 2], {"a": 1}, "../../x", "a" * 5000, [[[[0]]]], float("inf")]


def mutate_bytes(whole: bytes, rng: random.Random) -> bytes:
    """Damage anywhere, or in the first kilobytes, where formats keep what they are about."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 8))):
        reach = len(data) if rng.random() < 0.4 else min(len(data), 4096)
        place, length = rng.randrange(reach), rng.choice((1, 4, 8, 64, 1024))
        way = rng.randrange(8)
        if way == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[place : place + length] = rng.randbytes(length)
        elif way == 2:
            data[place : place + length] = bytes(length)
        elif way == 3:
            data[place : place + length] = b"\xff" * length
        elif way == 4:
            del data[place : len(data) if rng.random() < 0.3 else place + length]
        elif way == 5:
            data[place:place] = rng.randbytes(length)
        elif way == 6:
            start = rng.randrange(len(data))
            data[place : place + length] = data[start : start + length]
        else:
            data[place : place + 8] = rng.choice((2**31, 2**40, 2**63 - 1)).to_bytes(8, "little")
        if not data:
            break
    return bytes(data)


def mutate_json(text: str, rng: random.Random) -> str:
    """Something else in the place of one value, or one value less."""
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 3))):
        holder: Any = value
        while holder:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = rng.choice(keys)
            if isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.7:
                holder = holder[key]
                continue
            if rng.random() < 0.2:
                del holder[key]
            elif isinstance(holder[key], str) and holder[key][:1] == "{" and rng.random() < 0.8:
                holder[key] = mutate_json(holder[key], rng)
            else:
                holder[key] = rng.choice(ODD)
            break
    return json.dumps(value)


def mutate_hdf5(path: Path, rng: random.Random) -> None:
    """Another column in the place of one of a file."""
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        del file[name]
        rows = rng.choice((0, 1, 9, 10, 11, 40, 10**9, 10**15))
        shape = rng.choice(((), (rows,), (rows, 3), (rows, 2), (rows, 1, 1)))
        kind = rng.choice(("f4", "f8", "i4", "?", "S5", "c8", "f2", "u8"))
        way = rng.randrange(6)
        if way == 0:
            file[name] = rng.choice(("text", 3.0, h5py.SoftLink("/"), h5py.Empty("f4")))
        elif way == 1:
            file.create_group(name)
        elif way == 2 and shape:
            file.create_dataset(name, shape, kind, chunks=True, compression="gzip")
        elif way == 3 and rows < 100:
            values = np.full(shape, rng.choice((np.nan, np.inf, 1e38, -1e300, 0.0)))
            file[name] = values
        elif way == 4 and rows < 100:
            file.create_dataset(name, shape, h5py.string_dtype())


def make_mutant(path: Path, kind: str, rng: random.Random) -> None:
    """Damage one file in place."""
    if path.suffix == ".hdf5" and rng.random() < 0.4:
        return mutate_hdf5(path, rng)
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.7:
        lines = path.read_text().splitlines()
        place = rng.randrange(len(lines))
        lines[place] = mutate_json(lines[place], rng)
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".mage" and rng.random() < 0.5:
        tensors, header = checkpoint.load_tensors(path)
        if rng.random() < 0.5:
            header = json.loads(mutate_json(json.dumps(header), rng))
        else:
            key = rng.choice(sorted(tensors))
            like = tensors[key]
            shape = rng.choice(((0,), (1,), (3, 3), (*like.shape, 1), tuple(like.shape)))
            dtype = rng.choice((torch.float64, torch.int8, torch.bool, torch.complex64))
            tensors[key] = torch.zeros(shape, dtype=dtype)
            if rng.random() < 0.3:
                tensors[rng.choice(("", "model.x", "optimizer.0.step", "a" * 999))] = tensors[key]
        checkpoint.save_tensors(tensors, path, header)
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    return None


# ------------------------------------------------------------------------------------ verdict


def judge(kind: str, seeds: range) -> Counter[str]:
    """Read the mutants of a kind; count what became of them.

    Returns:
        How many loaded and how many were refused, and every fault by its description.
    """
    verdicts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        left = list(seeds)
        while left:
            here, there = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(target=_read_all, args=(kind, left, Path(folder), there))
            process.start()
            there.close()
            while left:
                seed = left[0]
                if not here.poll(SECONDS):
                    verdicts[f"fault: seed {seed} took more than {SECONDS} seconds"] += 1
                    left = left[1:]
                    break
                try:
                    verdicts[here.recv()] += 1
                except EOFError:
                    process.join()
                    verdicts[f"fault: seed {seed} ended with exit code {process.exitcode}"] += 1
                    left = left[1:]
                    break
                left = left[1:]
            process.kill()
            process.join()
    return verdicts


def _read_all(kind: str, seeds: list[int], folder: Path, connection: Connection) -> None:
    torch.set_num_threads(1)
    write, read, name = KINDS[kind]
    path = write(Path(tempfile.mkdtemp(dir=folder)))
    read(path)  # sound as it is; and what is measured is not the first use of something
    sound = path.read_bytes()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for seed in seeds:
        path.write_bytes(sound)
        make_mutant(path, kind, random.Random(f"{kind} {seed}"))
        connection.send(_verdict(partial(read, path), name, seed))


def _verdict(read: Callable[[], None], name: str, seed: int) -> str:
    try:
        read()
    except Exception as error:
        if isinstance(error, (ValueError, TypeError)) and name in str(error):
            return "refused"
        return f"fault: seed {seed}: {error!r}"[:300]
    return "loaded"
