"""What every network here expects of its input: RGB images, standardised with ImageNet's mean and deviation."""
from torch import Tensor

from lesa_nb.layers.constants import constant

#: Mean and standard deviation of red, green and blue over ImageNet, for images in [0, 1]; what networks expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(images: Tensor) -> Tensor:
    """Standardise float RGB images (..., 3, H, W), nominally in [0, 1], channel by channel; nothing is clamped."""
    if images.ndim < 3 or images.shape[-3] != 3:
        raise ValueError(f"expected RGB images of shape (..., 3, H, W), found {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"expected float images, nominally in [0, 1], found {images.dtype}: divide by 255 first")
    mean, std = (constant(numbers, images.device, images.dtype)[:, None, None]
                 for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean)/std
