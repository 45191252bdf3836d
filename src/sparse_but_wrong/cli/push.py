"""`sbw export` and `sbw push`: SAEs of a run as others use them, in a folder or on the Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from sparse_but_wrong.cli.options import PATH
from sparse_but_wrong.untrusted import one_line

_SAE = "An SAE of the run, by its id. Can be given several times. [default: all]"
_RECOMMENDATION = "Folder that `sbw find-l0` wrote; the card then has its answer and figure."
_REPLACE = "Replace files that the repository has already."
_DRY_RUN = "List what would be uploaded, and upload nothing."

_run = click.argument("run", type=PATH)
_saes = click.option("--sae", "sae_ids", multiple=True, help=_SAE)
_recommendation = click.option("--recommendation", type=PATH, help=_RECOMMENDATION)


@click.command()
@_run
@click.argument("out", type=PATH)
@_saes
@_recommendation
def export(run: Path, out: Path, sae_ids: tuple[str, ...], recommendation: Path | None) -> None:
    """Write SAEs of the run in RUN to OUT, a new or empty folder, for use in other programs.

    Each lies in a folder called by its id, in the form that it has for inference, which
    sae_lens.SAE.load_from_disk opens; a BatchTopK SAE becomes a JumpReLU SAE. A card has the run's
    overview, their metrics, the recommendation, and how they were made.
    """
    from sparse_but_wrong.atomic import claimed
    from sparse_but_wrong.report.model_card import write_saes
    from sparse_but_wrong.runs.folder import RunFolder

    with claimed(out) as folder:
        write_saes(RunFolder.open(run), folder, sae_ids, recommendation)
    click.echo(f"Card: {out / 'README.md'}")


@click.command()
@_run
@click.argument("repo")
@_saes
@_recommendation
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--replace", is_flag=True, help=_REPLACE)
@click.option("--dry-run", is_flag=True, help=_DRY_RUN)
def push(
    run: Path,
    repo: str,
    sae_ids: tuple[str, ...],
    recommendation: Path | None,
    private: bool,
    replace: bool,
    dry_run: bool,
) -> None:
    """Upload SAEs of the run in RUN to REPO (user/name) on the Hugging Face Hub.

    What is uploaded is what `sbw export` writes. Log in with `hf auth login`.
    """
    from huggingface_hub.utils import validate_repo_id

    from sparse_but_wrong.report.model_card import write_saes
    from sparse_but_wrong.runs.folder import RunFolder
    from sparse_but_wrong.saes.load import NETWORK

    validate_repo_id(repo)
    with tempfile.TemporaryDirectory() as folder:
        write_saes(RunFolder.open(run), Path(folder), sae_ids, recommendation, repo)
        if dry_run:
            for name, file in sorted(_files(Path(folder)).items()):
                click.echo(f"{file.stat().st_size:>14,} {name}")
            return
        try:
            _upload(Path(folder), repo, private=private, replace=replace)
        except Exception as error:  # the Hub's client lets those of its own client through
            if type(error).__module__.split(".")[0] not in NETWORK:
                raise
            raise ConnectionError(
                f"The Hub cannot be reached ({one_line(error)}). Nothing was uploaded; try again."
            ) from error
    click.echo(f"Uploaded: https://huggingface.co/{repo}")


def _files(folder: Path) -> dict[str, Path]:
    """The files below a folder, by the names that they get in the repository."""
    return {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}


def _upload(folder: Path, repo: str, *, private: bool, replace: bool) -> None:
    """Upload a folder in a single commit, so that the repository has all of it or nothing."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    try:
        there = set(api.list_repo_files(repo))
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private)
        there = set()
    if (taken := sorted(there & set(_files(folder)))) and not replace:
        raise FileExistsError(
            f"{repo} has {len(taken)} of these files already ({', '.join(taken[:3])}, …); name "
            "another repository, or add --replace."
        )
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload SAEs")
