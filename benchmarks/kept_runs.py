"""Runs of small networks that are kept: each leaves weights, metadata and a row, and a study goes on where it stopped.

What every study of small networks shares; which runs there are, and on what, is the study's own.
"""

import json

import common

from lesa_nb.io.atomic import atomic_json
from lesa_nb.study.report import name_of
from lesa_nb.study.small import Trained, train_small
from lesa_nb.weights.files import save_weights
from lesa_nb.weights.load import load

#: largest learning rate of a run whose recipe names none
RATE = 1.5e-3
#: what of the machine is kept with a run
_MACHINE = ("date", "commit", "torch", "device", "threads")


def runs_folder(study, args):
    "The folder of a study's runs, beside the results."
    folder = common.RESULTS.parent / "runs" / f"{study}-{args.device}{'-quick' if args.quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def stem(folder, variant, term, net, seed):
    "The files of a run, without suffix."
    words = f"{variant} {term.replace('+', ' then ')} {' '.join(f'{k} {v}' for k, v in net.items())} seed {seed}"
    return folder / "-".join(words.replace(",", "").split())


def finished(path, wanted):
    "The metadata of a run that was made by this recipe, or None."
    if not path.with_suffix(".json").exists() or not path.with_suffix(".safetensors").exists():
        return None
    found = json.loads(path.with_suffix(".json").read_text())
    return found if found["recipe"] == wanted else None


def train_and_keep(path, wanted, problem, device):
    "One run, and its two files: the weights first, so that a JSON file means that all is there."
    run = train_small(
        problem,
        wanted["term"],
        steps=wanted["steps"],
        batch_size=wanted["batch_size"],
        lr=wanted.get("lr", RATE),
        seed=wanted["seed"],
        checks=wanted["checks"],
        device=device,
        net=wanted["net"],
    )
    window = max(1, wanted["steps"] // 40)  # curves are thinned: means of 40 stretches
    losses = [
        round(sum(part) / len(part), 4)
        for part in (run.losses[i : i + window] for i in range(0, len(run.losses), window))
    ]
    save_weights(run.model, path.with_suffix(".safetensors"), **run.metadata)
    machine = common.machine_metadata(device)
    where = {key: machine[key] for key in _MACHINE}
    atomic_json(
        path.with_suffix(".json"),
        dict(recipe=wanted, **where, metadata=run.metadata, curve=run.curve, losses=losses, losses_every=window),
        indent=None,
    )
    return run.metadata


def kept_row(path, found, held, row_of):
    """The row of a finished run: its metadata and what is found inside, kept beside it.

    held: called for the pictures of validation. row_of: (run, pictures) -> row, with the confusion among it.
    """
    kept = path.with_suffix(".row")
    if kept.exists() and kept.stat().st_mtime > path.with_suffix(".json").stat().st_mtime:
        return json.loads(kept.read_text())
    loaded = load(path.with_suffix(".safetensors"))
    row = row_of(Trained(loaded.model, loaded.metadata, [], found["curve"]), held(loaded.metadata))
    row |= {key: found[key] for key in ("losses", "losses_every", *_MACHINE)}
    right = sum(line[i] for i, line in enumerate(row["inside"]["mistakes"]["confusion"]))
    if abs(right - row["accuracy"] * row["pictures"]) > 2:
        raise ValueError(f"{path}: the weights are not those of the run: {right} right, {row['accuracy']:.1%} said")
    row = json.loads(json.dumps(row), parse_float=lambda digits: round(float(digits), 5))
    atomic_json(kept, row, indent=None)
    return row


def published(study, args):
    "What the study's file says by now; empty where there is none."
    path = common.results_path(study, args)
    return json.loads(path.read_text()) if path.exists() else {}


def _name(wanted):
    return name_of(dict(wanted["net"], term=wanted["term"]))


def elsewhere(wanted, known):
    "The row of a run by this recipe that another machine made, or None."
    recipe = dict(wanted["net"], lr=wanted.get("lr", RATE), name=_name(wanted))
    recipe |= {key: wanted[key] for key in ("variant", "seed", "steps", "batch_size")}
    for row in known:
        facts = row | row["net"]
        if all(facts.get(key) == value for key, value in recipe.items()):
            return row
    return None


def finished_and_missing(runs, row_of, known=()):
    """Rows of the finished runs, and the others by name.

    runs: (path, what decides the run) of each. row_of: (path, metadata of the finished run) -> row. known: rows of
    runs that another machine made; one stands where there is no run here and the same decides it.
    """
    rows, missing = [], []
    for path, wanted in runs:
        if found := finished(path, wanted):
            rows.append(row_of(path, found))
        elif row := elsewhere(wanted, known):
            rows.append(row)
        else:
            missing.append(f"{wanted['variant']}, {_name(wanted)}, seed {wanted['seed']}")
    return rows, missing
