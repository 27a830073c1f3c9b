"""A loss as heat maps side by side, rank by layer, with one colour scale: before, after the loss, the repair and rebalancing."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from dynamo_gpu_ft.cli.experts_view import TITLES, mean, relative
from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts.spread import Spread


def draw(
    shown: Sequence[tuple[str, Spread]], dead: Sequence[int], path: str, *, title: str
) -> None:
    """Writes a PNG. Raises `PlacementError` with the command that installs matplotlib where it is missing."""
    try:
        figure_of: Any = importlib.import_module("matplotlib.figure")
        patches: Any = importlib.import_module("matplotlib.patches")
    except ImportError as error:
        raise PlacementError(
            "a plot needs matplotlib", value=str(error), remedy="pip install 'dynamo-gpu-ft[plot]'"
        ) from error
    grids = [[[relative(one, x, r) for r in range(len(one.tokens[0]))] for x in range(len(one.tokens))] for _, one in shown]  # fmt: skip
    highest = max(max(map(max, grid)) for grid in grids)
    figure = figure_of.Figure(figsize=(4.6 * len(shown) + 1.4, 5.6), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    image = None
    for axis, (name, one), grid in zip(axes, shown, grids, strict=True):
        cells = [
            [float("nan") if name != "before" and r in dead else v for r, v in enumerate(row)]
            for row in grid
        ]
        axis.set_facecolor("white")
        image = axis.imshow(cells, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2, interpolation="nearest")  # fmt: skip
        lost = sum(one.lost)
        note = f"balance {mean(one.balance):.3f}"
        note += f", {100 * one.lost_share:.1f} % of tokens uncovered" if lost else ", all covered"
        axis.set_title(f"{TITLES[name]}\n{note}", fontsize=11)
        axis.set_xlabel("rank")
        if name != "before":
            for rank in dead:
                axis.add_patch(patches.Rectangle((rank - 0.5, -0.5), 1, len(cells), fill=False, hatch="////", edgecolor="0.45", linewidth=0))  # fmt: skip
            for rank in dead:
                axis.text(rank, len(cells) / 2, "dead", rotation=90, ha="center", va="center", fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axes[0].set_ylabel("MoE layer")
    bar = figure.colorbar(
        image, ax=list(axes), shrink=0.9, pad=0.01, extend="max" if highest > 2 else "neither"
    )
    bar.set_label("tokens of the rank / mean of the live ranks (white = even)")
    figure.suptitle(title, fontsize=13)
    figure.savefig(path, dpi=110, format="png")
