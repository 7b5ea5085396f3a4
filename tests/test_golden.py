"""Our numbers against numbers recorded from the published code (see golden/README.md).

Errors are relative to the largest value of the recorded tensor. The gradient of `bn_similarity.bias` is left out
everywhere: a constant per head cancels in the softmax, so its true value is zero and both sides hold rounding noise.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_weights import GOLDEN, error, filled, image

from lesa_nb.layers.lesa import LESA
from lesa_nb.models.resnet import lesa_resnet50, lesa_wrn50
from lesa_nb.weights.published import load_published, published_names

LAYERS = {
    "layer_flat": dict(in_channels=32, out_channels=32, fmap=5, heads=4),
    "layer_factored": dict(in_channels=32, out_channels=32, fmap=6, heads=4, position="factored"),
    "layer_factored_stride2": dict(in_channels=16, out_channels=32, fmap=6, heads=8, position="factored", stride=2),
}
UNITS = {
    "cls": dict(fmap=7),
    "qr": dict(fmap=8, position="factored"),
    "qr_dcn": dict(fmap=8, position="factored", deformable=True),
    "qr_dcn_s2": dict(fmap=8, position="factored", deformable=True, stride=2),
}
NETWORKS = {"resnet50": lesa_resnet50, "wrn50": lesa_wrn50}
MODES = ("eval", "train")
ZERO_GRADIENT = "bn_similarity.bias"


def read(name):
    "One file of recorded results."
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def keys_and_shapes(lines, dtype="float32"):
    "Empty tensors of the recorded names, shapes and types; a line is `name AxBxC type`, or `name (A, B, C)`."
    tensors = {}
    for line in lines:
        name, rest = str(line).split(" ", 1)
        shape, _, kind = (
            (rest.strip("()").replace(", ", "x").rstrip(",") + " ").partition(" ")
            if "(" in rest
            else rest.partition(" ")
        )
        kind = kind.strip() or ("int64" if name.endswith(("flatten_index", "num_batches_tracked")) else dtype)
        tensors[name] = torch.zeros([int(n) for n in shape.split("x") if n], dtype=getattr(torch, kind))
    return tensors


def gradients(module):
    "The gradient of every parameter, by its published name."
    ours = dict(module.named_parameters())
    return {theirs: ours[name].grad for theirs, name in published_names(module).items() if name in ours}


def statistics(module):
    "The running statistics, by their published name."
    state = module.state_dict()
    return {theirs: state[name] for theirs, name in published_names(module).items() if ".running_" in name}


def worst(results, recorded, prefix):
    "The largest error of the results recorded under the prefix, all of which must be there."
    expected = {key.removeprefix(prefix) for key in recorded if key.startswith(prefix)}
    assert expected and not expected - set(results), f"not computed: {sorted(expected - set(results))}"
    errors = {key: error(results[key], recorded[prefix + key]) for key in expected}
    name = max(errors, key=errors.get)
    return errors[name], name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, mode):
    "Output, both terms, gate, every gradient and every running statistic of one layer with its own weights."
    golden = read(name)
    weights = {
        key.removeprefix("weights/"): torch.from_numpy(golden[key]) for key in golden if key.startswith("weights/")
    }
    layer = load_published(LESA(**LAYERS[name]), weights).train(mode == "train")
    x = torch.from_numpy(golden["input"]).requires_grad_()
    terms = layer.terms(x)
    terms.out.backward(torch.from_numpy(golden["output_grad"]))
    got = {
        "output": terms.out,
        "local_term": terms.local,
        "context_term": terms.context,
        "gate": terms.gate,
        "grad/input": x.grad,
    }
    got |= {f"grad/{key}": grad for key, grad in gradients(layer).items() if key != ZERO_GRADIENT}
    got |= {f"buffers_after/{key}": tensor for key, tensor in statistics(layer).items()}
    assert worst(got, golden, f"{mode}/") < (2e-5, "")
    assert torch.equal(layer(x), layer.terms(x).out) or mode == "train"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", UNITS)
def test_unit(name, mode):
    "Output, gradients and running statistics of a layer with 64 channels and 8 heads, deformable ones among them."
    golden = read("unit")
    layer = LESA(64, 64, **UNITS[name]).train(mode == "train")
    load_published(layer, filled(keys_and_shapes(golden[f"{name}.keys"])))
    x = image(99, (2, 64, *layer.context.position.size)).requires_grad_()
    y = layer(x)
    (y * image(100, y.shape)).sum().backward()
    got = {"y": y, "dx": x.grad}
    got |= {f"grad.{key}": grad for key, grad in gradients(layer).items() if key != ZERO_GRADIENT}
    got |= {f"buf.{key}": tensor for key, tensor in statistics(layer).items()}
    assert worst(got, golden, f"{name}.{mode}.") < (2e-5, "")


@pytest.fixture(scope="module", params=["resnet50", pytest.param("wrn50", marks=pytest.mark.slow)])
def network(request):
    "A published network with its recorded results; every test leaves the weights as they are."
    golden = read(request.param)
    weights = filled(keys_and_shapes(golden["keys"]))
    net = load_published(
        NETWORKS[request.param](), {"net": {f"module.{k}": v for k, v in weights.items()}, "epoch": 94}
    )
    return net, golden, weights


def test_network_in_eval(network):
    "Logits in float32, and the statistics of the maps on the way."
    net, golden, weights = network
    seen = {}
    names = [key.split(".", 1)[1].removesuffix(".stats") for key in golden if key.endswith(".stats")]
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda part, x, y, name=name: seen.update({name: y}))
        for name in names
    ]
    with torch.no_grad():
        logits = net.eval()(image(20210712, (2, 3, 224, 224)))
    for hook in hooks:
        hook.remove()
    assert np.abs(logits.numpy() - golden["eval.logits"]).max() < 1e-5
    assert np.abs(logits.numpy() - golden["f64.eval.logits"]).max() < 1e-5
    assert (logits.numpy().argmax(1) == golden["eval.logits"].argmax(1)).all()
    assert names
    for name in names:
        y = seen[name].double()
        found = torch.stack([y.mean(), y.std(unbiased=False), y.norm(), y.abs().max()]).numpy()
        np.testing.assert_allclose(found, golden[f"eval.{name}.stats"], rtol=2e-6, atol=1e-7)


def test_network_in_training_float64(network):
    "Logits, running statistics and every gradient's norm, in float64: float32 moves the norms by per cents."
    net, golden, weights = network
    net = load_published(net.double().train(), weights)
    try:
        logits = net(image(20210712, (2, 3, 224, 224)).double())
        assert np.abs(logits.detach().numpy() - golden["f64.train.logits"]).max() < 1e-7
        F.cross_entropy(logits, torch.from_numpy(golden["target"])).backward()
        found = {key: grad.norm().item() for key, grad in gradients(net).items()}
        recorded = dict(zip(golden["gradients"].tolist(), golden["f64.gradient_norms"], strict=True))
        assert set(found) == set(recorded)
        for key, norm in recorded.items():
            if not key.endswith(ZERO_GRADIENT):
                assert abs(found[key] - norm) < 1e-6 * norm, key
        assert worst(statistics(net), golden, "train.bn.") < (1e-4, "")  # recorded in float32, 3e-5 away from float64
    finally:
        net.zero_grad()
        load_published(net.float().eval(), weights)
