"""`sbw export`, and `sbw push` against a stand-in for the Hub: a folder, and what its client would
have done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from matplotlib.figure import Figure
from sae_lens import SAE, TrainingSAE
from torch import Tensor

import sparse_but_wrong
from sparse_but_wrong.experiments import sweep as experiments
from sparse_but_wrong.l0.recommend import recommend_l0
from sparse_but_wrong.report.recommendation import write_recommendation
from sparse_but_wrong.sae_lens_compat import SAE_TRAINING_CLASS_REGISTRY, inference_copy
from tests.activations.caches import write_cache
from tests.cli.conftest import Sbw
from tests.experiments import tiny
from tests.l0.evidence import sweep
from tests.saes.test_hub import ConnectError
from tests.training import oracle


class Hub:
    """Repositories below a folder; in place of the methods of `HfApi` that are used."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self.created = place, {}
        for name in ("repo_info", "list_repo_files", "create_repo", "upload_folder"):
            method = getattr(self, name)
            monkeypatch.setattr(HfApi, name, lambda _, *a, _do=method, **k: _do(*a, **k))

    def repo_info(self, repo_id: str, **_: Any) -> None:
        if not (self.place / repo_id).is_dir():
            response: Any = SimpleNamespace(headers={}, request=None, status_code=404)
            raise RepositoryNotFoundError("none", response=response)

    def list_repo_files(self, repo_id: str) -> list[str]:
        self.repo_info(repo_id)
        return [self.name(f) for f in (self.place / repo_id).rglob("*") if f.is_file()]

    def name(self, file: Path) -> str:
        return "/".join(file.relative_to(self.place).parts[2:])

    def create_repo(self, repo_id: str, private: bool) -> None:
        (self.place / repo_id).mkdir(parents=True)
        self.created[repo_id] = private
        (self.place / repo_id / ".gitattributes").touch()

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert commit_message
        shutil.copytree(folder_path, self.place / repo_id, dirs_exist_ok=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run, and what `sbw find-l0` would have written of it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        tiny.register(patch, name="jumprelu")
        run = sparse_but_wrong.run_experiment("jumprelu", folder / "run", progress=False)
    found = recommend_l0(sweep())
    made = {"Sweep": "run", "Command": "sbw find-l0 run"}
    write_recommendation(found, folder / "found", "The sweep in run", made, with_sae=False)
    return run, folder / "run", folder / "found"


def test_saes_go_up_with_a_card(sbw: Sbw, hub: Hub, finished: Any) -> None:
    run, path, found = finished
    first, second = list(run.saes)[:2]
    said = sbw(f"push {path} me/saes --sae {second} --recommendation {found} --private")
    assert "me/saes" in said.out
    assert hub.created == {"me/saes": True}
    names = {f"{second}/cfg.json", f"{second}/sae_weights.safetensors", ".gitattributes"}
    pictures = {"overview.png", "recommendation.png"}
    assert set(hub.list_repo_files("me/saes")) == names | pictures | {"README.md"}
    up = SAE.load_from_disk(hub.place / "me/saes" / second)
    there = inference_copy(run.trained(second))
    x = torch.randn(50, up.cfg.d_in, generator=torch.Generator().manual_seed(0))
    assert torch.equal(up.encode(x), there.encode(x))
    assert (up.encode(x) > 0).any()
    card = (hub.place / "me/saes/README.md").read_text()
    assert card.startswith("---\nlibrary_name: saelens\n")
    row = run.table.set_index("sae_id").loc[second]
    assert f"| `{second}` | {row['l0']:.4g} |" in card
    assert f"`{first}`" not in card
    assert f'SAE.from_pretrained("me/saes", "{second}")' in card
    assert "L0 10, between 9.754 and 10.25" in card
    assert "sbw find-l0 run" in card
    assert "- Seed: 0" in card
    for picture in pictures:
        assert f"({picture})" in card
        assert (hub.place / "me/saes" / picture).read_bytes().startswith(b"\x89PNG")


def test_a_dry_run_lists_what_would_go_up(sbw: Sbw, hub: Hub, finished: Any) -> None:
    run, path, _ = finished
    one, *_ = run.saes
    listed = sbw(f"push {path} me/saes --sae {one} --dry-run").out.split()
    assert not hub.place.exists()
    sbw(f"push {path} me/saes --sae {one}")
    files = {name: hub.place / "me/saes" / name for name in listed[1::2]}
    assert files.keys() == set(hub.list_repo_files("me/saes")) - {".gitattributes"}
    assert [f"{file.stat().st_size:,}" for file in files.values()] == listed[::2]


def test_nothing_is_overwritten_unless_it_is_said(sbw: Sbw, hub: Hub, finished: Any) -> None:
    run, path, _ = finished
    one, other = list(run.saes)[:2]
    sbw(f"push {path} me/saes --sae {one}")
    assert hub.created == {"me/saes": False}
    card = hub.place / "me/saes/README.md"
    card.write_text("mine")
    sbw.refuses(f"push {path} me/saes --sae {other}", "README.md", "--replace")
    assert card.read_text() == "mine"
    assert not (hub.place / "me/saes" / other).exists()
    sbw(f"push {path} me/saes --sae {other} --replace")
    assert other in card.read_text()
    assert (hub.place / "me/saes" / one).is_dir()


def test_what_cannot_go_up_is_refused(sbw: Sbw, hub: Hub, finished: Any, tmp_path: Path) -> None:
    run, path, _ = finished
    sbw.refuses(f"push {path} me/saes --sae nonsense", "nonsense", next(iter(run.saes)))
    sbw.refuses(f"push {path} 'no name'", "no name")
    sbw.refuses(f"push {tmp_path} me/saes", "no run")
    sbw.refuses(f"push {path} me/saes --recommendation {path}", "recommendation.json")
    old = tmp_path / "old"
    old.mkdir()
    (old / "recommendation.json").write_text('{"l0": 3}')
    sbw.refuses(f"push {path} me/saes --recommendation {old}", "text", "find-l0")
    without = shutil.copytree(path, tmp_path / "none") / "manifest.json"
    content = json.loads(without.read_text())
    without.write_text(json.dumps(content | {"spec": content["spec"] | {"saes": []}}))
    sbw.refuses(f"push {tmp_path / 'none'} me/saes", "no SAEs")
    damaged = shutil.copytree(path, tmp_path / "damaged")
    (damaged / "saes" / next(iter(run.saes)) / "cfg.json").write_text("{}")
    sbw.refuses(f"push {damaged} me/saes", "changed")
    assert not hub.place.exists()
    sbw.refuses(f"export {damaged} {tmp_path / 'out'}", "changed")
    assert not (tmp_path / "out").exists()
    sbw.refuses(f"export {path} {old}", "not empty")


def test_a_hub_that_cannot_be_reached_is_said(
    sbw: Sbw, monkeypatch: pytest.MonkeyPatch, finished: Any
) -> None:
    def fails(*_: Any) -> None:
        raise ConnectError("no route")

    monkeypatch.setattr(HfApi, "list_repo_files", fails)
    sbw.refuses(f"push {finished[1]} me/saes", "reached .*no route")


CONFIGS = {**oracle.DEFAULTS, "matching_pursuit": {"decoder_init_norm": 1.0, "max_iterations": 3}}
SPEC = {
    "name": "mine",
    "title": "Mine",
    "claim": "none",
    "world": {"activations": "acts"},
    "saes": [
        {"sae_id": name, "architecture": name, "config": {"d_sae": oracle.D_SAE, **config}}
        for name, config in CONFIGS.items()
    ],
    "training": {"total_training_samples": 6400, "train_batch_size_samples": 64, "lr": 0.01},
    "evaluation_samples": 100,
    "projection_n": [3],
    "analysis": "activations",
}


def as_used(sae: TrainingSAE[Any], x: Tensor) -> Tensor:
    """Latents by the weights as they were trained; where a batch decided, by the threshold."""
    acts, pre = sae.encode_with_hidden_pre(x)
    if "topk_threshold" not in sae.state_dict():
        return acts.to_dense()
    return torch.where(pre > sae.get_buffer("topk_threshold"), pre, 0.0)


def test_sae_lens_opens_exported_saes_of_every_architecture(
    sbw: Sbw, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CONFIGS.keys() == SAE_TRAINING_CLASS_REGISTRY.keys() - {"abstopk"}  # which is refused
    monkeypatch.setattr(experiments, "plot_evaluations", lambda _: Figure(figsize=(1, 1)))
    batches = oracle.recorded_batches(20)
    text = {"kind": "hub", "id": "me/plays"}
    write_cache(Path("acts"), torch.cat(batches), text=text)
    Path("mine.yaml").write_text(json.dumps(SPEC))
    sbw("run mine.yaml --out mine")
    assert "README.md" in sbw("export mine out").out
    # What sae_lens' ActivationsStore.from_sae and SAEDashboard read.
    written = {
        "model_name": "tiny",
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "model.layers.0",
        "context_size": 16,
        "seqpos_slice": [1, None],
        "prepend_bos": True,
        "exclude_special_tokens": True,
        "dataset_path": "me/plays",
    }
    for name in CONFIGS:
        exported = SAE.load_from_disk(Path("out") / name)
        assert not isinstance(exported, TrainingSAE)
        assert {key: exported.cfg.metadata[key] for key in written} == written
        acts = exported.encode(batches[0]).to_dense()
        assert (acts > 0).any()
        trained = TrainingSAE.load_from_disk(Path("mine/saes") / name)
        torch.testing.assert_close(acts, as_used(trained, batches[0]), rtol=1e-6, atol=1e-6)
    card = Path("out/README.md").read_text()
    assert "- Model: tiny\n- Hook: model.layers.0" in card
    assert 'SAE.load_from_disk("jumprelu")' in card
