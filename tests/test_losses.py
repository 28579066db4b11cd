"""Losses: TorchRL's contract, closed forms, and which term may move what."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule

from mage_agent import (
    MAGEActor,
    MAGEInverseDynamicsLoss,
    MAGELoss,
    MAGEModel,
    MAGEPolicy,
    MAGETokenizerLoss,
)
from mage_agent.mage import losses as mage_losses
from mage_agent.mage.sampling import straight_through
from tests.acting import make_model
from tests.tiny import (
    ACTION,
    CORE,
    HORIZON,
    SCALES,
    STATE,
    tiny_goal_model,
    tiny_goal_windows,
    tiny_model,
    tiny_windows,
)

Loss = MAGETokenizerLoss | MAGELoss | MAGEInverseDynamicsLoss
KEYS: dict[str, NestedKey] = {
    "observation": "observation",
    "action": "action",
    "return_to_go": "return_to_go",
    "mask": ("collector", "mask"),
}
TERMS = {
    MAGETokenizerLoss: ["loss_reconstruction", "loss_commitment", "loss_inverse_dynamics"],
    MAGELoss: ["loss_token", "loss_condition", "loss_inverse_dynamics"],
    MAGEInverseDynamicsLoss: ["loss_inverse_dynamics"],
}


@pytest.fixture(params=TERMS, ids=lambda cls: cls.__name__)
def make_loss(request: pytest.FixtureRequest) -> Callable[..., Loss]:
    """Return a function that builds one of the losses on a new model."""

    def make(reduction: str | None = None, **changes: Any) -> Loss:
        loss: Loss = request.param(tiny_model(**changes), reduction=reduction)
        return loss

    return make


def batch_for(loss: Loss, batch: int = 8, **kwargs: Any) -> TensorDict:
    """What the stage reads: windows, with plans for the last one."""
    td = tiny_windows(batch, **kwargs)
    if isinstance(loss, MAGEInverseDynamicsLoss):
        generator = torch.Generator().manual_seed(5)
        latent = torch.zeros(1, SCALES[-1], 4)
        size = loss.model.read_plan(latent, torch.zeros(1, STATE), torch.zeros(1, 1)).shape[-1]
        td["plan"] = torch.randn(batch, HORIZON, size, generator=generator)
    return td


def evaluate(loss: Loss, *args: Any, **kwargs: Any) -> Any:
    """The loss with the same random numbers every time."""
    torch.manual_seed(0)
    return loss(*args, **kwargs)


def total(losses: TensorDict) -> Tensor:
    """What TorchRL's trainers minimise."""
    terms = [value for key, value in losses.items() if key.startswith("loss")]
    return torch.stack([term.mean() for term in terms]).sum()


def test_float64_batches_are_read_in_the_types_of_the_agent(make_loss: Any) -> None:
    loss = make_loss().eval()
    batch = batch_for(loss)
    assert_same(evaluate(loss, batch.double()), evaluate(loss, batch))


def gradients(loss: Loss, td: TensorDict) -> dict[str, Tensor]:
    loss.zero_grad(set_to_none=True)
    total(evaluate(loss, td)).backward()
    return {name: parameter.grad.clone() for name, parameter in loss.named_parameters()}


def assert_same(first: TensorDict, second: TensorDict) -> None:
    assert set(first.keys()) == set(second.keys())
    for key in first.keys():  # noqa: SIM118
        torch.testing.assert_close(first[key], second[key])


def be_certain(monkeypatch: pytest.MonkeyPatch, model: MAGEModel) -> None:
    """Let the likeliest codes stand for straight-through samples."""

    def likeliest(logits: Tensor, codes: Tensor, temperature: float) -> Tensor:
        assert torch.equal(codes, model.quantizer.codes)
        assert temperature == model.config.gumbel_temperature
        return model.choose(logits)

    monkeypatch.setattr(mage_losses, "straight_through", likeliest)


class TestContract:
    def test_output(self, make_loss: Callable[..., Loss]) -> None:
        loss = make_loss()
        losses = loss(batch_for(loss))
        assert isinstance(loss, LossModule)
        assert set(losses.keys()) == set(loss.out_keys)
        assert [key for key in loss.out_keys if key.startswith("loss")] == TERMS[type(loss)]
        for key, value in losses.items():
            assert value.shape == ()
            assert value.requires_grad == key.startswith("loss"), key

    def test_unknown_keys_are_refused(self, make_loss: Callable[..., Loss]) -> None:
        with pytest.raises(ValueError, match="reward is not an accepted tensordict key"):
            make_loss().set_keys(reward="reward")

    def test_keys_have_defaults_and_can_be_set_singly_together_and_back(
        self, make_loss: Callable[..., Loss]
    ) -> None:
        loss = make_loss()
        for name, default in KEYS.items():
            assert getattr(loss.tensor_keys, name) == default
            loss.set_keys(**{name: "test1"})
            assert getattr(loss.tensor_keys, name) == "test1"
            assert ("test1" in loss.in_keys) == (name != "mask")
            loss.set_keys(**{name: None})
            assert getattr(loss.tensor_keys, name) == default
            assert loss.in_keys[:3] == ["observation", "action", "return_to_go"]
        loss.set_keys(**dict.fromkeys(KEYS, "test2"))
        assert all(getattr(loss.tensor_keys, name) == "test2" for name in KEYS)
        assert make_loss().tensor_keys.action == "action"

    @pytest.mark.parametrize(
        "names", [("o", "a", "r", "m"), (("agent", "o"), ("agent", "a"), ("r", "g"), ("m", "k"))]
    )
    def test_custom_and_nested_keys(
        self, make_loss: Callable[..., Loss], names: tuple[NestedKey, ...]
    ) -> None:
        loss = make_loss().eval()
        td = batch_for(loss, lengths=torch.arange(1, 9))
        expected = evaluate(loss, td)
        for old, new in zip(KEYS.values(), names, strict=True):
            td.rename_key_(old, new)
        loss.set_keys(**dict(zip(KEYS, names, strict=True)))
        assert_same(evaluate(loss, td), expected)

    def test_dispatch_equals_the_tensordict_call(self, make_loss: Callable[..., Loss]) -> None:
        loss = make_loss().eval()
        td = batch_for(loss)
        expected = evaluate(loss, td)
        entries = {key: td[key] for key in loss.in_keys}
        values = evaluate(loss, **entries)
        values = values if isinstance(values, tuple) else (values,)  # it unpacks a single one
        torch.testing.assert_close(values, tuple(expected[key] for key in loss.out_keys))
        wanted = TERMS[type(loss)][-1]
        loss.select_out_keys(wanted)
        torch.testing.assert_close(evaluate(loss, **entries), expected[wanted])

    def test_no_loss_depends_on_whether_metrics_are_measured(
        self, make_loss: Callable[..., Loss]
    ) -> None:
        loss = make_loss().eval()
        td = batch_for(loss)
        expected = evaluate(loss, td).select(*TERMS[type(loss)])
        loss.metrics = False
        found = evaluate(loss, td)
        assert set(found.keys()) == set(expected.keys()) == set(loss.out_keys)
        assert_same(found, expected)

    def test_what_learns_is_in_training_mode_wherever_it_has_acted(
        self, make_loss: Callable[..., Loss]
    ) -> None:
        loss = make_loss()
        loss.model.eval()  # as agents are made, and act
        loss(batch_for(loss))
        assert all(part.training for part in loss.modules())
        loss.eval()
        loss(batch_for(loss))
        assert not any(part.training for part in loss.modules())

    def test_entries_of_another_shape_or_name_are_refused(
        self, make_loss: Callable[..., Loss]
    ) -> None:
        loss = make_loss().eval()
        td = batch_for(loss)
        for wrong in (td["action"][..., 0], td["action"][..., :1], td["action"][:, :, None]):
            if wrong.shape != td["action"].shape:
                with pytest.raises(ValueError, match=r"the actions have shape .*; expected \(8, "):
                    loss(td.copy().set("action", wrong))
        loss.set_keys(mask="valid")
        if not isinstance(loss, MAGEInverseDynamicsLoss):  # which looks at first steps alone
            with pytest.raises(KeyError, match="lacks 'valid', where set_keys says"):
                loss(td)
        other = type(loss)(tiny_model(observation_keys=("state",)))
        with pytest.raises(ValueError, match=r"observation_keys, \['state'\]; rename"):
            other.set_keys(observation="obs")

    def test_the_input_stays_as_it_is(self, make_loss: Callable[..., Loss]) -> None:
        loss = make_loss()
        td = batch_for(loss)
        before = td.clone()
        loss(td)
        assert set(td.keys(True, True)) == set(before.keys(True, True))
        assert (td == before).all()

    def test_reading_a_plan_does_not_bend_it(self) -> None:
        """Eq. 7 alone trains the adapters, however the plan is read."""
        loss = MAGELoss(tiny_model(inverse_dynamics="explicit"))
        loss(batch_for(loss))["loss_inverse_dynamics"].backward()
        moved = {name for name, part in loss.named_parameters() if part.grad is not None}
        assert moved
        assert all("inverse_dynamics" in name for name in moved)

    def test_no_error_of_an_inverse_dynamics_that_is_not_trained_yet(self) -> None:
        loss = MAGELoss(tiny_model(inverse_dynamics_steps=4))
        both = {"action_error_true", "action_error_generated"}
        assert not both & {*loss(batch_for(loss)).keys()}
        assert both < {*loss.eval()(batch_for(loss)).keys()}

    def test_every_parameter_learns_and_is_named_once(self, make_loss: Callable[..., Loss]) -> None:
        loss = make_loss(return_expectile=0.9, inverse_dynamics_condition="state_and_return")
        named = list(loss.named_parameters())
        assert len(set(loss.parameters())) == len(named)
        assert len(set(loss.buffers())) == len(list(loss.named_buffers()))
        for name, gradient in gradients(loss, batch_for(loss)).items():
            assert gradient.norm() > 0, name

    def test_fresh_adapters_wake_with_the_first_step(self) -> None:
        """They start as the identity, so at first their last layer alone has a gradient."""
        model = tiny_model()
        for adapter in model.decoder.adapters:
            torch.nn.init.zeros_(adapter.up.weight)
        loss = MAGELoss(model)
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
        asleep = [n for n, g in gradients(loss, batch_for(loss)).items() if not g.any()]
        assert len(asleep) == 2 * 4  # down and condition of each adapter
        assert all(".adapters." in name and ".up." not in name for name in asleep)
        optimizer.step()
        assert all(g.any() for g in gradients(loss, batch_for(loss)).values())

    def test_state_dict_round_trip(self, make_loss: Callable[..., Loss]) -> None:
        loss, other = make_loss(seed=1).eval(), make_loss(seed=2).eval()
        td = batch_for(loss)
        assert (total(evaluate(loss, td)) != total(evaluate(other, td))).all()
        other.load_state_dict(loss.state_dict())
        assert_same(evaluate(other, td), evaluate(loss, td))

    def test_reductions(self, make_loss: Callable[..., Loss]) -> None:
        loss = make_loss().eval()
        td = batch_for(loss)
        results = {}
        for reduction in (None, "mean", "sum", "none"):
            loss.reduction = type(loss)(loss.model, reduction=reduction).reduction
            results[reduction] = evaluate(loss, td)
        assert_same(results[None], results["mean"])
        assert results["none"].batch_size == torch.Size([8])
        assert set(results["none"].keys()) == set(TERMS[type(loss)])
        for key, values in results["none"].items():
            assert values.shape == (8,)
            # Means and sums estimate the condition loss on a quarter of the batch.
            seen = values[:2] if key == "loss_condition" else values
            torch.testing.assert_close(seen.mean(), results["mean"][key])
            torch.testing.assert_close(8 * seen.mean(), results["sum"][key])

    def test_reset_starts_the_stages_networks_as_new_ones_start(
        self, make_loss: Callable[..., Loss]
    ) -> None:
        loss = make_loss()
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(1000)
        others = {
            name: value.clone()
            for name, value in loss.state_dict().items()
            if not name.startswith(tuple(f"model.{part}." for part in loss.trains))
        }
        torch.manual_seed(7)
        loss.reset_parameters_recursive()
        torch.manual_seed(7)
        new = MAGEModel(loss.model.config, observation_dim=3, action_dim=2)
        for name in loss.trains:
            fresh = new.get_submodule(name).state_dict()
            for key, value in loss.model.get_submodule(name).state_dict().items():
                assert torch.equal(value, fresh[key])
        assert all(torch.equal(loss.state_dict()[name], value) for name, value in others.items())

    def test_modes_devices_and_dtypes_reach_the_model(self, make_loss: Callable[..., Loss]) -> None:
        loss = make_loss()
        assert loss.eval().model.training is False
        assert loss.train().model.transformer.training is True
        loss.double()
        tensors = [*loss.model.parameters(), *loss.model.buffers()]
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}
        losses = loss(batch_for(loss).double())
        assert torch.isfinite(total(losses))
        assert losses["loss_inverse_dynamics"].dtype == torch.float64
        loss.to("meta")
        assert all(t.is_meta for t in [*loss.model.parameters(), *loss.model.buffers()])

    def test_dropout_follows_the_losss_mode(self) -> None:
        loss = MAGELoss(tiny_model(dropout=0.5)).eval()
        td = batch_for(loss)
        assert loss(td)["loss_token"] == loss(td)["loss_token"]
        loss.train()
        assert loss(td)["loss_token"] != loss(td)["loss_token"]

    def test_a_loss_in_evaluation_draws_nothing_beside_one_that_trains(self) -> None:
        """Two losses of one model, one of which has put it into training mode."""
        model = tiny_model(dropout=0.5)
        judge, td = MAGELoss(model).eval(), tiny_windows()
        MAGETokenizerLoss(model).train()(td)
        alone = MAGELoss(copy.deepcopy(model)).eval()
        assert_same(evaluate(judge, td), evaluate(alone, td))

    def test_what_was_frozen_can_be_trained_again(self, make_loss: Callable[..., Loss]) -> None:
        loss = make_loss()
        before = [name for name, _ in loss.named_parameters()]
        assert not [*loss.requires_grad_(False).parameters()]
        assert [name for name, _ in loss.requires_grad_(True).named_parameters()] == before

    def test_bfloat16_where_autocast_says_so(self, make_loss: Callable[..., Loss]) -> None:
        loss = make_loss()
        with torch.autocast("cpu", torch.bfloat16):
            losses = loss(batch_for(loss))
        assert torch.isfinite(total(losses))
        total(losses).backward()
        assert all(torch.isfinite(p.grad).all() for p in loss.parameters())

    @pytest.mark.parametrize("shape", [(8, HORIZON + 3), (8, 1)])
    def test_windows_of_another_length_are_refused(self, shape: tuple[int, int]) -> None:
        for loss in (MAGETokenizerLoss(tiny_model()), MAGELoss(tiny_model())):
            with pytest.raises(ValueError, match=rf"expected \(batch, {HORIZON}, 3\)"):
                loss(tiny_windows(shape[0], horizon=shape[1]))

    def test_windows_without_a_real_step_are_refused(self) -> None:
        batch = tiny_windows()
        mask = torch.ones(batch.shape, dtype=torch.bool)
        mask[3] = False
        batch["collector", "mask"] = mask
        for loss in (MAGETokenizerLoss(tiny_model()), MAGELoss(tiny_model())):
            with pytest.raises(ValueError, match=r"1 of \d+ windows begin with padding"):
                loss(batch)

    def test_other_agents_models_are_refused(self) -> None:
        class Other(MAGELoss):
            agent = "gac"

        for make, model in ((Other, tiny_model()), (MAGELoss, MAGEPolicy(tiny_model()))):
            with pytest.raises(TypeError, match=rf"model is a {type(model).__name__}; "):
                make(model)

        class Mine(MAGEModel):
            name = "mine"

        model = Mine(tiny_model().config, observation_dim=STATE, action_dim=ACTION)
        assert MAGELoss(model).model is model

    @pytest.mark.parametrize("key", ["observation", "action", "return_to_go"])
    def test_a_batch_without_an_entry_is_refused_by_name(self, key: str) -> None:
        for loss in (MAGETokenizerLoss(tiny_model()), MAGELoss(tiny_model())):
            with pytest.raises(KeyError, match=rf"lacks \['{key}'\].*replay_buffer"):
                loss(tiny_windows().exclude(key))

    def test_a_batch_without_plans_is_refused(self) -> None:
        with pytest.raises(KeyError, match=r"lacks \['plan'\].*MAGEInverseDynamicsLoss reads"):
            MAGEInverseDynamicsLoss(tiny_model())(tiny_windows())

    def test_an_unknown_reduction_is_refused(self, make_loss: Callable[..., Loss]) -> None:
        with pytest.raises(ValueError, match=r"reduction is 'median'; allowed: 'mean'"):
            make_loss(reduction="median")

    def test_goals_are_concatenated_in_the_configured_order(self) -> None:
        keys = ("desired", "observation")
        sizes = {"observation": 2, "desired": 1}
        model = make_model(sizes, ACTION, **{**CORE, "observation_keys": keys})
        assert list(model.observation_sizes) == ["desired", "observation"]
        loss = MAGETokenizerLoss(model).eval()
        td = tiny_windows()
        expected = evaluate(loss, td.clone().set("desired", td["observation"][..., :0]))
        td["desired"], td["observation"] = td["observation"].split([1, 2], dim=-1)
        assert loss.in_keys == ["desired", "observation", "action", "return_to_go"]
        assert_same(evaluate(loss, td), expected)


class TestWhoMovesWhom:
    """A stage moves its own networks, all of them, and nothing else."""

    STAGE_1 = ("encoder.", "quantizer.", "decoder.", "inverse_dynamics.")

    def moved(self, loss: Loss, steps: int = 3) -> set[str]:
        """Names of the entries of the model's state that training changes."""
        before = {key: value.clone() for key, value in loss.model.state_dict().items()}
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            total(loss(batch_for(loss))).backward()
            optimizer.step()
        after = loss.model.state_dict()
        return {key for key, value in before.items() if not torch.equal(value, after[key])}

    def test_stage_1(self) -> None:
        model = tiny_model()
        expected = {
            key
            for key in model.state_dict()
            if key.startswith(self.STAGE_1) and ".adapters." not in key
        } - {"quantizer.codebook._codebook.initted"}
        assert self.moved(MAGETokenizerLoss(model)) == expected

    @pytest.mark.parametrize(
        ("changes", "prefixes"),
        [
            ({}, ("transformer.", "inverse_dynamics.", "decoder.adapters.")),
            (
                {"condition_guidance": "decoder"},
                ("transformer.", "inverse_dynamics.", "decoder."),
            ),
            ({"condition_guidance": "none"}, ("transformer.", "inverse_dynamics.")),
            ({"context": "own"}, ("transformer.", "inverse_dynamics.", "decoder.adapters.")),
            (
                {"inverse_dynamics": "explicit"},
                ("transformer.", "inverse_dynamics.", "decoder.adapters."),
            ),
        ],
        ids=str,
    )
    def test_stage_2(self, changes: dict[str, Any], prefixes: tuple[str, ...]) -> None:
        model = tiny_model(**changes)
        expected = {key for key in model.state_dict() if key.startswith(prefixes)}
        assert self.moved(MAGELoss(model)) == expected

    def test_stage_2_leaves_inverse_dynamics_to_a_stage_of_its_own(self) -> None:
        loss = MAGELoss(tiny_model(inverse_dynamics_steps=4))
        assert not any("inverse_dynamics" in key for key in self.moved(loss))
        losses = loss(tiny_windows())
        assert set(losses.keys()) == set(loss.out_keys)
        assert "loss_inverse_dynamics" not in losses
        assert "action_error_generated" not in losses
        assert loss.eval()(tiny_windows())["action_error_generated"] > 0

    @pytest.mark.parametrize("inverse_dynamics", ["latent", "explicit"])
    def test_stage_3(self, inverse_dynamics: str) -> None:
        model = tiny_model(inverse_dynamics=inverse_dynamics)
        expected = {key for key in model.state_dict() if key.startswith("inverse_dynamics.")}
        assert self.moved(MAGEInverseDynamicsLoss(model)) == expected

    @pytest.mark.parametrize(
        ("cls", "term", "prefixes"),
        [
            (MAGETokenizerLoss, "loss_reconstruction", ("encoder", "quantizer", "decoder")),
            (MAGETokenizerLoss, "loss_commitment", ("encoder", "quantizer")),
            (
                MAGETokenizerLoss,
                "loss_inverse_dynamics",
                ("encoder", "quantizer", "inverse_dynamics"),
            ),
            (MAGELoss, "loss_token", ("transformer",)),
            (MAGELoss, "loss_q_value", ("transformer",)),
            (MAGELoss, "loss_condition", ("transformer", "decoder.adapters")),
            (MAGELoss, "loss_inverse_dynamics", ("inverse_dynamics",)),
        ],
    )
    def test_each_term_has_gradients_for_its_own_networks_only(
        self, cls: type[Loss], term: str, prefixes: tuple[str, ...]
    ) -> None:
        config: dict[str, Any] = {"return_expectile": 0.9}
        if term == "loss_q_value":  # which a transformer that is told the return cannot have
            config |= {"return_conditioning": (), "q_value_weight": 1.0}
        loss = cls(tiny_model(**config))
        loss(batch_for(loss))[term].backward()
        touched = {
            name
            for name, parameter in loss.model.named_parameters()
            if parameter.grad is not None and parameter.grad.any()
        }
        assert all(name.startswith(prefixes) for name in touched)
        assert all(any(name.startswith(prefix) for name in touched) for prefix in prefixes)

    @pytest.mark.parametrize("changes", [{}, {"inverse_dynamics": "explicit"}], ids=str)
    def test_no_gradient_gathers_where_no_optimiser_clears_it(
        self, make_loss: Callable[..., Loss], changes: dict[str, Any]
    ) -> None:
        loss = make_loss(**changes)
        total(loss(batch_for(loss))).backward()
        mine = set(loss.parameters())
        assert all(p.grad is None for p in loss.model.parameters() if p not in mine)
        assert all(p.requires_grad for p in loss.model.parameters())

    def test_what_the_user_froze_stays_frozen(self, make_loss: Callable[..., Loss]) -> None:
        loss = make_loss()
        frozen = loss.model.inverse_dynamics.mlp[0].weight.requires_grad_(False)
        assert all(p is not frozen for p in loss.parameters())
        if TERMS[type(loss)] != ["loss_inverse_dynamics"]:
            total(loss(batch_for(loss))).backward()
        assert not frozen.requires_grad


class TestCodebook:
    def test_an_actor_that_shares_the_model_sees_it_move(self) -> None:
        model = tiny_model()
        actor, loss = MAGEActor(model), MAGETokenizerLoss(model)
        td = TensorDict(
            {"observation": torch.randn(20, STATE), "return_to_go": torch.zeros(20, 1)}, [20]
        )
        codes = model.quantizer.codes
        place, before = codes.data_ptr(), codes.clone()
        action = actor(td.clone())["action"]
        loss.train()(batch_for(loss))  # no optimiser is involved
        assert model.quantizer.codes.data_ptr() == place
        assert not torch.equal(model.quantizer.codes, before)
        model.eval()
        assert not torch.equal(actor(td.clone())["action"], action)

    def test_holds_still_in_evaluation_and_in_stage_2(self) -> None:
        model = tiny_model()
        before = {key: value.clone() for key, value in model.quantizer.state_dict().items()}
        for loss in (MAGETokenizerLoss(model).eval(), MAGELoss(model).train()):
            loss(batch_for(loss))
        after = model.quantizer.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items())


class TestPadding:
    LENGTHS = torch.tensor([1, 2, 3, 4, 7, 9, 11, 12])

    @pytest.mark.parametrize("cls", [MAGETokenizerLoss, MAGELoss])
    @pytest.mark.parametrize("filler", [1e9, torch.nan, torch.inf])
    @pytest.mark.parametrize("extra_axis", [False, True])
    def test_its_contents_change_neither_losses_nor_gradients(
        self, cls: type[Loss], filler: float, extra_axis: bool
    ) -> None:
        td = tiny_windows(lengths=self.LENGTHS)
        mask = td["collector", "mask"]
        if extra_axis:
            td["collector", "mask"] = mask[..., None]
        other = td.clone()
        for key in ("observation", "action", "return_to_go"):
            other[key] = td[key].where(mask[..., None], torch.tensor(filler))
        results = []
        for batch in (td, other):
            loss = cls(tiny_model()).train()
            results.append(
                (evaluate(loss, batch), gradients(loss, batch), loss.model.quantizer.codes)
            )
        (losses, grads, codes), (losses2, grads2, codes2) = results
        assert all(torch.isfinite(value) for value in losses.values())
        assert all(torch.equal(losses[key], losses2[key]) for key in cls(tiny_model()).out_keys)
        assert all(torch.equal(grads[name], grads2[name]) for name in grads)
        assert torch.equal(codes, codes2)

    def test_real_steps_count_alike_and_padding_does_not(self) -> None:
        """The reconstruction loss, one window and one step at a time."""
        model = tiny_model()
        td = tiny_windows(lengths=self.LENGTHS)
        loss = MAGETokenizerLoss(model, reduction="none").eval()
        found = loss(td)["loss_reconstruction"]
        window = loss.window(td)
        trajectory = model.trajectory(window)
        latent = model.tokenize(window).latent
        state, target = model.units.standardize(td["observation"][:, 0], td["return_to_go"][:, 0])
        decoded = model.decode(latent, state, target, guided=False)
        for row, length in enumerate(self.LENGTHS.tolist()):
            errors = [
                (decoded[row, step] - trajectory[row, step]).square().mean()
                for step in range(length)
            ]
            torch.testing.assert_close(found[row], torch.stack(errors).mean())

    def test_without_a_mask_every_step_is_real(self) -> None:
        loss, td = MAGETokenizerLoss(tiny_model()).eval(), tiny_windows()
        assert_same(loss(td.exclude(("collector", "mask"))), loss(td))


def teacher_forced(
    loss: MAGELoss, td: TensorDict
) -> tuple[Sequence[Tensor], list[Tensor], Sequence[Tensor], Tensor, Tensor]:
    """True tokens and their codes, the logits in that context, and (s_0, R_0), standardised."""
    model = loss.model
    ids = model.tokenize(loss.window(td)).token_ids
    state, target = model.units.standardize(td["observation"][:, 0], td["return_to_go"][:, 0])
    codes = [model.quantizer.lookup(part) for part in ids]
    return ids, codes, model.logits(codes, state, target), state, target


class TestClosedForms:
    def test_commitment(self) -> None:
        model, td = tiny_model(commitment_weight=0.7), tiny_windows()
        loss = MAGETokenizerLoss(model, reduction="none").eval()
        expected = 0.7 * model.tokenize(loss.window(td)).commitment
        torch.testing.assert_close(loss(td)["loss_commitment"], expected)

    def test_inverse_dynamics_on_true_tokens(self) -> None:
        model, td = tiny_model(inverse_dynamics_weight=0.7), tiny_windows()
        loss = MAGETokenizerLoss(model, reduction="none").eval()
        latent, state = model.tokenize(loss.window(td)).latent, torch.full((8, STATE), torch.nan)
        action = model.units.action.inverse(model.inverse_dynamics(latent.flatten(1), state))
        standard = (action - td["action"][:, 0]) / model.units.action.std
        expected = 0.7 * standard.square().mean(1)
        torch.testing.assert_close(loss(td)["loss_inverse_dynamics"], expected)

    def test_return_reweighting(self) -> None:
        td = tiny_windows()
        plain, weighted = (
            MAGETokenizerLoss(tiny_model(return_reweighting=flag), reduction="none").eval()(td)
            for flag in (False, True)
        )
        share = (td["return_to_go"][:, 0, 0] + 50) / 70  # the data's returns are in [-50, 20]
        torch.testing.assert_close(
            weighted["loss_reconstruction"], share * plain["loss_reconstruction"]
        )
        torch.testing.assert_close(weighted["loss_commitment"], plain["loss_commitment"])

    def test_cross_entropy_is_averaged_over_tokens(self) -> None:
        model, td = tiny_model(), tiny_windows()
        loss = MAGELoss(model, reduction="none").eval()
        ids, _, scores, _, _ = teacher_forced(loss, td)
        found = loss(td)["loss_token"]
        for row in range(8):
            terms = [
                -scores[k][row, token].log_softmax(-1)[ids[k][row, token]]
                for k, length in enumerate(SCALES)
                for token in range(length)
            ]
            torch.testing.assert_close(found[row], torch.stack(terms).mean())

    def test_q_values_are_the_logits_of_the_true_tokens(self) -> None:
        sites = ("autoencoder", "condition_loss")
        model, td = tiny_model(return_conditioning=sites, q_value_weight=0.7), tiny_windows()
        loss = MAGELoss(model, reduction="none").eval()
        ids, _, scores, _, target = teacher_forced(loss, td)
        found = loss(td)["loss_q_value"]
        for row in range(8):
            errors = [
                scores[k][row, token, ids[k][row, token]] - target[row, 0]
                for k, length in enumerate(SCALES)
                for token in range(length)
            ]
            torch.testing.assert_close(found[row], 0.7 * torch.stack(errors).square().mean())

    def test_accuracy_and_action_errors(self) -> None:
        model, td = tiny_model(), tiny_windows()
        loss = MAGELoss(model).eval()
        losses = loss(td)
        ids, codes, scores, state, target = teacher_forced(loss, td)
        for k in range(3):
            hits = (scores[k].argmax(-1) == ids[k]).float().mean()
            torch.testing.assert_close(losses[f"token_accuracy_{k + 1}"], hits)
        pyramids = {"true": codes, "generated": [model.choose(part) for part in scores]}
        for name, pyramid in pyramids.items():
            latent = model.quantizer.partial_sums(pyramid)[-1]
            action = model.units.environment_action(model.read_action(latent, state, target))
            error = (action - td["action"][:, 0]).square().mean()
            torch.testing.assert_close(losses[f"action_error_{name}"], error)

    def test_condition_loss_of_a_certain_generator(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Eq. 7 with D' held to D past the first step; a quarter of the batch stands for all."""
        model, td = tiny_model(condition_weight=0.3), tiny_windows()
        be_certain(monkeypatch, model)
        loss = MAGELoss(model, reduction="none").eval()
        found = loss(td)["loss_condition"]
        _, _, scores, state, target = teacher_forced(loss, td)
        latent = model.quantizer.partial_sums([model.choose(part) for part in scores])[-1]
        bent = model.decode(latent, state, target, guided=True)
        trained = model.decode(latent, state, target, guided=False)
        miss = (bent[:, 0] - torch.cat([target, state], -1)).square().mean(1)
        drift = (bent[:, 1:] - trained[:, 1:]).square().mean((1, 2))
        torch.testing.assert_close(found, 0.3 * (miss + drift))
        for reduction, factor in (("mean", 1), ("sum", 8)):
            loss.reduction = reduction
            torch.testing.assert_close(loss(td)["loss_condition"], factor * found[:2].mean())

    def test_of_windows_the_first_step_is_read_and_transitions_are_first_steps(self) -> None:
        model = tiny_model(inverse_dynamics_condition="state_and_return")
        loss = MAGEInverseDynamicsLoss(model).eval()
        td = batch_for(loss)
        expected = evaluate(loss, td[:, 0])
        assert_same(evaluate(loss, td), expected)
        for key in ("observation", "action", "return_to_go"):
            td[key][:, 1:] = torch.nan
            assert_same(evaluate(loss, td), expected)
            later = td.clone()
            later[key][:, 0] += 1
            assert total(evaluate(loss, later)) != total(expected)

    def test_inverse_dynamics_on_plans_of_the_batch(self) -> None:
        model = tiny_model(inverse_dynamics_condition="state_and_return")
        loss = MAGEInverseDynamicsLoss(model, reduction="none").eval()
        td = batch_for(loss)
        state, target = model.units.standardize(td["observation"][:, 0], td["return_to_go"][:, 0])
        action = model.inverse_dynamics(td["plan"][:, 0], torch.cat([state, target], dim=-1))
        error = (action - model.units.action(td["action"][:, 0])).square().mean(1)
        torch.testing.assert_close(loss(td)["loss_inverse_dynamics"], error)

    @pytest.mark.parametrize(("trajectory", "there"), [("A", False), ("S", True), ("RSA", True)])
    def test_a_trajectory_without_states_has_no_initial_condition(
        self, trajectory: str, there: bool
    ) -> None:
        losses = MAGELoss(tiny_model(trajectory=trajectory))(tiny_windows())
        assert bool(losses["loss_condition"] > 0) == there

    def test_directions_are_learnt_from_the_ways_that_the_data_went(self) -> None:
        model, td = tiny_goal_model(), tiny_goal_windows()
        loss = MAGELoss(model, reduction="none").eval()
        window = loss.window(td)
        state, target = model.units.standardize(window.observation[:, 0], window.return_to_go[:, 0])
        direction = model.read_plan(model.tokenize(window).latent, state, target)
        action = model.inverse_dynamics(direction, state)
        error = (action - model.units.action(td["action"][:, 0])).square().mean(1)
        torch.testing.assert_close(loss(td)["loss_inverse_dynamics"], error)

    def test_directions_do_not_bend_the_tokens_of_stage_1(self) -> None:
        loss = MAGETokenizerLoss(tiny_goal_model())
        loss(tiny_goal_windows())["loss_inverse_dynamics"].backward()
        touched = {name for name, p in loss.model.named_parameters() if p.grad is not None}
        assert touched
        assert {name.partition(".")[0] for name in touched} == {"inverse_dynamics"}

    def test_a_plan_of_goals_begins_at_the_achieved_goal(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tiny_goal_model(condition_weight=1.0, horizon=3, num_scales=1)
        td = tiny_goal_windows(horizon=3)
        be_certain(monkeypatch, model)
        loss = MAGELoss(model, reduction="none").eval()
        window = loss.window(td)
        state, target = model.units.standardize(window.observation[:, 0], window.return_to_go[:, 0])
        ids = model.tokenize(window).token_ids
        codes = [model.quantizer.lookup(part) for part in ids]
        scores = model.logits(codes, state, target)
        latent = model.quantizer.partial_sums([model.choose(part) for part in scores])[-1]
        bent, trained = (model.decode(latent, state, target, guided=x) for x in (True, False))
        wanted = torch.cat([target, state[:, STATE : STATE + 2]], dim=-1)
        error = (bent[:, 0] - wanted).square().mean(1)
        error = error + (bent[:, 1:] - trained[:, 1:]).square().flatten(1).mean(1)
        torch.testing.assert_close(loss(td)["loss_condition"], error)


class TestContext:
    def test_own_samples_carry_gradients_from_fine_to_coarse(self) -> None:
        state, target = torch.randn(8, STATE), torch.randn(8, 1)
        model = tiny_model(context="own")
        codes = model.quantizer.codes
        scores, _ = model.generate(
            state, target, lambda logits: straight_through(logits, codes, 1.0)
        )
        (gradient,) = torch.autograd.grad(scores[2].square().sum(), scores[0])
        assert gradient.any()

    def test_own_context_scores_its_own_samples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, td = tiny_model(context="own"), tiny_windows()
        be_certain(monkeypatch, model)
        loss = MAGELoss(model, reduction="none").eval()
        ids = torch.cat(model.tokenize(loss.window(td)).token_ids, dim=1)
        state, target = model.units.standardize(td["observation"][:, 0], td["return_to_go"][:, 0])
        scores, _ = model.generate(state, target, model.choose)
        expected = -torch.cat(scores, dim=1).log_softmax(-1).gather(-1, ids[..., None])
        torch.testing.assert_close(loss(td)["loss_token"], expected.mean((1, 2)))


def test_condition_guidance_none_has_no_condition_loss() -> None:
    loss = MAGELoss(tiny_model(condition_guidance="none"))
    losses = loss(tiny_windows())
    assert "loss_condition" not in losses
    assert set(losses.keys()) == set(loss.out_keys)


def test_one_scale() -> None:
    for cls in (MAGETokenizerLoss, MAGELoss):
        loss = cls(tiny_model(num_scales=1))
        losses = loss(tiny_windows())
        assert set(losses.keys()) == set(loss.out_keys)
        assert torch.isfinite(total(losses))


def test_guidance_holds_later_steps_to_the_trained_decoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(condition_weight=0.5)

    def decode(latent: Tensor, state: Tensor, target: Tensor, *, guided: bool) -> Tensor:
        first = torch.cat([target, state], dim=-1)[:, None]  # the condition itself: no error there
        later = torch.full((len(state), HORIZON - 1, 1 + STATE), 3.0 if guided else 1.0)
        return torch.cat([first, later], dim=1)

    monkeypatch.setattr(model, "decode", decode)
    losses = MAGELoss(model)(tiny_windows())
    torch.testing.assert_close(losses["loss_condition"], torch.tensor(0.5 * (3.0 - 1.0) ** 2))
