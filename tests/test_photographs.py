"""One crop before three networks: what is trained on, what is tested on, and what the picture shows."""
import matplotlib
import pytest
import torch

matplotlib.use("Agg")
pytest.importorskip("skimage")

from matplotlib import pyplot as plt  # noqa: E402

from lesa_nb.look._page import read_page  # noqa: E402
from lesa_nb.study import photographs as module  # noqa: E402
from lesa_nb.study.photographs import draw_triptych, explore_crop, train_triptych  # noqa: E402


@pytest.fixture(scope="module")
def runs():
    return train_triptych(2, batch_size=4)


def test_no_crop_for_testing_shares_a_pixel_with_one_for_training():
    wide = {"wave": torch.arange(200.).expand(1, 192, 200)}  # every pixel holds its column
    for part, low, high in (("train", 0, 119), ("test", 120, 199)):
        crops = module._crops(wide, part, 200, torch.Generator().manual_seed(0)).images
        assert crops.min() >= low and crops.max() <= high and crops.shape == (200, 1, 60, 60)
        assert crops.max() - low > .9*(high - low)  # and all of the part is used


def test_twelve_photographs_alike_in_brightness_and_contrast():
    photos = module._photographs()
    assert len(photos) == 12 and all(photo.shape[:2] == (1, 192) for photo in photos.values())
    for photo in photos.values():
        assert abs(photo.mean()) < 1e-4 and abs(photo.std() - 1) < 1e-4


def test_what_each_network_reads(runs):
    crop = torch.randn(1, 1, 60, 60)
    names = list(module._photographs())
    seen = {term: module._see(run.model, crop, (4, 9), names) for term, run in runs.items()}
    ring = torch.zeros(12, 12, dtype=torch.bool)
    ring[3:6, 8:11] = True
    for term in ("conv", "lesa"):
        assert torch.equal(seen[term].local > 0, ring) and abs(seen[term].local.sum() - 1) < 1e-5
    for term in ("attention", "lesa"):
        assert abs(seen[term].context.mean() - 1) < 1e-4  # in equal shares
    assert seen["attention"].local is None and seen["conv"].context is None
    assert 0 < seen["lesa"].gate < 1 and seen["attention"].gate is None
    assert abs(sum(chance for _, chance in seen["lesa"].answer) - 1) < 1e-4


def test_the_picture_has_three_panels_and_letters_for_a_phone(runs):
    fig = draw_triptych(runs, "coins", (66, 150), (4, 9))
    words = [text.get_text() for text in fig.texts]
    assert {"convolution", "plain attention", "LESA"} <= set(words) and words[-1].endswith("times an equal share")
    assert len(fig.axes) == 4
    assert min(text.get_fontsize() for text in fig.texts)*100/72*358/900 > 9  # pixels, on a phone 390 wide
    plt.close(fig)


def test_the_page_shows_the_same_place_of_the_same_crop(runs):
    data, views = read_page(explore_crop(runs, "coins", (66, 150), (4, 9)).html)
    assert data["picture"] == [300, 300] and [at//25 for at in data["pixel"]] == [4, 9]
    assert list(views) == ["LESA", "plain attention"] and all(view[-1].size == (12, 12) for view in views.values())
    crop = module._crop_of(module._photographs(), "coins", (66, 150))
    seen = module._see(runs["lesa"].model, crop, (4, 9), list(module._photographs()))
    name, chance = seen.answer[0]
    assert data["networks"][0]["answer"].startswith(f"{name} {chance:.1%}, ")


def test_a_crop_that_was_trained_on_is_refused(runs):
    with pytest.raises(ValueError, match="crop right of the line: row 0 to 132, column 146 to 183 of 'coins'"):
        draw_triptych(runs, "coins", (66, 145), (4, 9))
    with pytest.raises(ValueError, match="no photograph 'dog'; there are astronaut, brick"):
        draw_triptych(runs, "dog", (66, 150), (4, 9))
