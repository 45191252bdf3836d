"""Reading what somebody else may have written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparse_but_wrong.untrusted import parse_json, plain_name, read_json, sha256, usable_device


@pytest.mark.parametrize("levels", [101, 100_000])
def test_json_nested_too_deep_is_a_plain_error(tmp_path: Path, levels: int) -> None:
    assert parse_json("[" * 100 + "]" * 100)
    deep = "[" * levels + "]" * levels
    with pytest.raises(ValueError, match="too deep"):
        parse_json(deep)
    file = tmp_path / "cfg.json"
    file.write_text('{"a": ' + deep + "}")
    with pytest.raises(ValueError, match=r"cfg\.json is damaged.*too deep"):
        read_json(file)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[1, 2]", b""])
def test_what_is_no_json_object_names_the_file_and_the_remedy(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "cfg.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"cfg\.json .*make it anew"):
        read_json(file, "make it anew")
    file.write_text('{"k": 3}')
    assert read_json(file) == {"k": 3}


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", "a\\b", "", ".", "..", "a\0b", 3, None])
def test_a_name_that_leads_elsewhere_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="not the plain name"):
        plain_name(name)
    assert plain_name("shard-00001.safetensors") == "shard-00001.safetensors"


def test_sha256_is_the_published_one(tmp_path: Path) -> None:
    file = tmp_path / "abc"
    file.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_device_that_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_device("auto") == usable_device("cpu") == torch.device("cpu")
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, device: asked.append(device))
    assert usable_device("auto") == torch.device("cuda")
    assert asked == ["cuda"]


def test_a_device_without_numbers_is_for_those_who_ask() -> None:
    with pytest.raises(ValueError, match="'meta' cannot be used"):
        usable_device("meta")
    assert usable_device("meta", meta=True).type == "meta"
