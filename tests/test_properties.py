"""Properties that hold for whatever is drawn: hypothesis looks for a counterexample, in bounded time.

`LESA_SEED=7 make test ARGS=tests/test_properties.py` tries other cases; the seed stands in each test's name.
"""

import copy
import io
import json
import math
import os
import pickle
import tempfile
import warnings
import zipfile
from dataclasses import asdict, fields
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import box_iou

from lesa_nb.engine.group import Ranks, shard
from lesa_nb.engine.recipe import Recipe
from lesa_nb.engine.run import sample_keys
from lesa_nb.io.atomic import atomic_folder, atomic_json, atomic_path, atomic_text, atomic_write
from lesa_nb.layers.context import Context, head_widths
from lesa_nb.layers.lesa import POSITIONS, attend_with
from lesa_nb.layers.moments import content_moments, factored_moments, flat_moments
from lesa_nb.layers.position import FactoredTable, FlatTable, _unfold_offsets, fit_offsets, fold_offsets
from lesa_nb.models.mask_rcnn import _paste, _roi_levels
from lesa_nb.models.pyramid import _resize_nearest, scale_boxes
from lesa_nb.models.rpn import _BACKGROUND, _IGNORED, BoxCoder, assign
from lesa_nb.weights.files import save_weights
from lesa_nb.weights.load import Kind, load, register_kind

SEED = int(os.environ.get("LESA_SEED", 0))
MORE = 8  # so many times as many cases in the slow run


def holds(examples, **strategies):
    "A test that a property holds for so many drawn cases; and, slow, for many more."

    def wrap(check):
        def test(times):
            bounds = settings(max_examples=examples * times, deadline=None, database=None, print_blob=False,
                              suppress_health_check=list(HealthCheck))
            hypothesis.seed(SEED)(bounds(given(**strategies)(check)))()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        runs = [pytest.param(1, id=f"seed {SEED}"), pytest.param(MORE, id=f"seed {SEED}, many", marks=pytest.mark.slow)]
        return pytest.mark.parametrize("times", runs)(test)

    return wrap


side = st.integers(1, 6)
size = st.tuples(side, side)
seed = st.integers(0, 2**31)


def drawn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(table, seed):
    "A table in double precision with numbers of this seed."
    table = table.double()
    for place, parameter in enumerate(table.parameters()):
        parameter.data = drawn(seed + place, *parameter.shape)
    return table


# ---- position tables


@holds(40, made=size, fmap=size, seed=seed)
def test_a_factored_table_scores_each_pair_by_its_offset(made, fmap, seed):
    table, (H, W) = filled(FactoredTable(made, 3), seed), fmap
    q, k = drawn(seed + 5, 1, 2, 3, H * W), drawn(seed + 6, 1, 2, 3, H * W)
    total = sum(table.scores(q, k, fmap))
    height, width = table.axes(fmap)
    for i in range(H * W):
        for j in range(H * W):
            step = height[:, j // W - i // W + H - 1] + width[:, j % W - i % W + W - 1]
            torch.testing.assert_close(total[0, :, i, j], q[0, :, :, i] @ step, rtol=1e-9, atol=1e-9)


@holds(40, made=size, fmap=size, seed=seed)
def test_a_flat_table_scores_each_pair_by_its_step(made, fmap, seed):
    table, (H, W) = filled(FlatTable(made, 3, 4), seed), fmap
    q, k = drawn(seed + 5, 1, 2, 3, H * W), drawn(seed + 6, 1, 2, 3, H * W)
    of_query, of_key = table.scores(q, k, fmap)
    steps = table.unfolded(fmap)
    for i in range(H * W):
        for j in range(H * W):
            dy, dx = i // W - j // W, i % W - j % W
            there, back = steps[:3, dy + H - 1, dx + W - 1], steps[3:6, H - 1 - dy, W - 1 - dx]
            torch.testing.assert_close(of_query[0, :, i, j], q[0, :, :, i] @ there, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(of_key[0, :, i, j], k[0, :, :, j] @ back, rtol=1e-9, atol=1e-9)


@holds(40, made=size, other=size, kind=st.sampled_from(sorted(POSITIONS)), seed=seed)
def test_tables_resized_to_their_own_size_are_the_same_to_the_bit(made, other, kind, seed):
    table = filled(POSITIONS[kind](made, 3, 4), seed)
    same, new = table.resized(made), table.resized(other)
    for one, two in zip(table.parameters(), same.parameters()):
        assert one.equal(two) if kind == "factored" else torch.allclose(one, two, rtol=1e-12, atol=1e-12)
    wanted = POSITIONS[kind](other, 3, 4)
    assert [p.shape for p in new.parameters()] == [p.shape for p in wanted.parameters()]
    assert all(p.isfinite().all() for p in new.parameters())


@holds(60, made=size, n=st.integers(1, 12), seed=seed)
def test_folding_takes_unfolding_back_and_fitting_keeps_the_middle(made, n, seed):
    flat = drawn(seed, 2, 2 * made[0] * made[1] - 1)
    torch.testing.assert_close(fold_offsets(_unfold_offsets(flat, made)), flat, rtol=1e-12, atol=1e-12)
    m = made[0]
    row = drawn(seed + 1, 2 * m - 1)
    fitted = fit_offsets(row, n)
    assert fitted.shape == (2 * n - 1,) and fitted[n - 1] == row[m - 1]
    assert fitted.min() >= row.min() - 1e-12 and fitted.max() <= row.max() + 1e-12
    if n <= m:
        assert fitted.equal(row[m - n : m + n - 1])


# ---- moments and ways to attend


@holds(40, fmap=size, batch=st.integers(1, 3), heads=st.integers(1, 3), seed=seed)
def test_moments_are_those_of_all_scores(fmap, batch, heads, seed):
    "Sum and sum of squares of every pair's score, without writing the scores."
    N = fmap[0] * fmap[1]
    q, k = drawn(seed, batch, heads, 3, N), drawn(seed + 1, batch, heads, 3, N)
    factored, flat = filled(FactoredTable(fmap, 3), seed), filled(FlatTable(fmap, 3, 4), seed)
    with torch.no_grad():
        cases = [
            (content_moments(q, k), torch.einsum("bgki,bgkj->bgij", q, k)),
            (factored_moments(q, factored.axes(fmap), fmap), sum(factored.scores(q, k, fmap))),
            (flat_moments(q.flatten(0, 1).permute(2, 0, 1), flat.unfolded(fmap)[:3], heads),
             flat.scores(q, k, fmap)[0]),
        ]
    for found, scores in cases:
        for moment, want in zip(found, (scores.sum((0, 2, 3)), scores.square().sum((0, 2, 3)))):
            torch.testing.assert_close(moment, want, rtol=1e-9, atol=1e-7)


@holds(40, fmap=size, made=size, batch=st.integers(1, 3), heads=st.sampled_from((1, 2, 4)), training=st.booleans(),
       table=st.sampled_from(sorted(POSITIONS)), way=st.sampled_from(("auto", "streaming", "rows", "channels", "flat")),
       seed=seed)
def test_every_way_to_attend_says_what_the_written_out_one_says(fmap, made, batch, heads, training, table, way, seed):
    assume(way in ("auto", "streaming") or (way == "flat") == (table == "flat"))
    if way == "streaming":
        from lesa_nb.layers.blockwise import streaming as way
    torch.manual_seed(seed)
    one = Context(8, 8, POSITIONS[table](made, *head_widths(8, heads)), heads=heads).double()
    for norm in (one.norm_qkv, one.norm_scores, one.norm_out):
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    one, two = one.train(training), copy.deepcopy(one).train(training)
    x = drawn(seed, batch, 8, *fmap)
    assume(not training or batch * fmap[0] * fmap[1] > 3)  # of few numbers a norm in training amplifies rounding
    answers = []
    for context, how in ((attend_with(one, "explicit"), "explicit"), (attend_with(two, way), way)):
        here = x.clone().requires_grad_()
        y = context(here)
        (y * drawn(seed + 1, *y.shape)).sum().backward()
        answers.append([y.detach(), here.grad, *context.buffers()])
    for want, found in zip(*answers):
        assert (found - want).abs().max() <= 1e-7 * max(1, float(want.abs().max())), how


# ---- boxes


def boxes_of(draw, most=6, least=0, far=200.0):
    "Boxes with corners in order."
    number = st.floats(0, far, width=32)
    side = st.floats(0.5, far, width=32)
    rows = draw(st.lists(st.tuples(number, number, side, side), min_size=least, max_size=most))
    t = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    return torch.cat([t[:, :2], t[:, :2] + t[:, 2:]], 1)


@st.composite
def some_boxes(draw, **options):
    return boxes_of(draw, **options)


@holds(100, boxes=some_boxes(least=1), shift=some_boxes(least=1), stds=st.tuples(*[st.floats(0.05, 2)] * 4))
def test_coding_a_box_and_decoding_it_is_nothing(boxes, shift, stds):
    n = min(len(boxes), len(shift))
    boxes, truth = boxes[:n], shift[:n]
    ratio = ((truth[:, 2:] - truth[:, :2]) / (boxes[:, 2:] - boxes[:, :2])).log().abs()
    assume(bool((ratio < BoxCoder.limit).all()))
    coder = BoxCoder(stds)
    torch.testing.assert_close(coder.decode(boxes, coder.encode(boxes, truth), (500, 500)), truth, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(coder.decode(boxes, torch.zeros_like(boxes), (500, 500)), boxes, rtol=1e-9, atol=1e-9)
    cut = coder.decode(boxes, coder.encode(boxes, truth), (90, 70))
    assert (cut >= 0).all() and (cut[:, 0::2] <= 70).all() and (cut[:, 1::2] <= 90).all()


@holds(100, truth=some_boxes(most=5), boxes=some_boxes(most=12), seed=seed,
       bounds=st.sampled_from(((0.7, 0.3, 0.3), (0.5, 0.5, 0.0), (0.6, 0.2, 0.1))))
def test_boxes_are_matched_by_the_rule_in_any_order(truth, boxes, seed, bounds):
    positive, negative, lowest = bounds
    found = assign(truth, boxes, positive, negative, lowest)
    want = torch.full((len(boxes),), _BACKGROUND)
    if len(truth) and len(boxes):
        iou = box_iou(truth, boxes)
        best, index = iou.max(0)
        want = torch.where(best < negative, _BACKGROUND, _IGNORED)
        want = torch.where(best >= positive, index, want)
        for t, row in enumerate(iou):
            want = torch.where((row == row.max()) & (row.max() >= lowest), t, want)
    assert found.equal(want)
    order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(seed))
    assert assign(truth, boxes[order], positive, negative, lowest).equal(found[order])


@holds(100, boxes=some_boxes(least=1, far=3000.0), dx=st.floats(0, 500, width=32))
def test_levels_go_by_area_alone(boxes, dx):
    "Eq. (1) of the feature pyramid: level 4 for 224 pixels, one more for twice the side, from 2 to 5."
    levels = _roi_levels(boxes)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    exact = 4 + (area.sqrt() / 224).log2()
    clear = (exact - exact.round()).abs() > 1e-4  # at the edges rounding may decide
    assert levels[clear].equal((exact.floor().clamp(2, 5) - 2).long()[clear])
    assert (levels[area.argsort()].diff() >= 0).all()
    moved = _roi_levels(boxes + torch.tensor([dx, 0, dx, 0], dtype=boxes.dtype))
    assert moved[clear].equal(levels[clear])


# ---- masks and sizes


@holds(60, boxes=some_boxes(least=1, most=3, far=30.0), fmap=st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_a_full_mask_pastes_its_box_and_nothing_else(boxes, fmap):
    "Pixels well inside are one, pixels well outside are zero: half a cell of the grid is the seam."
    boxes, (H, W) = boxes.float(), fmap
    pasted = _paste(torch.ones(len(boxes), 28, 28), boxes, fmap).reshape(len(boxes), H, W)
    assert pasted.min() >= 0 and pasted.max() <= 1 + 1e-5
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    for mask, (x0, y0, x1, y1) in zip(pasted, boxes.tolist()):
        seam_x, seam_y = (x1 - x0) / 56 + 1e-3, (y1 - y0) / 56 + 1e-3
        inside = (x > x0 + seam_x) & (x < x1 - seam_x) & (y > y0 + seam_y) & (y < y1 - seam_y)
        outside = (x < x0 - seam_x) | (x > x1 + seam_x) | (y < y0 - seam_y) | (y > y1 + seam_y)
        assert (mask[inside] > 1 - 1e-4).all() and (mask[outside] == 0).all()


@holds(60, old=st.tuples(st.integers(1, 20), st.integers(1, 20)), times=st.tuples(st.integers(1, 4), st.integers(1, 4)),
       new=st.tuples(st.integers(1, 40), st.integers(1, 40)), boxes=some_boxes(), seed=seed)
def test_resizing_there_and_back(old, times, new, boxes, seed):
    labels = torch.randint(9, old, generator=torch.Generator().manual_seed(seed))
    assert _resize_nearest(labels, old).equal(labels)
    larger = _resize_nearest(labels, (old[0] * times[0], old[1] * times[1]))
    assert _resize_nearest(larger, old).equal(labels)  # whole factors lose nothing
    assert set(_resize_nearest(labels, new).flatten().tolist()) <= set(labels.flatten().tolist())
    torch.testing.assert_close(scale_boxes(scale_boxes(boxes, old, new), new, old), boxes, rtol=1e-9, atol=1e-9)


# ---- the order of samples


@holds(80, samples=st.integers(1, 200), pieces=st.integers(1, 4), ranks=st.integers(1, 4), accumulate=st.integers(1, 3),
       seed=seed, epoch=st.integers(0, 50), data=st.data())
def test_ranks_and_restarts_see_each_sample_once_in_one_order(samples, pieces, ranks, accumulate, seed, epoch, data):
    recipe = Recipe("any", epochs=99, batch_size=pieces * ranks * accumulate, lr=1.0, lr_batch=1, accumulate=accumulate)
    alone = Recipe("any", epochs=99, batch_size=recipe.batch_size, lr=1.0, lr_batch=1)
    every = [sample_keys(samples, recipe, seed, epoch, ranks=Ranks(rank, ranks)) for rank in range(ranks)]
    batches = sample_keys(samples, alone, seed, epoch)
    assert len(batches) == samples // recipe.batch_size
    for step, batch in enumerate(batches):  # what all ranks see in a step is one process's batch
        seen = [key for keys in every for micro in keys[step * accumulate : (step + 1) * accumulate] for key in micro]
        assert seen == batch and len(set(seen)) == recipe.batch_size
    flat = [key for batch in batches for key in batch]
    assert len(set(flat)) == len(flat) and all(0 <= i < samples and e == epoch for e, i in flat)
    start = data.draw(st.integers(0, len(batches)))
    for rank in range(ranks):
        again = sample_keys(samples, recipe, seed, epoch, start=start, ranks=Ranks(rank, ranks))
        assert again == every[rank][start * accumulate :]
    size = data.draw(st.integers(1, 9))
    parts = [shard(samples, size, Ranks(rank, ranks)) for rank in range(ranks)]
    assert sorted(i for part in parts for batch in part for i in batch) == list(range(samples))


# ---- recipes

odd = st.one_of(st.floats(), st.integers(-3, 10**12), st.none(), st.booleans(), st.text(max_size=3),
                st.lists(st.integers(-2, 9), max_size=3).map(tuple))


@holds(300, field=st.sampled_from([f.name for f in fields(Recipe) if f.name not in ("name", "augment")]), value=odd)
def test_a_recipe_is_sound_or_refused_by_the_name_of_what_is_not(field, value):
    base = dict(name="any", epochs=10, batch_size=8, lr=0.1, lr_batch=8)
    try:
        recipe = Recipe(**base | {field: value})
    except (ValueError, TypeError) as error:
        assert field in str(error) and "\n" not in str(error)
        return
    assert math.isfinite(recipe.peak_lr) and recipe.peak_lr > 0
    assert 0 <= recipe.warmup(7) <= recipe.epochs * 7 / 4
    assert json.loads(json.dumps(asdict(recipe))) is not None


@holds(150, samples=st.integers(1, 300), batch=st.integers(1, 64), accumulate=st.integers(1, 8),
       ranks=st.integers(1, 4))
def test_a_batch_fits_the_samples(samples, batch, accumulate, ranks):
    recipe = Recipe("any", epochs=2, batch_size=batch * ranks * accumulate, lr=0.1, lr_batch=8, accumulate=accumulate)
    if samples < ranks:
        with pytest.raises(ValueError, match="start no more processes"):
            recipe.fitted(samples, ranks)
        return
    fitted = recipe.fitted(samples, ranks)
    assert fitted.batch_size <= min(samples, recipe.batch_size) or fitted == recipe
    assert fitted.local_batch_size(ranks) <= recipe.local_batch_size(ranks) and fitted.accumulate <= accumulate
    assert math.isclose(fitted.peak_lr / fitted.batch_size, recipe.peak_lr / recipe.batch_size)


# ---- files

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200)


class _Left(Exception):
    "What somebody's code raises in the middle."


@holds(80, name=names, old=st.none() | st.binary(max_size=50), parts=st.lists(st.binary(max_size=30), max_size=4),
       breaks=st.none() | st.integers(0, 4))
def test_a_file_is_replaced_whole_or_not_at_all(name, old, parts, breaks):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if old is not None:
            path.write_bytes(old)
        try:
            with atomic_write(path) as file:
                for place, part in enumerate(parts):
                    if place == breaks:
                        raise _Left
                    file.write(part)
            assert path.read_bytes() == b"".join(parts)
        except _Left:
            assert path.exists() == (old is not None) and (old is None or path.read_bytes() == old)
        assert set(os.listdir(folder)) <= {name}


json_like = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                         lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@holds(60, thing=json_like, text=st.text(st.characters(exclude_categories=("Cs",))), breaks=st.booleans())
def test_texts_json_and_folders_come_back(thing, text, breaks):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        assert json.loads(atomic_json(root / "a.json", thing).read_text()) == thing
        assert atomic_text(root / "a.txt", text).read_bytes() == text.encode()
        with pytest.raises(TypeError):
            atomic_json(root / "a.json", {"new": {1, 2}})
        assert json.loads((root / "a.json").read_text()) == thing
        try:
            with atomic_folder(root / "drawn") as part:
                (part / "x").write_text(text, encoding="utf-8")
                if breaks:
                    raise _Left
        except _Left:
            assert not (root / "drawn").exists()
        assert sorted(os.listdir(root)) == ["a.json", "a.txt"] + ["drawn"] * (not breaks)


# ---- files of weights


def _toy(metadata):
    return nn.Sequential(nn.Linear(3, int(metadata["n"])), nn.BatchNorm1d(int(metadata["n"])))


@pytest.fixture(scope="module", autouse=True)
def toy():
    register_kind("toy of the properties", Kind(
        "classifier", _toy, lambda metadata: torch.tensor, lambda metadata: range(metadata["n"])))


TOLD = dict(arch="toy of the properties", n=4)


def file_of(suffix, path):
    "A sound file; returns its network."
    torch.manual_seed(0)
    network = _toy(TOLD)
    if suffix == ".safetensors":
        save_weights(network, path, **TOLD)
    else:
        torch.save(dict(metadata=TOLD, model=network.state_dict(), average=None), path)
    return network


def ask(path, network, folder):
    "Right, or one sentence that names the file; nothing is written anywhere."
    before = sorted(os.listdir(folder)), sorted(os.listdir("."))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = load(path)
    except (ValueError, FileNotFoundError) as error:
        assert path.name in str(error) and len(str(error).splitlines()) <= 3, error
        found = None
    assert (sorted(os.listdir(folder)), sorted(os.listdir("."))) == before
    if found is not None:
        state = found.model.state_dict()
        assert state.keys() == network.state_dict().keys()
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items()), "other numbers"
    return found


@holds(150, suffix=st.sampled_from((".safetensors", ".pt")), data=st.data())
def test_damaged_weights_are_right_or_refused(suffix, data):
    "Cut off, bits flipped, a piece doubled or gone, bytes of something else: never other numbers, never a traceback."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"net{suffix}"
        network = file_of(suffix, path)
        assert ask(path, network, folder) is not None
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(("cut", "bits", "gone", "doubled", "foreign")))
        if how == "cut":
            del content[place:]
        elif how == "bits":
            for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5, unique=True)):
                content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "gone":
            del content[place : place + data.draw(st.integers(1, 40))]
        elif how == "doubled":
            content[place:place] = content[place : place + data.draw(st.integers(1, 40))]
        else:
            content[place : place + 8] = data.draw(st.binary(min_size=8, max_size=8))
        path.write_bytes(content)
        ask(path, network, folder)


@holds(60, suffix=st.sampled_from((".safetensors", ".pt")), data=st.data(), value=json_like)
def test_weights_that_say_something_else_are_right_or_refused(suffix, data, value):
    "Metadata of any type, tensors that are none."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"net{suffix}"
        network = file_of(suffix, path)
        key = data.draw(st.sampled_from(("arch", "n", "classes", "more")))
        told = TOLD | {key: value}
        if suffix == ".safetensors":
            save_weights(network, path, **told)
        else:
            state = dict(network.state_dict())
            if data.draw(st.booleans()):
                state[data.draw(st.sampled_from(sorted(state)))] = data.draw(st.none() | st.integers() | st.text())
            torch.save(dict(metadata=told, model=state, average=data.draw(st.sampled_from((None, 3, {}, "x")))), path)
        ask(path, network, folder)


class _Runs:
    "What a pickle asks to be called when it is read."

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@holds(40, data=st.data(), protocol=st.integers(0, 5))
def test_a_file_of_weights_runs_nothing(data, protocol):
    "Pickles that call, in every protocol, bare or in torch's archive, alone or beside sound tensors."
    with tempfile.TemporaryDirectory() as folder:
        path, trace = (Path(folder) / name for name in (
            data.draw(st.sampled_from(("x.pt", "x.pth", "x.safetensors"))), "ran"))
        call = data.draw(st.sampled_from((
            _Runs(os.mkdir, str(trace)), _Runs(exec, f"open({str(trace)!r}, 'w')"), _Runs(Path.touch, trace),
            _Runs(eval, f"__import__('os').mkdir({str(trace)!r})"), _Runs(os.system, f"touch '{trace}'"))))
        network = _toy(TOLD)
        thing = data.draw(st.sampled_from((call, [call], dict(model=call), dict(network.state_dict()) | {"x": call},
                                           dict(metadata=call, model=network.state_dict(), average=None))))
        if data.draw(st.booleans()):
            path.write_bytes(pickle.dumps(thing, protocol=protocol))
        else:
            torch.save(thing, path, pickle_protocol=max(2, protocol), _use_new_zipfile_serialization=data.draw(
                st.booleans()))
        assert ask(path, network, folder) is None and not trace.exists()


@holds(40, member=st.sampled_from(("../out", "../../out", "/tmp/lesa-out", "net/../../out", "a\\..\\out", "C:\\out",
                                   "net/data.pkl", "net/data/0")), inside=st.booleans(), content=st.binary(max_size=40))
def test_an_archive_writes_nothing_elsewhere(member, inside, content):
    "Members that lead out of the folder, beside a sound archive or alone."
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "inner"
        folder.mkdir()
        path = folder / "net.pt"
        network = file_of(".pt", path)
        buffer = io.BytesIO(path.read_bytes() if inside else b"")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with zipfile.ZipFile(buffer, "a") as archive:
                archive.writestr(member, content)
        path.write_bytes(buffer.getvalue())
        ask(path, network, folder)
        assert os.listdir(outer) == ["inner"] and not Path("/tmp/lesa-out").exists()


@holds(30, name=names, made=st.booleans())
def test_functions_that_open_their_files_get_a_name_beside(name, made):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        with atomic_path(path) as beside:
            assert beside.parent == path.parent and beside != path and not path.exists()
            beside.write_bytes(b"x")
        assert path.read_bytes() == b"x" and os.listdir(folder) == [name]
