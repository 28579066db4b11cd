"""The one configuration of MAGE: every default, its unit and its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from mage_agent.config import LARGEST, Config, bounded
from mage_agent.mage.presets import GOALS, PRESETS

__all__ = ["GOALS", "ConditionSite", "MAGEConfig", "Trajectory"]

Trajectory = Literal["S", "A", "RS", "RSA", "RG"]
ConditionSite = Literal["autoencoder", "first_scale", "finer_scales", "condition_loss"]
_CONDITION_SITES: tuple[ConditionSite, ...] = get_args(ConditionSite)


@dataclass(frozen=True, kw_only=True)
class MAGEConfig(Config):
    """Everything that defines a MAGE model and its training.

    Sources are tables, equations and algorithms of the paper; "measured" marks a choice the paper
    leaves open, made by score on real datasets. The fields that all agents have are described in
    ``Config``: ``observation_keys``, ``discount`` (Tables 10-14), ``target_quantile`` and
    ``temperature``, here that of the token samples.

    Attributes:
        horizon: window length T, in environment steps (Tables 10-14).
        temporal_stride: environment steps per latent step, so that L_K = horizon / temporal_stride
            (measured; the paper gives no scale lengths, TAP, on which it builds, pools by 3).
        num_scales: number of scales K, whose lengths are spaced geometrically from 1 to L_K
            (Table 5).
        codebook_size: number of codes V (Tables 10-14).
        code_dim: code width C.
        width: width D of every network (Tables 10-14, "embed dim"); inverse dynamics has 2 D.
        num_blocks: blocks of the multi-scale transformer (Tables 10-14).
        num_heads: attention heads (Tables 10-14).
        num_autoencoder_blocks: blocks of the encoder and of the decoder.
        dropout: dropout rate of the multi-scale transformer (Tables 10-14).
        trajectory: what a window holds: returns R, states S, actions A (Table 6), or of the states
            the achieved goal G alone (measured).
        relative_plans: plans hold how far states are from s_0, in standard deviations of how far
            the data get within half a window, and not where they are: in a large maze, a step is
            small beside the spread of positions (measured).
        fourier_features: how many learned projections of s_0 condition plans by their sines and
            cosines, beside s_0 itself. Smooth networks plan through the walls of a large maze: the
            places on both sides are alike to them (measured). 0 takes s_0 alone (the paper).
        return_conditioning: where the return-to-go conditions the model (Table 7); an empty tuple
            is the model without condition of Table 23, whose inverse dynamics is told none either.
        return_reweighting: weight the reconstruction loss of a window by its return-to-go, scaled
            to [0, 1] (Table 23).
        inverse_dynamics: read the action off the latent (Eq. 6), off the first two decoded states
            (Table 19), off the displacement from s_0 to a decoded state ("displacement"), or off
            the direction in which the decoded trajectory leads, which takes trajectory="RG"
            (measured).
        plan_entries: of the observation, the entries whose displacement is read and judged, by
            their index; empty takes all of them, or the achieved goal where plans hold it alone.
        inverse_dynamics_condition: what inverse dynamics receives besides the plan: nothing (the
            paper), s_0, (s_0, R_0), or "body", of s_0 all but the goals (measured).
        inverse_dynamics_lookahead: environment steps after which the displacement is read; None
            takes the lookahead. Far ahead, it does not tell whether to turn now or later
            (measured).
        inverse_dynamics_layers: hidden layers of inverse dynamics (measured: a gait takes three).
        plan_scale: factor on the plan that inverse dynamics reads; below 1 it gives a condition
            beside the plan, which has far fewer entries, more weight (measured).
        plan_dropout: rate at which entries of the plan are dropped when inverse dynamics is
            trained; it then relies less on the plan and more on s_0 (measured).
        condition_guidance: where the condition loss acts: in adapters between the frozen decoder's
            layers, in the decoder itself, or nowhere (Tables 22 and 26).
        adapter_dim: width of the adapters' bottleneck.
        context: context of the multi-scale transformer in training: true tokens in one pass, or its
            own straight-through samples as in Algorithm 5 (measured).
        code_temperature: a deterministic policy acts on the mean of the codes, weighted by their
            probabilities at this temperature: at 0 the likeliest code (the paper), at 1 the mean
            of the token's distribution (measured). Of several ``candidates``, codes are drawn.
        return_expectile: expectile of the return-to-go given the state, the value of the state. It
            bounds what is asked for, so that no return is asked for that the data never reached
            from there; None has no values and bounds by the whole dataset only (measured). Where
            plans are judged by the distance to a goal, that distance takes the values' place.
        value_entries: of the observation, the entries that values or distances of states and moves
            see, by number; empty takes all, for distances all but the desired goal. They know
            nothing of what the data never do, such as resting at a goal, and where a point is tells
            what it is worth at any speed (measured).
        bootstrap_steps: steps n after which a step's return-to-go goes on with the value of the
            state that they lead to, so that good parts of different episodes add up; 0 takes the
            return that followed (the paper). With distances, how near the goal they lead is all
            that it holds.
        candidates: plans that are sampled for a decision, of which the one whose displacement
            within the lookahead is worth the most is acted on; 1 acts on the mean or likeliest
            codes (the paper). With observation_keys that end with the goals, it is the one that
            comes nearest to the goal, of those that end where one can get to.
        lookahead: environment steps after which a plan is judged.
        gumbel_temperature: temperature of the straight-through samples of Algorithm 5.
        commitment_weight: weight of the commitment loss (Eq. A.2, beta).
        q_value_weight: weight of the error of the token logits, read as Q values, to the
            return-to-go; the cross-entropy beside it is what CQL adds to such an error to make it
            conservative. It takes a transformer that is not told the return (Table 6, "A+CQL",
            which the paper does not define).
        inverse_dynamics_weight: weight of L_inv (Eq. 6).
        condition_weight: weight of L_cond (Algorithm 5, lambda_cond).
        codebook_decay: decay of the codebook's moving average, per step.
        optimizer: of tokenizer and generator: "adam" (the paper), or "muon", in which the matrices
            of the blocks follow their momentum orthogonalised: on few steps, far lower losses
            (measured). Distances always follow Muon.
        learning_rate: learning rate that the cosine begins at (Tables 10-14).
        inverse_dynamics_learning_rate: that of the stage ``inverse_dynamics`` (measured).
        inverse_dynamics_weight_decay: decoupled weight decay of the stage ``inverse_dynamics``.
            Trained long without it, its actions are wild where the data never are, such as at rest
            beside a wall, and the agent stays there (measured).
        inverse_dynamics_average_decay: decay, per step, of the moving average of the weights that
            inverse dynamics ends with; 0 ends with the last ones (the paper; measured).
        warmup_steps: steps of linear warm-up; the rate then falls to a tenth of learning_rate along
            a cosine.
        weight_decay: decoupled weight decay of tokenizer and generator; 0 is the paper's Adam.
        gradient_clip: largest gradient norm.
        batch_size: windows per step (Tables 10-14).
        value_steps: gradient steps of values or distances, which come first where there are any.
        tokenizer_steps: gradient steps of stage 1.
        generator_steps: gradient steps of stage 2.
        inverse_dynamics_steps: gradient steps of inverse dynamics alone on the trained model's
            plans; 0 leaves this stage out, and the generator's trains it (measured: the stage is
            worth it where inverse dynamics sees s_0).
        data_scales: how many of the coarse scales of the plans that inverse dynamics learns from
            are those of the data's own window; the finer ones are generated. None takes the data's
            windows whole, which sampled plans look like (displacements as they were, and not as
            tokens tell them); 0 generates all: a plan may then disagree with the action that is
            learnt from it (measured). Directions are always the data's.

    Raises:
        ValueError: a value is outside its range, or fields contradict each other.

    Examples:
        >>> MAGEConfig.preset("adroit-small", horizon=48, discount=0.998).scales
        (1, 3, 6, 16)
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = PRESETS
    ADJUSTABLE: ClassVar[frozenset[str]] = Config.ADJUSTABLE | {
        "inverse_dynamics_learning_rate",
        "inverse_dynamics_weight_decay",
    }
    CHANGEABLE: ClassVar[frozenset[str]] = (
        Config.CHANGEABLE
        | ADJUSTABLE
        | {
            *("return_reweighting", "context", "gumbel_temperature", "commitment_weight"),
            *("q_value_weight", "inverse_dynamics_weight", "condition_weight", "code_temperature"),
            *("optimizer", "value_steps", "tokenizer_steps", "generator_steps"),
            *("inverse_dynamics_steps", "data_scales", "inverse_dynamics_average_decay"),
        }
    )

    # Scales and tokens.
    horizon: int = bounded(24, 2, 10**6)
    temporal_stride: int = bounded(3, 1)
    num_scales: int = bounded(8, 1, 1000)
    codebook_size: int = bounded(512, 1)
    code_dim: int = bounded(32, 1)
    # Networks.
    width: int = bounded(512, 1)
    num_blocks: int = bounded(8, 1, 1000)
    num_heads: int = bounded(4, 1)
    num_autoencoder_blocks: int = bounded(2, 1, 1000)
    dropout: float = bounded(0.1, 0.0, 0.99)
    # What is modelled, and where the return conditions it.
    trajectory: Trajectory = "RS"
    relative_plans: bool = False
    fourier_features: int = bounded(0, 0)
    return_conditioning: tuple[ConditionSite, ...] = _CONDITION_SITES
    return_reweighting: bool = False
    inverse_dynamics: Literal["latent", "explicit", "displacement", "direction"] = "latent"
    plan_entries: tuple[int, ...] = bounded((), 0)
    inverse_dynamics_condition: Literal["none", "state", "state_and_return", "body"] = "none"
    inverse_dynamics_lookahead: int | None = bounded(None, 1)
    inverse_dynamics_layers: int = bounded(2, 1, 1000)
    plan_scale: float = bounded(1.0, 0.0, LARGEST)
    plan_dropout: float = bounded(0.0, 0.0, 0.99)
    condition_guidance: Literal["adapter", "decoder", "none"] = "adapter"
    adapter_dim: int = bounded(32, 1)
    # Training of the generator.
    context: Literal["teacher", "own"] = "teacher"
    return_expectile: float | None = bounded(None, 1e-6, 1 - 1e-6)
    value_entries: tuple[int, ...] = bounded((), 0)
    bootstrap_steps: int = bounded(0, 0)
    gumbel_temperature: float = bounded(1.0, 1e-6, LARGEST)
    commitment_weight: float = bounded(0.25, 0.0, LARGEST)
    q_value_weight: float = bounded(0.0, 0.0, LARGEST)
    inverse_dynamics_weight: float = bounded(1.0, 0.0, LARGEST)
    condition_weight: float = bounded(0.1, 0.0, LARGEST)
    codebook_decay: float = bounded(0.99, 0.0, 0.99999)
    # Acting.
    code_temperature: float = bounded(1.0, 0.0, LARGEST)
    candidates: int = bounded(1, 1, 10_000)
    lookahead: int = bounded(8, 1)
    # Optimisation.
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = bounded(2e-4, 1e-12, LARGEST)
    inverse_dynamics_learning_rate: float = bounded(3e-3, 1e-12, LARGEST)
    inverse_dynamics_weight_decay: float = bounded(0.0, 0.0, LARGEST)
    inverse_dynamics_average_decay: float = bounded(0.997, 0.0, 0.99999)
    warmup_steps: int = bounded(200, 0)
    weight_decay: float = bounded(0.0, 0.0, LARGEST)
    gradient_clip: float = bounded(1.0, 1e-12, LARGEST)
    batch_size: int = bounded(512, 1)
    value_steps: int = bounded(10_000, 1)
    tokenizer_steps: int = bounded(50_000, 1)
    generator_steps: int = bounded(100_000, 1)
    inverse_dynamics_steps: int = bounded(0, 0)
    data_scales: int | None = bounded(0, 0)

    def __post_init__(self) -> None:
        """Check every field, and what they must be together."""
        super().__post_init__()
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}.")
        if self.horizon % self.temporal_stride:
            raise ValueError(
                f"horizon {self.horizon} is not a multiple of temporal_stride "
                f"{self.temporal_stride}."
            )
        if self.num_scales > self.latent_length:
            raise ValueError(
                f"num_scales is {self.num_scales}, but a latent of horizon {self.horizon} / "
                f"temporal_stride {self.temporal_stride} = {self.latent_length} steps has room for "
                f"at most {self.latent_length}; lower num_scales or temporal_stride."
            )
        if self.data_scales is not None and self.data_scales > self.num_scales:
            raise ValueError(
                f"data_scales is {self.data_scales}; allowed: 0 to num_scales, {self.num_scales}, "
                "or None for the data's windows whole."
            )
        if not self.return_conditioning and self.inverse_dynamics_condition == "state_and_return":
            raise ValueError(
                "return_conditioning is empty, but inverse_dynamics_condition='state_and_return' "
                "tells inverse dynamics the return; take 'state'."
            )
        told = [
            site for site in ("first_scale", "finer_scales") if site in self.return_conditioning
        ]
        if self.q_value_weight and told:
            raise ValueError(
                f"q_value_weight is {self.q_value_weight}, but return_conditioning holds {told}: Q "
                "values of a transformer that is told the return would be that return. Leave them "
                "out."
            )
        neutrals = (("value_entries", ()), ("bootstrap_steps", 0), ("candidates", 1))
        for name, neutral in neutrals:
            if self.return_expectile is None and getattr(self, name) != neutral:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, which takes values of states: set "
                    "return_expectile, for instance to 0.95."
                )
        if self.judges_by_distance and self.discount == 1:
            raise ValueError(
                "discount is 1, but where distances to the goal judge plans, discount ** distance "
                "is the return that conditions them; take one below 1, for instance 0.99."
            )
        self._check_trajectory()

    def _check_trajectory(self) -> None:
        """Compare what is modelled with what actions are read off."""
        reading = self.inverse_dynamics
        if self.relative_plans and not set("SG") & set(self.trajectory):
            raise ValueError(
                "relative_plans are of states, but trajectory="
                f"{self.trajectory!r} holds none; use 'S', 'RS', 'RSA' or 'RG'."
            )
        if reading == "explicit" and "S" not in self.trajectory:
            raise ValueError(
                "inverse_dynamics='explicit' reads actions off decoded states, but trajectory="
                f"{self.trajectory!r} holds none; use 'S', 'RS' or 'RSA'."
            )
        if self.plan_entries and not self.looks_ahead:
            raise ValueError(
                f"plan_entries is {self.plan_entries}, but inverse_dynamics={reading!r} reads no "
                "displacement, and of one candidate none is judged; leave it empty."
            )
        if self.plan_entries and "G" in self.trajectory:
            raise ValueError(
                f"plan_entries is {self.plan_entries}, but plans of trajectory={self.trajectory!r} "
                "hold the achieved goal alone; leave it empty."
            )
        if self.inverse_dynamics == "direction" and "G" not in self.trajectory:
            raise ValueError(
                "inverse_dynamics='direction' reads actions off the path to decoded goals, but "
                f"trajectory={self.trajectory!r} holds none; use 'RG'."
            )
        if self.looks_ahead and not set("SG") & set(self.trajectory):
            raise ValueError(
                f"candidates is {self.candidates} and inverse_dynamics={reading!r}, but trajectory="
                f"{self.trajectory!r} holds no states that move; use 'S', 'RS', 'RSA' or 'RG'."
            )
        if self.inverse_dynamics_lookahead is not None and reading != "displacement":
            raise ValueError(
                f"inverse_dynamics_lookahead is {self.inverse_dynamics_lookahead}, but "
                f"inverse_dynamics={reading!r} reads no displacement; leave it None."
            )
        for name in ("lookahead", "inverse_dynamics_lookahead"):
            steps = getattr(self, name)
            if self.looks_ahead and steps is not None and steps >= self.horizon:
                raise ValueError(
                    f"{name} is {steps}, but plans hold the steps 0 to {self.horizon - 1}."
                )
        if self.needs_goals and not self.sees_goals:
            raise ValueError(
                f"trajectory={self.trajectory!r} with inverse_dynamics_condition="
                f"{self.inverse_dynamics_condition!r} needs goals, but observation_keys is "
                f"{self.observation_keys}; it must end with {GOALS}."
            )

    @property
    def latent_length(self) -> int:
        """Latent steps of a window, L_K."""
        return self.horizon // self.temporal_stride

    @property
    def scales(self) -> tuple[int, ...]:
        """Tokens per scale, L_1 < ... < L_K: geometric, nudged upwards until they are distinct."""
        longest, count = self.latent_length, self.num_scales
        if count == 1:
            return (longest,)
        lengths: list[int] = []
        for k in range(count):
            ideal = round(longest ** (k / (count - 1)))
            smallest = lengths[-1] + 1 if lengths else 1
            largest = longest - (count - 1 - k)
            lengths.append(min(max(ideal, smallest), largest))
        return tuple(lengths)

    @property
    def looks_ahead(self) -> bool:
        """Whether the displacement within the lookahead is judged or read."""
        return self.candidates > 1 or self.inverse_dynamics == "displacement"

    @property
    def read_lookahead(self) -> int:
        """Environment steps after which inverse dynamics reads a displacement."""
        return self.inverse_dynamics_lookahead or self.lookahead

    @property
    def sees_goals(self) -> bool:
        """Whether the observation ends with the goals."""
        return self.observation_keys[-2:] == GOALS

    @property
    def judges_by_distance(self) -> bool:
        """Whether sampled plans are judged by the distance to a goal that is observed."""
        return self.candidates > 1 and self.sees_goals

    @property
    def needs_goals(self) -> bool:
        """Whether the model must know which part of an observation is the goals."""
        told = "G" in self.trajectory or self.inverse_dynamics_condition == "body"
        return told or self.judges_by_distance
