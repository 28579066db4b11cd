"""The paper's maze game (Figures 3 and 4): ``python -m benchmarks.mazegame``.

Collects the dataset if it is missing, trains a Decision Transformer, MAGE, and MAGE without the
condition loss on it, runs the same episodes with each, and writes counts and a picture.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from minari.storage.datasets_root_dir import get_dataset_path
from rich.console import Console
from rich.table import Table
from tensordict import TensorDictBase

from benchmarks.baselines import configure
from benchmarks.baselines.dt import DT
from benchmarks.mazegame.collect import MazeGameRecipe, collect
from benchmarks.mazegame.episodes import (
    Episode,
    count,
    plans_of,
    record_episodes,
    wall_statistics,
)
from benchmarks.mazegame.figure import draw_results
from benchmarks.mazegame.maze import POSITION
from mage_agent import AgentPolicy, MAGEConfig, MAGEPolicy, load_dataset, make_environment
from mage_agent.checkpoint import versions
from mage_agent.recording import minari_root

__all__ = ["run"]

RECIPE = MazeGameRecipe(dataset_id="local/mazegame/mixed-v0")
CONFIG = MAGEConfig.preset(
    "pointmaze-small",
    # Plans hold the position alone: tokens of whole observations also spell out the goal, which
    # never changes, and tell the path less well.
    trajectory="RG",
    horizon=64,
    # Coarser tokens, or less training for them, and even windows of the data that are decoded from
    # their own tokens cut through walls.
    temporal_stride=4,
    num_scales=6,
    codebook_size=1024,
    # What its results were measured with.
    relative_plans=False,
    fourier_features=0,
    value_entries=(),
    inverse_dynamics_lookahead=None,
    inverse_dynamics_weight_decay=0.0,
    optimizer="adam",
    learning_rate=7e-4,
    warmup_steps=200,
    tokenizer_steps=6_000,
    generator_steps=6_000,
    code_temperature=0.3,  # a mean of all codes would lead between two paths, through the wall
    inverse_dynamics="latent",
    plan_entries=(),
    inverse_dynamics_condition="state_and_return",
    plan_scale=0.3,
    data_scales=1,
    temperature=0.3,
    # A return above 2 takes both coins and the goal at any pace that the data has: 3 * 0.998^285.
    discount=0.998,
    return_expectile=0.98,
    bootstrap_steps=0,
    candidates=1,
)
EPISODES = 100
WITHOUT = "MAGE without the condition loss"
EVALUATION_SEED = 100_000  # all methods meet the same starts and goals


def run(
    output: Path,
    models: Path,
    *,
    root: Path,
    recipe: MazeGameRecipe = RECIPE,
    config: MAGEConfig = CONFIG,
    transformer_steps: int = 8_500,  # as long as MAGE trains
    transformer_settings: dict[str, Any] | None = None,
    episodes: int = EPISODES,
    seed: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the whole experiment; what is there already is used again.

    Args:
        output: folder for the counts and the picture.
        models: folder for the trained methods.
        root: folder of Minari datasets.
        recipe: what to collect.
        config: of MAGE.
        transformer_steps: gradient steps of the Decision Transformer.
        transformer_settings: its hyperparameters that differ from the published ones.
        episodes: evaluation episodes per method.
        seed: of the trainings.
        console: where to write.

    Returns:
        What is written to ``counts.json``.
    """
    console = console or Console()
    if not (root / recipe.dataset_id).exists():
        collect(recipe, root)
    with minari_root(root):
        dataset = load_dataset(recipe.dataset_id)
    models.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)

    transformer = configure(
        DT,
        "pointmaze",
        "",
        discount=config.discount,
        observation_keys=config.observation_keys,
        **{"steps": transformer_steps, **(transformer_settings or {})},
    )
    unguided = config.replace(condition_guidance="none")
    untrained: dict[str, AgentPolicy] = {
        "DT": AgentPolicy(DT.from_dataset(dataset, transformer, seed=seed), seed=seed),
        "MAGE": MAGEPolicy.from_dataset(dataset, config, device="cpu", seed=seed),
        WITHOUT: MAGEPolicy.from_dataset(dataset, unguided, device="cpu", seed=seed),
    }
    methods: dict[str, Any] = {
        name: _trained(policy, dataset, models) for name, policy in untrained.items()
    }
    played: dict[str, list[Episode]] = {}
    counts: dict[str, dict[str, Any]] = {}
    for name, method in methods.items():
        played[name] = record_episodes(
            method,
            partial(make_environment, dataset),
            episodes=episodes,
            seed=EVALUATION_SEED,
        )
        counts[name] = dict(count(played[name]))
        if isinstance(method, MAGEPolicy):
            plans = plans_of(method, played[name][:20])
            counts[name]["plans"] = wall_statistics(*plans)
    console.print(_table(counts, episodes))

    mage = played["MAGE"]  # shown is the longest episode that it wins, if it wins any
    longest = max(
        range(episodes), key=lambda i: (mage[i].info["success"], len(mage[i].observations))
    )
    shown = {name: episodes[longest] for name, episodes in played.items()}
    planners = {name: methods[name] for name in ("MAGE", WITHOUT)}
    figure = draw_results(
        shown,
        counts,
        {name: _many_plans(policy, shown[name]) for name, policy in planners.items()},
        _plan(methods["MAGE"], shown["MAGE"], 1, temperature=0.0, partial=True),
    )
    record = {
        "dataset": recipe.dataset_id,
        "episodes": episodes,
        "evaluation_seed": EVALUATION_SEED,
        "seed": seed,
        "methods": counts,
        "config": config.to_dict(),
        "transformer": transformer.to_dict(),
        "versions": versions(),
    }
    (output / "counts.json").write_text(json.dumps(record, indent=1) + "\n")
    figure.savefig(output / "mazegame.png", dpi=100)
    console.print(f"wrote {output / 'counts.json'} and {output / 'mazegame.png'}")
    return record


def _trained(policy: AgentPolicy, dataset: TensorDictBase, models: Path) -> AgentPolicy:
    """The policy, trained, or the one of its configuration and seed that is in the folder."""
    path = models / f"{policy.model.name}-{policy.config.digest}-{policy.seed}.mage"
    if path.exists():
        return type(policy).load(path, device="cpu")
    policy.learn(dataset, checkpoint_path=path.with_suffix(".training"), resume=True)
    policy.save(path)
    return policy


def _plan(
    policy: MAGEPolicy,
    episode: Episode,
    number: int,
    *,
    temperature: float,
    partial: bool = False,
) -> Any:
    """Plans for the beginning of an episode."""
    return policy.model.plan(
        torch.as_tensor(episode.observations[0]).expand(number, -1),
        torch.as_tensor(episode.asked[0]).expand(number, -1),
        partial=partial,
        temperature=temperature,
        generator=torch.Generator().manual_seed(0),
    )


def _many_plans(policy: MAGEPolicy, episode: Episode, number: int = 20) -> Any:
    plan = _plan(policy, episode, number, temperature=policy.config.temperature)
    return plan.observation[..., POSITION].numpy()


def _table(counts: dict[str, dict[str, Any]], episodes: int) -> Table:
    table = Table("", "silver", "gold", "goal", "all three", "plans through walls")
    table.title = f"{episodes} episodes each"
    for name, numbers in counts.items():
        shares = [f"{numbers[key]:.0%}" for key in ("silver", "gold", "goal", "success")]
        plans = numbers.get("plans")
        table.add_row(name, *shares, f"{plans['cross_walls']:.0%}" if plans else "")
    return table


def main() -> None:
    """Run the experiment as the command line asks."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mazegame",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("benchmarks/results/mazegame"))
    add("--models", type=Path, default=Path("runs/mazegame"), help="folder of trained methods")
    add("--root", type=Path, default=get_dataset_path(), help="folder of Minari datasets")
    add("--episodes", type=int, default=EPISODES)
    add("--seed", type=int, default=0, help="of the trainings")
    add("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run(args.output, args.models, root=args.root, episodes=args.episodes, seed=args.seed)


if __name__ == "__main__":
    main()
