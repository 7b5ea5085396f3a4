"""Figures: colours mean one thing, a missing number is visible, and every page has its box on the map of LESA."""
import io
import itertools
import json
import re
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text
from PIL import Image

from lesa_nb.look import figures
from lesa_nb.look.figures import (
    COLORS,
    OTHERS,
    _png,
    as_image,
    draw_map,
    draw_tall_map,
    mark,
    new_figure,
    overlay,
    reduced,
    save_png,
    scale_bar,
    show_bars,
    show_curves,
    show_maps,
    words_of,
)

# Machado, Oliveira and Fernandes (2009): what eyes without one of the three cones make of red, green and blue light.
EYES = dict(
    all_cones=np.eye(3),
    no_red=[[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
    no_green=[[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
    no_blue=[[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]],
)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def linear(hue):
    "The amounts of red, green and blue light in a colour."
    rgb = np.array(to_rgb(hue))
    return np.where(rgb <= .04045, rgb/12.92, ((rgb + .055)/1.055)**2.4)


def contrast(hue):
    "With white, as the accessibility guidelines (WCAG 2) define it."
    return 1.05/(linear(hue) @ [.2126, .7152, .0722] + .05)


def lab(light):
    "CIE Lab of linear light."
    xyz = np.array([[.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505]]) @ light / [.9505, 1, 1.089]
    x, y, z = np.where(xyz > .008856, np.cbrt(xyz), 7.787*xyz + 16/116)
    return np.array([116*y - 16, 500*(x - y), 200*(y - z)])


def drawn(fig, i=0):
    "The colours of map i, as the figure holds them."
    im = fig.axes[i].images[0]
    return im.cmap(im.norm(im.get_array()))


def test_every_hue_is_readable_as_a_word():
    assert contrast("white") == pytest.approx(1, abs=1e-6)
    assert min(contrast(hue) for hue in COLORS.values()) >= 4.5
    assert min(contrast(hue) for hue in OTHERS) >= 3  # of lines


@pytest.mark.parametrize("eye", EYES)
def test_hues_stay_apart_for_every_kind_of_eye(eye):
    "About 2 is the smallest step that a person notices."
    assert OTHERS[0] == COLORS["neutral"] and len({*OTHERS, *COLORS.values()}) == 10
    every = COLORS | {hue: hue for hue in OTHERS[1:]}
    seen = {name: lab(np.clip(np.array(EYES[eye]) @ linear(hue), 0, 1)) for name, hue in every.items()}
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 15, (a, b)


def test_png_is_small_and_the_same_every_time(tmp_path):
    fig, ax = new_figure(size=(6.4, .7), title="Every hue is readable as a word")
    ax.set(xlim=(-.5, 6.5), ylim=(-1, 1))
    ax.axis("off")
    for i, (name, hue) in enumerate(COLORS.items()):
        ax.text(i, 0, f"{name}\n{contrast(hue):.1f}", color=hue, ha="center", va="center")
    full = io.BytesIO()
    fig.savefig(full, dpi=100, bbox_inches="tight")
    data = _png(fig)
    assert data == _png(fig) and len(data) < len(full.getvalue())/2
    assert save_png(fig, tmp_path/"hues.png").read_bytes() == data
    assert not plt.get_fignums()  # what is saved is closed


def test_a_figure_is_shown_once_in_a_notebook(monkeypatch):
    from IPython import display
    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    fig = show_bars({"gate": 1})
    fig._ipython_display_()
    assert [image.data for image in shown] == [_png(fig)] and not plt.get_fignums()


def test_a_shown_figure_says_in_words_what_it_shows():
    "In the place where IPython, and what reads notebooks, look for alternative text."
    from IPython.core.formatters import DisplayFormatter
    fig = show_maps(torch.eye(3), title="ones on the diagonal, " + "and nothing anywhere else "*4)
    assert "\n" in fig.get_suptitle()
    _, metadata = DisplayFormatter().format(as_image(fig))
    assert metadata["image/png"] == dict(alt="ones on the diagonal, " + " ".join(["and nothing anywhere else"]*4))
    assert not plt.get_fignums()


def test_words_of_a_figure_without_a_title_are_those_of_its_panels_and_axes():
    fig, (left, right) = new_figure(1, 2, size=(4, 2))
    assert words_of(fig) == ""
    left.set(xlabel="epoch", ylabel="loss")
    assert words_of(fig) == "loss against epoch"
    right.set_title("the gate", loc="left")
    left.set_title("the local\nterm")
    assert words_of(fig) == "the local term; the gate"
    here = "You are here: 03 local, on the map of LESA and what this library builds from it"
    assert words_of(draw_map("local")) == here
    assert words_of(draw_map()) == "LESA, and what this library builds from it"


def test_new_figure_is_laid_out_as_asked():
    fig, axes = new_figure(2, 3, size=(6, 4), title="a finding", squeeze=False, width_ratios=(1, 2, 3))
    assert axes.shape == (2, 3) and fig.get_suptitle() == "a finding" and tuple(fig.get_size_inches()) == (6, 4)
    fig, ax = new_figure(size=(2, 2))
    assert fig.axes == [ax] and not fig.get_suptitle()


def test_zero_is_white_on_every_map_and_equal_numbers_have_equal_colours():
    eye = torch.eye(3)
    fig = show_maps([eye, -eye, eye/2], titles=["x", "-x", "x/2"], colorbar=True, size=1.3)
    zeros = [drawn(fig, i)[0, 1] for i in range(3)]
    assert (zeros[0] == zeros[1]).all() and (zeros[0] == zeros[2]).all() and min(zeros[0][:3]) > .95
    assert (drawn(fig, 0)[0, 0] != drawn(fig, 1)[0, 0]).any() and (drawn(fig, 0)[0, 0] != drawn(fig, 2)[0, 0]).any()


def test_maps_are_coloured_number_by_number():
    "The specification: look up every number by hand, t = (x - a)/(b - a), with b = max |x| = -a where signs differ."
    maps = torch.randn(2, 3, 4, requires_grad=True, generator=torch.Generator().manual_seed(0))
    fig = show_maps(maps, title="Brown is below zero, green above")
    b = maps.abs().max().item()
    for n, row, col in itertools.product(range(2), range(3), range(4)):
        by_hand = plt.get_cmap("BrBG")((maps[n, row, col].item() + b)/(2*b))
        assert drawn(fig, n)[row, col] == pytest.approx(by_hand, abs=.02)
    assert len(fig.axes) == 3  # two maps, and the scale of both
    assert fig.get_suptitle() == "Brown is below zero, green above"


def test_a_scale_is_shared_or_each_map_has_its_own():
    ramp = torch.arange(9.).view(3, 3)
    both = show_maps([ramp, ramp/8], title="Shared: the second is eight times smaller")
    each = show_maps([ramp, ramp/8], title="Own scales: the difference is gone", shared=False)
    assert (drawn(each, 0) == drawn(each, 1)).all()
    assert (drawn(both, 0) == drawn(each, 0)).all()
    assert (drawn(both, 0) != drawn(both, 1)).any()


def test_difficult_maps_draw_without_a_warning_and_a_missing_number_is_pink():
    hole = torch.arange(9.).view(3, 3)
    hole[1, 1] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = show_maps([torch.ones(3, 3), torch.full((3, 3), float("nan")), hole],
                        titles=["constant", "all NaN", "one NaN"], title="A missing number is pink", size=1.2)
        fig.canvas.draw()
    pink = np.array(to_rgb(figures._NAN))
    assert drawn(fig, 2)[1, 1, :3] == pytest.approx(pink, abs=.01)
    for name in "viridis", "BrBG":  # a colour that no number can get
        assert np.abs(plt.get_cmap(name)(np.linspace(0, 1, 256))[:, :3] - pink).max(1).min() > .25


def test_a_matrix_names_its_rows_and_columns_and_counts_them():
    fig = show_maps([torch.rand(12, 30), torch.rand(30, 12)], axes=("query", "key"))
    for ax, shape in zip(fig.axes, [(12, 30), (30, 12)]):
        assert (ax.get_ylabel(), ax.get_xlabel()) == ("query", "key") and ax.axison
        for ticks, n in zip((ax.get_yticks(), ax.get_xticks()), shape):
            seen = [tick for tick in ticks if 0 <= tick < n]
            assert 2 <= len(seen) <= 7 and all(tick == int(tick) for tick in seen)
    assert not show_maps(torch.rand(3, 4)).axes[0].axison  # a picture goes without



def test_maps_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="expected maps of shape"):
        show_maps(torch.zeros(2, 8, 3, 3))
    with pytest.raises(ValueError, match="3 maps need 3 titles"):
        show_maps(torch.zeros(3, 2, 2), titles=["one"])
    with pytest.raises(ValueError, match="expected maps of shape"):
        show_maps([])


def test_the_ring_is_where_the_map_is_highest():
    far = (torch.arange(5.)[:, None] - 1)**2 + (torch.arange(7.)[None] - 5)**2  # squared distance to row 1, column 5
    fig = show_maps(-far, size=2.4)
    mark(fig.axes[0], (1, 5))
    ring = fig.axes[0].lines[0]
    assert (ring.get_ydata()[0], ring.get_xdata()[0]) == divmod(far.argmin().item(), 7)


def test_bars_take_their_colour_from_the_name():
    fig = show_bars({"local term": 1, "context term": 3, "gate": 2, "noise": 2})
    hues = [bar.get_facecolor()[:3] for bar in fig.axes[0].patches]
    assert hues == [to_rgb(COLORS[k]) for k in ("local", "context", "gate", "neutral")]
    assert [bar.get_height() for bar in fig.axes[0].patches] == [1, 3, 2, 2]


def test_a_number_that_nobody_measured_says_so():
    small, large = {"conv": 2, "attention": 1, "LESA": 3}, {"conv": 4, "attention": 3, "LESA": None}
    fig = show_bars({"small": small, "large": large},
                    title="LESA leads on the small set; on the large one nobody has run it", ylabel="made up")
    assert [t.get_text() for t in fig.axes[0].texts] == ["2", "1", "3", "4", "3", "not run"]
    assert len(fig.axes[0].get_legend().get_texts()) == 3
    with pytest.raises(ValueError, match="at least one"):
        show_bars({})


def test_the_second_bar_of_a_hue_is_paler():
    fig = show_bars({"top-1": {"LESA, flat": 3, "LESA, factored": 2}})
    assert [bar.get_alpha() for bar in fig.axes[0].patches] == [1, .5]
    for n in (3, 4, 5):  # each is a step away from the next, and from the page
        shown = [bar.get_alpha() for bar in show_bars({"x": {f"series {i}": 1 for i in range(n)}}).axes[0].patches]
        steps = np.divide(shown[:-1], shown[1:])
        assert shown[0] == 1 and shown[-1] >= .28 and steps == pytest.approx(steps[0]) and steps[0] > 1.3


def test_curves_of_known_slope():
    N = torch.tensor([7., 14, 28, 56])**2
    curves = {"local: N": (N, N), "context: N x N": (N, N**2), "another context": (N, 3*N**2)}
    fig = show_curves(curves, logx=True, logy=True, xlabel="positions N", ylabel="pairs")
    local, context, other = fig.axes[0].lines
    slopes = [np.polyfit(*np.log(line.get_data()), 1)[0] for line in (local, context)]
    assert slopes == pytest.approx([1, 2], abs=1e-6)
    assert (context.get_color(), context.get_linestyle()) == (COLORS["context"], "-")
    assert (other.get_color(), other.get_linestyle()) == (COLORS["context"], "--")
    with pytest.raises(ValueError, match="as many xs as ys"):
        show_curves({"loss": ([1, 2, 3], [1, 2])})


def test_curves_of_no_term_differ_by_hue_and_by_dashes():
    lines = show_curves({f"loss {name}": [1, 2] for name in "abcd"} | {"gate": [3, 2]}).axes[0].lines
    assert [line.get_color() for line in lines] == [*OTHERS, COLORS["gate"]]
    assert len({line.get_linestyle() for line in lines[:4]}) == 4 and lines[4].get_linestyle() == "-"


def test_there_is_no_level_one_and_a_half():
    for levels, whole in (([0, 1, 2], True), ([0, 1.5, 2], False)):
        ax = show_curves({"level": levels}).axes[0]
        assert all(tick == int(tick) for tick in ax.get_yticks()) == whole


def test_curves_without_xs_are_counted_from_zero():
    fig = show_curves({"loss": [3, 2, 1]})
    assert fig.axes[0].lines[0].get_xdata().tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="at least one"):
        show_curves({})


def test_a_cell_of_a_map_lies_in_the_middle_of_the_rows_it_covers():
    H, h = 24, 4
    for r in range(h):
        covered = [p for p in range(H) if r*H/h <= p < (r + 1)*H/h]
        fig = overlay(torch.zeros(3, H, H), torch.zeros(h, h), pixel=(r, 0))
        assert fig.axes[0].lines[0].get_ydata()[0] == pytest.approx(sum(covered)/len(covered))


def test_rows_before_columns_also_where_the_picture_is_not_square():
    fmap = torch.zeros(6, 6)
    fig = overlay(torch.full((3, 48, 48), .5), fmap, pixel=(1, 4), title="The ring is in the middle of the disc")
    assert fig.axes[0].lines[0].get_xydata().tolist() == [[35.5, 11.5]]
    fig, axs = new_figure(1, 3, size=(6, 1.6))
    for col, ax in zip((0, 2, 5), axs):
        assert overlay(torch.rand(1, 16, 48), torch.zeros(2, 6), (1, col), title=f"cell (1, {col})", ax=ax) is None
        assert ax.lines[0].get_xydata().tolist() == [[8*col + 3.5, 11.5]]
    with pytest.raises(ValueError, match="expected an image"):
        overlay(torch.zeros(16, 16, 3), torch.zeros(2, 2))


# ---- the map


def apart(a, b):
    "Do two boxes leave a gap?"
    (x, y, w, h), (X, Y, W, H) = a[:4], b[:4]
    return x + w < X or X + W < x or y + h < Y or Y + H < y


def lit_box(fig, hue):
    "The solid boxes of a hue."
    boxes = [patch for patch in fig.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    return [box for box in boxes if box.get_facecolor()[:3] == to_rgb(hue)]


def test_the_map_is_drawn_the_same_every_time_and_small():
    data = _png(draw_map())
    assert data == _png(draw_map()) and len(data) < 40_000


def test_a_lit_box_alone_is_solid():
    fig = draw_map(lit="position")
    assert len(lit_box(fig, COLORS["context"])) == 1
    assert "You are here: 04 position" in [t.get_text() for t in fig.axes[0].texts]
    fig = draw_map(lit="coco_eval")
    assert len(lit_box(fig, COLORS["lesa"])) == 1
    assert not lit_box(draw_map(), COLORS["lesa"])


def test_every_module_has_its_box_and_no_box_covers_another():
    boxes = figures._BOXES
    assert [box[4] for box in sorted(boxes.values(), key=lambda box: box[4])] == [f"{n:02}" for n in range(1, 32)]
    assert " ".join(figures._LAYER) == "lesa terms local attention position context moments blockwise gate"
    inner = [box for name, box in boxes.items() if name != "lesa"]
    assert all(apart(a, b) for a, b in itertools.combinations(inner, 2))
    assert all(0 < x and x + w < 760 and 0 < y and y + h < 410 for x, y, w, h, *_ in boxes.values())
    for name in boxes:
        plt.close(draw_map(name))
    with pytest.raises(ValueError, match="no box 'fusoin' on the map, only lesa, terms, local"):
        draw_map("fusoin")


def test_no_word_sticks_out_of_its_box():
    ax = draw_map("local").axes[0]
    extent = {t.get_text(): t.get_window_extent() for t in ax.texts}  # in pixels, like the boxes
    for name, (x, _, w, _, _, words, _) in figures._BOXES.items():
        assert extent[words].width < w - 2
        assert x + 1 < extent[name].x0 and extent[name].x1 < x + w - 1, name


def test_every_page_lights_its_own_box(root):
    for path in sorted((root/"nbs").glob("[0-9]_*/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for lit in re.findall(r'^draw_map\(lit="(\w+)"\)', code, re.MULTILINE)[:1]:
            assert figures._BOXES[lit][4] == path.name[:2], path.name
            exported = re.search(r"#\| default_exp (?:\w+\.)?(\w+)", code)
            assert not exported or exported[1] == lit, path.name


def test_the_readme_shows_the_map_as_it_is_drawn_today(root):
    now = Image.open(io.BytesIO(_png(draw_tall_map()))).convert("L")
    with Image.open(root/"Images"/"lesa_map.png") as kept:
        assert kept.size == now.size
        away = np.abs(np.asarray(kept.convert("L"), dtype=float) - np.asarray(now, dtype=float))
    assert away.mean() < 1, "the map has changed: python tools/draw_images.py draws it anew"


def test_a_phone_can_show_the_tall_map():
    fig = draw_tall_map()
    ax, wide = fig.axes[0], 100*fig.get_figwidth()
    texts = [text for text in fig.findobj(Text) if text.get_text()]
    assert min(text.get_fontsize() for text in texts)*100/72*358/wide >= 10.5  # pixels, on a phone 390 wide
    shown = {text.get_text() for text in texts}
    for name, box in figures._BOXES.items():
        assert any(name in text and str(int(box[4])) in text for text in shown), name
    extents = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert all(0 < e.x0 and e.x1 < wide - 12 for e in extents)
    pages = [e for text, e in zip(filter(Text.get_text, ax.texts), extents) if text.get_text()[:2].isdigit()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(pages, 2))


def test_letters_of_figures_are_nine_pixels_high_at_least(root):
    """In source: a figure's 100 dots for an inch make 7 points ten pixels, and every figure is made by `new_figure`."""
    exempt = {"figures.py"}  # the small map, 760 pixels wide, whose places have been measured
    letters = [text.get_fontsize()*100/72 for text in draw_map().findobj(Text) if text.get_text()]
    assert min(letters) >= 9 and len(letters) > 60
    for path in sorted([*(root/"nbs").rglob("[0-9]*.ipynb"), *(root/"lesa_nb").rglob("*.py")]):
        text = path.read_text(encoding="utf-8")
        sizes = [float(size) for size in re.findall(r"fontsize=([0-9.]+)", text)]
        assert path.name in exempt or not sizes or min(sizes) >= 7, path.name
        if path.suffix == ".ipynb":
            assert "plt.subplots(" not in text and "plt.figure(" not in text, path.name


def test_what_was_not_run_has_no_scale():
    ax = show_bars({"not run": {"LESA": None}}, ylabel="accuracy").axes[0]
    assert not len(ax.get_yticks()) and ax.get_ylim() == (0, 1)
    assert len(show_bars({"a": 1., "b": None}).axes[0].get_yticks())


def test_numbers_beside_a_flat_map_do_not_touch():
    fig = show_maps(torch.rand(2, 6), vmin=0, vmax=1, colorbar=True, title="one finding\non two lines")
    fig.canvas.draw()
    ticks = [label.get_window_extent() for label in fig.axes[-1].get_yticklabels() if label.get_text()]
    assert ticks and not any(a.overlaps(b) for a, b in itertools.combinations(ticks, 2))


def bars(fig):
    "Of each scale that the figure draws: its smallest and largest number, and those that are written beside it."
    fig.canvas.draw()
    axes = [ax for one in fig.axes for ax in (one, *one.child_axes) if hasattr(ax, "_colorbar")]
    written = [[label.get_text().replace("−", "-") for label in ax.get_yticklabels()] for ax in axes]
    return [(*map(float, ax._colorbar.mappable.get_clim()), words) for ax, words in zip(axes, written)]


def test_every_map_says_which_number_a_colour_stands_for_and_a_photograph_does_not():
    ramp = torch.arange(9.).view(3, 3)
    assert [bar[:2] for bar in bars(show_maps([ramp, 2*ramp]))] == [(0, 16)]
    assert [bar[:2] for bar in bars(show_maps([ramp, ramp - 2], shared=False))] == [(0, 8), (-6, 6)]
    assert not bars(show_maps(ramp, cmap="gray")) and not bars(show_maps(ramp, colorbar=False))
    assert len(bars(show_maps(ramp, cmap="gray", colorbar=True))) == 1
    fig = show_maps([ramp, ramp - 2], cmap=["gray", None], shared=False)
    assert [bar[:2] for bar in bars(fig)] == [(-6, 6)]
    assert [ax.images[0].get_cmap().name for ax in fig.axes if ax.images] == ["gray", "BrBG"]
    with pytest.raises(ValueError, match="share none: pass shared=False"):
        show_maps([ramp, ramp], cmap=["gray", None])
    with pytest.raises(ValueError, match="2 maps need 2 colour scales, got 1"):
        show_maps([ramp, ramp], cmap=["gray"], shared=False)


def tips(fig):
    "Of each scale that the figure draws: at which end it goes on."
    return [ax._colorbar.extend for one in fig.axes for ax in (one, *one.child_axes) if hasattr(ax, "_colorbar")]


def test_a_scale_has_a_tip_where_maps_go_beyond_it():
    ramp = torch.arange(9.).view(3, 3)
    assert tips(show_maps(ramp)) == tips(show_maps(ramp, vmin=0, vmax=8)) == ["neither"]
    assert tips(show_maps(ramp, vmax=7)) == ["max"] and tips(show_maps(ramp, vmin=1, vmax=7)) == ["both"]
    assert tips(show_maps([ramp/8, ramp + 1], vmin=1, shared=False)) == ["min", "neither"]


def test_a_map_over_a_picture_has_its_scale_beside_it():
    field = torch.tensor([[0., 1], [2, .5]])
    assert [bar[:2] for bar in bars(overlay(torch.rand(3, 8, 8), field))] == [(0, 2)]
    fig = overlay(torch.rand(3, 8, 8), field, vmin=0, vmax=1)
    assert [bar[:2] for bar in bars(fig)] == [(0, 1)] and tips(fig) == ["max"]
    fig, axes = new_figure(1, 3, size=(6, 2))
    for ax in axes:
        overlay(torch.rand(3, 8, 8), field, ax=ax, vmin=0, vmax=3)
    assert not bars(fig)
    scale_bar(axes, (0, 3), label="weight")
    assert [bar[:2] for bar in bars(fig)] == [(0, 3)] and fig.axes[-1].get_ylabel() == "weight"
    dark = fig.axes[-1]._colorbar.cmap(0.)
    assert dark == plt.get_cmap("inferno")(0.)  # as `overlay` colours them


def test_scales_of_their_own_are_as_high_as_their_maps():
    fig = show_maps([torch.rand(8, 4), torch.rand(2, 8)], shared=False, size=2, titles=["tall", "flat"])
    fig.canvas.draw()
    for ax in fig.axes:
        bar, = ax.child_axes
        box, beside = ax.get_window_extent(), bar.get_window_extent()
        assert beside.y0 == pytest.approx(box.y0, abs=1) and beside.y1 == pytest.approx(box.y1, abs=1)
        assert box.x1 < beside.x0 < box.x1 + 20
        assert bar.get_tightbbox().x1 <= fig.bbox.x1


@pytest.mark.parametrize("values, written", [
    ([[0, 1], [1, 0]], ["0", "1"]), ([[1, 2], [3, float("nan")]], ["1", "2", "3"]),
    ([[0, .5], [1, .25]], ["0.0", "0.5", "1.0"])])
def test_numbers_beside_maps_of_whole_numbers_are_whole(values, written):
    assert bars(show_maps(torch.tensor(values)))[0][2] == written


def test_pictures_of_an_ordinary_size_are_150_pixels_wide():
    "Also under a title of two lines."
    long = "a finding that takes more letters than a line of this figure has, and goes on and on and on and on and on"
    for fig in (show_maps(torch.rand(4, 8, 8)), show_maps(torch.rand(3, 8, 8), shared=False, title=long),
                show_maps(torch.rand(2, 8, 8), axes=("query", "key")), show_maps(torch.rand(2, 8, 8), title=long),
                show_maps(torch.rand(8, 3, 3), size=.9, cols=4), overlay(torch.rand(3, 9, 9), torch.rand(3, 3))):
        fig.canvas.draw()
        assert all(ax.get_window_extent().width >= 148 for ax in fig.axes if ax.images)


def test_a_photograph_leaves_the_hues_as_they_are():
    "A photograph has more colours than a small file, and would take them all."
    fig, ax = new_figure(size=(3, 3))
    ax.imshow(np.random.default_rng(0).random((90, 90, 3))*[.9, .8, .4])
    for i, hue in enumerate(COLORS.values()):
        fig.text(.1, .1 + .1*i, "■", color=hue, fontsize=7)
    kept = {color for _, color in Image.open(io.BytesIO(_png(fig))).convert("RGB").getcolors(256)}
    assert kept >= {tuple(round(255*part) for part in to_rgb(hue)) for hue in COLORS.values()}


def test_a_photograph_under_a_map_leaves_the_scale_beside_it_as_it_is():
    photo = torch.rand(3, 90, 90, generator=torch.Generator().manual_seed(0))
    saved = Image.open(io.BytesIO(_png(overlay(photo, torch.rand(9, 9))))).convert("RGB")
    kept = np.array([color for _, color in saved.getcolors(256)])
    wanted = 255*plt.get_cmap("inferno")(np.linspace(0, 1, 32))[:, :3]
    assert np.abs(wanted[:, None] - kept).max(-1).min(1).max() <= 1


def test_a_reduced_picture_has_the_nearest_of_its_colours():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    small = reduced(image)
    assert small.size == image.size and small.mode == "P"
    palette = np.reshape(small.getpalette(), (-1, 3))
    off = np.square(np.reshape(image, (-1, 1, 3)).astype(int) - palette).sum(-1)
    assert (np.take_along_axis(off, np.reshape(small, (-1, 1)), 1)[:, 0] == off.min(1)).all()
    few = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    assert np.array_equal(reduced(few).convert("RGB"), few)


@pytest.mark.parametrize("groups, series, least", [(10, 2, .45), (6, 3, .125), (4, 4, .0315), (2, 2, 79.554)])
def test_numbers_above_bars_do_not_touch(groups, series, least):
    values = {f"group {g}": {f"series {s}": least*(1 + .001*(g + s)) for s in range(series)} for g in range(groups)}
    fig = show_bars(values)
    fig.canvas.draw()
    words = [text.get_window_extent() for text in fig.axes[0].texts]
    assert len(words) == groups*series and not any(a.overlaps(b) for a, b in itertools.combinations(words, 2))


def test_a_name_of_two_lines_has_no_word_alone():
    labels = show_bars({f"plain attention, block {n}": n for n in range(1, 5)}).axes[0].get_xticklabels()
    assert [label.get_text() for label in labels][:2] == ["plain attention,\nblock 1", "plain attention,\nblock 2"]
    said = "what position 5 hears: a fifth from itself, four fifths from the fifteen others together"
    first, second = new_figure(size=(6, 2), title=said)[0].get_suptitle().split("\n")
    assert f"{first} {second}" == said and abs(len(first) - len(second)) < 20
    assert new_figure(size=(6, 2), title="short")[0].get_suptitle() == "short"
    assert figures._balanced("T-shirt/top", 9) == "T-\nshirt/top"
    assert figures._balanced("Ankle boot", 9) == "Ankle\nboot"
    assert figures._balanced("unbreakable", 9) == "unbreakab\nle" and figures._balanced("", 9) == ""


def test_matrices_need_a_name_for_rows_and_one_for_columns():
    with pytest.raises(ValueError, match="rows and columns, as in .'query', 'key'.; got .'query',."):
        show_maps(torch.rand(3, 3), axes=("query",))
