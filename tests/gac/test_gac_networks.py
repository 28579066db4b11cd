"""The generator looks back M steps a block, whichever way its steps are laid out."""

import pytest
import torch
from torch import Tensor, nn

from mage_agent.gac.networks import Attention, Deviation, Generator, Prior
from mage_agent.gac.trajectory import draw_steps
from tests.gac.tiny import ACTION, STATE, tiny_model, tiny_trajectories

LATENTS = 3


def make_generator(context: int, blocks: int) -> Generator:
    torch.manual_seed(0)
    generator = Generator(STATE, ACTION, 8, blocks, 2, context).double()
    for parameter in generator.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return generator


def whole(generator: Generator, observation: Tensor, action: Tensor, latents: Tensor) -> Tensor:
    """Predictions for one episode (T, .) in a single piece, (T, A + S)."""
    history = torch.arange(len(observation))[None, None]
    parts = generator(observation[None, None], action[None, None], history, latents)
    return torch.cat(parts, dim=-1)[0, 0]


def attend_slowly(attention: Attention, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
    """One sequence (L, D), one head and one query at a time."""
    width = x.shape[-1]
    size = width // attention.num_heads
    query = attention.query(x)
    key, value = attention.key_value(context).split(width, dim=-1)
    out = torch.zeros_like(x)
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            seen = [j for j in range(len(context)) if mask[i, j]]
            scores = torch.stack([query[i, part] @ key[j, part] / size**0.5 for j in seen])
            for weight, j in zip(scores.softmax(0), seen, strict=True):
                out[i, part] += weight * value[j, part]
    projected: Tensor = attention.project(out)
    return projected


@torch.no_grad()
def test_attention_equals_a_loop() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2).double()
    x, context = torch.randn(2, 5, 8).double(), torch.randn(2, 4, 8).double()
    mask = torch.rand(2, 5, 4) < 0.6
    mask[..., 0] = True
    found = attention(x, context, mask)
    for row in range(2):
        slow = attend_slowly(attention, x[row], context[row], mask[row])
        torch.testing.assert_close(found[row], slow)


@pytest.mark.parametrize("context", [1, 2, 4])
def test_mask_equals_its_definition(context: int) -> None:
    generator = make_generator(context, 1)
    history = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0]])
    mask = generator.mask(history)[0]
    for query in range(18):
        for key in range(18):
            back = query // 2 - key // 2
            causal = key <= query and back <= min(context - 1, int(history[0, query // 2]))
            assert bool(mask[query, key]) == causal


@pytest.mark.parametrize(("context", "blocks"), [(1, 2), (2, 1), (2, 3), (4, 2)])
def test_outputs_depend_on_the_last_w_steps_and_on_nothing_later(context: int, blocks: int) -> None:
    generator = make_generator(context, blocks)
    steps, reach = 12, blocks * (context - 1) + 1
    torch.manual_seed(1)
    observation = torch.randn(steps, STATE).double().requires_grad_()
    action = torch.randn(steps, ACTION).double().requires_grad_()
    latents = torch.randn(1, LATENTS, 8).double().requires_grad_()
    predicted = whole(generator, observation, action, latents)
    for t in range(steps):
        for part, last_action in ((slice(0, ACTION), t - 1), (slice(ACTION, None), t)):
            inputs = (observation, action, latents)
            moved = torch.autograd.grad(predicted[t, part].sum(), inputs, retain_graph=True)
            seen, did, planned = (grad.abs().sum(-1) for grad in moved)
            first = max(0, t - reach + 1)
            assert seen.nonzero().flatten().tolist() == list(range(first, t + 1))
            assert did.nonzero().flatten().tolist() == list(range(first, last_action + 1))
            assert (planned > 0).all(), "every latent is heard at every step"


@torch.no_grad()
@pytest.mark.parametrize(("context", "blocks"), [(1, 2), (2, 3), (4, 2)])
@pytest.mark.parametrize("window", [None, 4, 11])
def test_drawn_steps_are_predicted_as_in_one_pass_over_the_episode(
    context: int, blocks: int, window: int | None
) -> None:
    generator = make_generator(context, blocks)
    lengths = (33, 5, 1, 20)
    trajectories = tiny_trajectories(lengths, dtype=torch.float64)
    latents = torch.randn(4, LATENTS, 8).double()
    torch.manual_seed(2)
    index, history, weight = draw_steps(
        trajectories.length,
        longest=33,
        window=window,
        reach=blocks * (context - 1) + 1,
        share=torch.rand(4),
    )
    steps = trajectories.take(index, history, weight)
    parts = generator(steps.observation, steps.action, steps.history, latents)
    drawn = torch.cat(parts, dim=-1)
    for row, length in enumerate(lengths):
        observation, action = trajectories.observation[row], trajectories.action[row]
        slow = whole(generator, observation[:length], action[:length], latents[row : row + 1])
        real = weight[row] > 0
        torch.testing.assert_close(drawn[row][real], slow[index[row][real]])


def test_z_rest_is_its_noise_moved_and_z_y_is_made_of_all() -> None:
    torch.manual_seed(0)
    prior = Prior(STATE, LATENTS, 8, 2, 2)
    state, noise = torch.randn(5, STATE), torch.randn(5, LATENTS, 8)
    nn.init.zeros_(prior.project.weight)
    made = prior(state, noise)
    torch.testing.assert_close(made[:, 1:] - prior.project.bias, noise)
    torch.testing.assert_close(made[:, 0], prior.project.bias.expand(5, -1))
    nn.init.normal_(prior.project.weight)
    moved = prior(state, noise)
    assert moved.shape == (5, LATENTS + 1, 8)
    # Bidirectional: every latent sees s_0 and the noise of every other one.
    for changed in (prior(state + 1, noise), prior(state, noise + torch.eye(LATENTS)[0, :, None])):
        assert ((changed - moved).abs().amax((0, 2)) > 1e-4).all()


def test_deviations_approach_their_floor_and_leave_it_again() -> None:
    deviation = Deviation(2, 0.3)
    deviation.scale.data.fill_(-1.5)
    assert (deviation() > 0.3).all()
    torch.testing.assert_close(deviation(), torch.full((2,), 0.3), rtol=1e-4, atol=0)
    deviation().sum().backward()
    assert deviation.scale.grad is not None
    assert (deviation.scale.grad > 0).all()


def test_only_z_rest_reaches_the_trajectory_and_only_z_y_the_return() -> None:
    model = tiny_model()
    trajectories = tiny_trajectories((6, 6))
    latents = torch.randn(2, 1 + model.config.num_latents, model.config.width, requires_grad=True)
    action, state = model.log_likelihood(model.draw(trajectories), latents)
    (moved,) = torch.autograd.grad((action + state).sum(), latents)
    assert moved[:, 0].abs().sum() == 0
    assert (moved[:, 1:].abs().sum(-1) > 0).all()
    (moved,) = torch.autograd.grad(model.value(latents).sum(), latents)
    assert (moved[:, 0].abs().sum(-1) > 0).all()
    assert moved[:, 1:].abs().sum() == 0
