"""Small COCO files with anything in them: a sound file, changed at a few places by hypothesis."""

import json
import math
import random

import numpy as np
from hypothesis import strategies as st
from pycocotools import mask as mask_tools

SIZES = ((48, 64), (40, 40), (64, 33), (50, 90), (32, 70))  # height and width of the pictures a, b, c, d, e
IDS = (11, 12, 25, 26, 40)
CATEGORIES = ((2, "cat"), (7, "dog"), (90, "hat"))
MISSING = "no such field"


def file_name(place):
    return f"{'abcde'[place]}.png"


def _polygon(rng, height, width):
    "A triangle or a rectangle, somewhere on the picture, and the box around it."
    w, h = rng.randint(4, width - 4), rng.randint(4, height - 4)
    x, y = rng.randint(0, width - w), rng.randint(0, height - h)
    points = [x, y, x + w, y, x + w, y + h] + ([x, y + h] if rng.random() < 0.5 else [])
    return [float(v) for v in points], [float(x), float(y), float(w), float(h)]


def sound_file(seed):
    "A file without a fault, with a crowd now and then."
    rng = random.Random(seed)
    count = rng.randint(1, len(SIZES))
    images = [dict(id=IDS[k], file_name=file_name(k), height=SIZES[k][0], width=SIZES[k][1]) for k in range(count)]
    annotations = []
    for image in images:
        for _ in range(rng.choice((0, 1, 2, 3, 5))):
            polygon, box = _polygon(rng, image["height"], image["width"])
            entry = dict(image_id=image["id"], category_id=rng.choice(CATEGORIES)[0], bbox=box, iscrowd=0,
                         segmentation=[polygon])
            drawn = mask_tools.frPyObjects([polygon], image["height"], image["width"])
            entry["area"] = float(mask_tools.area(drawn)[0])
            if rng.random() < 0.1:
                entry |= dict(iscrowd=1, segmentation=as_runs(entry["segmentation"], image, "list"))
            annotations.append(entry | dict(id=100 + len(annotations)))
    return dict(images=images, annotations=annotations, categories=[dict(id=i, name=n) for i, n in CATEGORIES])


def detections(content, seed, many=False):
    "Things found near the truth and elsewhere, with scores that tie; as COCO results with boxes and masks."
    rng, found = random.Random(seed), []
    for image in content["images"]:
        height, width = image["height"], image["width"]
        near = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        number = rng.choice((0, 1, 4, 8)) + (rng.randint(100, 160) if many else 0)
        for _ in range(number):
            polygon, box = _polygon(rng, height, width)
            label = rng.choice(CATEGORIES)[0]
            if near and rng.random() < 0.8:
                a = rng.choice(near)
                box = [v + rng.choice((0, 0, 1, -1, 3)) for v in a["bbox"]]
                x, y, w, h = box
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                label = a["category_id"] if rng.random() < 0.9 else label
            box[2:] = [max(v, 1.0) for v in box[2:]]
            rle = mask_tools.merge(mask_tools.frPyObjects([polygon], height, width))
            rle["counts"] = rle["counts"].decode()
            found.append(dict(image_id=image["id"], category_id=label, bbox=box, score=rng.randint(1, 9) / 10,
                              segmentation=rle))
    return found


def as_runs(segmentation, image, how):
    "The same outline as run lengths: compressed in a string, its bytes as a list, or a plain list of them."
    height, width = image["height"], image["width"]
    rle = mask_tools.merge(mask_tools.frPyObjects(segmentation, height, width))
    if how == "string":
        counts = rle["counts"].decode()
    elif how == "bytes":
        counts = list(rle["counts"])
    else:
        pixels = mask_tools.decode(rle).astype(bool).T.reshape(-1)
        changes = np.flatnonzero(np.diff(pixels, prepend=False))
        counts = np.diff(changes, prepend=0, append=pixels.size).tolist()
    return dict(size=[height, width], counts=counts)


# ---- changes: each takes the file, the detections and what hypothesis drew


def _entry(content, name, place):
    return content[name][place % len(content[name])] if content[name] else {}


def _image_of(content, annotation):
    return next((i for i in content["images"] if i.get("id") == annotation.get("image_id")), content["images"][0])


def set_field(content, found, name, place, field, value):
    entry = _entry(content, name, place)
    if value == MISSING:
        entry.pop(field, None)
    else:
        entry[field] = value


def repeat_field(content, found, name, place, field):
    "The field stands twice, as only a text can have it; the last one counts for everybody."
    entry = _entry(content, name, place)
    if field in entry:
        value = entry.pop(field)
        entry[field + "~"] = None
        entry[field] = value


def repeat_entry(content, found, name, place):
    if content[name]:
        content[name].append(dict(_entry(content, name, place)))


def number_annotations(content, found, how):
    for number, a in enumerate(content["annotations"]):
        a["id"] = {"zero": 0, "negative": -1 - number, "gaps": 7 * number * number + 3, "restart": number % 2 + 1,
                   "from zero": number, "huge": 2**40 + number}[how]


def number_images(content, found, how):
    new = {i["id"]: {"zero": k, "negative": -1 - k, "gaps": 1000 * k * k + 5, "reversed": 99 - k,
                     "huge": 2**40 + k}[how] for k, i in enumerate(content["images"])}
    for entry in content["images"]:
        entry["id"] = new[entry["id"]]
    for entry in content["annotations"] + found:
        entry["image_id"] = new.get(entry["image_id"], entry["image_id"])


def number_categories(content, found, how):
    new = {c["id"]: {"zero": k, "negative": -1 - k, "reversed": 99 - k, "huge": 2**40 + k}[how]
           for k, c in enumerate(content["categories"])}
    for entry in content["categories"]:
        entry["id"] = new[entry["id"]]
    for entry in content["annotations"] + found:
        entry["category_id"] = new.get(entry["category_id"], entry["category_id"])


def reverse(content, found, name):
    content[name].reverse()


def outline(content, found, place, how):
    annotation = _entry(content, "annotations", place)
    if isinstance(annotation.get("segmentation"), list):
        try:
            annotation["segmentation"] = as_runs(annotation["segmentation"], _image_of(content, annotation), how)
        except Exception:  # spoiled by a change before this one
            return


def crowd(content, found, place, how):
    annotation = _entry(content, "annotations", place)
    annotation["iscrowd"] = 1
    if how == "empty":
        image = _image_of(content, annotation)
        annotation["segmentation"] = dict(size=[image["height"], image["width"]],
                                          counts=[image["height"] * image["width"]])


def same_names(content, found):
    for category in content["categories"]:
        category["name"] = "thing"


def unused_category(content, found, place):
    content["categories"].insert(place % 4, dict(id=50, name="nobody", supercategory="none"))


def empty_pictures(content, found, place):
    image = _entry(content, "images", place)
    content["annotations"] = [a for a in content["annotations"] if a.get("image_id") != image.get("id")]


def no_annotations(content, found):
    content["annotations"] = []


def elsewhere(content, found, place, field):
    "An annotation of a picture or of a category that the file does not have."
    _entry(content, "annotations", place).update({field: 987654})


def more_fields(content, found, place, field):
    _entry(content, "annotations", place)[field] = {
        "ignore": 1, "score": 0.5, "rle": "x", "caption": "a cat", "keypoints": [0, 0, 0], "num_keypoints": 0,
        "lvis_mark": True, "counts": [1]}[field]


def many_detections(content, found):
    found[:] = detections(content, 5, many=True)


def nothing_found(content, found):
    found.clear()


def one_score(content, found):
    for result in found:
        result["score"] = 0.5


def unknown_class_found(content, found):
    for result in found[::3]:
        result["category_id"] = 555


def unknown_picture_found(content, found):
    if found:
        found[-1]["image_id"] = 123456789


numbers = st.integers(0, 30)
number = st.one_of(st.integers(-200, 200), st.floats(-200, 200, width=32))
coordinate = st.one_of(number, st.sampled_from((0.0, 1e-7, -1e-7, 3000.0, -3000.0)))
box = st.one_of(
    st.lists(coordinate, min_size=4, max_size=4), st.sampled_from((
        [0, 0, 0, 0], [5, 5, -3, 4], [500, 500, 9, 9], [-50, 3, 20, 20], [63.9999999, 3, 20, 20], [1e6, 0, 1, 1])))
bad_box = st.one_of(
    st.lists(coordinate, max_size=6).filter(lambda some: len(some) != 4), st.sampled_from((
        None, "", "1 2 3 4", {}, 7, [1, 2, None, 4], ["1", "2", "3", "4"], [1, 2, [3], 4], [math.nan, 1, 5, 5],
        [1, 1, math.inf, 5], [1, 1, 5, -math.inf], [True, 1, 5, 5], MISSING)))
polygon = st.lists(coordinate, max_size=11)
segmentation = st.one_of(
    st.lists(polygon, max_size=3), polygon, st.sampled_from((
        None, "", "x", 7, {}, [None], [[1, 2, 3, 4, 5, math.nan]], [[1, 2, 3, 4, 5, 1e12]], [[1, 2, 3, 4, 5, None]],
        [["1", "2", "9", "9", "1", "9"]], [["1", "2", "9", "9", "1", "nan"]], [[1, 1, 9, 1, 9, "1e9"]], [[], []],
        [[[1, 2], [3, 4], [9, 1]]], [[1, 1, 9, 9], [1, 1, 9, 1, 9, 9]], [[1, 1, 9, 1, 9, 9], [1, 1, 9, 9]],
        [[1, 1, 9, 1, 9, 9], []], [[5, 5, 20, 20]], [[1, 1, 30, 1, 30, 30, 7]], [[True, 1, 30, 1, 30, 30]], MISSING)),
    st.fixed_dictionaries(dict(
        size=st.sampled_from(([48, 64], [64, 48], [40, 40], [9, 9], [], None, "48", [48.0, 64.0], [48, 64, 1],
                              [-48, -64], [0, 0])),
        counts=st.one_of(st.sampled_from(([48 * 64], [100, 200, 48 * 64 - 300], [40 * 40], [81], [0, 81], [-3, 3075],
                                          None, "", "a1", "\u00fc", "o" * 30, {}, [], [3072.0], [47.5, 3024.5],
                                          [0, 1600.0], ["3072"], ["x"], [True, 3071], [[3072]])),
                         st.text(alphabet="0123456789:;<=>?@abcdefno", max_size=9)))))
odd = st.sampled_from((None, "", "7", 7, -3, 0, 1, 1.0, 1.5, 1e300, math.nan, math.inf, True, False, [], [7], {}, 2**70,
                       MISSING))


def _change(function, *arguments, sound=True):
    "A strategy of (function, drawn arguments, whether the file stays one that must be scored)."
    return st.tuples(st.just(function), st.tuples(*arguments), st.just(sound))


def _field_change(name, field, values, sound=True):
    return _change(set_field, st.just(name), numbers, st.just(field), values, sound=sound)


fields = st.sampled_from((
    ("images", "id"), ("images", "height"), ("images", "width"), ("images", "file_name"), ("categories", "id"),
    ("categories", "name"), ("annotations", "id"), ("annotations", "image_id"), ("annotations", "category_id"),
    ("annotations", "area"), ("annotations", "iscrowd")))
ids_of_annotations = st.sampled_from(("zero", "negative", "gaps", "restart", "from zero", "huge"))
change = st.one_of(
    fields.flatmap(lambda names: _field_change(*names, odd, sound=False)),
    _field_change("annotations", "bbox", box), _field_change("annotations", "bbox", bad_box, sound=False),
    *[_field_change("annotations", "segmentation", segmentation)] * 2,
    _field_change("annotations", "area", st.one_of(number, st.sampled_from((None, MISSING)))),
    _field_change("annotations", "iscrowd", st.sampled_from((None, MISSING, True, False, 1.0))),
    fields.flatmap(lambda names: _change(repeat_field, st.just(names[0]), numbers, st.just(names[1]))),
    _change(repeat_entry, st.just("annotations"), numbers),
    _change(repeat_entry, st.just("images"), numbers, sound=False),
    _change(repeat_entry, st.just("categories"), numbers, sound=False),
    _change(number_annotations, ids_of_annotations),
    _change(number_images, st.sampled_from(("zero", "negative", "gaps", "reversed", "huge"))),
    _change(number_categories, st.sampled_from(("zero", "negative", "reversed", "huge"))),
    _change(reverse, st.sampled_from(("images", "annotations", "categories"))),
    _change(outline, numbers, st.sampled_from(("string", "bytes", "list"))),
    _change(crowd, numbers, st.sampled_from(("as it is", "empty"))),
    _change(same_names), _change(unused_category, numbers), _change(empty_pictures, numbers), _change(no_annotations),
    _change(elsewhere, numbers, st.sampled_from(("image_id", "category_id"))),
    _change(more_fields, numbers, st.sampled_from(
        ("ignore", "score", "rle", "caption", "keypoints", "num_keypoints", "lvis_mark", "counts"))),
    _change(many_detections), _change(nothing_found), _change(one_score), _change(unknown_class_found),
    _change(unknown_picture_found, sound=False))


def as_text(content):
    "The file's text; a field that stands twice stands twice."
    return json.dumps(content).replace('~":', '":')
