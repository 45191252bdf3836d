"""Whether the benchmark of the diagnostics works; what it measures is not asserted."""

from __future__ import annotations

import pytest

from benchmarks.diagnostics import main


def test_prints_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"--d-in": 8, "--d-sae": 64, "--batch": 32, "--batches": 2, "--repeats": 2}
    arguments = [str(word) for pair in sizes.items() for word in pair]
    main(arguments)
    printed = capsys.readouterr().out
    for way in ("the product alone", "all n, from counts", "one n, from a sort"):
        assert f"{way:<22}" in printed
    assert "1.00 × the product" in printed
