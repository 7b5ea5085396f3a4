"""What does LESA cost in a whole network?

    python benchmarks/networks.py      # 2-core CPU: about 8 minutes; or in pieces: --only resnet50-train, ...

Images per second at 224x224, batch 8, of lesa_resnet50 and lesa_wrn50 (as they come, with the published way to the
context sums, with folded norms, and in channels_last) against torchvision's ResNet-50 and WRN-50-2, and timm's
botnet26t_256 where timm is installed. The ratio of operations is the floor: a network that does more cannot be faster
at equal efficiency.
Convolutions run at another speed than attention, so the time inside the context terms is measured too.
"""

import torch
import torchvision
from as_published import as_published
from common import arguments, chosen, peak_mb, save, seconds, start
from torch.utils.flop_counter import FlopCounterMode

from lesa_nb.layers.context import Context, explicit
from lesa_nb.layers.lesa import attend_with
from lesa_nb.models.resnet import lesa_resnet50, lesa_wrn50
from lesa_nb.weights.folding import fold_norms

QUESTION = "What does LESA cost in a whole network, in images per second?"
FAMILIES = {
    "resnet50": (lesa_resnet50, torchvision.models.resnet50),
    "wrn50": (lesa_wrn50, torchvision.models.wide_resnet50_2),
}


def operations(network, x):
    "Multiply-adds of one forward pass, counted on the written-out form."
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta").eval()(torch.empty_like(x, device="meta"))
    return counter.get_total_flops() / 2


def in_context(network, work):
    "Seconds of one call of `work` that pass inside context terms."
    import time

    spent, started = [0.0], []

    def before(*_):
        started.append(time.perf_counter())

    def after(*_):
        spent[0] += time.perf_counter() - started.pop()

    hooks = [
        h
        for m in network.modules()
        if isinstance(m, Context)
        for h in (m.register_forward_pre_hook(before), m.register_forward_hook(after))
    ]
    work()
    for hook in hooks:
        hook.remove()
    return spent[0]


def measure(family, modes, batch, size, args):
    ours, theirs = FAMILIES[family]
    device = args.device
    x = torch.randn(batch, 3, size, size, device=device)
    y = torch.randint(1000, (batch,), device=device)
    networks = {
        "torchvision": theirs(weights=None),
        "LESA": ours(image_size=size),
        "LESA, published way": attend_with(ours(image_size=size), as_published),
    }
    if family == "resnet50":
        try:
            import timm

            networks["timm botnet26t_256"] = timm.create_model("botnet26t_256", img_size=size)
        except ImportError:
            pass
    for name, build in {"torchvision": lambda: theirs(weights=None), "LESA": lambda: ours(image_size=size)}.items():
        networks[f"{name}, channels_last"] = build().to(memory_format=torch.channels_last)
    networks = {n: m.to(device) for n, m in networks.items()}
    x_last = x.to(memory_format=torch.channels_last)

    def images_of(name):
        return x_last if name.endswith("channels_last") else x

    def autocast():
        return torch.autocast(device, torch.bfloat16, enabled=args.bf16)

    def train(m, images):
        with autocast():
            loss = torch.nn.functional.cross_entropy(m(images), y)
        loss.backward()

    @torch.no_grad()
    def infer(m, images):
        with autocast():
            m(images)

    row = dict(name=family, family=family, batch=batch, size=size, bf16=args.bf16)
    if "train" in modes:
        trained = {n: lambda m=m.train(), i=images_of(n): train(m, i) for n, m in networks.items()}
        row["train"] = dict(
            images_per_second={n: batch / s for n, s in seconds(trained, device, args.rounds).items()},
            peak_mb={n: peak_mb(w, device) for n, w in trained.items()},
        )
    if "inference" in modes:
        for m in networks.values():
            m.eval()
        networks["LESA, folded"] = fold_norms(networks["LESA"])
        inferred = {n: lambda m=m, i=images_of(n): infer(m, i) for n, m in networks.items()}
        row["inference"] = dict(
            images_per_second={n: batch / s for n, s in seconds(inferred, device, args.rounds).items()},
            peak_mb={n: peak_mb(w, device) for n, w in inferred.items()},
        )
        if device == "cpu":
            row["inference"]["seconds_in_context"] = in_context(networks["LESA"], inferred["LESA"])
    row["operations"] = {
        "torchvision": operations(theirs(weights=None), x),
        "LESA": operations(attend_with(ours(image_size=size), explicit), x),
    }
    row["ratio_of_operations"] = row["operations"]["torchvision"] / row["operations"]["LESA"]
    for mode in modes:
        speed = row[mode]["images_per_second"]
        row[mode]["ratio"] = {n: s / speed["torchvision"] for n, s in speed.items()}
        row[mode]["ratio_in_channels_last"] = speed["LESA, channels_last"] / speed["torchvision, channels_last"]
        print(
            f"{family} {mode}: "
            + "  ".join(f"{n} {s:.2f}/s ({row[mode]['ratio'][n]:.2f})" for n, s in speed.items())
            + f"  | ratio of operations {row['ratio_of_operations']:.2f}",
            flush=True,
        )
    return row


if __name__ == "__main__":
    parser = arguments(QUESTION)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--batch", type=int, default=8)
    args = start(parser)
    families, sizes = (["resnet50"], (2, 64)) if args.quick else (list(FAMILIES), (args.batch, 224))
    names = chosen([f"{family}-{mode}" for family in families for mode in ("train", "inference")], args)
    work = {family: [n.split("-")[1] for n in names if n.startswith(family)] for family in families}
    save(
        "networks" + ("-bf16" if args.bf16 else ""),
        QUESTION,
        [measure(family, modes, *sizes, args) for family, modes in work.items() if modes],
        args,
    )
