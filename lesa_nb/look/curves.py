"""Curves of a run: loss and scores against its epochs, drawn once or again after each epoch."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lesa_nb.look._text import no_formulas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves", "live"]


def curves(events: Iterable[dict[str, Any]], title: str | None = None) -> Figure:
    """Loss and scores of a run against its epochs.

    Args:
        events: What happened: `read_log` of the run's folder, or what `fit` yielded.
        title: The finding.

    Raises:
        ValueError: There is no step among the events.
    """
    import matplotlib.pyplot as plt

    from lesa_nb.look.figures import OTHERS, new_figure

    events = list(events)
    steps, valid = ([e for e in events if e["kind"] == kind] for kind in ("step", "valid"))
    if not steps:
        raise ValueError("no steps in the log of this run yet: nothing to draw")
    per_epoch = next(e["steps"] for e in events if e["kind"] == "start")
    fig, (left, right) = new_figure(1, 2, size=(7.6, 2.8), title=no_formulas(title or ""))
    places = [e["epoch"] + e["step"]/per_epoch for e in steps]
    left.plot(places, [e["loss"] for e in steps], color=OTHERS[0], lw=1.2)
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    names = [name for name in (valid[0]["scores"] if valid else ()) if "loss" not in name]
    hues = [*OTHERS, *plt.get_cmap("tab10").colors[:6]]  # type: ignore[attr-defined]
    for n, name in enumerate(names):
        scores = [e["scores"].get(name) for e in valid]
        epochs, style = [e["epoch"] + 1 for e in valid], ("-", "--", ":")[n // 10 % 3]
        right.plot(epochs, scores, style, color=hues[n % 10], marker="o", ms=3, label=name)
    right.set(xlabel="epochs", ylabel=f"{names[0] if len(names) == 1 else 'scores'} on validation images")
    right.locator_params(axis="x", integer=True)
    if len(names) > 1:
        right.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))  # not on a curve
    return fig


def live(events: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """In a notebook: passes the events of `fit` on, and draws the curves so far anew after each epoch."""
    from IPython.display import display

    from lesa_nb.look.figures import as_image

    handle, seen = None, []
    for event in events:
        yield event
        seen.append(event)
        if event["kind"] != "valid":
            continue
        scores = ", ".join(f"{name} {value:.1f}" for name, value in event["scores"].items())
        picture = as_image(curves(seen, f"epoch {event['epoch'] + 1}: {scores}"))  # a figure would show itself again
        if handle:
            handle.update(picture)
        else:
            handle = display(picture, display_id=True)
