from __future__ import annotations

import pytest

from sparse_but_wrong.report.render import with_symbols


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("s_n^dec falls", "s<sub>n</sub><sup>dec</sup> falls"),
        ("s_12 < c_dec, c_enc", "s<sub>12</sub> &lt; c<sub>dec</sub>, c<sub>enc</sub>"),
        ("sae_id, mass_n, s_name", "sae_id, mass_n, s_name"),
        ("<b>s_1</b>", "&lt;b&gt;s<sub>1</sub>&lt;/b&gt;"),
    ],
)
def test_symbols_in_sentences(text: str, html: str) -> None:
    assert with_symbols(text) == html
