"""Archives that somebody else may have packed, as torch.save and numpy.savez write them."""

from __future__ import annotations

import zipfile
from mmap import ACCESS_READ, mmap
from pathlib import Path

from sparse_but_wrong.untrusted import one_line

MOST = 4
"""How many times the size of its file a content may have. torch.save and numpy.savez do not
compress, and weights of float32 shrink to half at best where they do."""


def check_zip(file: Path) -> None:
    """Check that a zip archive holds no more than its size allows, before anything unpacks it.

    A file that is no zip archive passes: what reads it says so.

    Raises:
        ValueError: it is damaged, or would unpack to much more than it takes.
        OSError: it cannot be read.
    """
    if not _is_zip(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
    except OSError:
        raise
    # What the module makes of bytes that are no archive is not only its own error.
    except Exception as error:
        raise ValueError(
            f"{file} is damaged ({one_line(error)}); copy it again from its source."
        ) from error
    check_claim(file, claimed)


def makes_bytes(file: Path) -> bool:
    """Whether a file of torch.save asks for a bytearray, which may be of any length.

    It is one of the few things that torch.load makes besides tensors, and none is in a state dict.
    A zip archive has been checked by `check_zip`.
    """
    name = b"bytearray"
    if _is_zip(file):
        with zipfile.ZipFile(file) as archive:
            pickles = [member for member in archive.namelist() if member.endswith(".pkl")]
            return any(name in archive.read(member) for member in pickles)
    if not file.stat().st_size:
        return False
    with file.open("rb") as content, mmap(content.fileno(), 0, access=ACCESS_READ) as everything:
        return everything.find(name) >= 0


def _is_zip(file: Path) -> bool:
    # As torch and numpy tell.
    with file.open("rb") as content:
        return content.read(4) == b"PK\x03\x04"


def check_claim(file: Path, claimed: int) -> None:
    """Check that what a file says it holds can lie in it.

    Args:
        claimed: bytes.
    Raises:
        ValueError: it claims more than `MOST` times its size.
    """
    size = file.stat().st_size
    if claimed > MOST * size:
        raise ValueError(
            f"{file} claims to hold {claimed:,} bytes of numbers but has {size:,}; it was not "
            "unpacked. Save the SAE again from a source that you trust, uncompressed and with its "
            "tensors contiguous."
        )
