"""Curves of a run: what they draw, and that watching changes nothing."""
import matplotlib.pyplot as plt
import pytest
from IPython import display

from lesa_nb.look.curves import curves, live
from lesa_nb.look.figures import _png


def events(epochs=2, steps=3):
    yield dict(kind="start", steps=steps)
    for epoch in range(epochs):
        for step in range(steps):
            yield dict(kind="step", epoch=epoch, step=step, loss=3./(1 + epoch*steps + step))
        yield dict(kind="valid", epoch=epoch, scores={"top1": 50. + epoch, "top5": 90. + epoch, "loss": 1.})


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_losses_and_scores_are_drawn_against_epochs():
    fig = curves(events(), "it learns")
    left, right = fig.axes
    assert fig.get_suptitle() == "it learns"
    assert left.lines[0].get_xdata() == pytest.approx([0, 1/3, 2/3, 1, 4/3, 5/3])
    assert left.lines[0].get_ydata() == pytest.approx([3/n for n in range(1, 7)])
    assert [line.get_label() for line in right.lines] == ["top1", "top5"]  # the loss has a panel of its own
    assert list(right.lines[0].get_xdata()) == [1, 2] and list(right.lines[0].get_ydata()) == [50, 51]
    assert right.lines[0].get_color() != right.lines[1].get_color()
    fig.canvas.draw()
    assert right.get_legend().get_window_extent().y0 >= right.get_window_extent().y1 - 1  # on no curve
    right = curves([dict(e, scores=dict(top1=1.)) if "scores" in e else e for e in events()]).axes[1]
    assert right.get_ylabel() == "top1 on validation images" and right.get_legend() is None


def test_the_name_of_a_runs_folder_starts_no_formula():
    fig = curves(events(), "run $x^$")
    fig.canvas.draw()  # a formula that is none raises here
    assert fig.get_suptitle() == r"run \$x^\$"


def test_a_run_without_validation_yet_has_its_losses():
    fig = curves([e for e in events(1) if e["kind"] != "valid"])
    assert len(fig.axes[0].lines) == 1 and not fig.axes[1].lines and fig.axes[1].get_legend() is None


def test_a_run_without_steps_has_nothing_to_draw():
    with pytest.raises(ValueError, match="no steps in the log"):
        curves([dict(kind="start", steps=3)])


def test_watching_passes_every_event_on_and_draws_one_picture_anew(monkeypatch):
    class Handle:
        def update(self, picture):
            shown.append(picture)

    def show(picture, display_id):
        assert display_id
        shown.append(picture)
        return Handle()

    shown = []
    monkeypatch.setattr(display, "display", show)
    assert list(live(events())) == list(events())
    assert len(shown) == 2 and all(isinstance(picture, display.Image) for picture in shown)
    assert _png(curves(events(), "epoch 2: top1 51.0, top5 91.0, loss 1.0")) == shown[1].data
    assert len(plt.get_fignums()) == 1  # the one of this test
