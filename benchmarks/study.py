"""Which of convolution, plain attention and LESA learns what, and where does each fail?

    python benchmarks/study.py --threads 1          # 2-core CPU: about an hour of one core
    python benchmarks/study.py --collect            # only measure and gather what is finished
    python benchmarks/study.py --device cuda --full # full-size networks on 224 x 224 pictures
    python benchmarks/study.py --task fashion --data DIR --threads 1   # Fashion-MNIST: about 35 minutes of one core

Small networks of about equal size, trained alike (see nbs/3_training/19_three_networks.ipynb) on the generated task,
on harder versions of it and on handwritten digits; with --task fashion on photographs of clothes (fashion.py): DIR
holds them as torchvision keeps them, FashionMNIST/raw/...-ubyte, and --download gets them. Every finished run leaves
its weights and its metadata in benchmarks/runs/, so an interrupted study goes on where it stopped. What the networks do
inside is measured afterwards, from the weights (nbs/6_evidence/30_seeds.ipynb). Rows of the published file that were
made elsewhere by the same recipe stay.
"""

import fashion
import torch
import torch.nn.functional as F
from common import arguments, save, start
from kept_runs import elsewhere, finished, finished_and_missing, kept_row, published, runs_folder, stem, train_and_keep

from lesa_nb.data.pictures import Samples, find_twin
from lesa_nb.models.resnet import lesa_resnet50
from lesa_nb.study import small as study
from lesa_nb.study.inside import study_row
from lesa_nb.study.report import LIMITS, score_table
from lesa_nb.study.seeds import verdicts
from lesa_nb.tasks.side_by_side import train_terms

QUESTION = "Convolution, plain attention, LESA: who learns what, and where does each fail?"
VARIANTS = {  # name -> knobs of find_twin; None: the digits
    "find the twin": {},
    "twin, batch of 64": {},
    "digits": None,
    "twin, unaligned": dict(aligned=False),
    "twin, clutter": dict(clutter=24),
}
RECIPES = {
    "twin, batch of 64": dict(steps=600, batch_size=64, lr=2e-3)
}  # what differs from 600 steps of 32 pictures, rate 1.5e-3
DEEP = dict(blocks=8)  # as many convolutions as it takes to see the whole map


def plan(quick):
    "All runs, the ones that matter most first: (variant, term, options of the network, seed)."
    three = list(study.INNER)
    if quick:
        return [
            ("find the twin", "lesa", {}, 0),
            ("find the twin", "ungated", {}, 0),
            ("digits", "conv", DEEP, 0),
            ("twin, unaligned", "attention", {}, 0),
        ]
    runs = [("find the twin", t, {}, s) for s in range(3) for t in three]
    runs += [("digits", t, {}, s) for t in study.TERM_NAMES for s in range(3)]
    for seeds in ([0], [1, 2]):
        runs += [("find the twin", t, {}, s) for s in seeds for t in ("ungated", "conv+attention")]
        if seeds == [0]:
            runs += [("twin, batch of 64", t, {}, s) for t in ("lesa", "conv", "attention") for s in range(5)]
        runs += [
            (v, t, {}, s)
            for v in ("twin, unaligned", "twin, clutter")
            for s in seeds
            for t in ("lesa", "conv", "attention")
        ]
        if seeds == [0]:
            runs.append(("find the twin", "conv", DEEP, 0))
    return runs


def problem_of(variant, quick):
    if VARIANTS[variant] is None:
        return study.digit_problem()
    return study.twin_problem(valid=128 if quick else 1024, **VARIANTS[variant])._replace(name=variant)


def recipe(variant, term, net, seed, args):
    "What decides a run, besides the code."
    return dict(
        variant=variant,
        knobs=VARIANTS[variant],
        term=term,
        net=net,
        seed=seed,
        steps=args.steps,
        batch_size=32,
        checks=12,
        device=args.device,
    ) | ({} if args.quick else RECIPES.get(variant, {}))


def train(path, wanted, args):
    "One run, kept in its two files."
    train_and_keep(path, wanted, problem_of(wanted["variant"], args.quick), args.device)


def measured(path, found):
    "The row of a finished run: its metadata and what is found inside, kept beside it."
    knobs = found["recipe"]["knobs"]

    def held(metadata):
        if knobs is None:
            return study.digit_problem().valid
        return find_twin(metadata["pictures"], torch.Generator().manual_seed(2**31), **knobs)

    return kept_row(path, found, held, study_row)


def gather(runs, args):
    "Every finished run into one file, whoever made it and when; what is missing by name."
    rows, missing = finished_and_missing(runs, measured, known=published("study", args).get("rows", ()))
    missing.insert(0, "full-size networks at 224 x 224: python benchmarks/study.py --device cuda --full")
    if rows:
        save("study", QUESTION, rows, args, steps=args.steps, limits=LIMITS, not_run=missing)
    return rows, missing


def small(args):
    "All small networks: train what is not there, measure, gather."
    folder = runs_folder("study", args)
    runs = [(stem(folder, *run), recipe(*run, args)) for run in plan(args.quick)]
    known = published("study", args).get("rows", ()) if args.missing else ()
    for path, wanted in runs:
        if args.collect or wanted["variant"] not in (args.variant or VARIANTS) or finished(path, wanted):
            continue
        if elsewhere(wanted, known):
            continue
        train(path, wanted, args)
        f = finished(path, wanted)["metadata"]
        print(f"{path.name}: {f['accuracy']:.1%}, {f['cpu_seconds']} CPU seconds, {f['seconds']} s", flush=True)
        gather(runs, args)
    rows, missing = gather(runs, args)
    print(score_table(rows))
    for variant in dict.fromkeys(row["variant"] for row in rows):
        for line in verdicts(rows, variant):
            print(line)
    print("not run:", *missing, sep="\n  ")


# Full-size networks on larger pictures


def large_twins(n, side, generator, device="cpu"):
    "Twin pictures with clutter and marks anywhere, enlarged to side x side on the device."
    images, labels = find_twin(n, generator, aligned=False, clutter=24)[:2]
    return Samples(F.interpolate(images.to(device), (side, side)), labels.to(device))


def large_problem(side, valid, device):
    "The harder twin on large pictures: validated on a fixed set, trained on pictures drawn as they are asked for."
    held = large_twins(valid, side, torch.Generator().manual_seed(2**31))

    def batches(batch_size, steps, generator):
        return (large_twins(batch_size, side, generator, device) for _ in range(steps))

    name = f"twin {side} x {side}, unaligned, clutter"
    return study.Problem(name, dict(classes=3, channels=3, size=side), batches, held)


def full(args):
    "LESA-ResNet-50 and its two controls, from scratch."
    side, steps, batch, valid, seeds = (64, 2, 2, 4, 1) if args.quick else (224, 3000, 64, 4096, 3)

    def train(problem, term, **recipe):
        net = dict(arch="lesa_resnet50", term=term)
        return study.train_network(
            lambda: lesa_resnet50(num_classes=3, image_size=side, term=term), problem, net=net, **recipe
        )

    rows, problem = [], large_problem(side, valid, args.device)
    recipe = dict(steps=steps, batch_size=batch, lr=1e-3, checks=12, device=args.device)
    for seed in range(seeds):
        for term, run in train_terms(train, problem, seed=seed, **recipe):
            row = dict(run.metadata, variant=problem.name, name=study.TERM_NAMES[term])
            rows.append(row | dict(curve=run.curve, losses=run.losses[:: max(1, steps // 40)]))
            save("study-full", QUESTION, rows, args, side=side, steps=steps)
    print(score_table(rows))


if __name__ == "__main__":
    parser = arguments(QUESTION)
    parser.add_argument(
        "--task",
        choices=["twins", "fashion"],
        default="twins",
        help="twins: the generated task, its harder versions, and digits; fashion: Fashion-MNIST",
    )
    parser.add_argument("--steps", type=int, help="steps of every small network; 600 if not given")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, help="train these alone; the rest stays as it is")
    parser.add_argument("--missing", action="store_true", help="train what the published file does not have")
    parser.add_argument("--collect", action="store_true", help="train nothing; measure and gather what is finished")
    parser.add_argument("--full", action="store_true", help="full-size networks on 224 x 224 pictures; for a GPU")
    fashion.add_arguments(parser.add_argument_group("with --task fashion"))
    args = start(parser)
    if args.task == "fashion":
        fashion.main(args)
        raise SystemExit
    args.steps = args.steps or (3 if args.quick else 600)
    (full if args.full else small)(args)
