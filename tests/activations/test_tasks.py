"""Probing tasks: what counts as one, and activations at the last tokens of its texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from sparse_but_wrong.activations import task_cache, tasks
from sparse_but_wrong.activations.language_model import LanguageModel
from sparse_but_wrong.activations.task_cache import cache_task_activations, open_task_activations
from sparse_but_wrong.activations.tasks import Task, read_tasks
from tests.activations.tiny_model import BOS, D_IN, after_first_layer, write_tasks


def write(folder: Path, name: str, rows: list[tuple[str, object]]) -> Path:
    file = folder / name
    text = "\n".join(["number,prompt,target", *(f"0,{prompt},{of}" for prompt, of in rows)])
    file.write_bytes(zstandard.compress(text.encode()) if name.endswith(".zst") else text.encode())
    return file


def numbered(n: int, classes: int = 2, prefix: str = "text") -> list[tuple[str, object]]:
    return [(f"{prefix} {i}", i % classes) for i in range(n)]


def test_files_of_two_classes_are_tasks(tmp_path: Path) -> None:
    write(tmp_path, "b.csv", numbered(40))
    write(tmp_path, "a.b.csv.zst", [(prompt, of == 1) for prompt, of in numbered(40)])
    write(tmp_path, "three.csv", numbered(60, classes=3))
    write(tmp_path, "few.csv", numbered(19))
    write(tmp_path, "long.csv", numbered(40, prefix="x" * 100))
    (tmp_path / "notes.txt").write_text("no task")
    found = read_tasks(tmp_path, max_length=50)
    assert [task.name for task in found] == ["a.b", "b"]
    assert found[0].classes == ("False", "True")
    assert found[0].prompts == tuple(f"text {i}" for i in range(40))
    assert found[0].labels == tuple(i % 2 == 1 for i in range(40))
    assert [task.name for task in read_tasks(tmp_path, ["long", "b"])] == ["b", "long"]
    with pytest.raises(ValueError, match="'few' 'three'"):
        read_tasks(tmp_path, ["three", "few", "b"])


def test_a_balanced_sample_of_distinct_texts(tmp_path: Path) -> None:
    rows = [*numbered(100), *numbered(100), ("", 1), (" ", 0), ("both", 0), ("both", 1), ("NA", 1)]
    # Many more of one class.
    write(tmp_path, "a.csv", [*rows, *[(f"more {i}", 1) for i in range(100)]])
    (drawn,) = read_tasks(tmp_path, n_texts=41)
    assert len(set(drawn.prompts)) == 40
    assert sum(drawn.labels) == 20
    (every,) = read_tasks(tmp_path)
    assert len(every.prompts) == 100
    assert not {"", " ", "both"} & set(every.prompts)
    assert read_tasks(tmp_path, n_texts=41) == [drawn]
    assert read_tasks(tmp_path, n_texts=41, seed=1)[0].prompts != drawn.prompts
    # Whichever others there are.
    write(tmp_path, "0.csv", numbered(100))
    assert read_tasks(tmp_path, n_texts=41)[1] == drawn
    with pytest.raises(ValueError, match="20"):
        read_tasks(tmp_path, n_texts=19)


def test_bad_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "a.csv.zst", numbered(400))
    whole = file.read_bytes()
    # Two frames are one text.
    file.write_bytes(whole + zstandard.compress(b"\n0,text 400,0"))
    assert len(read_tasks(tmp_path)[0].prompts) == 400
    for content in (whole[: len(whole) // 2], b"no zstd", zstandard.compress(b"\xff"), b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.csv\.zst is damaged"):
            read_tasks(tmp_path)
    file.write_bytes(whole)
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"a\.csv\.zst needs .*sparse_but_wrong\[probing\]"):
        read_tasks(tmp_path)
    other = write(tmp_path, "a.csv", numbered(40))
    with pytest.raises(ValueError, match="of one name"):
        read_tasks(tmp_path)
    file.unlink()
    for content, message in (
        ('prompt,target\n"no end', r"a\.csv is damaged"),
        ("text,target\nb,1", "prompt .*text, target"),
    ):
        other.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_tasks(tmp_path)
    other.unlink()
    with pytest.raises(ValueError, match="no task"):
        read_tasks(tmp_path, max_length=10)
    with pytest.raises(NotADirectoryError, match="missing"):
        read_tasks(tmp_path / "missing")


@pytest.fixture
def some(tmp_path: Path) -> list[Task]:
    return read_tasks(write_tasks(tmp_path / "tasks"), n_texts=20)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


def test_the_last_token_is_read_of_texts_cut_on_the_left(
    some: list[Task], model: LanguageModel, tiny_model: Path, tmp_path: Path
) -> None:
    kept = cache_task_activations(model, some, tmp_path / "kept", context_size=6, batch_size=8)
    assert list(kept) == ["task_0", "task_1"]
    x, labels = kept["task_1"]
    assert labels.tolist() == list(some[1].labels)
    n_cut = 0
    for prompt, found in zip(some[1].prompts, x, strict=True):
        ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        n_cut += len(ids) > 5
        alone = after_first_layer(tiny_model, torch.tensor([[BOS, *ids[-5:]]]))[0, -1]
        # Other texts and padding have no part in it; sums of another order have.
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    manifest = json.loads((tmp_path / "kept/manifest.json").read_text())
    assert 0 < n_cut < 20
    assert manifest["tasks"]["task_1"]["n_cut"] == n_cut
    assert manifest["hook"] == "model.layers.0"
    assert manifest["complete"] is True
    again = open_task_activations(tmp_path / "kept")
    assert all(torch.equal(again[name][0], kept[name][0]) for name in kept)
    bare = cache_task_activations(
        model, some[:1], tmp_path / "bare", context_size=6, prepend_bos=False
    )
    assert bare["task_0"][0].shape == (20, D_IN)
    assert not torch.equal(bare["task_0"][0], kept["task_0"][0])


def test_a_resumed_cache_is_the_same_and_runs_only_what_is_missing(
    some: list[Task], model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    cache_task_activations(model, some, whole, context_size=16)
    run, ran = task_cache._run, []

    def until_the_second(model: LanguageModel, task: Task, *settings: int) -> Any:
        ran.append(task.name)
        if ran == ["task_0", "task_1"]:
            raise KeyboardInterrupt
        return run(model, task, *settings)

    monkeypatch.setattr(task_cache, "_run", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        cache_task_activations(model, some, begun, context_size=16)
    with pytest.raises(ValueError, match="1 tasks and lacks others"):
        open_task_activations(begun)
    cache_task_activations(model, some, begun, context_size=16)
    assert ran == ["task_0", "task_1", "task_1"]
    assert files(begun) == files(whole)
    # One task of them, and a damaged file.
    assert list(cache_task_activations(model, some[1:], begun, context_size=16)) == ["task_1"]
    (begun / "task_0.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"task_0\.safetensors is damaged"):
        open_task_activations(begun)
    cache_task_activations(model, some, begun, context_size=16)
    assert ran[3:] == ["task_0"]
    assert files(begun) == files(whole)


def test_another_model_or_setting_is_refused(
    some: list[Task], model: LanguageModel, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    cache_task_activations(model, some, folder, context_size=16)
    before = files(folder)
    other_texts = [replace(some[0], prompts=some[0].prompts[::-1])]
    for changed, given, context_size, message in (
        (replace(model, name="other"), some, 16, "model '.*', not 'other'"),
        (replace(model, hook="model.layers.1"), some, 16, "hook 'model.layers.0', not"),
        (model, some, 15, "context_size 16, not 15"),
        (model, other_texts, 16, "of task_0"),
        # 64 tokens are all that the model takes.
        (model, some, 65, "64 tokens.* 65"),
        (model, some, 1, "2 to 64"),
    ):
        with pytest.raises(ValueError, match=message):
            cache_task_activations(changed, given, folder, context_size=context_size)
    with pytest.raises(FileExistsError):
        cache_task_activations(model, some, tmp_path / "tasks", context_size=16)
    assert files(folder) == before


def test_a_manifest_of_something_else_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"format": "sparse_but_wrong activations"}))
    with pytest.raises(ValueError, match="sparse_but_wrong task activations"):
        open_task_activations(tmp_path)
    kind = {"format": task_cache.FORMAT, "format_version": task_cache.FORMAT_VERSION}
    manifest.write_text(json.dumps(kind))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged \(model: "):
        open_task_activations(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_task_activations(tmp_path / "missing")


def test_what_a_model_cannot_read_is_named(
    some: list[Task], model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = replace(some[0], prompts=(" ", *some[0].prompts[1:]))
    with pytest.raises(ValueError, match="task_0 has no token"):
        cache_task_activations(
            model, [empty], tmp_path / "empty", prepend_bos=False, context_size=6
        )
    monkeypatch.setattr(
        LanguageModel,
        "activations",
        lambda self, ids: torch.full((*ids.shape, self.d_in), torch.nan),
    )
    with pytest.raises(ValueError, match="not finite for task_0"):
        cache_task_activations(model, some, tmp_path / "nan", context_size=16)
