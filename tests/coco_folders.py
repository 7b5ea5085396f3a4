"""Changes of drawn COCO folders for the tests: any, by a function of the annotation file, and one of each fault."""

import json
import math


def edit(folder, change, split="train2017"):
    "Change the annotation file by a function of its content."
    path = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return content


#: what `plant_faults` plants and a reader leaves out
PLANTED = {
    "no area",
    "box outside the image",
    "box not finite",
    "polygon of fewer than 3 points",
    "empty segmentation",
    "unknown category",
}


def plant_faults(content, *, least=1):
    """One of each fault in the first object of an image each; returns the objects of the images after those.

    least: spoil images of so many objects or more.
    """
    of = {}
    for a in content["annotations"]:
        of.setdefault(a["image_id"], []).append(a)
    groups = iter([found for found in of.values() if len(found) >= least and not any(a["iscrowd"] for a in found)])
    for values in (
        dict(bbox=[9, 9, 0, 0]),
        dict(bbox=[999, 9, 20, 20]),
        dict(bbox=[9, math.nan, 20, 20]),
        dict(segmentation=[[9, 9, 20, 20]]),
        dict(segmentation=[]),
        dict(category_id=777),
        dict(id=content["annotations"][0]["id"]),
    ):
        next(groups)[0].update(values)
    return groups
