"""GACLoss: Eq. 6 with free bits, TorchRL's contract, and who moves in a backward pass."""

import copy
import gc
import math
import weakref
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from mage_agent import parallel
from mage_agent.gac.inference import Ascent, Posterior
from mage_agent.gac.losses import GACLoss
from mage_agent.gac.model import GACModel
from mage_agent.stage import total_loss
from tests.gac.tiny import tiny_config, tiny_dataset, tiny_model

PARTS = ("loss_action", "loss_state", "loss_return", "loss_kl")


def make(**changes: Any) -> tuple[GACModel, GACLoss, TensorDictBase]:
    """A model with units, its loss, and a batch of all eight episodes."""
    dataset = tiny_dataset()
    model = tiny_model(**{"batch_size": 8, **changes})
    model.fit_units(dataset)
    (stage,) = model.stages(dataset)
    torch.manual_seed(0)
    loss = stage.loss
    assert isinstance(loss, GACLoss)
    columns = stage.columns()
    firsts = (columns["step_count"].flatten() == 0).nonzero().squeeze(-1)
    index, mask = stage.make_batches(0)._buffer.sampler.windows(firsts)
    return model, loss.train(), columns[index].set(("collector", "mask"), mask)


def seeded_loss(loss: GACLoss, batch: TensorDictBase) -> TensorDictBase:
    torch.manual_seed(7)
    result: TensorDictBase = loss(batch)
    return result


def log_normal(x: float, mean: float, std: float) -> float:
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)


@torch.no_grad()
def test_the_parts_are_those_of_eq_6_written_out() -> None:
    """One trajectory, one step and one entry at a time, whole trajectories and a given q."""
    model, loss, batch = make(window=None, context=1, free_bits=3.0)
    q = Ascent.random(8, torch.empty(*model.noise_shape)).posterior
    given = batch.copy()
    given.batch_size = [8]
    given["posterior"] = TensorDict(q._asdict(), batch_size=[8])
    loss.reduction = "none"
    losses = seeded_loss(loss, given)
    torch.manual_seed(7)
    noise = torch.randn(8, *model.noise_shape)
    data = loss.trajectories(batch)
    for row in range(8):
        length, mean_length = int(data.length[row]), float(data.length.double().mean())
        eps = q.mean[row] + (0.5 * q.log_variance[row]).exp() * noise[row]
        z = model.prior(data.observation[row : row + 1, 0], eps[None])
        action = state = 0.0
        for t in range(length):
            means = model.generator(
                data.observation[row, t][None, None, None],
                data.action[row, t][None, None, None],
                torch.zeros(1, 1, 1, dtype=torch.long),
                z[:, 1:],
            )
            for i in range(2):
                std = 0.1 + float(F.softplus(10 * model.action_std.scale[i]))
                action += log_normal(
                    float(data.action[row, t, i]), float(means[0].flatten()[i]), std
                )
            for i in range(3):
                std = 0.3 + float(F.softplus(10 * model.change_std.scale[i]))
                state += log_normal(
                    float(data.change[row, t, i]), float(means[1].flatten()[i]), std
                )
        value = log_normal(float(data.value[row]), float(model.critic(z[:, 0])), 0.1)
        kl = 0.0
        for mean, log_variance in zip(
            q.mean[row].flatten(), q.log_variance[row].flatten(), strict=True
        ):
            kl += 0.5 * (float(mean) ** 2 + math.exp(log_variance) - float(log_variance) - 1)
        free = 3.0 + math.log1p(math.exp(kl - 3.0))
        expected = [part / mean_length for part in (-action, -state, -value, free)]
        found = [float(losses[key][row]) for key in PARTS]
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_mean_length_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    _, loss, batch = make(inference="amortised")
    alone = total_loss(seeded_loss(loss, batch).detach())
    monkeypatch.setattr(parallel, "average", lambda lengths: lengths * 2.0)
    assert float(total_loss(seeded_loss(loss, batch).detach())) == pytest.approx(float(alone) / 2)
    with torch.no_grad():  # who judges alone waits for nobody
        assert float(total_loss(seeded_loss(loss, batch))) == pytest.approx(float(alone))


def test_free_bits_leave_a_small_kl_alone() -> None:
    model, loss, batch = make(free_bits=50.0, window=None)
    evidence_of = {}
    for kl_scale in (0.0, 0.3):
        q = Posterior(
            torch.full((8, *model.noise_shape), kl_scale, requires_grad=True),
            torch.zeros(8, *model.noise_shape),
        )
        data = loss.trajectories(batch)
        evidence = model.evidence(data, q, torch.zeros(8, *model.noise_shape), model.draw(data))
        evidence_of[kl_scale] = evidence
        (gradient,) = torch.autograd.grad(evidence.free_kl(50.0).sum(), q.mean)
        assert gradient.abs().max() < 1e-6
    costs = [evidence.free_kl(50.0) for evidence in evidence_of.values()]
    torch.testing.assert_close(*costs)


def test_contract_keys_reduction_and_dispatch() -> None:
    _, loss, batch = make()
    following = ("next", "observation")
    assert loss.in_keys == [
        *("observation", following, "action", "return_to_go", "episode", ("next", "done"))
    ]
    losses = seeded_loss(loss, batch)
    assert sorted(losses.keys()) == sorted(loss.out_keys)
    assert all(value.ndim == 0 for value in losses.values())
    for key in ("elbo", "kl", "inner_steps", "active_dims"):
        assert not losses[key].requires_grad
    loss.reduction = "none"
    each = seeded_loss(loss, batch)
    assert sorted(each.keys()) == sorted(PARTS)
    assert each.batch_size == (8,)
    for key in PARTS:
        torch.testing.assert_close(each[key].mean(), losses[key])
    loss.reduction = "sum"
    for key, value in seeded_loss(loss, batch).items():
        if key in PARTS:
            torch.testing.assert_close(value, each[key].sum())
    loss.reduction = "mean"
    whole = batch[2:3, :12].exclude("collector")  # no padding, so it needs no mask
    expected = seeded_loss(loss, whole)
    named = {"_".join(key) if isinstance(key, tuple) else key: whole[key] for key in loss.in_keys}
    torch.manual_seed(7)
    found = loss(**named)
    assert len(found) == len(loss.out_keys)
    for key, value in zip(loss.out_keys, found, strict=True):
        torch.testing.assert_close(value, expected[key])


def test_keys_can_be_renamed() -> None:
    _, loss, batch = make()
    expected = seeded_loss(loss, batch)
    renamed = batch.copy()
    for old, new in (("action", "do"), ("return_to_go", "rtg"), ("episode", "number")):
        renamed.rename_key_(old, new)
    renamed["pixels"] = renamed.pop("observation")
    renamed["next", "pixels"] = renamed.pop(("next", "observation"))
    loss.set_keys(action="do", return_to_go="rtg", episode="number", observation="pixels")
    found = seeded_loss(loss, renamed)
    for key in PARTS:
        torch.testing.assert_close(found[key], expected[key])
    loss.set_keys(action=None, return_to_go=None, episode=None, observation=None)
    torch.testing.assert_close(seeded_loss(loss, batch)["loss_kl"], expected["loss_kl"])


def test_gradients_reach_every_parameter_and_only_parameters_are_listed() -> None:
    for inference in ("persistent", "fresh", "amortised"):
        inner = None if inference == "amortised" else 2
        model, loss, batch = make(inference=inference, inner_steps=inner)
        if model.encoder is not None:
            torch.nn.init.normal_(model.encoder.project.weight, std=0.1)
        total_loss(seeded_loss(loss, batch)).backward()
        listed = dict(loss.named_parameters())
        assert set(listed) == {f"model.{name}" for name, _ in model.named_parameters()}
        for name, parameter in listed.items():
            # A key's bias adds the same number to all scores of a query, which softmax ignores.
            idle = name.endswith("key_value.bias")
            assert idle or (parameter.grad is not None and parameter.grad.abs().sum() > 0), name
    model, loss, _ = make()
    assert {key for key in loss.state_dict() if key.startswith("store.")} == {
        "store.phi",
        "store.first",
        "store.second",
        "store.count",
    }
    assert not any(key.startswith("store") for key in model.state_dict())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_backward_pass_moves_q_by_adam_up_the_objective(reduction: str) -> None:
    model, loss, batch = make(free_bits=2.0)
    loss.reduction = reduction
    assert loss.store is not None
    rows = torch.tensor([5, 2, 3])
    part = batch[rows]
    before = loss.store.read(torch.arange(8))
    for number in range(3):  # the moments and the count matter from the second step on
        ascent = loss.store.read(rows)
        phi = ascent.phi.clone().requires_grad_()
        torch.manual_seed(number)
        data = loss.trajectories(part)
        noise = torch.randn(3, *model.noise_shape)
        evidence = model.evidence(data, Posterior(*phi.unbind(1)), noise, model.draw(data))
        per_step = evidence.objective(2.0) / data.length  # in the units of the inner loop
        (gradient,) = torch.autograd.grad(per_step.sum(), phi)
        expected = ascent.step(gradient, 0.1)
        torch.manual_seed(number)
        total_loss(loss(part)).backward()
        found = loss.store.read(rows)
        torch.testing.assert_close(found.phi, expected.phi, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.first, expected.first, atol=1e-4, rtol=1e-4)
        assert found.count.tolist() == [number + 1] * 3
    others = torch.tensor([0, 1, 4, 6, 7])
    after = loss.store.read(others)
    assert torch.equal(after.phi, before.phi[others])
    assert after.count.sum() == 0


def test_q_moves_in_training_mode_and_in_a_backward_pass_only() -> None:
    model, loss, batch = make()
    before = copy.deepcopy(loss.state_dict())
    losses = seeded_loss(loss, batch)
    with torch.no_grad():
        seeded_loss(loss, batch)
    for key, value in loss.state_dict().items():
        assert torch.equal(value, before[key]), key
    total_loss(losses).backward()
    moved = {key for key, value in loss.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"store.phi", "store.first", "store.second", "store.count"}
    after = copy.deepcopy(loss.state_dict())
    loss.eval()
    judged = seeded_loss(loss, batch)
    total_loss(judged).backward()
    for key, value in loss.state_dict().items():
        assert torch.equal(value, after[key]), key
    assert judged["inner_steps"] > 0
    assert all(parameter.grad is not None for parameter in model.critic.parameters())


def test_a_gradient_that_is_not_finite_moves_no_q() -> None:
    _, loss, batch = make()
    before = copy.deepcopy(loss.state_dict())
    broken = batch.clone()
    broken["action"][2, 0] = torch.nan
    total_loss(seeded_loss(loss, broken)).backward()
    assert loss.store is not None
    moved = (loss.store.phi != before["store.phi"]).flatten(1).any(1)
    assert loss.store.phi.isfinite().all()
    assert moved.logical_not().nonzero().flatten().tolist() == [2]
    assert loss.store.count.tolist() == moved.long().tolist()


@pytest.mark.parametrize("inference", ["persistent", "fresh"])
def test_a_loss_is_measured_in_inference_mode(inference: str) -> None:
    _, loss, batch = make(inference=inference)
    loss.eval()
    expected = seeded_loss(loss, batch)
    with torch.inference_mode():
        found = seeded_loss(loss, batch.clone())
    for key in PARTS:
        torch.testing.assert_close(found[key], expected[key])
    assert ("episode" in loss.in_keys) == (inference == "persistent")


def test_a_backward_pass_frees_what_it_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that holds its own tensor is never freed: a training took gigabytes."""
    _, loss, batch = make()
    assert loss.store is not None
    read, held = loss.store.read, []

    def watched(rows: Tensor) -> Ascent:
        ascent = read(rows)
        held.append(weakref.ref(ascent.phi))
        return ascent

    monkeypatch.setattr(loss.store, "read", watched)
    total_loss(seeded_loss(loss, batch)).backward()
    seeded_loss(loss, batch)  # without one
    gc.collect()
    assert [reference() for reference in held] == [None, None]


def test_the_inner_loop_raises_the_bound_and_leaves_the_model_alone() -> None:
    model, loss, batch = make(inference="fresh", inner_steps=100, window=None)
    weights = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    start = Ascent.random(8, torch.empty(*model.noise_shape)).posterior
    given = batch.copy()
    given.batch_size = [8]
    given["posterior"] = TensorDict(start._asdict(), batch_size=[8])
    prepared = loss.prepare(batch)
    assert prepared.batch_size == (8,)
    assert ("posterior", "mean") not in batch.keys(include_nested=True)

    def total(each: TensorDictBase) -> float:
        return float(total_loss(seeded_loss(loss, each)).detach())

    first, last = total(given), total(prepared)
    assert last < first - 1
    assert all(parameter.grad is None for parameter in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])
    assert total(prepared) == last, "the same phi* serves all gradient steps of a batch"
    assert float(seeded_loss(loss, prepared)["inner_steps"]) == loss.inner_steps == 100


def test_persistent_inner_steps_are_kept() -> None:
    _, loss, batch = make(inner_steps=5)
    assert loss.store is not None
    part = batch[2:4]
    assert loss.prepare(part) is part
    assert loss.store.count.tolist() == [0, 0, 5, 5, 0, 0, 0, 0]
    total_loss(seeded_loss(loss, part)).backward()
    assert loss.store.count.tolist() == [0, 0, 6, 6, 0, 0, 0, 0]


def test_a_batch_of_one_is_a_row_of_a_batch() -> None:
    model, loss, batch = make(window=None)
    q = Ascent.random(8, torch.empty(*model.noise_shape)).posterior
    noise = torch.randn(8, *model.noise_shape)
    data = loss.trajectories(batch)
    together = model.evidence(data, q, noise, model.draw(data))
    for row in range(8):
        one = slice(row, row + 1)
        own = loss.trajectories(batch[one])
        alone = model.evidence(
            own, Posterior(*(part[one] for part in q)), noise[one], model.draw(own)
        )
        for part, all_parts in zip(alone, together, strict=True):
            torch.testing.assert_close(part[0], all_parts[row], atol=1e-3, rtol=1e-4)


def test_padding_holds_anything() -> None:
    _, loss, batch = make()
    mask = batch["collector", "mask"]
    expected = seeded_loss(loss, batch)
    spoilt = batch.clone()
    for key in ("observation", "action", ("next", "observation")):
        values: Tensor = spoilt[key]
        values[~mask] = torch.nan
    found = seeded_loss(loss, spoilt)
    total_loss(found).backward()
    for key in PARTS:
        torch.testing.assert_close(found[key], expected[key])
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_bad_input_is_named() -> None:
    model, loss, batch = make()
    with pytest.raises(KeyError, match=r"lacks.*action"):
        loss(batch.exclude("action"))
    with pytest.raises(ValueError, match="end before their episode does"):
        loss(batch[:, :8].exclude("collector"))
    with pytest.raises(ValueError, match="num_trajectories is None"):
        GACLoss(model)
    with pytest.raises(ValueError, match="holds trajectory 7, but num_trajectories is 3"):
        GACLoss(model, num_trajectories=3)(batch)
    with pytest.raises(ValueError, match=r"expected \(batch, longest episode, 3\)"):
        loss(batch[:, 0])
    with pytest.raises(ValueError, match="reduction is 'median'"):
        GACLoss(model, num_trajectories=8, reduction="median")
    assert GACLoss(GACModel(tiny_config(inference="fresh"), observation_dim=3, action_dim=2))
