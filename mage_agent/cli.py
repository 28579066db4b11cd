"""The command line, ``mage-agent`` or ``python -m mage_agent``: a thin layer over the functions.

Every mistake of the user ends in one sentence on standard error and exit status 1 (2 where the
command line itself is wrong), never in a traceback.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from numpy.typing import NDArray

from mage_agent import parallel
from mage_agent.agent import find_agent
from mage_agent.config import Config
from mage_agent.d4rl import ALL_TASKS
from mage_agent.data import load_dataset
from mage_agent.data.load import holds_data, is_file_name
from mage_agent.data.minari import open_minari
from mage_agent.environment import make_environment
from mage_agent.evaluation import EpisodeResult, normalized_score
from mage_agent.evaluation import evaluate as evaluate_policy
from mage_agent.facts import asked_for, checkpoint_facts, dataset_facts, spread
from mage_agent.files import make_folder
from mage_agent.hardware import find_device
from mage_agent.policy import AgentPolicy
from mage_agent.recording import record

__all__ = ["main"]

DEFAULTS = {"method": "mage", "preset": "small"}
USER_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    ImportError,
    OSError,
    RuntimeError,
    gym.error.Error,
)

Environment = tuple[Callable[[], gym.Env[Any, Any]], tuple[float, float] | None]
"""How to make it, and the returns that score 0 and 100."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the command line names.

    Args:
        arguments: the command line; None is the program's own.

    Returns:
        Exit status: 0, 1 for an error that was told on standard error, or 130 for an interrupt. A
        command line that cannot be understood raises ``SystemExit`` with status 2.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "" not in sys.path and os.getcwd() not in sys.path:  # as python -m has it: --env my:Env-v0
        sys.path.insert(0, os.getcwd())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console may know fewer letters than we write
            stream.reconfigure(errors="backslashreplace")
    try:
        commands: dict[str, Callable[..., None]] = {
            # The defaults of all settings are those of the preset, so that is read first.
            "train": functools.partial(train, config=_preset(arguments)),
            "evaluate": evaluate,
            "collect": collect,
            "info": info,
        }
        options: dict[str, Any] = {
            "config": (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
        }
        if arguments and arguments[0] in commands:
            name, *rest = arguments
            tyro.cli(commands[name], prog=f"mage-agent {name}", args=rest, **options)
        else:  # prints the help, or the mistake
            description = "Offline reinforcement learning by agents that generate plans."
            tyro.extras.subcommand_cli_from_dict(
                commands, prog="mage-agent", description=description, args=arguments, **options
            )
    except BrokenPipeError:  # who reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USER_ERRORS as error:
        message = error.args[0] if isinstance(error, KeyError) else str(error)
        if isinstance(error, gym.error.UnregisteredEnv):
            message += (
                " If another package registers it, name its module as well, as in "
                "gymnasium_robotics:AdroitHandPen-v1."
            )
        print(f"mage-agent: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = any(word.startswith("--checkpoint-path") for word in arguments)  # by training
        hint = "; the same command with --resume goes on from there" if kept else ""
        print(f"mage-agent: interrupted{hint}", file=sys.stderr)
        return 130
    return 0


def train(
    dataset: Annotated[str, tyro.conf.arg(metavar="DATASET"), tyro.conf.Positional],
    config: Config,
    *,
    output: Path,
    method: str = DEFAULTS["method"],
    preset: str = DEFAULTS["preset"],
    seed: int = 0,
    device: str = "auto",
    log_dir: Path | None = None,
    checkpoint_path: Path | None = None,
    resume: bool = False,
    compiled: bool = False,
    max_episode_steps: int | None = None,
    action_low: tuple[float, ...] | None = None,
    action_high: tuple[float, ...] | None = None,
    quiet: bool = False,
) -> None:
    """Train on a dataset and save the policy.

    Args:
        dataset: Minari id (downloaded if it is not on this machine), or path of an .hdf5 file
            (D4RL, robomimic) or an .npz file (OGBench).
        config: the settings; those not given are the preset's.
        output: file to write the trained policy to; it must not exist yet.
        method: name of the agent.
        preset: of MAGE: adroit, kitchen, antmaze, pointmaze, maze2d, locomotion (the paper's size),
            the same with -small appended (minutes on two CPU cores), or small; of GAC:
            hopper-medium and others of the paper, hopper-small, walker2d-small, halfcheetah-small,
            maze2d-small or small. ``--preset NAME --help`` shows its settings.
        seed: of weights, batches and samples.
        device: auto, cpu, cuda, ...
        log_dir: folder for TensorBoard logs.
        checkpoint_path: file that keeps the state of training.
        resume: go on from the file of ``--checkpoint-path`` if it exists.
        compiled: compile the losses: a minute a stage, then far faster steps on a GPU.
        max_episode_steps: step limit, for .hdf5 files without timeouts.
        action_low: lower bound of the actions, one number or one per dimension, if not that of the
            dataset (-1 in .hdf5 files).
        action_high: upper bound likewise.
        quiet: no progress bars.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists; delete it, or name another --output.")
    if resume and checkpoint_path is None:
        raise ValueError("--resume needs --checkpoint-path, the file to go on from.")
    if checkpoint_path is not None and checkpoint_path.exists() and not resume:
        raise FileExistsError(
            f"{checkpoint_path} exists; go on from it with --resume, or delete it."
        )
    make_folder(output.parent)
    loaded = load_dataset(
        dataset,
        max_episode_steps=max_episode_steps,
        action_low=action_low,
        action_high=action_high,
    )
    with parallel.together():  # before the device is found: each process has one of its own
        agent = find_agent(method).from_dataset(loaded, config, seed=seed)
        policy = AgentPolicy(agent.to(find_device(device)), seed=seed)
        policy.learn(
            loaded,
            progress_bar=not quiet,
            log_dir=log_dir,
            checkpoint_path=checkpoint_path,
            resume=resume,
            compiled=compiled,
        )
        if not parallel.is_first():
            return
    policy.save(output)
    asks = f"; it asks for a discounted return of {asked_for(policy.target_return)}"
    print(
        f"saved {output}, {method} trained with preset {preset} (configuration "
        f"{policy.config.digest}) on {len(loaded)} steps{asks if policy.told_return else ''}"
    )


def evaluate(
    policy: Annotated[Path, tyro.conf.arg(metavar="POLICY"), tyro.conf.Positional],
    *,
    dataset: str | None = None,
    env: str | None = None,
    episodes: int = 20,
    seed: int = 0,
    target_return: float | None = None,
    query: str | None = None,
    sample: bool = False,
    max_episode_steps: int | None = None,
    num_envs: int = 16,
    weights: Literal["float32", "bfloat16", "float16", "int8"] = "float32",
    device: str = "auto",
    quiet: bool = False,
) -> None:
    """Run a trained policy in an environment, and print its returns.

    Args:
        policy: file that ``train`` wrote.
        dataset: evaluate where this dataset comes from, with its reference scores: a Minari id or
            a D4RL task such as pen-expert-v1. Give this or ``--env``.
        env: evaluate in this Gymnasium environment; ``module:Name-v0`` imports the module that
            registers it first, as in gymnasium_robotics:AdroitHandPen-v1.
        episodes: number of episodes.
        seed: episode i is reset with this plus i.
        target_return: discounted return to ask for instead of the policy's own.
        query: what plans are asked for instead of the policy's own question; of GAC: max, plus,
            target, prior or best.
        sample: sample the actions instead of taking the best ones; of GAC, the plans.
        max_episode_steps: step limit instead of the environment's own.
        num_envs: episodes to run side by side.
        weights: act with smaller, faster weights; see ``AgentPolicy.optimize_for_inference``.
        device: auto, cpu, cuda, ...
        quiet: no progress bar.
    """
    if (dataset is None) == (env is None):
        raise ValueError("give either --dataset or --env, to say where the policy shall act.")
    loaded = AgentPolicy.load(policy, device=device)
    if query is not None:
        if "query" not in loaded.config.to_dict():
            raise ValueError(f"--query is {query}, but {loaded.model.name} has no queries.")
        loaded.model = loaded.model.changed(query=query)
    if weights != "float32":
        loaded = loaded.optimize_for_inference(weights)
    make_env, references = (
        _environment(env, max_episode_steps) if env else _origin(str(dataset), max_episode_steps)
    )
    results = evaluate_policy(
        loaded,
        make_env,
        episodes=episodes,
        seed=seed,
        num_envs=num_envs,
        target_return=target_return,
        deterministic=not sample,
        progress_bar=not quiet,
    )
    asked = loaded.target_return if target_return is None else target_return
    if loaded.told_return:
        print(f"asked for {asked_for(asked)} (discounted)")
    if query is not None:
        print(f"query     {query}")
    _print_results(results, references)


def collect(
    env: Annotated[str, tyro.conf.arg(metavar="ENVIRONMENT"), tyro.conf.Positional],
    dataset_id: Annotated[str, tyro.conf.arg(metavar="DATASET"), tyro.conf.Positional],
    *,
    policy: Path | None = None,
    episodes: int = 100,
    seed: int = 0,
    target_return: float | None = None,
    deterministic: bool = False,
    max_episode_steps: int | None = None,
    num_envs: int = 16,
    device: str = "auto",
    quiet: bool = False,
) -> None:
    """Record episodes in an environment as a Minari dataset.

    Args:
        env: Gymnasium environment; ``module:Name-v0`` imports the module that registers it first.
        dataset_id: Minari id to save under, such as local/pendulum/random-v0.
        policy: file that ``train`` wrote; without it, actions are uniformly random.
        episodes: number of episodes.
        seed: episode i is reset with this plus i.
        target_return: discounted return to ask the policy for instead of its own.
        deterministic: take the policy's best actions instead of samples.
        max_episode_steps: step limit instead of the environment's own.
        num_envs: episodes to run side by side.
        device: auto, cpu, cuda, ...
        quiet: no progress bar.
    """
    make_env, _ = _environment(env, max_episode_steps)
    results = record(
        _random_policy(make_env, seed) if policy is None else AgentPolicy.load(policy, device),
        make_env,
        dataset_id,
        episodes=episodes,
        seed=seed,
        num_envs=num_envs,
        target_return=target_return,
        deterministic=deterministic,
        progress_bar=not quiet,
    )
    print(f"saved {dataset_id}")
    _print_results(results, None)


def info(
    source: Annotated[str, tyro.conf.arg(metavar="SOURCE"), tyro.conf.Positional],
    *,
    discount: float = 0.99,
    max_episode_steps: int | None = None,
    action_low: tuple[float, ...] | None = None,
    action_high: tuple[float, ...] | None = None,
) -> None:
    """Print the facts of a dataset, of a trained policy, or of a checkpoint of training.

    Args:
        source: Minari id, path of an .hdf5 or .npz file, or file that ``train`` wrote.
        discount: of the discounted returns of a dataset.
        max_episode_steps: step limit, for .hdf5 files without timeouts.
        action_low: lower bound of the actions, one number or one per dimension, if not that of the
            dataset (-1 in .hdf5 files).
        action_high: upper bound likewise.
    """
    path = Path(source)
    if path.is_file() and not holds_data(path):
        facts = checkpoint_facts(path)
    else:
        dataset = load_dataset(
            source,
            max_episode_steps=max_episode_steps,
            action_low=action_low,
            action_high=action_high,
        )
        facts = dataset_facts(dataset, discount=discount)
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def _preset(arguments: Sequence[str]) -> Config:
    """The configuration that ``--method`` and ``--preset`` name, wherever they stand."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", nargs="?", default=default, const=default)
    named = parser.parse_known_args(arguments)[0]
    return find_agent(named.method).config_class.preset(named.preset)


def _environment(env_id: str, max_episode_steps: int | None) -> Environment:
    """How to make a Gymnasium environment, which has no reference returns."""
    return functools.partial(gym.make, env_id, max_episode_steps=max_episode_steps), None


def _origin(dataset: str, max_episode_steps: int | None) -> Environment:
    """How to make the environment of a dataset, and its reference returns."""
    limit: dict[str, Any] = {}
    if max_episode_steps is not None:
        limit["max_episode_steps"] = max_episode_steps
    if dataset in ALL_TASKS:
        task = ALL_TASKS[dataset]
        references = task.ref_min_score, task.ref_max_score
        return functools.partial(make_environment, dataset, **limit), references
    if is_file_name(dataset):
        raise ValueError(
            f"the file {dataset} does not say which environment it comes from; name that by --env, "
            "or give the D4RL task, such as pen-expert-v1, as --dataset."
        )
    opened = open_minari(dataset)
    facts = opened.storage.metadata
    known = "ref_min_score" in facts and "ref_max_score" in facts
    return functools.partial(make_environment, opened, **limit), (
        (float(facts["ref_min_score"]), float(facts["ref_max_score"])) if known else None
    )


def _random_policy(
    make_env: Callable[[], gym.Env[Any, Any]], seed: int
) -> Callable[[Any], NDArray[Any]]:
    """Uniformly random actions; as Gymnasium samples them where the space has no bounds."""
    env = make_env()
    space = env.action_space
    env.close()
    space.seed(seed)

    def act(observation: Any) -> NDArray[Any]:
        entries = observation if isinstance(observation, dict) else {"observation": observation}
        return np.stack([space.sample() for _ in next(iter(entries.values()))])

    return act


def _print_results(
    results: Sequence[EpisodeResult], references: tuple[float, float] | None
) -> None:
    """Print a summary of episodes."""
    returns = [result.episode_return for result in results]
    print(f"episodes  {len(results)}")
    print(f"return    {spread(returns)}")
    if references is not None:
        scores = normalized_score(returns, *references)
        error = scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else float("nan")
        print(f"score     {scores.mean():.1f} +- {error:.1f} (standard error over episodes)")
    print(f"length    {spread([result.length for result in results])}")
    successes = [result.success for result in results if result.success is not None]
    if successes:
        print(f"success   {np.mean(successes):.0%}")
