"""The streaming context term against the explicit one: outputs, gradients, statistics, in every mode."""
import copy
import socket

import processes
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from lesa_nb.layers.blockwise import streaming
from lesa_nb.layers.context import Context, explicit, head_widths
from lesa_nb.layers.lesa import LESA, POSITIONS, attend_with
from lesa_nb.layers.moments import content_moments, score_scale
from lesa_nb.models.resnet import ResNet

TABLES = list(POSITIONS)
# batch, height, width of the map; height, width of the table: one pixel, one row, smaller, equal, larger, mixed
SHAPES = [(1, 1, 2, 3, 3), (2, 1, 6, 3, 4), (1, 4, 4, 7, 7), (2, 5, 3, 5, 3), (1, 7, 6, 4, 4), (2, 3, 8, 6, 5),
          (3, 6, 2, 2, 6)]


def contexts(table, fmap, *, heads=2, channels=16, dtype=torch.float64, seed=0, **norm_options):
    "The same context term twice, with norms that have a past; one explicit, one streaming."
    torch.manual_seed(seed)
    position = POSITIONS[table](fmap, *head_widths(channels, heads))
    one = Context(channels, channels, position, heads=heads)
    one.norm_scores = nn.BatchNorm2d(one.norm_scores.num_features, **norm_options)
    for norm in (one.norm_qkv, one.norm_scores, one.norm_out):
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
        if norm.running_mean is not None:
            nn.init.normal_(norm.running_mean, 0, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    one, two = one.to(dtype), copy.deepcopy(one).to(dtype)
    return attend_with(one, explicit), attend_with(two, streaming)


def everything(context, x, probe, *, grad=True):
    "Output, gradients of input and parameters, and buffers after one call."
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(grad)
    context.zero_grad(set_to_none=True)
    y = context(x)
    found = {"output": y.detach()}
    if grad:
        (y*probe.to(y.dtype)).sum().backward()
        found["input"] = x.grad
        found |= {name: p.grad for name, p in context.named_parameters()}
    return found | {name: b.clone() for name, b in context.named_buffers()}


def assert_same(ours, spec, limit):
    "Relative to the largest value of each tensor; a gradient that is zero by theory is compared with the others."
    assert ours.keys() == spec.keys()
    for name, t in spec.items():
        assert (t is None) == (ours[name] is None), name
        if t is None:
            continue
        size = max(t.abs().max().item(), 1 if name.startswith(("output", "norm_scores", "qkv", "norm_qkv")) else 1e-3)
        error = (ours[name].double() - t.double()).abs().max().item()
        assert error <= limit*size, f"{name}: differs by {error:.1e}, largest value {size:.1e}"


def set_mode(context, mode):
    context.train(mode != "eval")
    if mode == "frozen":
        for norm in (context.norm_qkv, context.norm_scores, context.norm_out):
            norm.eval()


@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
@pytest.mark.parametrize("table", TABLES)
def test_listed_shapes(table, mode):
    "Every relation between map and table, in every mode, in float64 and float32."
    for B, H, W, h, w in SHAPES:
        for dtype, limit in (torch.float64, 1e-10), (torch.float32, 1e-5):
            one, two = contexts(table, (h, w), dtype=dtype)
            x, probe = torch.randn(B, 16, H, W, dtype=dtype), torch.randn(B, 16, H, W, dtype=dtype)
            set_mode(one, mode), set_mode(two, mode)
            reference = one
            if dtype == torch.float32:  # the explicit float32 has rounding of its own: judge both by float64
                reference = copy.deepcopy(one).double()
            spec, ours, theirs = (everything(c, x.to(next(c.parameters()).dtype), probe) for c in (reference, two, one))
            if dtype == torch.float64:
                assert_same(ours, spec, limit)
                continue
            for name, t in spec.items():
                size = max(t.abs().max().item(), 1)
                mine, other = ((found[name].double() - t.double()).abs().max().item()/size for found in (ours, theirs))
                assert mine <= max(limit, 3*other), f"{(B, H, W, h, w)} {name}: {mine:.1e}, explicit {other:.1e}"


@pytest.mark.parametrize("table", TABLES)
def test_random_shapes(table):
    "Shapes, head counts and modes drawn at random, the same ones every time."
    draw = torch.Generator().manual_seed(1)
    pick = lambda low, high: int(torch.randint(low, high + 1, (), generator=draw))  # noqa: E731
    for seed in range(25):
        B, H, W, h, w, heads = pick(1, 3), pick(1, 9), pick(2, 9), pick(1, 9), pick(1, 9), 2**pick(0, 2)
        one, two = contexts(table, (h, w), heads=heads, seed=seed)
        mode = ("train", "eval", "frozen")[pick(0, 2)]
        set_mode(one, mode), set_mode(two, mode)
        x, probe = (torch.randn(B, 16, H, W, dtype=torch.float64) for _ in range(2))
        assert_same(everything(two, x, probe), everything(one, x, probe), 1e-10)


@pytest.mark.parametrize("table", TABLES)
def test_one_pixel(table):
    "A 1 x 1 map attends to itself in eval mode; in training mode one pair has no variance, and that is said."
    one, two = contexts(table, (3, 3))
    x = torch.randn(2, 16, 1, 1, dtype=torch.float64)
    assert_same(everything(two.eval(), x, x), everything(one.eval(), x, x), 1e-10)
    two.norm_scores.train()
    with pytest.raises(ValueError, match="at least 2 pairs"):
        two(x[:1])


@pytest.mark.parametrize("table", TABLES)
def test_memory_layouts(table):
    "Channels-last, transposed and strided inputs give the numbers of a contiguous copy."
    for make in (lambda t: t.contiguous(memory_format=torch.channels_last), lambda t: t.mT.contiguous().mT,
                 lambda t: torch.stack([t, t], -1)[..., 0]):
        one, two = contexts(table, (4, 5))
        x, probe = make(torch.randn(2, 16, 6, 5, dtype=torch.float64)), torch.randn(2, 16, 6, 5, dtype=torch.float64)
        assert not x.is_contiguous()
        assert_same(everything(two, x, probe), everything(one, x.contiguous(), probe), 1e-10)


@pytest.mark.parametrize("options", [
    dict(momentum=None), dict(momentum=0.7), dict(track_running_stats=False), dict(affine=True, eps=0.3),
])
@pytest.mark.parametrize("table", TABLES)
def test_norm_options(table, options):
    "Cumulative averages, no averages, another eps: after three batches and in eval mode."
    one, two = contexts(table, (4, 4), **options)
    for step in range(3):
        torch.manual_seed(step)
        x, probe = (torch.randn(2, 16, 5, 4, dtype=torch.float64) for _ in range(2))
        assert_same(everything(two, x, probe), everything(one, x, probe), 1e-10)
    assert_same(everything(two.eval(), x, probe), everything(one.eval(), x, probe), 1e-10)
    assert (two.norm_scores.running_mean is None) == ("track_running_stats" in options)


@pytest.mark.parametrize("table", TABLES)
def test_bf16_autocast(table):
    "Under bf16 autocast streaming is as near to the float32 numbers as bf16 allows."
    one, two = contexts(table, (6, 6), channels=32, dtype=torch.float32)
    x = torch.randn(2, 32, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, z = two(x), one(x)
    for other in (z, contexts(table, (6, 6), channels=32, dtype=torch.float32)[0](x)):
        assert (y.float() - other.float()).abs().mean() <= 2e-2*other.float().abs().max()
    q, k, v = (torch.randn(2, 2, n, 36).bfloat16() for n in (8, 8, 16))
    norm = nn.BatchNorm2d(one.norm_scores.num_features)
    rounded = streaming(q, k, v, two.position, norm, (6, 6))
    exact = explicit(q.float(), k.float(), v.float(), two.position, copy.deepcopy(norm), (6, 6))
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() <= 2e-2*exact.abs().max()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("table", TABLES)
def test_second_derivatives(table, mode):
    "The gradient of the gradient's length, for the input and for every parameter that has one."
    found = []
    for context in contexts(table, (3, 3), channels=8):
        set_mode(context, mode)
        torch.manual_seed(0)
        x, probe = torch.randn(2, 1, 8, 3, 4, dtype=torch.float64)
        x.requires_grad_()
        inputs = {"input": x} | dict(context.named_parameters())
        first = torch.autograd.grad((context(x)*probe).sum(), list(inputs.values()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(inputs.values()), allow_unused=True)
        pairs = zip(inputs.items(), second, strict=True)
        found.append({name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs})
    assert found[0]["input"].abs().max() > 0
    assert any(g.abs().max() > 0 for name, g in found[0].items() if name.startswith("position"))
    assert_same(found[1], found[0], 1e-9)


@pytest.mark.parametrize("table", TABLES)
def test_compile_without_graph_breaks(table):
    "One graph forward and backward; numbers and statistics as in eager mode."
    torch._dynamo.reset()
    _, eager = contexts(table, (4, 5), dtype=torch.float32)
    compiled = attend_with(copy.deepcopy(eager), streaming)
    x, probe = torch.randn(2, 16, 4, 5), torch.randn(2, 16, 4, 5)
    explained = torch._dynamo.explain(copy.deepcopy(compiled))(x)
    assert explained.graph_break_count == 0 and explained.graph_count == 1
    spec = everything(eager, x, probe)
    fast = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    x2 = x.clone().requires_grad_()
    y = fast(x2)
    (y*probe).sum().backward()
    ours = {"output": y.detach(), "input": x2.grad} | {n: p.grad for n, p in compiled.named_parameters()}
    ours |= dict(compiled.named_buffers())
    assert_same(ours, spec, 1e-5)


@pytest.mark.parametrize("table", TABLES)
def test_200_steps_of_autocast(table):
    "Training under bf16 autocast stays finite and learns."
    torch.manual_seed(0)
    net = ResNet(("L",), strides=(1,), base=16, num_classes=3, image_size=16, position=table)
    attend_with(net, streaming)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    x, target, losses = torch.randn(6, 3, 16, 16), torch.arange(6) % 3, []
    for _ in range(200):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert torch.stack(losses).isfinite().all() and losses[-1] < 0.5*losses[0]
    assert all(t.isfinite().all() for t in net.state_dict().values())


@pytest.mark.parametrize("table", TABLES)
def test_frozen_norms_keep_still(table):
    "Ten steps with frozen norms: weights move, every statistic stays bitwise the same, the 1-d ones too."
    torch.manual_seed(0)
    layer = LESA(16, 16, 5, heads=2, position=table, attend=streaming)
    for _ in range(3):
        layer(torch.randn(2, 16, 5, 5))
    for part in layer.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    still = {name: b.clone() for name, b in layer.named_buffers()}
    weight = layer.context.qkv.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    for _ in range(10):
        optimizer.zero_grad()
        layer(torch.randn(2, 16, 5, 5)).square().mean().backward()
        optimizer.step()
    assert {name.rsplit(".", 2)[-2] for name in still} >= {"norm_qkv", "norm_scores", "norm_out"}
    for name, b in layer.named_buffers():
        assert torch.equal(b, still[name]), name
    assert not torch.equal(layer.context.qkv.weight, weight)


def _batch():
    torch.manual_seed(0)
    return [t.double() for t in (torch.randn(4, 2, 8, 12), torch.randn(4, 2, 8, 12))]


def _scale_of(q, k, norm):
    "Scale, its gradient for q, and the norm's averages: the content scores of two heads."
    q = q.clone().requires_grad_()
    scale = score_scale(norm, [content_moments(q, k)], q.shape[0]*q.shape[-1]**2)
    (scale*torch.tensor([1., -2.], dtype=torch.float64)).sum().backward()
    return scale.detach(), q.grad, norm.running_mean, norm.running_var


def _rank(rank, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    norm = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(2)).double()
    part = slice(0, 1) if rank == 0 else slice(1, 4)  # uneven on purpose
    found = _scale_of(*(t[part] for t in _batch()), norm)
    queue.put((rank, [t.tolist() for t in found]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_ranks_equal_one_batch():
    "Score statistics of a SyncBatchNorm over two processes with uneven shares: one big batch, gradients included."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("forkserver")
    queue = context.SimpleQueue()
    ranks = processes.spawn(_rank, (port, queue), nprocs=2, join=False)
    answers = dict(queue.get() for _ in range(2))
    while not ranks.join():
        pass
    scale, grad, mean, var = _scale_of(*_batch(), nn.BatchNorm2d(2).double())
    for rank in (0, 1):
        for ours, spec in zip((0, 2, 3), (scale, mean, var), strict=True):
            answer = torch.tensor(answers[rank][ours], dtype=torch.float64)
            torch.testing.assert_close(answer, spec, atol=1e-10, rtol=1e-10)
    shared = torch.cat([torch.tensor(answers[rank][1], dtype=torch.float64) for rank in (0, 1)])
    torch.testing.assert_close(shared, 2*grad, atol=1e-10, rtol=1e-10)  # every rank has a loss of its own: two in all


@pytest.mark.parametrize("table", TABLES)
def test_wrong_map(table):
    "A size that does not fit the positions is named."
    _, two = contexts(table, (4, 4))
    q, k, v = (torch.randn(1, 2, n, 12, dtype=torch.float64) for n in (4, 4, 8))
    with pytest.raises(ValueError, match="16 positions, the queries have 12"):
        streaming(q, k, v, two.position, two.norm_scores, (4, 4))
