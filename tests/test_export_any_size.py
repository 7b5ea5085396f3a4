"""One exported graph for maps smaller and larger than the tables: `fit_offsets` without a question about sizes."""
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from lesa_nb.layers.lesa import POSITIONS
from lesa_nb.layers.position import fit_offsets
from lesa_nb.models.resnet import ResNet, lesa_resnet50
from lesa_nb.weights.export import _any_side_pooled, export_onnx

SIZES = [(32, 32), (64, 64), (65, 97), (200, 40), (192, 192)]


def close(run, net, batches=(1,)):
    for i, size in enumerate(SIZES):
        x = torch.randn(batches[i % len(batches)], 3, *size, dtype=next(net.parameters()).dtype)
        with torch.no_grad():
            want = net(x)
        assert (run(x) - want).abs().max() < 1e-4*want.abs().max(), size


@pytest.mark.parametrize("position", ["factored", pytest.param("flat", marks=pytest.mark.slow)])
def test_published_network(position):
    "Straight through torch.export, in float64 (a fresh network magnifies rounding)."
    torch.manual_seed(0)
    net = lesa_resnet50(num_classes=4, image_size=64, position=position).eval().double()
    sizes = {"x_BCHW": {2: Dim("h", min=32, max=256), 3: Dim("w", min=32, max=256)}}
    with _any_side_pooled():  # for PyTorch 2.11
        program = torch.export.export(net, (torch.zeros(1, 3, 96, 80).double(),), dynamic_shapes=sizes)
    close(program.module(), net)


@pytest.mark.parametrize("position", POSITIONS)
def test_onnx(position, tmp_path):
    torch.manual_seed(0)
    net = ResNet(("C", "C", "CL", "L"), base=8, num_classes=5, image_size=64, position=position).eval()
    export_onnx(net, tmp_path/"net.onnx", image_size=(96, 80), min_size=32, max_size=256)
    session = onnxruntime.InferenceSession(tmp_path/"net.onnx")
    close(lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0]), net, batches=(1, 2, 5))


class Fit(torch.nn.Module):
    def forward(self, table, x): return fit_offsets(table, x.shape[0])


def test_fit_offsets_exported():
    "The graph's table is the eager one for every number of positions: sliced, bitwise itself, stretched."
    table = torch.randn(3, 9)
    sizes = (None, {0: Dim("n", min=2, max=40)})
    run = torch.export.export(Fit(), (table, torch.zeros(7)), dynamic_shapes=sizes).module()
    for n in range(2, 41):
        torch.testing.assert_close(run(table, torch.zeros(n)), fit_offsets(table, n), atol=1e-5, rtol=1e-5)
    assert torch.equal(run(table, torch.zeros(5)), table)


@pytest.mark.parametrize("number", [4, 5, 64, 97])
def test_pooling_asks_nothing_about_a_side(number):
    "Shapes of max pooling by PyTorch's `_meta_registrations` are the eager ones, and theirs again afterwards."
    before = torch._meta_registrations.div_rtn
    with _any_side_pooled():
        assert torch._meta_registrations.div_rtn is not before
        pooled = F.max_pool2d(torch.empty(1, 1, number, number, device="meta"), 3, 2, 1)
    assert pooled.shape == F.max_pool2d(torch.zeros(1, 1, number, number), 3, 2, 1).shape
    assert torch._meta_registrations.div_rtn is before
