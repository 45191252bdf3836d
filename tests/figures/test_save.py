from __future__ import annotations

from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from sparse_but_wrong.figures.save import save_figure, write_figure


def a_figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2], [3, 4])
    return figure


def test_writes_pdf_and_png_into_a_new_folder_and_nothing_else(tmp_path: Path) -> None:
    pdf, png = save_figure(a_figure(), tmp_path / "new" / "folder" / "dp_0.5")
    folder = tmp_path / "new" / "folder"
    assert (pdf, png) == (folder / "dp_0.5.pdf", folder / "dp_0.5.png")
    assert sorted(path.name for path in folder.iterdir()) == ["dp_0.5.pdf", "dp_0.5.png"]
    assert pdf.read_bytes().startswith(b"%PDF")
    assert matplotlib.image.imread(png).shape[:2] == (200, 400)


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    first = save_figure(a_figure(), tmp_path / "first")
    second = save_figure(a_figure(), tmp_path / "second")
    assert b"CreationDate" not in first[0].read_bytes()
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_closes_a_figure_of_pyplots(tmp_path: Path) -> None:
    figure = plt.figure(figsize=(1, 1))
    save_figure(figure, tmp_path / "open")
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", ["figure.pdf", "figure.PNG"])
def test_a_path_with_its_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"leave .* off"):
        save_figure(a_figure(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["figure", "figure.docx"])
def test_write_figure_refuses_formats_it_does_not_know(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"use one of .*\.pdf"):
        write_figure(a_figure(), tmp_path / name)


def test_svg_and_eps_are_written_and_svg_is_the_same_each_time(tmp_path: Path) -> None:
    first = write_figure(a_figure(), tmp_path / "first.svg")
    second = write_figure(a_figure(), tmp_path / "second.svg")
    assert "<dc:date>" not in first.read_text()
    assert first.read_bytes() == second.read_bytes()
    assert write_figure(a_figure(), tmp_path / "figure.eps").read_bytes().startswith(b"%!PS")


def test_a_failed_write_keeps_the_old_file_and_leaves_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figure.pdf"
    path.write_bytes(b"old")

    def full_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_figure(a_figure(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
