"""`sbw find-l0`: the L0 that SAEs on some activations should have."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparse_but_wrong.cli.options import (
    NAME_OR_PATH,
    column,
    device,
    on_cluster,
    out,
    ray,
    results,
    short_name,
    threads,
)
from sparse_but_wrong.untrusted import usable_device

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from sparse_but_wrong.l0.recommend import L0Recommendation
    from sparse_but_wrong.runs.folder import RunFolder

_NEIGHBOURS = 512
_ACTIVATIONS = (
    "Stored activations: a cache, a folder of shards, a .npy or .safetensors file, or a dataset."
)
_ARCHITECTURE = "SAE architecture, as sae_lens names it. [default: batchtopk]"
_D_SAE = "Latents. [default: the features of a toy world]"


@click.command("find-l0")
@click.argument("source", required=False, type=NAME_OR_PATH)
@click.option("--activations", type=NAME_OR_PATH, help=_ACTIVATIONS)
@column
@click.option("--world", help="Which world, if SOURCE has several.")
@click.option("--architecture", help=_ARCHITECTURE)
@click.option("--d-sae", type=click.IntRange(min=4), help=_D_SAE)
@out("find-l0")
@click.option("--seed", type=int, default=0, help="Seeds weights and data.")
@device("to train, learn and count")
@threads
@click.option("--save", is_flag=True, help="Keep an SAE at the recommended L0, ready to use.")
@ray
def find(
    source: str | None,
    activations: str | None,
    out: Path | None,
    seed: int,
    device: str,
    save: bool,
    world: str | None,
    ray: str | None,
    **of_search: Any,
) -> None:
    """Find the L0 that SAEs should have, with an interval and reasons, or why there is none.

    SOURCE is an experiment or a YAML file (its world is used), the folder of a run (its SAEs are
    judged as they are), or stored activations of shape [samples, d_in].
    """
    from sparse_but_wrong.activations.stored import is_activations
    from sparse_but_wrong.report.recommendation import write_recommendation
    from sparse_but_wrong.runs.folder import is_run

    where = source or activations
    if where is None or (source and activations):
        raise ValueError("Give either SOURCE (an experiment, a YAML file, a run) or --activations.")
    # A cache of activations has a manifest too.
    is_judged = source is not None and is_run(Path(source)) and not is_activations(source)
    if is_judged:
        why = f"{source} is a run, whose SAEs are judged as they are"
        _refuse(why, save=save, **of_search)
    work = (
        partial(_judge, Path(where), world, seed, device)
        if is_judged
        else partial(_search, where, source is None, world, seed, device, **of_search)
    )
    gpus = int(usable_device(device).type == "cuda")
    with on_cluster(ray) as cluster, results(out, "find-l0") as (place, made_how):
        # Its sweeps follow from each other, so that one worker does all of them.
        title, found, facts = work() if cluster is None else cluster.run_one("find-l0", work, gpus)
        click.echo(str(found))  # first, because it is what hours were spent on
        facts |= {"Seed": seed, **made_how()}
        write_recommendation(found, place, title, facts, with_sae=save)
        if save and found.sae is not None and found.sae_l0 is not None:
            where = place.parent / "sae"
            click.echo(f"SAE of L0 {found.sae_l0:.4g}, a sae_lens folder: {where}")
        elif save:
            click.echo("No SAE is kept: none was trained at a recommended L0.")


def _refuse(why: str, **options: object) -> None:
    """Refuse options that have no meaning here where one is given."""
    for name, value in options.items():
        if value:
            raise ValueError(f"{why}; leave out --{name.replace('_', '-')}.")


def _search(
    source: str,
    is_stored: bool,
    world: str | None,
    seed: int,
    device: str,
    column: str | None,
    architecture: str | None,
    d_sae: int | None,
) -> tuple[str, L0Recommendation, dict[str, object]]:
    """Train sweeps on a toy world or on stored activations: the title, the answer and facts."""
    from sparse_but_wrong.activations.stored import is_activations, is_hub_name, open_activations
    from sparse_but_wrong.experiments.registry import EXPERIMENTS, get_experiment
    from sparse_but_wrong.l0.find import find_l0
    from sparse_but_wrong.l0.options import FindOptions
    from sparse_but_wrong.l0.source import BATCH_SIZE
    from sparse_but_wrong.runs.make import make_world, world_seed
    from sparse_but_wrong.runs.spec import ONLY_WORLD, ActivationsSpec, SyntheticSpec
    from sparse_but_wrong.runs.spec_file import is_spec_file, read_spec
    from sparse_but_wrong.worlds.synthetic import SyntheticWorld

    architecture = architecture or "batchtopk"
    options = FindOptions(
        architecture=architecture, seed=seed, device=device, progress=sys.stderr.isatty()
    )
    is_experiment = is_spec_file(source) or source in EXPERIMENTS
    # A folder of something else is no experiment either; opening it tells what it lacks.
    is_other = not is_experiment and (is_hub_name(source) or Path(source).is_dir())
    if SyntheticWorld.is_saved_in(Path(source)):
        _refuse(f"{source} is a world itself", world=world)
        of_spec, name, title = SyntheticSpec(source), ONLY_WORLD, short_name(source)
    elif is_stored or is_activations(source) or is_other:
        _refuse(f"{source} holds activations and no worlds", world=world)
        of_spec, name, title = ActivationsSpec(source), "", short_name(source)
    else:
        spec = read_spec(Path(source)) if is_spec_file(source) else get_experiment(source)
        name = _choose(world, list(spec.worlds), source)
        of_spec, title = spec.worlds[name], f"The world of {spec.name}"
    if isinstance(of_spec, ActivationsSpec):
        found = open_activations(of_spec.activations, column or of_spec.column)
        d_in = found.d_in
    else:
        _refuse(f"{source} has toy worlds and no dataset", column=column)
        made = make_world(of_spec, seed, device, name)
        found = made.stream(BATCH_SIZE, world_seed(seed, "stream", name))
        d_in, d_sae = made.d_in, d_sae or made.n_features
    if d_sae is None:
        raise ValueError("Stored activations do not say how many latents to use; give --d-sae.")
    click.echo(f"{title}: {architecture} SAEs, d_in {d_in}, d_sae {d_sae}")
    facts = {"Architecture": architecture, "d_in": d_in, "d_sae": d_sae}
    return title, find_l0(found, d_sae, options), facts


def _judge(
    path: Path, world: str | None, seed: int, device: str
) -> tuple[str, L0Recommendation, dict[str, object]]:
    """Evaluate the SAEs of a run: the title, the answer and facts."""
    from sparse_but_wrong.l0.recommend import needs_control, recommend_l0
    from sparse_but_wrong.l0.source import BATCH_SIZE, draw_samples, in_random_order
    from sparse_but_wrong.l0.sweep import EVALUATION_SAMPLES, evaluate_sweep
    from sparse_but_wrong.runs.folder import RunFolder
    from sparse_but_wrong.runs.make import load_data, world_seed
    from sparse_but_wrong.runs.stored_world import StoredWorld

    folder = RunFolder.open(path)
    spec = folder.manifest["spec"]
    name = _choose(world, list(spec["worlds"]), str(path))
    done = folder.finished_saes(name)
    if not done:
        raise ValueError(f"{path} holds no finished SAE of the world {name!r}.")
    saes = [folder.load_sae(sae_id, device) for sae_id in done]
    data = load_data(folder.checked_world_path(name), device)
    n_samples, batch_size, held_out = EVALUATION_SAMPLES, BATCH_SIZE, []
    if isinstance(data, StoredWorld):
        n_samples = min(n_samples, data.n_held_out)
        batch_size = min(batch_size, data.stored.n_samples - data.n_held_out)
        held_out = [part for block in data.held_out() for part in block.split(_NEIGHBOURS)]
    # A stream of its own: of a toy world not the samples that the SAEs were trained on, of stored
    # activations those held out first.
    stream = data.stream(batch_size, world_seed(seed, "find-l0", name))
    n_saes = sum(sae["world"] == name for sae in spec["saes"])
    missing = "" if len(done) == n_saes else f" of {n_saes}; the run is not finished"
    click.echo(f"{len(saes)} SAEs{missing}: {path}")
    samples = draw_samples(chain(in_random_order(held_out, seed), stream), n_samples, device)
    sweep = evaluate_sweep(
        saes, chain([samples], stream), done, seed=seed, evaluation_samples=n_samples
    )
    found = recommend_l0(sweep)
    if needs_control(found):
        found = recommend_l0(replace(sweep, on_noise=_on_noise(folder, found, samples, seed)))
    return f"The sweep in {path}", found, {"Sweep": str(path)}


def _on_noise(
    folder: RunFolder, found: L0Recommendation, samples: Tensor, seed: int
) -> pd.DataFrame:
    """The table of two of a run's SAEs, those nearest to the L0 of the highest agreement, trained
    once more as the run says, on Gaussian noise of the mean and covariance of the samples."""
    from sparse_but_wrong.l0.presence import featureless
    from sparse_but_wrong.l0.source import draw_samples
    from sparse_but_wrong.l0.sweep import CURVE_SAMPLES, evaluate_saes
    from sparse_but_wrong.runs.make import make_spec_saes
    from sparse_but_wrong.runs.spec import ExperimentSpec
    from sparse_but_wrong.training.loop import train_saes

    assert found.agreement is not None
    spec = ExperimentSpec.from_dict(folder.manifest["spec"])
    l0 = dict(zip(found.sweep.table["sae_id"], found.sweep.table["l0"], strict=True))
    wanted = found.agreement.l0
    nearest = sorted(l0, key=lambda sae_id: abs(math.log(max(l0[sae_id], 1e-9) / wanted)))[:2]
    specs = [sae for sae in spec.saes if sae.sae_id in nearest]
    click.echo(f"Control: {' and '.join(nearest)} trained once more, on noise")
    noise, for_mean = (
        featureless(samples, spec.training.train_batch_size_samples, seed) for _ in range(2)
    )
    of_run = samples.shape[1], folder.manifest["seed"], samples.device
    saes = make_spec_saes(specs, *of_run, for_mean=for_mean)
    progress = sys.stderr.isatty()
    train_saes(
        saes, noise, replace(spec.training, progress=progress), controls=[s.control for s in specs]
    )
    held_out = draw_samples(noise, min(len(samples), CURVE_SAMPLES), samples.device)
    names = [sae.sae_id for sae in specs]
    return evaluate_saes(saes, held_out, names, names).table


def _choose(world: str | None, worlds: list[str], source: str) -> str:
    if world is None and len(worlds) == 1:
        return worlds[0]
    if world not in worlds:
        problem = "several worlds; choose one with --world" if world is None else f"no {world!r}"
        raise ValueError(f"{source} has {problem}. Available: {', '.join(worlds) or 'none'}.")
    return world
