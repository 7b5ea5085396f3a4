"""The networks for torch.hub, without installing anything: torch.hub.load("lesa-nb/lesa_nb", "lesa_resnet50").

torch.hub.list and torch.hub.help show names and arguments. No weights are hosted: `load` opens a file of weights.
"""

dependencies = ["torch", "torchvision", "jaxtyping", "safetensors", "PIL", "numpy"]

from lesa_nb import (  # noqa: E402, F401  (torch.hub asks for the dependencies first)
    htc_lesa_wrn50,
    lesa_resnet50,
    lesa_wrn50,
    load,
    mask_rcnn_lesa_resnet50,
)


def lesa_small(**options):
    """The small classifier, trained in minutes on a CPU; arguments as in `build_classifier`."""
    return _small("build_classifier", options)


def mask_rcnn_lesa_small(**options):
    """Mask R-CNN on the small network; arguments as in `build_detector`."""
    return _small("build_detector", options)


def _small(builder, options):
    from lesa_nb.models import foreign, registry

    build = getattr(registry, builder)
    return build(network="small", **foreign.settle(options, known=build.__kwdefaults__))
