"""Which of convolution, plain attention and LESA learns what, and where does each fail?

    python benchmarks/study.py --threads 1          # 2-core CPU: about 50 minutes of one core
    python benchmarks/study.py --collect            # only measure and gather what is finished
    python benchmarks/study.py --device cuda --full # full-size networks on 224 x 224 pictures

Small networks of about equal size, trained alike (see nbs/22_study.ipynb) on the generated task, on harder versions of it
and on handwritten digits. Every finished run leaves its weights and its facts in benchmarks/runs/, so an interrupted study
goes on where it stopped. What the networks do inside is measured afterwards, from the weights (nbs/22a_three_way.ipynb).
"""
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import RESULTS, ROOT, arguments, facts, save, start

from lesa_nb import study
from lesa_nb.data import Pictures, chunks, find_twin
from lesa_nb.resnet import lesa_resnet50
from lesa_nb.training import adamw_onecycle, evaluate, save_weights, seed_everything, train_steps

QUESTION = "Convolution, plain attention, LESA: who learns what, and where does each fail?"
VARIANTS = {  # name -> knobs of find_twin; None: the digits
    "find the twin": {}, "digits": None, "twin, unaligned": dict(aligned=False), "twin, clutter": dict(clutter=24),
}
DEEP = dict(blocks=8)  # as many convolutions as it takes to see the whole map


def plan(quick):
    "All runs, the ones that matter most first: (variant, term, options of the network, seed)."
    three = list(study.INNER)
    if quick: return [(v, t, {}, s) for v in VARIANTS for t in ("lesa", "attention", "conv") for s in (0, 1)][:12] + [("find the twin", "ungated", {}, 0)]
    runs = [("find the twin", t, {}, s) for s in range(3) for t in three]
    runs += [("digits", t, {}, s) for t in study.TERM_NAMES for s in range(5)]
    runs += [("find the twin", t, {}, s) for s in range(3) for t in ("ungated", "conv+attention")]
    for seeds in ([0], [1, 2]):
        runs += [(v, t, {}, s) for v in ("twin, unaligned", "twin, clutter") for s in seeds for t in three]
        if seeds == [0]: runs.append(("find the twin", "conv", DEEP, 0))
    return runs


def task_of(variant, quick):
    if VARIANTS[variant] is None: return study.digit_task()
    return study.twin_task(valid=128 if quick else 1024, **VARIANTS[variant])._replace(name=variant)


def recipe(variant, term, net, seed, args):
    "What decides a run, besides the code."
    return dict(variant=variant, knobs=VARIANTS[variant], term=term, net=net, seed=seed, steps=args.steps, batch_size=32, checks=12, device=args.device)


def stem(folder, variant, term, net, seed):
    "The files of a run, without suffix."
    words = f"{variant} {term.replace('+', ' then ')} {' '.join(f'{k} {v}' for k, v in net.items())} seed {seed}"
    return folder/"-".join(words.replace(",", "").split())


def finished(path, wanted):
    "The facts of a run that was made by this recipe, or None."
    if not path.with_suffix(".json").exists() or not path.with_suffix(".safetensors").exists(): return None
    found = json.loads(path.with_suffix(".json").read_text())
    return found if found["recipe"] == wanted else None


def train(path, wanted, args):
    "One run, and its two files: the weights first, so that a JSON file means that all is there."
    run = study.train_small(task_of(wanted["variant"], args.quick), wanted["term"], steps=args.steps, batch_size=wanted["batch_size"], seed=wanted["seed"],
                            checks=wanted["checks"], device=args.device, **wanted["net"])
    window = max(1, args.steps//40)  # curves are thinned: means of 40 stretches
    losses = [round(sum(part)/len(part), 4) for part in (run.losses[i:i + window] for i in range(0, len(run.losses), window))]
    save_weights(run.model, path.with_suffix(".safetensors"), **run.facts)
    where = {key: value for key, value in facts(args.device).items() if key in ("date", "commit", "torch", "device", "threads")}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(dict(recipe=wanted, **where, facts=run.facts, curve=run.curve, losses=losses, losses_every=window)))
    part.replace(path.with_suffix(".json"))


def main(args):
    folder = ROOT/"benchmarks"/"runs"/f"study-{args.device}{'-quick' if args.quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    todo = [(stem(folder, *run), recipe(*run, args)) for run in plan(args.quick)]
    for path, wanted in ([] if args.collect else todo):
        if finished(path, wanted): continue
        train(path, wanted, args)
        f = finished(path, wanted)["facts"]
        print(f"{path.name}: {f['accuracy']:.1%}, {f['cpu_seconds']} CPU seconds, {f['seconds']} s", flush=True)


if __name__ == "__main__":
    parser = arguments(QUESTION)
    parser.add_argument("--steps", type=int, help="steps of every small network; 600 if not given")
    parser.add_argument("--collect", action="store_true", help="train nothing; measure and gather what is finished")
    args = start(parser)
    args.steps = args.steps or (3 if args.quick else 600)
    main(args)
