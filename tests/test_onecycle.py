"""The study's way to train: the rate's cycle, one step, and how many are right."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lesa_nb.data.pictures import chunks, digits, shuffled
from lesa_nb.engine.loop import seed_everything
from lesa_nb.study._onecycle import accuracy, adamw_onecycle, train_steps


def tiny():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def specified(T, top=1.5e-3):
    def cosine(a, b, s):
        return b + (a - b)*(1 + math.cos(math.pi*s))/2

    w = max(0.1*T, 2) - 1
    return [cosine(top/25, top, t/w) if t <= w else cosine(top, top/25e4, (t - w)/(T - 1 - w)) for t in range(T)]


def rates(model, T):
    optimizer, schedule = adamw_onecycle(model, T)
    for _ in range(T):
        yield schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("T", [3, 10, 11, 20, 50])
def test_the_rate_goes_up_and_down_in_one_cycle(T):
    assert list(rates(tiny(), T)) == pytest.approx(specified(T), abs=1e-9)


def test_even_a_single_step_runs():
    assert len(list(rates(tiny(), 1))) == 1
    assert adamw_onecycle(tiny(), 50)[0].param_groups[0]["betas"][1] == 0.98


def test_a_step_without_momentum_follows_the_gradient():
    x, y = torch.rand(6, 4, 1, 1), torch.tensor([0, 1, 2, 0, 1, 2])
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    before = linear[1].weight.detach().clone()
    p = (x.flatten(1) @ before.T).softmax(1)
    losses = list(train_steps(linear, [(x, y)], torch.optim.SGD(linear.parameters(), lr=0.5)))
    assert losses[0] == pytest.approx(-p[range(6), y].log().mean().item(), abs=1e-5)
    by_hand = before - 0.5*(p - F.one_hot(y)).T @ x.flatten(1)/6
    torch.testing.assert_close(linear[1].weight.detach(), by_hand)
    held = linear[1].weight.detach().clone()
    for _ in train_steps(linear, [(x, y)]*3, torch.optim.SGD(linear.parameters(), lr=0.)):
        linear.eval()  # a rude caller
    assert linear[1].weight.detach().equal(held)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 2"):
        list(train_steps(linear, [(x, y), (x*math.nan, y)], torch.optim.SGD(linear.parameters(), lr=.1)))


def test_accuracy_is_counted_over_images():
    identity = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    nn.init.eye_(identity[1].weight)
    images, labels = torch.tensor([[1., 0], [1, 0], [1, 0], [0, 1]])[..., None, None], torch.tensor([0, 0, 1, 1])
    uneven = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    assert accuracy(identity, uneven) == 3/4 != (2/3 + 1)/2  # the mean of the batches is wrong
    assert identity.train() and accuracy(identity, uneven) and identity.training  # the mode comes back
    with pytest.raises(ValueError, match="no images"):
        accuracy(identity, [])


def test_digits_are_learned():
    seed_everything(0)
    split, steps, model = digits(), 200, tiny()
    optimizer, schedule = adamw_onecycle(model, steps, lr=0.05)
    start = accuracy(model, chunks(split.valid, 128))
    batches = shuffled(split.train, 64, steps, torch.Generator().manual_seed(0))
    losses = list(train_steps(model, batches, optimizer, schedule))
    assert accuracy(model, chunks(split.valid, 128)) > start + .2 and losses[-1] < losses[0]
