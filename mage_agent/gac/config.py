"""The configuration of GAC: every default, its unit and its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mage_agent.config import Config, bounded
from mage_agent.gac.presets import FINE_TUNING, PRESETS

__all__ = ["GACConfig", "InferenceKind", "QueryKind", "ReplanMode", "Trigger"]

InferenceKind = Literal["persistent", "fresh", "amortised"]
QueryKind = Literal["max", "plus", "target", "prior", "best"]
Trigger = Literal["never", "better", "surprise", "promise"]
ReplanMode = Literal["posterior", "restart"]


@dataclass(frozen=True, kw_only=True)
class GACConfig(Config):
    """Everything that defines a GAC model, its training and its decisions.

    Sources are the tables, equations and algorithms of the paper; "measured" and "chosen" mark what
    the paper leaves open. Unless said otherwise, states, their changes, actions and returns are
    counted in standard deviations of the data.

    Attributes:
        width: width D of every network and of each latent (Table 5, "embedding dimension").
        num_latents: latents K of the trajectory, z_rest; one more, z_y, belongs to the return
            (Table 5, "latent tokens"; a single one of them could not hold both).
        num_heads: attention heads (Table 5).
        num_decoder_blocks: blocks of the generator p_beta (Table 5).
        num_encoder_blocks: blocks of the prior network f_alpha (Table 5).
        context: steps M that a block of the generator sees (Table 5, "context length").
        action_std_floor: smallest standard deviation of an action (chosen).
        state_std_floor: smallest standard deviation of a change of the state; without a floor,
            near-deterministic dynamics would take over the objective (chosen).
        return_std: standard deviation sigma_y of the return given z_y (chosen).
        free_bits: margin eta on the KL divergence of a trajectory, in nats (appendix B; chosen).
        inference: where q(eps | tau, y) comes from in training. "fresh": random start and Adam at
            every visit (Algorithm 1 and appendix B); "persistent": parameters and Adam's moments
            are kept per trajectory, and learn by the backward pass that trains the model;
            "amortised": an encoder network, which is not the paper's method.
        inner_steps: Adam steps on q at every visit, at most; None is 100 with "fresh" (appendix B),
            which takes at least one, and 0 otherwise, where q learns along with the model.
            "amortised" takes none.
        inner_learning_rate: of Adam on q (Table 6).
        inner_tolerance: relative change of the objective at which a trajectory's inner loop stops
            (appendix B).
        window: steps of a trajectory whose likelihood is computed at a time, scaled up to the whole
            trajectory; None takes all (the paper). The expectation is the same.
        trajectory_steps: longer episodes of the data are cut into trajectories of so many steps;
            None is the step limit of the dataset's environment, if it names one (chosen: the paper
            does not say how it parts the single run that Maze2D's data are).
        split_goals: whether a trajectory ends, too, where the goal that the data were collected for
            changes, if the data say what that is: ``infos/goal``, as in D4RL's mazes (chosen: a
            plan is for one goal, and its return that of staying there; see ``split_goals`` of the
            package).
        steps: batches of trajectories, each for ``outer_steps`` gradient steps (chosen: the paper
            trains until convergence).
        outer_steps: gradient steps of the model on the same batch (Table 6).
        batch_size: trajectories per batch, without repetition; no more than there are (Table 6).
        optimizer: of the model: "adam" (the paper's AdamW), or "muon", in which the matrices of the
            blocks follow their momentum orthogonalised: on few steps, far higher evidence, and in
            mazes better plans (measured).
        learning_rate: its peak rate (Table 6).
        weight_decay: decoupled weight decay (Table 6).
        warmup_steps: gradient steps of linear warm-up; the rate then falls to a tenth along a
            cosine (chosen).
        gradient_clip: largest gradient norm of the model (chosen).
        held_out: share of the episodes that is kept out of training, on which the triggers of
            replanning are calibrated.
        query: which question a decision asks (Algorithm 3): "max" the largest expected return,
            "plus" a return above the data's upper quantile, "target" a fixed return, "prior" any
            plan, "best" the best of ``query_samples`` plans of the prior.
        asked_return: y* of the query "target", in units of the data (Table 7); None is the
            ``target_quantile`` of the data's returns.
        quantile: q of the query "plus": returns above it are asked for (Table 7).
        increment: dy, which "plus" adds to them, in units of the data (Table 7); None is a tenth of
            the returns' standard deviation (chosen).
        prior_weight: lambda of the query "max", weight of the KL divergence against the expected
            return in standard deviations. 0 is Algorithm 3, Eq. 2 has one; the few steps of a
            query keep the plan near the prior as well (measured).
        query_samples: plans of the prior among which "best" chooses.
        query_radius: largest |eps| of a plan that "max" looks for, in units of sqrt(K D), the
            length of the prior's samples: further out the critic promises what no plan leads to
            (measured).
        query_steps: Adam steps of a query, at most (appendix B: 1000; 200 are enough, measured).
        query_learning_rate: of these steps, and of those of new plans within an episode; it falls
            along a cosine (chosen).
        query_tolerance: relative change of the objective at which either stops (appendix B).
        trigger: when a plan is made anew within an episode: "never", where one that is made from
            here as if an episode began promises "better" (of the queries "max" and "best"), when
            the states "surprise" the model, or when the return that the plan promised, "promise",
            is out of reach (chosen; the paper replans by hand).
        replan: after the last two, the new plan starts from the old one and has to explain what
            happened (Eq. 3, "posterior"), or is made as if an episode began ("restart", Fig. 5).
        replan_interval: steps between two new plans, at least; also how often "better" and
            "promise" look, and the span of the "surprise".
        replan_weight: lambda of Eq. 3, of the queries "max" and "best": the smaller, the more the
            expected return counts against what happened so far (chosen).
        replan_steps: Adam steps of a new plan that starts from the old one, at most; it has further
            to go than from the prior (measured).

    Raises:
        ValueError: a value is outside its range, or fields contradict each other.

    Examples:
        >>> GACConfig.preset("hopper-small", query="target", asked_return=3000.0).query
        'target'
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    FINE_TUNING: ClassVar[dict[str, tuple[dict[str, Any], ...]]] = FINE_TUNING
    CHANGEABLE: ClassVar[frozenset[str]] = Config.CHANGEABLE | {
        *("free_bits", "inner_steps", "inner_learning_rate", "inner_tolerance", "window", "steps"),
        *("outer_steps", "optimizer", "held_out", "query", "asked_return", "quantile", "increment"),
        *("prior_weight", "query_samples", "query_radius", "query_steps", "query_learning_rate"),
        *("query_tolerance", "trigger", "replan", "replan_interval", "replan_weight"),
        "replan_steps",
    }

    discount: float = bounded(1.0, 1e-6, 1.0)
    # Networks.
    width: int = bounded(128, 1, 10**5)
    num_latents: int = bounded(4, 1, 10**4)
    num_heads: int = bounded(4, 1, 10**4)
    num_decoder_blocks: int = bounded(3, 1, 10**3)
    num_encoder_blocks: int = bounded(2, 1, 10**3)
    context: int = bounded(4, 1, 10**4)
    # Objective.
    action_std_floor: float = bounded(0.1, 1e-6)
    state_std_floor: float = bounded(0.3, 1e-6)
    return_std: float = bounded(0.1, 1e-6)
    free_bits: float = bounded(1.0, 0.0)
    # Inference of training.
    inference: InferenceKind = "persistent"
    inner_steps: int | None = bounded(None, 0, 10**6)
    inner_learning_rate: float = bounded(0.1, 1e-12)
    inner_tolerance: float = bounded(1e-4, 0.0)
    window: int | None = bounded(100, 1, 10**6)
    trajectory_steps: int | None = bounded(None, 1, 10**9)
    split_goals: bool = True
    # Optimisation.
    steps: int = bounded(20_000, 1, 10**9)
    outer_steps: int = bounded(1, 1, 10**4)
    batch_size: int = bounded(64, 1, 10**6)
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = bounded(1e-3, 1e-12)
    weight_decay: float = bounded(1e-3, 0.0)
    warmup_steps: int = bounded(200, 0, 10**9)
    gradient_clip: float = bounded(1.0, 1e-12)
    held_out: float = bounded(0.0, 0.0, 0.9)
    # Decisions.
    query: QueryKind = "max"
    asked_return: float | None = bounded(None, -1e30)
    quantile: float = bounded(0.8, 0.0, 1.0)
    increment: float | None = bounded(None, -1e30)
    prior_weight: float = bounded(0.0, 0.0)
    query_radius: float = bounded(0.7, 1e-6)
    query_samples: int = bounded(64, 1, 10**5)
    query_steps: int = bounded(200, 1, 10**6)
    query_learning_rate: float = bounded(0.05, 1e-12)
    query_tolerance: float = bounded(1e-5, 0.0)
    # Replanning.
    trigger: Trigger = "never"
    replan: ReplanMode = "posterior"
    replan_interval: int = bounded(10, 1, 10**6)
    replan_weight: float = bounded(0.1, 1e-6)
    replan_steps: int = bounded(300, 1, 10**6)

    def __post_init__(self) -> None:
        """Check every field, and those that depend on one another."""
        super().__post_init__()
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}.")
        if self.discount != 1.0:
            raise ValueError(
                f"discount is {self.discount}; GAC models the return of whole episodes, which is "
                "not discounted. Leave it at 1."
            )
        if self.inference == "fresh" and self.inner_steps == 0:
            raise ValueError(
                "inner_steps is 0, but inference='fresh' fits q by them alone; take at least 1, or "
                "None for 100."
            )
        if self.trigger in ("surprise", "promise") and self.held_out == 0:
            raise ValueError(
                f"trigger={self.trigger!r} is calibrated on episodes kept out of training, but "
                "held_out is 0; set it to about 0.1."
            )

    @property
    def reach(self) -> int:
        """Steps W that an output of the generator depends on: M, widened by every block."""
        return self.num_decoder_blocks * (self.context - 1) + 1

    @property
    def max_inner_steps(self) -> int:
        """Adam steps on q at every visit, at most."""
        if self.inner_steps is not None:
            return self.inner_steps
        return 100 if self.inference == "fresh" else 0
