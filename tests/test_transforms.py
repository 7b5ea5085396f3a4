"""Transforms of classification: the published ones, for any picture, whatever its shape."""

import numpy as np
import pytest
import torch
from peak_memory import peak_mib, reset_peak
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from lesa_nb.data.photos import sample_photo
from lesa_nb.data.seeding import seeded
from lesa_nb.data.transforms import CLASSIFY_AUGMENTS, eval_transform, resized_side, train_transform
from lesa_nb.layers.inputs import IMAGENET_MEAN, IMAGENET_STD

NORMALIZE = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)


def test_the_validation_transform_is_the_published_one():
    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALIZE])
    rng = np.random.default_rng(0)
    for shape in ((300, 400), (500, 333), (40, 60), (224, 224)):
        image = Image.fromarray(rng.integers(0, 255, (*shape, 3), np.uint8))
        torch.testing.assert_close(eval_transform()(image), theirs(image))


def test_the_validation_transform_by_hand():
    image = sample_photo("china")  # 640 x 427
    small = image.resize((round(256 * 640 / 427 - 0.5), 256), Image.Resampling.BILINEAR)
    left, top = round((small.width - 224) / 2), 16
    hand = torch.from_numpy(np.array(small.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1) / 255
    torch.testing.assert_close(eval_transform()(image), NORMALIZE(hand))


@pytest.mark.parametrize("name, extra", [("published", []), ("jitter", [transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)])])
def test_the_training_transform_is_the_published_one(name, extra):
    theirs = transforms.Compose(
        [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *extra, transforms.ToTensor(), NORMALIZE]
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8))
    same = 0
    for epoch in range(6):
        results = []
        for transform in (theirs, train_transform(224, name)):
            with seeded(0, epoch, 5):
                results.append(transform(image))
        same += torch.allclose(*results, atol=1e-5)
    assert same >= (
        6 if name == "published" else 3
    )  # the same random numbers; jitter may round its colours differently


def test_transforms_take_any_picture():
    for augment in CLASSIFY_AUGMENTS:
        for size in ((1, 1), (1, 90), (90, 1), (7, 5), (1, 300), (5, 5)):
            for transform in (train_transform(32, augment), eval_transform(32)):
                result = transform(Image.new("RGB", size, "red"))
                assert result.shape == (3, 32, 32) and result.dtype == torch.float32 and result.isfinite().all()
    resize = next(step for step in eval_transform(32).transforms if isinstance(step, v2.Resize))
    assert resize.size == [37] == [resized_side(32)] and resized_side(224) == 256


@pytest.mark.fault("P4")
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 50_000)])
def test_a_thin_picture_does_not_grow_huge(size):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    middle = np.s_[9_000:41_000] if max(size) > 20_000 else np.s_[9_000:11_000]
    (pixels if size[1] > size[0] else pixels.swapaxes(0, 1))[middle] = 255
    image = Image.fromarray(pixels)
    reset_peak()
    before = peak_mib()
    for transform in (eval_transform(224), train_transform(224)):
        assert transform(image).shape == (3, 224, 224)
    torch.testing.assert_close(
        eval_transform(224)(image), eval_transform(224)(Image.new("RGB", (9, 9), "white"))
    )  # its middle
    assert peak_mib() - before < 200  # 3,900 MiB if resized first


def test_a_long_picture_is_seen_in_the_middle_as_without_trimming():
    ramp = np.linspace(0, 255, 20 * 17).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp[None, :, None], (20, 20 * 17, 3)).copy())
    plain = v2.Compose(eval_transform(64).transforms[1:])
    assert (eval_transform(64)(image) - plain(image)).abs().max() < 0.05


def test_wrong_wishes_are_refused():
    with pytest.raises(ValueError, match="no augment 'none'; there are published"):
        train_transform(augment="none")
    for transform in (train_transform, eval_transform):
        with pytest.raises(ValueError, match="size must be at least 1"):
            transform(0)
