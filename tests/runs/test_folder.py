"""The run folder: names that come from a stranger's files lead nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_but_wrong.runs.folder import RunFolder


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../a", "/etc", "a\\b"])
def test_a_name_is_no_path(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {})
    for look in (folder.world_path, folder.sae_path, folder.has_sae, folder.read_log):
        with pytest.raises(ValueError, match="is not the plain name"):
            look(name)


def test_places_lie_within_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {})
    assert folder.world_path("c_+0.4") == tmp_path / "worlds" / "c_+0.4"
    assert folder.sae_path("k_1.8") == tmp_path / "saes" / "k_1.8"
    assert not folder.has_sae("k_1.8")
