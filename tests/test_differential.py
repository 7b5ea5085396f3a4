"""The same numbers as the field's own tools: COCO files with anything in them, scored here and by pycocotools."""

import contextlib
import copy
import io
import math
import os
import re

import hypothesis
import numpy as np
import pytest
from coco_mutations import SIZES, as_text, change, detections, file_name, sound_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lesa_nb.data.coco import CocoFolder
from lesa_nb.tasks.coco_eval import score_results

SEED = int(os.environ.get("LESA_SEED", 0))  #: another seed tries other files
EXAMPLES = 50  # of one seed
SEEDS = [pytest.param(SEED, id=f"seed {SEED}")] + [
    pytest.param(seed, id=f"seed {seed}", marks=pytest.mark.slow) for seed in range(SEED + 1, SEED + 10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    (root / "val2017").mkdir()
    for place, (height, width) in enumerate(SIZES):
        Image.new("RGB", (width, height)).save(root / "val2017" / file_name(place))
    return root


# ---- what pycocotools says


def runs_of(counts):
    "Compressed run lengths as numbers, by the format's own rule; None if the text ends in the middle."
    runs, place, text = [], 0, counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else bytes(counts)
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            if place >= len(text):
                return None
            sign = text[place] - 48
            value |= (sign & 31) << (5 * shift)
            more = bool(sign & 32)
            place, shift = place + 1, shift + 1
            if not more and sign & 16:
                value |= -1 << (5 * shift)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def readable(outline, height, width):
    "Whether pycocotools makes a mask of an outline; not where it raises, never ends or reads beyond its memory."
    if isinstance(outline, list):
        try:
            every = [float(v) for polygon in outline if isinstance(polygon, list) for v in polygon]
        except (TypeError, ValueError):
            return False
        if not all(abs(v) <= 1e5 for v in every):
            return False
    elif isinstance(outline, dict):
        counts, size = outline.get("counts"), outline.get("size")
        if not (isinstance(size, list) and len(size) == 2 and all(type(v) is int and v > 0 for v in size)):
            return False
        if isinstance(counts, str):
            counts = runs_of(counts)
        try:
            counts = [int(run) for run in counts]
        except (TypeError, ValueError):
            return False
        if not all(0 <= run < 2**32 for run in counts):
            return False
        if sum(counts) != size[0] * size[1]:
            return False
    else:
        return False
    try:
        if isinstance(outline, list):
            mask_tools.area(mask_tools.merge(mask_tools.frPyObjects(outline, height, width)))
        elif isinstance(outline["counts"], list):
            mask_tools.area(mask_tools.frPyObjects(outline, height, width))
    except Exception:
        return False
    return True


def filled(content):
    "What is harmless, filled in: no flag, no area; ids of annotations that pycocotools would confuse."
    content = copy.deepcopy(content)
    for a in content["annotations"]:
        a["iscrowd"] = a.get("iscrowd") or 0
        if a.get("area") is None:
            a["area"] = a["bbox"][2] * a["bbox"][3]
    ids = [a.get("id") for a in content["annotations"]]
    if len(set(ids)) < len(ids) or not all(ids):
        for new, a in enumerate(content["annotations"], 1):
            a["id"] = new
    return content


def official(content, found, kind):
    "The twelve numbers of pycocotools, nan where there is nothing to find."
    content = filled(content)
    if kind == "segm":
        sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in sizes
                                  or readable(a.get("segmentation"), *sizes[a["image_id"]])]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, answers = COCO(), COCO()
        truth.dataset = content
        truth.createIndex()
        wanted = "bbox" if kind == "bbox" else "segmentation"
        results = [{k: r[k] for k in ("image_id", "category_id", "score", wanted)} for r in copy.deepcopy(found)]
        if results:
            answers = truth.loadRes(results)
        else:
            answers.dataset = dict(images=content["images"], categories=content["categories"], annotations=[])
            answers.createIndex()
        run = COCOeval(truth, answers, kind)
        run.evaluate(), run.accumulate(), run.summarize()
    return np.where(run.stats < 0, math.nan, run.stats)


# ---- and what is said here

PLACE = re.compile(r"entry \d+ of (images|categories|annotations)|image -?\d+|annotation -?\d+|no categories|no images"
                   r"|none of \d+ images|category -?\d+")


def ours(folder, text, found):
    "Scores, or the sentence that refuses."
    (folder / "annotations" / "instances_val2017.json").write_text(text)
    try:
        dataset = CocoFolder(folder, "val2017")
        results = {i: [] for i in dataset.image_ids}
        for result in found:
            results.setdefault(result["image_id"], []).append(result)
        return score_results(dataset, results)
    except ValueError as error:
        return str(error)


def compare(folder, base, changes, seed_of_results):
    "Score one file both ways; returns what was said here."
    content = sound_file(base)
    found = detections(content, seed_of_results)
    sound = True
    for function, arguments, stays_sound in changes:
        try:
            function(content, found, *copy.deepcopy(arguments))
        except (TypeError, KeyError, ValueError, IndexError, AttributeError):
            continue  # a change before this one has spoiled what it would change
        sound &= stays_sound
    text = as_text(content)
    for name in "images", "annotations", "categories":
        content[name] = [{k: v for k, v in entry.items() if k[-1:] != "~"} for entry in content[name]]
    said = ours(folder, text, copy.deepcopy(found))
    if isinstance(said, str):
        assert not sound, f"refused, but the file is sound: {said}"
        assert PLACE.search(said) and len(said.splitlines()) <= 7, f"a refusal that names no entry: {said}"
        return said
    for kind, numbers in ("bbox", said.box), ("segm", said.mask):
        if numbers is not None:
            np.testing.assert_allclose(list(numbers.values()), official(content, found, kind), rtol=0, atol=1e-6,
                                       err_msg=kind)
    return said


@pytest.mark.fault("C1", "C4", "C7", "C10")
@pytest.mark.parametrize("seed", SEEDS)
def test_pycocotools_says_the_same_or_the_entry_is_named(folder, seed):
    said = []

    @hypothesis.seed(seed)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, print_blob=False,
              suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 999), st.lists(change, max_size=4), st.integers(0, 99))
    def files(base, changes, results):
        said.append(compare(folder, base, changes, results))

    files()
    scored = [s for s in said if not isinstance(s, str)]
    assert len(said) >= EXAMPLES and len(scored) > len(said) / 3, "most files are refused: nothing is compared"
    assert any(s.mask and s.mask["AP"] > 0 for s in scored)
