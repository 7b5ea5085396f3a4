"""torch.hub: the networks from the project's folder, in a process that has not installed it."""

import ast
import importlib.util
import json
import subprocess
import sys

import pytest
import torch

import lesa_nb
from lesa_nb.models.registry import build_classifier
from lesa_nb.weights.files import save_weights

NETWORKS = ("lesa_resnet50", "lesa_wrn50", "mask_rcnn_lesa_resnet50", "htc_lesa_wrn50")


def hub(root, name, *args, **options):
    return torch.hub.load(str(root), name, *args, source="local", **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks(root, name):
    with torch.device("meta"):
        theirs, ours = hub(root, name, num_classes=3, pretrained=False), getattr(lesa_nb, name)(num_classes=3)
    assert {k: t.shape for k, t in theirs.state_dict().items()} == {k: t.shape for k, t in ours.state_dict().items()}
    with pytest.raises(ValueError, match="pretrained=True: no weights of LESA networks are hosted"):
        hub(root, name, pretrained=True)


def test_small_networks_and_files(root, tmp_path):
    network = hub(root, "lesa_small", num_classes=3, image_size=48, weights=None).eval()
    assert network(torch.randn(1, 3, 40, 56)).shape == (1, 3)
    assert hub(root, "mask_rcnn_lesa_small", num_classes=2, masks=False).num_classes == 2
    with pytest.raises(TypeError, match="img_size is called image_size here"):
        hub(root, "lesa_small", img_size=48)
    told = dict(arch="classifier", network="small", term="lesa", position="factored", image_size=48, classes=["a", "b"])
    save_weights(build_classifier("small", num_classes=2, image_size=48), tmp_path / "a.safetensors", **told)
    assert hub(root, "load", tmp_path / "a.safetensors").classes == ["a", "b"]


def test_names_and_help(root):
    "What torch.hub.list would show of the repository."
    spec = importlib.util.spec_from_file_location("hubconf", root / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    listed = {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")}
    assert sorted(listed) == sorted([*NETWORKS, "lesa_small", "mask_rcnn_lesa_small", "load"])
    assert all(value.__doc__ for value in listed.values())


def test_the_dependencies_are_what_is_imported(root, tmp_path):
    "Where something is missing, torch.hub says so before an import fails."
    code = (
        "import json, sys, torch\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        f"net = torch.hub.load({str(root)!r}, 'lesa_small', num_classes=2, source='local').eval()\n"
        f"torch.hub.load({str(root)!r}, 'mask_rcnn_lesa_small', num_classes=2, source='local')\n"
        f"import lesa_nb; assert lesa_nb.__file__.startswith({str(root)!r}); lesa_nb.load\n"
        "new = {name.partition('.')[0] for name in sys.modules} | before\n"
        "print(json.dumps(sorted(new)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    tree = ast.parse((root / "hubconf.py").read_text(encoding="utf-8"))
    named = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    brought = set(json.loads(done.stdout.splitlines()[-1]))
    wanted = {"torchvision", "numpy", "einops", "jaxtyping", "matplotlib", "PIL", "safetensors", "torchmetrics"}
    wanted |= {"filelock", "tqdm", "tyro", "sklearn", "onnx", "pycocotools", "timm", "huggingface_hub", "tensorboard"}
    code = "import torch, sys; print(*sys.modules)"
    bare = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    own = {name.partition(".")[0] for name in bare.stdout.split()}
    assert (brought - own) & wanted <= set(named) and set(named) <= brought
