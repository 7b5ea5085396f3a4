"""Batch norms over two processes: one all-reduce, no wait for the device, one graph, empty shares, any layout."""
import copy
import json

import processes
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lesa_nb.layers import blockwise
from lesa_nb.layers.lesa import LESA
from lesa_nb.layers.norms import SyncBatchNorm, convert_sync_batchnorm


class Trips(TorchDispatchMode):
    "Counts operations that make the host wait for a GPU, and copies of numbers to it."

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        masks = name.startswith("aten.index") and any(
            t is not None and t.dtype == torch.bool for t in (args[1] if isinstance(args[1], (list, tuple)) else []))
        waits = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique", "aten.lift_fresh")
        if masks or name.startswith(waits):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


class Reduces:
    "Counts all-reduces."

    def __enter__(self):
        self.number, self.real = 0, dist.all_reduce

        def counted(*args, **kwargs):
            self.number += 1
            return self.real(*args, **kwargs)

        dist.all_reduce = counted
        return self

    def __exit__(self, *_):
        dist.all_reduce = self.real


def net(way):
    torch.manual_seed(0)
    lesa = LESA(8, 16, 6, heads=2, position="factored", attend=way)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), lesa)


def pictures(number=5):
    return torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def counted(way):
    model = convert_sync_batchnorm(net(way))
    norms = sum(isinstance(m, SyncBatchNorm) for m in model.modules())
    with Reduces() as forward, Trips() as trips:
        y = model(pictures(2))
    with Reduces() as backward, trips:
        y.square().sum().backward()
    return dict(norms=norms, forward=forward.number, backward=backward.number, trips=trips.names)


def compiled(way):
    torch._dynamo.reset()
    model, graphs, inner = convert_sync_batchnorm(net(way)), [], torch._dynamo.lookup_backend("aot_eager")
    eager = copy.deepcopy(model)

    def count(graph, example):
        graphs.append(graph)
        return inner(graph, example)

    y, z = torch.compile(model, backend=count)(pictures(2)), eager(pictures(2))
    y.square().mean().backward()
    z.square().mean().backward()
    off = max((p.grad - q.grad).abs().max().item() for p, q in zip(model.parameters(), eager.parameters()))
    off = max([off, *((b - c).abs().max().item() for b, c in zip(model.buffers(), eager.buffers()))])
    return dict(graphs=len(graphs), off=max(off, (y - z).abs().max().item()))


def in_type(norm, dtype):
    "Norms keep float32 beside a map in half precision, as under autocast."
    return norm.double() if dtype == torch.float64 else norm


def shared(own, make, dtype, layout):
    "A batch norm on this process's share: output, gradients added over the processes, statistics."
    norm = convert_sync_batchnorm(in_type(make(), dtype))
    x = pictures().to(dtype).contiguous(memory_format=layout)[own].requires_grad_()
    y = norm(x)
    (y.float()*(1 + pictures()[own])).square().sum().backward()
    for p in norm.parameters():
        dist.all_reduce(p.grad)
    same_layout = not len(x) or x.is_contiguous(memory_format=layout) == y.is_contiguous(memory_format=layout)
    assert same_layout and y.dtype == x.dtype and x.grad.dtype == x.dtype
    return dict(y=y.detach(), x=x.grad, grads=[p.grad for p in norm.parameters()], buffers=list(norm.buffers()))


NORMS = {
    "usual": lambda: nn.BatchNorm2d(3),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "no weights": lambda: nn.BatchNorm2d(3, affine=False),
    "no statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
}
SHARES = {"uneven": (slice(0, 1), slice(1, 5)), "one is empty": (slice(0, 0), slice(0, 5))}
CASES = [(name, share, dtype, layout) for name in NORMS for share in SHARES
         for dtype in (torch.float32, torch.float64, torch.bfloat16)
         for layout in (torch.contiguous_format, torch.channels_last)]


#: few scores are written out and many are not: one process has few, the other many; or none at all
LAYERS = [(position, share) for position in ("flat", "factored") for share in SHARES]


def layer_on(own, position):
    "A whole layer on some of the maps, in float64: output, and gradients of the map and of the parameters."
    torch.manual_seed(2)
    layer = convert_sync_batchnorm(LESA(3, 16, 8, heads=2, position=position, local_groups=1).double())
    x = pictures().double()[own].requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


def layers_on(shares):
    blockwise._SMALL.update(dict.fromkeys(blockwise._SMALL, 2*64**2))
    return [layer_on(own, position) for (position, _), own in zip(LAYERS, shares)]


def _rank(rank, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = dict({way: counted(way) for way in ("explicit", "rows")}, compiled=compiled("rows"))
    shares = [shared(SHARES[share][rank], NORMS[name], dtype, layout) for name, share, dtype, layout in CASES]
    layers = layers_on([SHARES[share][rank] for _, share in LAYERS])
    torch.save(layers, folder/f"{rank}.layers.pt")
    (folder/f"{rank}.json").write_text(json.dumps(found))
    torch.save(shares, folder/f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    processes.spawn(_rank, (folder/"store", folder), nprocs=2)
    return ([json.loads((folder/f"{r}.json").read_text()) for r in range(2)],
            [torch.load(folder/f"{r}.pt", weights_only=True) for r in range(2)],
            [torch.load(folder/f"{r}.layers.pt", weights_only=True) for r in range(2)])


@pytest.mark.parametrize("way", ["explicit", "rows"])
def test_one_all_reduce_a_layer_and_no_wait_for_the_device(two, way):
    for found in two[0]:
        found = found[way]
        assert found["norms"] == found["forward"] == found["backward"] == 7
        assert found["trips"] == []


def test_one_graph_when_compiled(two):
    for found in two[0]:
        assert found["compiled"]["graphs"] == 1 and found["compiled"]["off"] < 1e-4


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{c[0]}, {c[1]}, {c[2]}, {c[3]}" for c in CASES])
def test_equal_to_one_batch(two, case):
    name, share, dtype, layout = CASES[case]
    norm, x = in_type(NORMS[name](), dtype), pictures().to(dtype).contiguous(memory_format=layout).requires_grad_()
    y = norm(x)
    (y.float()*(1 + pictures())).square().sum().backward()
    limit = dict(rtol=1e-5, atol=1e-5) if dtype != torch.bfloat16 else dict(rtol=2e-2, atol=2e-2)
    halves = [found[case] for found in two[1]]
    torch.testing.assert_close(torch.cat([half["y"] for half in halves]).float(), y.detach().float(), **limit)
    size = x.grad.abs().max().item()
    torch.testing.assert_close(torch.cat([half["x"] for half in halves]).float()/size, x.grad.float()/size, **limit)
    for half in halves:  # both processes end with the same numbers
        for mine, theirs in zip([*half["grads"], *half["buffers"]], [*(p.grad for p in norm.parameters()),
                                                                      *norm.buffers()], strict=True):
            torch.testing.assert_close(mine.float(), theirs.float(), rtol=limit["rtol"], atol=10*limit["atol"])


@pytest.mark.parametrize("case", range(len(LAYERS)), ids=[f"{position}, {share}" for position, share in LAYERS])
def test_a_layer_whose_processes_have_unequal_shares(two, case):
    "One process has few scores, which alone it would write out, or none: both still add up the same sums."
    halves = [found[case] for found in two[2]]
    want = layer_on(slice(None), LAYERS[case][0])
    got = [torch.cat(pair) for pair in zip(*(half[:2] for half in halves))]
    got += [a + b for a, b in zip(*(half[2:] for half in halves), strict=True)]
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9*max(1, theirs.abs().max().item()))
