"""What several processes train: gradients laid out as DistributedDataParallel wants them, in every memory format."""
import json
import warnings

import processes
import pytest
import torch
import torch.distributed as dist
from small_runs import RECIPE
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lesa_nb.engine._parallel import averaging_gradients
from lesa_nb.engine.group import Ranks
from lesa_nb.layers.norms import SyncBatchNorm
from lesa_nb.models.resnet import ResNet


def net():
    torch.manual_seed(0)
    return ResNet(("C", "L"), strides=(1, 1), base=8, heads=2, num_classes=3, image_size=8,
                  position="factored").to(memory_format=torch.channels_last)


def _warnings(model):
    "Of two steps: buckets are made in the first."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            x = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
            model(x).square().mean().backward()
            model.zero_grad(set_to_none=True)
    return [str(w.message).splitlines()[0] for w in caught]


def _rank(rank, store, folder):
    torch.set_num_threads(1)
    torch.set_warn_always(True)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    cpu, ranks = torch.device("cpu"), Ranks(rank, 2)
    plain, ours = net(), net()
    # A 1x1 kernel in the strides that a GPU's convolutions give its gradient, or the other way round.
    odd = nn.Conv2d(4, 6, 1)
    odd.weight.data = odd.weight.data.as_strided((6, 4, 1, 1), (4, 1, 4, 4))
    odd_ddp = averaging_gradients(odd, RECIPE, cpu, ranks)
    odd_ddp(torch.randn(2, 4, 3, 3)).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing about arguments that are going
        wrapped = averaging_gradients(ours, RECIPE, cpu, ranks)
    found = dict(plain=_warnings(DistributedDataParallel(plain)), ours=_warnings(wrapped),
                 norms=all(isinstance(m, SyncBatchNorm) for m in ours.modules()
                           if isinstance(m, nn.modules.batchnorm._BatchNorm)),
                 odd=odd.weight.grad.stride() == odd.weight.stride())
    wrapped(torch.randn(2, 3, 16, 16)).square().mean().backward()
    graphs, backend = [], torch._dynamo.lookup_backend("eager")

    def count(graph, example):
        graphs.append(graph)
        return backend(graph, example)

    torch.compile(wrapped, backend=count)(torch.randn(2, 3, 16, 16)).square().mean().backward()
    found["graphs"] = len(graphs)
    found["strides"] = all(p.grad.stride() == p.stride() for p in ours.parameters())
    (folder/f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    processes.spawn(_rank, (folder/"store", folder), nprocs=2)
    return [json.loads((folder/f"{r}.json").read_text()) for r in range(2)]


def test_gradients_have_the_strides_of_the_buckets(found):
    for one in found:
        assert not any("Grad strides do not match" in w for w in one["ours"]), one
        assert one["strides"] and one["odd"]


def test_norms_over_all_processes_go_in(found):
    assert all(one["norms"] for one in found)


def test_one_graph_when_compiled(found):
    assert [one["graphs"] for one in found] == [1, 1]


def test_one_process_is_left_alone():
    model = net()
    assert averaging_gradients(model, RECIPE, torch.device("cpu"), Ranks()) is model
    assert not any(isinstance(m, SyncBatchNorm) for m in model.modules())
