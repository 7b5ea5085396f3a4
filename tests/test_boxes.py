"""Pictures of boxes: names stay inside, beside one another and beside their boxes; equal curves are told apart."""
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from lesa_nb.look.answers import draw_answer
from lesa_nb.look.boxes import show_batch, show_scores
from lesa_nb.look.figures import _png, new_figure

NAMES = ["triangle", "disc", "a name as long as a sentence, for which no picture in a row is wide enough", "a $b$"]
EDGES = [[-5., -5., 12., 14.], [70., 0., 96., 20.], [80., 56., 100., 70.], [0., 60., 9., 64.], [94., 30., 96., 34.]]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def extents(fig):
    "Of each axis: its own place, and those of the names on it, with their colour, in pixels of the drawn figure."
    fig.canvas.draw()
    return [(ax.get_window_extent(), [text.get_bbox_patch().get_window_extent() for text in ax.texts])
            for ax in fig.axes]


def target(boxes, labels, scores=None):
    found = dict(boxes=torch.tensor(boxes), labels=torch.tensor(labels))
    return found if scores is None else found | dict(scores=torch.tensor(scores))


@pytest.mark.parametrize("cols", [1, 3])
@pytest.mark.parametrize("scores", [None, [.98, .97, .96, .95, .94]])
def test_names_at_all_four_edges_stay_inside_the_picture(cols, scores):
    images = [torch.rand(3, 64, 96), torch.rand(3, 96, 64), torch.rand(3, 64, 96)]
    labels = [[1, 2, 3, 4, 1], [3]*5, [1, 1, 1, 1, 2]]
    fig = show_batch(images, [target(EDGES, some, scores) for some in labels], NAMES, cols=cols, title="edges")
    for frame, names in extents(fig):
        assert len(names) == 5
        for name in names:
            assert frame.x0 - .5 <= name.x0 and name.x1 <= frame.x1 + .5
            assert frame.y0 - .5 <= name.y0 and name.y1 <= frame.y1 + .5


def test_a_name_that_is_too_wide_loses_its_end_but_not_its_score():
    fig = show_batch([torch.rand(3, 32, 32)], [target([[2., 9., 30., 30.]], [3], [.75])], NAMES, size=1.6)
    fig.canvas.draw()
    text = fig.axes[0].texts[0].get_text()
    assert text.startswith("a name as") and text.endswith("… 0.75")
    fig.set_size_inches(16, 16)
    fig.canvas.draw()
    assert fig.axes[0].texts[0].get_text() == f"{NAMES[2]} 0.75"


def test_a_name_stands_at_its_box():
    fig = show_batch([torch.rand(3, 64, 96)], [target([[30., 40., 60., 60.]], [2])], NAMES, size=4)
    (_, (name,)), = extents(fig)
    (left, top), = fig.axes[0].transData.transform([(30., 40.)])
    assert (name.x0, name.y0) == pytest.approx((left, top), abs=1.5)


def test_names_of_neighbours_do_not_cover_each_other():
    side_by_side = [[40., 30., 50., 45.], [56., 30., 66., 45.], [40., 30., 52., 44.], [5., 5., 20., 20.]]
    fig = show_batch([torch.rand(3, 64, 96)], [target(side_by_side, [1, 1, 2, 1], [.99, .98, .97, .96])], NAMES)
    (_, names), = extents(fig)
    for i, one in enumerate(names):
        assert not any(one.padded(-1).overlaps(other.padded(-1)) for other in names[:i])


def test_drawing_again_moves_nothing():
    fig = show_batch([torch.rand(3, 64, 96)], [target(EDGES, [1, 2, 3, 4, 1])], NAMES, title="the same")
    first = _png(fig)
    assert _png(fig) == first


def test_names_of_an_answer_stay_inside_too():
    fig, ax = new_figure(size=(2, 2))
    ax.imshow(np.zeros((64, 96, 3)))
    draw_answer(ax, dict(objects=[dict(name="triangle", score=.9, box=box) for box in EDGES]))
    (frame, names), = extents(fig)
    assert len(names) == 5
    assert all(frame.x0 - .5 <= n.x0 and n.x1 <= frame.x1 + .5 and frame.y0 - .5 <= n.y0 and n.y1 <= frame.y1 + .5
               for n in names)


def scores(curves, mask=True):
    return SimpleNamespace(mask=mask or None, class_ap=lambda kind: dict(disc=.5, square=.25),
                           curve=lambda kind, threshold: ([0., .5, 1.], curves[kind, threshold]))


def test_curves_that_are_equal_are_told_apart():
    perfect, worse = [1., 1., 1.], [1., .5, 0.]
    right = show_scores(scores(dict.fromkeys([(k, t) for k in ("box", "mask") for t in (.5, .75)], perfect))).axes[1]
    assert [line.get_label() for line in right.lines] == ["box, IoU 0.5 = 0.75", "mask, IoU 0.5 = 0.75"]
    box, mask = right.lines
    assert box.get_linewidth() > 2*mask.get_linewidth() and box.get_zorder() <= mask.get_zorder()
    right = show_scores(scores({("box", .5): perfect, ("box", .75): worse, ("mask", .5): perfect,
                                ("mask", .75): perfect})).axes[1]
    assert [line.get_label() for line in right.lines] == ["box, IoU 0.5", "box, IoU 0.75",
                                                          "mask, IoU 0.5 = 0.75"]
    assert right.lines[0].get_linestyle() == "-" != right.lines[1].get_linestyle()


def test_a_detector_without_masks_has_curves_of_boxes_alone():
    fig = show_scores(scores({("box", .5): [1., 1., 0.], ("box", .75): [1., 0., 0.]}, mask=False))
    assert [line.get_label() for line in fig.axes[1].lines] == ["box, IoU 0.5", "box, IoU 0.75"]
    assert len(fig.axes[0].patches) == 2


def test_no_legend_lies_on_a_curve():
    fig = show_scores(scores(dict.fromkeys([(k, t) for k in ("box", "mask") for t in (.5, .75)], [1., 1., 1.])))
    fig.canvas.draw()
    for ax in fig.axes:
        assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1 - 1
        assert ax.get_legend().get_window_extent().x1 <= fig.bbox.x1
