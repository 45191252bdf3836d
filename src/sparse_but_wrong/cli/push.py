"""`sbw push`: SAEs of a run on the Hugging Face Hub, with a card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparse_but_wrong.cli.options import PATH
from sparse_but_wrong.untrusted import one_line

if TYPE_CHECKING:
    from sparse_but_wrong.report.model_card import Repository
    from sparse_but_wrong.runs.folder import RunFolder

_SAE = "An SAE of the run, by its id. Can be given several times. [default: all]"
_RECOMMENDATION = "Folder that `sbw find-l0` wrote; the card then has its answer and figure."
_REPLACE = "Replace files that the repository has already."


@click.command()
@click.argument("run", type=PATH)
@click.argument("repo")
@click.option("--sae", "sae_ids", multiple=True, help=_SAE)
@click.option("--recommendation", type=PATH, help=_RECOMMENDATION)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--replace", is_flag=True, help=_REPLACE)
@click.option("--dry-run", is_flag=True, help="Print what would be uploaded; upload nothing.")
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

    They are uploaded as they are used for inference, with a card that has the run's overview, their
    metrics, the recommendation, and how they were made. Log in with `hf auth login` first.
    """
    from huggingface_hub.utils import validate_repo_id

    from sparse_but_wrong.report.model_card import make_repository
    from sparse_but_wrong.runs.folder import RunFolder
    from sparse_but_wrong.saes.load import NETWORK

    validate_repo_id(repo)
    folder = RunFolder.open(run)
    content = make_repository(folder, repo, sae_ids, recommendation)
    if dry_run:
        click.echo(f"Would go to {repo}:\n  " + "\n  ".join(content.names))
        click.echo(f"\nREADME.md:\n\n{content.files['README.md'].decode()}", nl=False)
        return
    try:
        _upload(folder, content, repo, private=private, replace=replace)
    except Exception as error:  # the Hub's client lets those of its own client through
        if type(error).__module__.split(".")[0] not in NETWORK:
            raise
        raise ConnectionError(
            f"The Hub cannot be reached ({one_line(error)}). What has been uploaded stays there; "
            "try again, with --replace if that is some of it."
        ) from error
    click.echo(f"Uploaded: https://huggingface.co/{repo}")


def _upload(
    run: RunFolder, content: Repository, repo: str, *, private: bool, replace: bool
) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError
    from sae_lens import upload_saes_to_huggingface

    from sparse_but_wrong.sae_lens_compat import inference_copy

    api = HfApi()
    try:
        there = set(api.list_repo_files(repo))
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private)
        there = set()
    if (taken := sorted(there & set(content.names))) and not replace:
        raise FileExistsError(
            f"{repo} has {len(taken)} of these files already ({', '.join(taken[:3])}, …); name "
            "another repository, or add --replace."
        )
    for sae_id in content.sae_ids:
        sae: Any = {sae_id: inference_copy(run.load_sae(sae_id))}
        upload_saes_to_huggingface(sae, repo, show_progress=False, add_default_readme=False)
    with tempfile.TemporaryDirectory() as folder:
        for name, file in content.files.items():
            Path(folder, name).write_bytes(file)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload model card")
