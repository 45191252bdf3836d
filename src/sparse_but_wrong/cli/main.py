"""The command `sbw`: parse, call, print. Whatever takes long to import is imported when needed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from sparse_but_wrong.training.interrupt import Terminated, terminate


class _Place(click.Path):
    """A path, or what may be one, with "~" for the home folder also where a shell leaves it."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path, of the type that is asked for."""
        if str(value).startswith("~/"):
            value = str(Path(value).expanduser())
        return super().convert(value, param, ctx)


_PATH = _Place(path_type=Path)
_NAME_OR_PATH = _Place(path_type=str)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sparse_but_wrong", prog_name="sbw")
def cli() -> None:
    """Find the L0 at which a sparse autoencoder learns the true features."""


@cli.command("list")
def list_experiments() -> None:
    """List the experiments that `sbw run` knows."""
    from sparse_but_wrong.experiments.registry import EXPERIMENTS

    for name, spec in EXPERIMENTS.items():
        click.echo(f"{name}: {spec.title}")
        click.echo(f"    claim: {spec.claim}")


@cli.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the spec of the experiment NAME as YAML, to start one of your own from."""
    from sparse_but_wrong.experiments.registry import get_experiment
    from sparse_but_wrong.runs.spec_file import to_yaml

    click.echo(to_yaml(get_experiment(name)), nl=False)


@cli.command()
@click.argument("folder", type=_PATH)
def report(folder: Path) -> None:
    """Write the report.html of the run in FOLDER anew."""
    from sparse_but_wrong.cli.report import rebuild_report

    rebuild_report(folder)


@cli.command()
@click.argument("name", type=_NAME_OR_PATH)
@click.option(
    "--out",
    type=_PATH,
    help="Run folder; must be new or empty. [default: runs/NAME, or the next free number]",
)
@click.option("--seed", type=int, help="Of initial weights, data and directions. [default: 0]")
@click.option("--device", help="Where to train, for example cpu or cuda. [default: cpu]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--quick", is_flag=True, help="A fiftieth of the budget: a smoke test, no result.")
def run(
    name: str,
    out: Path | None,
    seed: int | None,
    device: str | None,
    threads: int | None,
    resume: bool,
    quick: bool,
) -> None:
    """Run the experiment NAME, or the one in a YAML file, and write its run folder.

    Ctrl-C and SIGTERM stop it with a checkpoint; --resume goes on from there.
    """
    from sparse_but_wrong.cli.run import run_experiment

    run_experiment(
        name, out=out, seed=seed, device=device, threads=threads, resume=resume, quick=quick
    )


@cli.command()
@click.argument("names", nargs=-1)
@click.option(
    "--out",
    type=_PATH,
    default=Path("runs/paper"),
    help="Where the run folders and the index page go; what is finished there is kept.",
)
@click.option("--seed", type=int, default=0, help="Of every run. [default: 0]")
@click.option("--device", default="cpu", help="Where to train. [default: cpu]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@click.option("--quick", is_flag=True, help="A fiftieth of the budget: a smoke test, no result.")
def paper(
    names: tuple[str, ...], out: Path, seed: int, device: str, threads: int | None, quick: bool
) -> None:
    """Run every experiment of the paper, or those NAMED, and write an index page of verdicts.

    Started again, it goes on with what is not finished.
    """
    from sparse_but_wrong.cli.paper import run_paper

    run_paper(names, out=out, seed=seed, device=device, threads=threads, quick=quick)


@cli.command("find-l0")
@click.argument("source", required=False, type=_NAME_OR_PATH)
@click.option(
    "--activations",
    type=_NAME_OR_PATH,
    help="Instead: a cache, a folder of shards, a .npy or .safetensors file, or a dataset.",
)
@click.option("--column", help="Of a dataset, which holds the activations.")
@click.option("--world", help="Which, where SOURCE has several.")
@click.option("--architecture", help="Of the SAEs, as sae_lens names it. [default: batchtopk]")
@click.option(
    "--d-sae", type=click.IntRange(min=4), help="Latents. [default: the features of a toy world]"
)
@click.option(
    "--out",
    type=_PATH,
    help="Folder; must be new or empty. [default: runs/find-l0, or the next free number]",
)
@click.option("--seed", type=int, default=0, help="Of initial weights and data. [default: 0]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@click.option("--save", is_flag=True, help="Keep an SAE at the recommended L0, ready to use.")
def find_l0(
    source: str | None,
    activations: str | None,
    column: str | None,
    world: str | None,
    architecture: str | None,
    d_sae: int | None,
    out: Path | None,
    seed: int,
    threads: int | None,
    save: bool,
) -> None:
    """Find the L0 that SAEs should have, with an interval and reasons, or why there is none.

    SOURCE is an experiment or a YAML file (its world), or the folder of a run, whose SAEs are
    judged as they are. Activations [samples, d_in] may stand in its place, too.
    """
    from sparse_but_wrong.cli.find_l0 import find

    find(
        source,
        activations=activations,
        column=column,
        world=world,
        architecture=architecture,
        d_sae=d_sae,
        out=out,
        seed=seed,
        threads=threads,
        save=save,
    )


@cli.command()
@click.argument("saes", nargs=-1, required=True, metavar="SAE...", type=_NAME_OR_PATH)
@click.option(
    "--activations",
    type=_NAME_OR_PATH,
    required=True,
    help="A cache, a folder of shards, a .npy or .safetensors file, or a dataset of activations.",
)
@click.option("--column", help="Of a dataset, which holds the activations.")
@click.option("--samples", type=click.IntRange(min=1), help="At most. [default: all]")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Samples in a row, which standard errors take for one. [default: a sixteenth of all, at "
    "most 4096]",
)
@click.option(
    "--exclude-token",
    "exclude_tokens",
    type=click.IntRange(min=0),
    multiple=True,
    help="Leave out samples of this token, by its id: BOS, say. Can be given several times.",
)
@click.option(
    "--exclude-outliers",
    is_flag=True,
    help="Leave out samples of zeros and those with more than 10 times the median norm.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to measure.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@click.option(
    "--out",
    type=_PATH,
    help="Folder; must be new or empty. [default: runs/diagnose, or the next free number]",
)
def diagnose(
    saes: tuple[str, ...],
    activations: str,
    column: str | None,
    samples: int | None,
    batch_size: int | None,
    exclude_tokens: tuple[int, ...],
    exclude_outliers: bool,
    device: str,
    threads: int | None,
    out: Path | None,
) -> None:
    """Measure SAEs on activations: L0, dead latents, s_n^dec for every n, similarity, and more.

    SAE is a folder of sae_lens, dictionary_learning or sparsify, RELEASE/SAE_ID of a published one,
    or the folder of a run, all of whose SAEs are measured. Where one cannot be measured the others
    still are, and the exit code is 1.
    """
    from sparse_but_wrong.cli.diagnose import diagnose as measure

    measure(
        saes,
        activations=activations,
        column=column,
        samples=samples,
        batch_size=batch_size,
        device=device,
        threads=threads,
        out=out,
        exclude_tokens=exclude_tokens,
        exclude_outliers=exclude_outliers,
    )


@cli.command("cache-activations")
@click.option(
    "--model",
    type=_NAME_OR_PATH,
    required=True,
    help="A Hugging Face id, a folder with a model, or a .gguf file.",
)
@click.option(
    "--hook",
    required=True,
    help="A module, as model.layers.14, or a TransformerLens name, as blocks.8.hook_resid_post.",
)
@click.option(
    "--text",
    type=_PATH,
    multiple=True,
    help="A .txt, .jsonl or .parquet file, or a folder of them. Can be given several times.",
)
@click.option(
    "--dataset",
    type=_NAME_OR_PATH,
    help="A Hugging Face data set instead, or a folder with a saved one.",
)
@click.option("--dataset-config", help="Of a data set that has several.")
@click.option(
    "--out",
    type=_PATH,
    required=True,
    help="Folder; must be new or empty, or a cache to --resume.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=1_000_000,
    show_default=True,
    help="Activations to keep.",
)
@click.option(
    "--context-size",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Tokens in a sequence.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Sequences that run at once.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Of what is stored.",
)
@click.option(
    "--model-class",
    type=click.Choice(["AutoModelForCausalLM", "HookedTransformer"]),
    help="What runs the model. [default: follows from the hook's name]",
)
@click.option(
    "--model-dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the model's weights.",
)
@click.option("--device", default="cpu", show_default=True, help="Where the model runs.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@click.option("--keep-special-tokens", is_flag=True, help="Keep BOS, EOS, PAD and SEP as well.")
@click.option(
    "--skip-positions",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="How many at the start of every sequence to leave out.",
)
@click.option("--no-bos", is_flag=True, help="Start no sequence with BOS.")
@click.option("--resume", is_flag=True, help="Go on with a cache: fix or extend it.")
def cache_activations(
    model: str,
    hook: str,
    text: tuple[Path, ...],
    dataset: str | None,
    dataset_config: str | None,
    out: Path,
    tokens: int,
    context_size: int,
    batch_size: int,
    dtype: str,
    model_class: str | None,
    model_dtype: str,
    device: str,
    threads: int | None,
    keep_special_tokens: bool,
    skip_positions: int,
    no_bos: bool,
    resume: bool,
) -> None:
    """Run a language model over text and keep its activations at one hook point on disk.

    Left out are those that distort every measure: of BOS and other special tokens, and of the
    first tokens of each sequence. A data set of token ids may have an attention_mask beside them,
    which says what is padding. Ctrl-C keeps what is done; --resume goes on from there.
    """
    from sparse_but_wrong.cli.cache_activations import cache

    cache(
        model=model,
        hook=hook,
        text=text,
        dataset=dataset,
        dataset_config=dataset_config,
        out=out,
        tokens=tokens,
        context_size=context_size,
        batch_size=batch_size,
        dtype=dtype,
        model_class=model_class,
        model_dtype=model_dtype,
        device=device,
        threads=threads,
        keep_special_tokens=keep_special_tokens,
        skip_positions=skip_positions,
        no_bos=no_bos,
        resume=resume,
    )


def main() -> None:
    """Entry point: errors of the user's making are one line and exit code 2.

    SIGTERM, which batch systems send before they kill, ends a command as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, terminate)
    try:
        # Left to itself it gives back the code that a command exits with.
        sys.exit(cli.main(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt) as stopped:
        # click makes an Abort of what interrupts a command.
        is_terminated = isinstance(stopped.__cause__ or stopped, Terminated)
        click.echo(f"sbw: {'terminated' if is_terminated else 'interrupted'}", err=True)
        sys.exit(128 + (signal.SIGTERM if is_terminated else signal.SIGINT))
    except (ValueError, OSError) as error:
        if os.environ.get("SBW_TRACEBACK"):
            raise
        _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error) or os.environ.get("SBW_TRACEBACK"):
            raise
        _fail(f"there is not enough memory ({error}); make SAEs, batches or samples smaller.")


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether what was asked for was too large; of PyTorch's errors only the text says so."""
    return isinstance(error, MemoryError) or any(
        said in str(error) for said in ("can't allocate memory", "out of memory")
    )


def _fail(message: str) -> None:
    click.echo(f"sbw: error: {' '.join(message.split())}", err=True)
    sys.exit(2)
