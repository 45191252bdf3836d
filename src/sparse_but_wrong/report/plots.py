"""The interactive plots of a run: s_n over L0, SAE by SAE through the sweep, and training.

A table has a row per SAE in order of L0, those without a finite L0 last, and `projections` the same
rows. Names from a run are escaped, since plotly reads some HTML in whatever it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparse_but_wrong.report.page import format_number
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.threads import threads_per_operation

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MOST_SIDE = 128
"""Rows and columns of a matrix of cosines that are shown."""

_MOST_SAES, _MOST_CELLS = 200, 1_000_000
_MOST_N, _MOST_PROJECTIONS = 512, 200_000
_MOST_CURVE_POINTS, _FEWEST_STEPS, _MOST_STEPS = 8_000, 40, 400
_MOST_CLASSES = 8
_TOLD = (
    *("l0", "mcc", "mean_max_cosine", "f1"),
    *("variance_explained", "mse", "c_dec", "dead_latents"),
)
_PALETTE = ("#2a87c8", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#808080", "#7b61c9")
_GREY = {"color": "#888888", "width": 1.5}
_TRUTH = {"color": "#e03030", "dash": "dash", "width": 1.5}
# Viridis without the end that does not show on white.
_SCALE = ["#443983", "#31688e", "#21918c", "#35b779", "#7ad151"]
_S_N = "s<sub>n</sub><sup>dec</sup>"


def in_order_of_l0(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table of results in order of L0; an L0 that is not finite becomes NaN."""
    l0 = table["l0"].to_numpy(float, na_value=np.nan) if "l0" in table else np.nan
    return table.assign(l0=np.where(np.isfinite(l0), l0, np.nan)).sort_values("l0", kind="stable")


def spread(count: int, most: int) -> list[int]:
    """At most `most` (2 or more) of the indices below `count`, evenly, the ends included."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def thinned_n(projections: pd.DataFrame, most: int) -> list[int]:
    """At most so many of the n, the ends included."""
    every_n = sorted(projections.columns)
    return [every_n[i] for i in spread(len(every_n), most)]


def varying_factors(table: pd.DataFrame, spec: Mapping[str, Any]) -> pd.DataFrame:
    """What sets the SAEs apart: a row per SAE, worlds and architectures first."""
    import pandas as pd

    specs, rows = {sae["sae_id"]: sae for sae in spec["saes"]}, []
    for row in table.to_dict("records"):
        of_spec = specs.get(row["sae_id"], {})
        known = {name: row.get(name, of_spec.get(name)) for name in ("world", "architecture")}
        rows.append({**known, **of_spec.get("factors", {})})
    factors = pd.DataFrame(rows, index=table.index)
    return factors.loc[:, factors.nunique(dropna=False) > 1]


def projections_plot(
    table: pd.DataFrame,
    projections: pd.DataFrame,
    factors: pd.DataFrame,
    true_l0: Mapping[str, float],
    wanted: Sequence[int],
    places: Sequence[int],
) -> go.Figure:
    """s_n of every SAE over its L0: a slider for n, and what colours stand for.

    Args:
        wanted: n that must be among those shown; the first is shown first, or where there is none
            the first above the true L0.
        places: the rows of the SAEs of `saes_plot`, the nearest of which a click on one chooses.
    """
    most = max(2, min(_MOST_N, _MOST_PROJECTIONS // len(table)))
    wanted = [n for n in wanted if n in projections.columns]
    ns = sorted({*wanted, *thinned_n(projections, most)})
    above = max(true_l0.values(), default=0.0)
    steps = []
    for n in ns:
        missing = int((~np.isfinite(projections[n])).sum())
        note = f" ({missing} not finite, not drawn)" if missing else ""
        title = {"yaxis.title.text": f"s<sub>{n}</sub><sup>dec</sup>{note}"}
        steps.append(_choice(str(n), {"y": [_plain(projections[n])]}, title))
    few = [name for name in factors if len(set(factors[name].tolist())) <= _MOST_CLASSES]
    main = few[0] if few and {"world", "architecture"} & set(factors) else None
    alike = {"marker.color": [_PALETTE[0]], "marker.showscale": [False]}
    colours = [
        _choice("all alike", alike),
        *(_choice(f"colour: {_name(f)}", _colours(f, factors[f].tolist())) for f in factors),
    ]
    added = table["added"].to_numpy(bool) if "added" in table else np.zeros(len(table), bool)
    truths = ", ".join(dict.fromkeys(f"{l0:.2f}" for l0 in true_l0.values()))
    figure = _figure(f"L0 (dashed: the true L0, {truths})" if truths else "L0")
    figure.add_scatter(
        x=_plain(table["l0"]),
        mode="markers" if factors.shape[1] > 1 else "lines+markers",
        line={"color": "#888888", "width": 1},
        marker={"size": 9, "symbol": np.where(added, "circle-open", "circle").tolist()},
        text=[
            _described(row, factors.loc[i], is_added)
            for (i, row), is_added in zip(table.iterrows(), added.tolist(), strict=True)
        ],
        customdata=[int(np.abs(np.array(places) - i).argmin()) for i in range(len(table))],
        hovertemplate="%{text}<br>s<sub>n</sub>: %{y:.4g}<extra></extra>",
        showlegend=False,
    )
    for l0 in set(true_l0.values()):
        figure.add_vline(x=l0, line=_TRUTH, layer="below")
    first = ns.index((wanted or [n for n in ns if n > above] or ns)[0])
    colour = 0 if main is None else 1 + list(factors).index(main)
    for start in (steps[first], colours[colour]):
        _take(figure, start)
    menus = [_menu(colours, colour)] if len(colours) > 1 else []
    slider = _slider(steps, first, "n = ")
    return figure.update_layout(updatemenus=[*menus, _linear_or_log()], sliders=[slider])


def _colours(name: object, values: Sequence[Any]) -> dict[str, list[Any]]:
    """What tells markers of a factor apart: a scale of many numbers, else classes."""
    bar = _bar(_name(name))
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    classes = sorted(set(values), key=None if numeric else str)
    count = len(classes)
    if numeric and count > _MOST_CLASSES:
        colors, scale, ends = _plain(values), _SCALE, (classes[0], classes[-1])
    else:
        colors = [classes.index(value) for value in values]
        bar |= {"tickvals": list(range(count)), "ticktext": [_name(value) for value in classes]}
        palette = [_PALETTE[i % len(_PALETTE)] for i in range(count)]
        scale = [[(i + end) / count, color] for i, color in enumerate(palette) for end in (0, 1)]
        ends = (-0.5, count - 0.5)
    look = {"color": colors, "colorscale": scale, "cmin": ends[0], "cmax": ends[1]}
    look |= {"colorbar": bar, "showscale": True}
    return {f"marker.{key}": [value] for key, value in look.items()}


def saes_plot(
    table: pd.DataFrame,
    projections: pd.DataFrame,
    true_l0: Mapping[str, float],
    frames: Sequence[Mapping[str, Any]],
) -> go.Figure:
    """SAE by SAE: its decoder against the true features, and all its projections, sorted.

    Args:
        frames: for each SAE shown its row `sae` and, where features are known, the matrix
            `cosines` of the `latents` and `features` shown.
    """
    from plotly.subplots import make_subplots

    has_cosines, has_projections = "cosines" in frames[0], projections.shape[1] > 0
    titles = ["Decoder against the true features"] * has_cosines
    titles += ["All its projections, sorted"] * has_projections
    figure = make_subplots(1, len(titles), subplot_titles=titles, horizontal_spacing=0.15)
    ns, l0 = thinned_n(projections, _MOST_N), table["l0"].to_numpy(float)
    distance = np.abs(l0 - next(iter(true_l0.values()), np.nan))
    distance[~np.isfinite(distance)] = np.inf
    known = bool(np.isfinite(distance).any())
    shown = distance[[frame["sae"] for frame in frames]]
    first = int(shown.argmin()) if known else len(frames) // 2
    if has_cosines:
        bar = {**_bar("cosine, %"), "x": 0.43 if has_projections else 1.0}
        hover = "latent %{y}<br>feature %{x}<br>cosine %{z} %<extra></extra>"
        look = {"zmin": -100, "zmax": 100, "colorscale": "RdBu", "colorbar": bar}
        figure.add_heatmap(**look, hovertemplate=hover, row=1, col=1)
        # Categories, though their names are numbers: a type that is set is lost when the slider
        # gives new ones.
        axis: dict[str, Any] = {"autotypenumbers": "strict", "nticks": 8, "constrain": "domain"}
        axis |= {"showgrid": False, "row": 1, "col": 1}
        figure.update_xaxes(title_text="true feature", **axis)
        y = {"title_text": "latent (in the order of its feature)", "autorange": "reversed"}
        figure.update_yaxes(**y, scaleanchor="x", **axis)
    if has_projections:
        at: dict[str, Any] = {"row": 1, "col": len(titles)}
        hover = "s<sub>%{x}</sub> = %{y:.4g}<extra></extra>"
        look = {"line": {"color": _PALETTE[0], "width": 2.5}, "name": "this SAE", "zorder": 1}
        figure.add_scatter(x=ns, mode="lines", **look, hovertemplate=hover, **at)
        if known and len(set(table["world"])) == 1:
            best = int(distance.argmin())
            look = {"line": _GREY, "name": f"nearest to the true L0: {l0[best]:.2f}"}
            y = _plain(projections.iloc[best][ns])
            figure.add_scatter(x=ns, y=y, mode="lines", **look, hoverinfo="skip", **at)
        figure.add_vline(x=0, line=_TRUTH, layer="below", **at)
        figure.update_xaxes(title_text="n (dashed: the true L0)" if true_l0 else "n", **at)
        figure.update_yaxes(title_text=_S_N, **at)
    steps = []
    for number, frame in enumerate(frames):
        row = table.iloc[frame["sae"]]
        update: dict[str, list[Any]] = {"x": [], "y": []}
        change: dict[str, Any] = {"title.text": _titled(row, number, len(frames))}
        if has_cosines:
            x, y = (list(map(str, frame[name])) for name in ("features", "latents"))
            update = {"x": [x], "y": [y], "z": [frame["cosines"], *([None] * has_projections)]}
        if has_projections:
            update["x"].append(ns)
            update["y"].append(_plain(projections.iloc[frame["sae"]][ns]))
            truth = true_l0.get(str(row["world"]))
            line = {"x0": truth, "x1": truth, "visible": truth is not None}
            change |= {f"shapes[0].{name}": value for name, value in line.items()}
        steps.append(_choice(_number(row["l0"]), update, change, range(len(titles))))
    _take(figure, steps[first])
    return figure.update_layout(
        template="none",
        height=580,
        margin={"l": 70, "r": 20, "t": 90, "b": 130},
        legend={"x": 1, "xanchor": "right", "y": 1, "yanchor": "top"},
        sliders=[_slider(steps, first, "SAE, in order of L0: ")],
    )


def cosine_frames(folder: RunFolder, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The decoder cosines, in percent, of every SAE whose world is in the folder.

    Of too many SAEs some are taken, evenly over the sweep; of too many features likewise, with the
    latents that are matched to them.

    Raises:
        ValueError: a world or an SAE is damaged.
    """
    from sparse_but_wrong.worlds.synthetic import has_world, load_world

    features = {
        name: load_world(folder.checked_world_path(name)).directions
        for name in sorted(set(table["world"].astype(str)))
        if has_world(folder.world_path(name))
    }
    saes = [(str(i), str(world)) for i, world in zip(table["sae_id"], table["world"], strict=True)]
    there = [i for i, (sae, world) in enumerate(saes) if world in features and folder.has_sae(sae)]
    if not there:
        return []
    widest = max(min(d.shape[1], MOST_SIDE) for d in features.values())
    # An SAE is not always as wide as its world has features; a few times that is still small.
    most = max(2, min(_MOST_SAES, _MOST_CELLS // (widest * max(widest, 64))))
    with threads_per_operation(1):
        return [
            {"sae": i, **_cosines(folder.load_sae(saes[i][0]), features[saes[i][1]])}
            for i in (there[place] for place in spread(len(there), most))
        ]


@torch.no_grad()
def _cosines(sae: Any, features: torch.Tensor) -> dict[str, Any]:
    from sparse_but_wrong.metrics.recovery import match_latents
    from sparse_but_wrong.tensors import cos_sims

    match, d_sae = match_latents(sae, features), sae.W_dec.shape[0]
    columns = spread(features.shape[1], MOST_SIDE)
    rows = match.latents[torch.isin(match.features, torch.tensor(columns))].tolist()
    alone = sorted(set(range(d_sae)) - set(match.latents.tolist()))
    if (room := MOST_SIDE - len(rows)) >= 2:
        rows += [alone[i] for i in spread(len(alone), room)]
    cosines = cos_sims(sae.W_dec[rows].float().cpu().T, features[:, columns].float().cpu())
    percent = (100 * cosines).round().tolist()
    shown = [[None if value != value else int(value) for value in row] for row in percent]
    thinned = len(columns) < features.shape[1] or len(rows) < d_sae
    return {"latents": rows, "features": columns, "cosines": shown, "thinned": thinned}


def curves_plot(
    curves: pd.DataFrame, table: pd.DataFrame, true_l0: Mapping[str, float]
) -> tuple[go.Figure | None, list[str]]:
    """The training log of every SAE, a row per SAE and logged step, and what is left out of it."""
    from plotly.colors import sample_colorscale

    by_id = {str(sae_id): rows for sae_id, rows in curves.groupby("sae_id", sort=False)}
    there = [i for i, sae_id in enumerate(table["sae_id"]) if str(sae_id) in by_id]
    shown = [there[i] for i in spread(len(there), _MOST_SAES)]
    numeric = curves.select_dtypes("number").dropna(axis="columns", how="all")
    columns = [str(name) for name in numeric.columns if name not in ("sae_id", "step")]
    if not shown or not columns:
        return None, []
    most = int(np.clip(_MOST_CURVE_POINTS // len(shown), _FEWEST_STEPS, _MOST_STEPS))
    logs = [by_id[str(table["sae_id"].iloc[i])].sort_values("step") for i in shown]
    logged = max(map(len, logs))
    logs = [log.iloc[spread(len(log), most)] for log in logs]
    l0 = table["l0"].to_numpy(float)
    low, high = (np.nanmin(l0), np.nanmax(l0)) if np.isfinite(l0).any() else (0.0, 1.0)
    share = np.nan_to_num((l0[shown] - low) / ((high - low) or 1.0), nan=0.5)
    figure = _figure("training step")
    for i, log, color in zip(shown, logs, sample_colorscale(_SCALE, share.tolist()), strict=True):
        name = f"<b>{_name(table['sae_id'].iloc[i], 60)}</b>, L0 in the results {_number(l0[i])}"
        hover = f"{name}<br>step %{{x}}: %{{y:.4g}}<extra></extra>"
        look = {"mode": "lines", "hovertemplate": hover, "showlegend": False}
        look["line"] = {"color": color, "width": 1.3}
        figure.add_scatter(x=log["step"].astype(int).tolist(), **look)
    marker = {"color": [low], "cmin": low, "cmax": high, "colorscale": _SCALE}
    marker |= {"showscale": True, "colorbar": _bar("L0 in the results")}
    figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, showlegend=False)
    truths = set(true_l0.values())
    for truth in truths:
        figure.add_hline(y=truth, line=_TRUTH, layer="below")
    choices = []
    for column in columns:
        has_truth = column == "l0" and bool(truths)
        note = " (dashed: the true L0)" if has_truth else ""
        change: dict[str, Any] = {"yaxis.title.text": f"{_name(column)}{note}"}
        change |= {f"shapes[{i}].visible": has_truth for i in range(len(truths))}
        y = {"y": [_plain(log[column]) for log in logs]}
        choices.append(_choice(_name(column), y, change, range(len(logs))))
    first = columns.index("l0") if "l0" in columns else 0
    _take(figure, choices[first])
    notes = []
    if most < logged:
        notes.append(f"At most {most} of the {logged} logged steps of each are drawn.")
    if len(shown) < len(there):
        notes.append(f"{len(there) - len(shown)} SAEs are left out.")
    return figure.update_layout(updatemenus=[_menu(choices, first), _linear_or_log()]), notes


def _figure(x: str) -> go.Figure:
    import plotly.graph_objects as go

    margin = {"l": 70, "r": 20, "t": 60, "b": 60}
    layout = {"height": 460, "margin": margin, "hovermode": "closest", "template": "none"}
    figure = go.Figure(layout=layout)
    return figure.update_xaxes(title_text=x, zeroline=False)


def _bar(title: str) -> dict[str, Any]:
    return {"thickness": 12, "outlinewidth": 0, "title": {"text": title, "side": "right"}}


def _choice(
    label: str,
    restyle: Mapping[str, Any],
    relayout: Mapping[str, Any] | None = None,
    traces: Sequence[int] = (0,),
) -> dict[str, Any]:
    """A step of a slider, or an entry of a menu."""
    return {"method": "update", "label": label, "args": [restyle, relayout or {}, list(traces)]}


def _take(figure: go.Figure, choice: Mapping[str, Any]) -> None:
    """Do what a choice does."""
    restyle, relayout, traces = choice["args"]
    for name, values in restyle.items():
        for trace, value in zip(traces, values, strict=True):
            if value is not None:  # a property that another trace has
                figure.plotly_restyle({name: [value]}, [trace])
    figure.plotly_relayout(relayout)


def _slider(steps: Sequence[Mapping[str, Any]], active: int, prefix: str) -> dict[str, Any]:
    look = {"currentvalue": {"prefix": prefix}, "pad": {"t": 60}}
    return {"steps": list(steps), "active": active, **look}


def _menu(choices: Sequence[Mapping[str, Any]], active: int) -> dict[str, Any]:
    place = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    return {"buttons": list(choices), "active": active, **place}


def _linear_or_log() -> dict[str, Any]:
    scales = [
        {"method": "relayout", "label": label, "args": [{"yaxis.type": kind}]}
        for label, kind in (("linear", "linear"), ("logarithmic", "log"))
    ]
    row = {"type": "buttons", "direction": "right", "x": 1, "xanchor": "right"}
    return {**_menu(scales, 0), **row}


def _titled(row: pd.Series, number: int, count: int) -> str:
    facts = [_name(row["sae_id"], 60), f"L0 {_number(row['l0'])}"]
    facts += [f"MCC {_number(row['mcc'])}"] if "mcc" in row.index else []
    return f"{' · '.join(facts)} ({number + 1} of {count})"


def _described(row: pd.Series, factors: pd.Series, added: bool) -> str:
    lines = [f"<b>{_name(row['sae_id'], 60)}</b>{' (added)' if added else ''}"]
    lines += [f"{_name(name)}: {_name(value)}" for name, value in factors.items()]
    lines += [f"{name}: {_number(row[name])}" for name in _TOLD if name in row.index]
    return "<br>".join(lines)


def _name(value: object, length: int = 40) -> str:
    """A name or a value of a run's, clipped, for plotly to write as it is."""
    text = _number(value) if isinstance(value, int | float) else str(value)
    return escape(text if len(text) <= length else f"{text[: length - 1]}…", quote=False)


def _number(value: Any) -> str:
    return format_number(float(value)) if np.isfinite(float(value)) else "–"


def _plain(values: Any) -> list[float | None]:
    """Numbers to five digits; those that are not finite as None, which is not drawn."""
    numbers = np.asarray(values, dtype=float).tolist()
    return [float(f"{number:.5g}") if np.isfinite(number) else None for number in numbers]
