"""How often each feature of a world fires."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from sparse_but_wrong.figures.heatmaps import tick_positions, to_array
from sparse_but_wrong.figures.style import BLUE, paper_style


def firing_probabilities(
    probabilities: Float[Tensor, " n_features"] | Float[np.ndarray, " n_features"],
) -> Figure:
    """A bar for each feature's probability of firing, features numbered from 0.

    Raises:
        ValueError: no features, or a value that is no probability (the message names the first).
    """
    values = to_array(probabilities)
    if values.size == 0:
        raise ValueError("firing_probabilities got no probabilities: pass one for each feature.")
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if bad.size:
        raise ValueError(
            f"probabilities[{bad[0]}] is {values[bad[0]]}, which is no probability: "
            "pass values between 0 and 1."
        )
    with paper_style():
        figure = Figure(figsize=(3, 2))
        axes = figure.add_subplot()
        axes.bar(np.arange(values.size), values, width=0.8, color=BLUE)
        axes.set_xticks(tick_positions(values.size, at_most=10))
        axes.margins(x=0.01)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("Feature")
        axes.set_ylabel("$P_i$")
        axes.set_title("Feature firing probabilities $P_i$")
    return figure
