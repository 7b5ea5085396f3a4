"""Norms and inputs: batch norms over processes equal one batch, running statistics move as PyTorch moves them."""
import copy

import processes
import pytest
import torch
from torch import nn
from torchvision.transforms.v2.functional import normalize as torchvision_normalize

from lesa_nb.layers.inputs import IMAGENET_MEAN, IMAGENET_STD, normalize
from lesa_nb.layers.lesa import LESA
from lesa_nb.layers.norms import SyncBatchNorm, all_reduce_sum, convert_sync_batchnorm, update_running_stats


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), LESA(8, 16, 6, heads=2, position="factored"),
                         nn.Flatten(2), nn.BatchNorm1d(16)).double()


def _rank(rank, store, out):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = convert_sync_batchnorm(_net())
    x = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    own = [slice(0, 3), slice(3, 7)][rank]          # uneven shares
    model(x[own]).square().sum().backward()         # the sum: gradients of the processes add up
    for p in model.parameters():
        torch.distributed.all_reduce(p.grad)
    if rank == 0:
        grads = {k: p.grad for k, p in model.named_parameters()}
        torch.save({"grads": grads, "buffers": dict(model.named_buffers())}, out)
    torch.distributed.destroy_process_group()


def test_sync_batch_norms_over_two_processes_equal_one_batch(tmp_path):
    processes.spawn(_rank, (tmp_path/"store", tmp_path/"two.pt"), nprocs=2)
    found = torch.load(tmp_path/"two.pt", weights_only=True)
    model, x = _net(), torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    model(x).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found["grads"][name], p.grad, rtol=1e-7, atol=1e-9)
    for name, b in model.named_buffers():
        torch.testing.assert_close(found["buffers"][name], b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("track", "momentum"), [(True, .1), (True, None), (False, .1)])
def test_sync_batch_norm_alone_is_a_batch_norm(track, momentum):
    x = torch.randn(5, 4, 6)
    plain = nn.BatchNorm1d(4, track_running_stats=track, momentum=momentum)
    shared = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=track, momentum=momentum)))[0]
    assert isinstance(shared, SyncBatchNorm)
    torch.testing.assert_close(shared(x), plain(x))
    theirs = dict(plain.named_buffers())
    assert dict(shared.named_buffers()).keys() == theirs.keys()
    assert all(torch.equal(b, theirs[name]) for name, b in shared.named_buffers())
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x))


def test_sync_batch_norm_in_a_group_of_one_process(tmp_path):
    "PyTorch's own refuses a CPU as soon as there is a process group."
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        test_sync_batch_norm_alone_is_a_batch_norm(True, .1)
    finally:
        torch.distributed.destroy_process_group()


def test_convert_keeps_parameters_and_the_object():
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4))
    parameters, state = list(model.parameters()), copy.deepcopy(model.state_dict())
    assert convert_sync_batchnorm(model) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.state_dict().keys() == state.keys() and isinstance(model[1], nn.SyncBatchNorm)


def test_a_norm_that_does_more_is_not_replaced():
    class WithActivation(nn.BatchNorm2d):  # such as timm's BatchNormAct2d
        def forward(self, x):
            return super().forward(x).relu()

    model = nn.Sequential(nn.BatchNorm2d(4), WithActivation(4))
    with pytest.raises(ValueError, match="found 1 with a forward of their own, first 1, a .*WithActivation"):
        convert_sync_batchnorm(model)
    assert [type(norm) for norm in model] == [nn.BatchNorm2d, WithActivation]
    assert isinstance(convert_sync_batchnorm(convert_sync_batchnorm(model[:1]))[0], SyncBatchNorm)


@pytest.mark.parametrize("momentum", [.1, None, .7])
def test_running_stats_move_as_pytorch_moves_them(momentum):
    norm, ours = nn.BatchNorm2d(4, momentum=momentum), nn.BatchNorm2d(4, momentum=momentum)
    for _ in range(3):
        x = torch.randn(2, 4, 3, 5)
        norm(x)
        update_running_stats(ours, x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False), 30)
    torch.testing.assert_close(ours.state_dict(), norm.state_dict())


def test_all_reduce_without_processes_is_nothing():
    x = torch.randn(3, requires_grad=True)
    assert all_reduce_sum(x) is x


def test_normalize():
    x = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(normalize(x), torchvision_normalize(x, list(IMAGENET_MEAN), list(IMAGENET_STD)))
    assert torch.equal(normalize(x)[0], normalize(x[0]))
    torch.testing.assert_close(normalize(torch.tensor(IMAGENET_MEAN)[:, None, None]), torch.zeros(3, 1, 1))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 3, H, W\), found \(2, 4, 4\)"):
        normalize(torch.rand(2, 4, 4))
    with pytest.raises(ValueError, match="divide by 255"):
        normalize(torch.zeros(3, 4, 4, dtype=torch.uint8))
