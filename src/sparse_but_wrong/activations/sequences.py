"""A text as the sequences of token ids that a language model runs over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from sparse_but_wrong.activations.language_model import LanguageModel
from sparse_but_wrong.activations.texts import MASK, TOKEN_COLUMNS, LongText, Text
from sparse_but_wrong.sae_lens_compat import concat_and_batch_sequences
from sparse_but_wrong.untrusted import one_line

PIECE_SIZE = 2**16
"""Characters after which a document is cut before it is tokenized. A tokenizer needs more than a
hundred times the memory of its text, and gives nothing before it is done."""

IDLE = 10_000
"""Sequences, or texts, in a row of which nothing comes, before a text is given up."""

# Tokenizers begin a new token here: with a word's space, or after the end of a line. Not after a
# blank line: byte-level BPE makes two tokens of "\n\n" before a word, and one at the end of a text.
_BOUNDARY = re.compile(r"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)")


class Sequences(Iterator[Tensor]):
    """The sequences of a text, int64 ids [tokens], in order and once.

    Documents are strung together with BOS between them and cut into sequences of `context_size`,
    as sae_lens does; what is left at the end is no sequence. Rows of ids are documents of their
    own: a row is cut into sequences of `context_size`, the last of which has what is left. Of a row
    with an attention mask only what the mask leaves is taken, and it may be shorter than
    `context_size`; where it leaves nothing the sequence is empty.

    Args:
        prepend_bos: whether every sequence of a text starts with BOS, where the tokenizer has one.
        piece_size: characters after which a document is cut before it is tokenized, between words;
            where there is no place for that, within one. If left out, documents are tokenized
            whole, and rows that are longer than `context_size` or masked are refused.
    Raises:
        ValueError: from `next`, a row that is no text or no row of ids, or nothing but such without
            content.
    """

    def __init__(
        self,
        model: LanguageModel,
        text: Text,
        context_size: int,
        *,
        prepend_bos: bool,
        piece_size: int | None = PIECE_SIZE,
    ) -> None:
        self.n_skipped = 0
        """Texts without content so far: null, or empty."""

        self._model, self._text, self._context_size = model, text, context_size
        self._prepend_bos, self._piece_size = prepend_bos, piece_size
        self._bos: int | None = model.tokenizer.bos_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self._sequences = self._of_rows() if text.column in TOKEN_COLUMNS else self._of_documents()

    def __next__(self) -> Int64[Tensor, " tokens"]:
        return next(self._sequences)

    def _of_rows(self) -> Iterator[Tensor]:
        for number, row in enumerate(self._text.rows):
            name = f"row {number} of {self._text.name}"
            ids, mask = row[self._text.column], row.get(MASK)
            self.n_skipped += ids is None
            tokens = _integers([] if ids is None else ids, f"{name}, {self._text.column}")
            n_all = len(tokens)
            if mask is not None and ids is not None:
                tokens = _unpadded(tokens, _integers(mask, f"{name}, {MASK}"), name)
            elif ids is not None and n_all < self._context_size:
                raise ValueError(
                    f"{name} has {n_all} tokens; context_size ({self._context_size}) must not be "
                    "larger."
                )
            if self._piece_size is None and (len(tokens), n_all) != (self._context_size,) * 2:
                raise ValueError(
                    f"{name} has {len(tokens)} tokens, which format 1 of caches took for "
                    f"{self._context_size}; a cache of that format cannot be resumed over it and "
                    "has to be made anew."
                )
            yield from tokens.split(self._context_size)

    def _of_documents(self) -> Iterator[Tensor]:
        # Separators are in the documents already: sae_lens would put one before each piece.
        yield from concat_and_batch_sequences(
            self._pieces(),
            self._context_size,
            begin_batch_token_id=self._bos if self._prepend_bos else None,
        )

    def _pieces(self) -> Iterator[Tensor]:
        at = 0
        for document in self._documents():
            is_start = True
            for ids in self._tokenized(document):
                # Where a sequence begins with the document, sae_lens puts BOS only if it is to
                # begin with one.
                if is_start and self._bos is not None and (self._prepend_bos or at):
                    ids = ids if ids[:1] == [self._bos] else [self._bos, *ids]
                is_start = False
                at = (at + len(ids)) % self._context_size
                yield torch.tensor(ids)

    def _documents(self) -> Iterator[str | LongText]:
        idle = 0
        for number, row in enumerate(self._text.rows):
            content = row[self._text.column]
            if content is None or content == "":
                self.n_skipped += 1
                idle += 1
                if idle == IDLE:
                    raise ValueError(
                        f"{self._text.name}: nothing is in {IDLE:,} texts in a row, up to row "
                        f"{number}; name another text."
                    )
                continue
            if not isinstance(content, str | LongText):
                raise ValueError(
                    f"row {number} of {self._text.name} holds a {type(content).__name__} as a "
                    "text; texts are strings."
                )
            idle = 0
            yield content

    def _tokenized(self, document: str | LongText) -> Iterator[list[int]]:
        """The ids of a document, piece by piece, leaving out pieces without any."""
        held: str | None = None
        closing: list[int] | None = None
        for piece in cut(document, self._piece_size):
            if held is not None:
                if closing is None:
                    closing = self._closing(held)
                    ids = self._whole(held)
                    yield from _some(ids[: len(ids) - len(closing)])
                else:
                    yield from _some(self._bare(held))
            held = piece
        if held is not None:
            yield from _some(self._whole(held) if closing is None else self._bare(held) + closing)

    def _whole(self, document: str) -> list[int]:
        ids: Any = self._model.model.to_tokens(  # pyright: ignore[reportCallIssue]
            document, prepend_bos=False, move_to_device=False, truncate=False
        )
        return ids[0].long().tolist()

    def _bare(self, piece: str) -> list[int]:
        return self._model.tokenizer(piece, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]

    def _closing(self, piece: str) -> list[int]:
        """What the tokenizer puts behind a document."""
        bare: list[int] = self._bare(piece)
        with_special: Any = self._model.tokenizer(piece)["input_ids"]
        n_special = len(with_special) - len(bare)
        before = (i for i in range(n_special + 1) if with_special[i : i + len(bare)] == bare)
        return with_special[next(before, n_special) + len(bare) :]


def cut(document: Iterable[str], size: int | None) -> Iterator[str]:
    """A document in pieces of up to so many characters, cut between words where that can be.

    Args:
        document: the text, or what it consists of one after the other.
        size: if left out, it stays whole.
    """
    if size is None:
        yield "".join(document)
        return
    if isinstance(document, str):
        whole = document
        document = (whole[start : start + size] for start in range(0, len(whole), size))
    held = ""
    for chunk in document:
        held += chunk
        # One more, to see what follows a boundary.
        while len(held) > size:
            boundaries = [match.start() for match in _BOUNDARY.finditer(held, 0, size + 1)]
            stop = boundaries[-1] if boundaries else size
            yield held[:stop]
            held = held[stop:]
    if held:
        yield held


def _some(ids: list[int]) -> Iterator[list[int]]:
    if ids:
        yield ids


def _integers(values: Any, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} holds no list of whole numbers ({one_line(error)}).") from error
    is_integer = not (tensor.is_floating_point() or tensor.is_complex())
    if tensor.ndim != 1 or (len(tensor) and not is_integer):
        raise ValueError(
            f"{name} holds numbers of shape {list(tensor.shape)} and type "
            f"{str(tensor.dtype).removeprefix('torch.')}; a list of whole numbers is needed."
        )
    return tensor.long()


def _unpadded(ids: Tensor, mask: Tensor, name: str) -> Tensor:
    """The ids where the mask is one.

    As if the row had never been padded: run by themselves they get the positions and the attention
    that the mask means, by any model.
    """
    if len(mask) != len(ids) or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"{name}: the attention_mask must have {len(ids)} zeros and ones, one per token, but "
            f"has {len(mask)} numbers from {_range(mask)}."
        )
    places = mask.nonzero().flatten()
    if len(places) and int(places[-1] - places[0]) + 1 != len(places):
        raise ValueError(
            f"{name}: the attention_mask has zeros between its ones; only padding before and after "
            "the text can be left out."
        )
    return ids[places]


def _range(mask: Tensor) -> str:
    return f"{int(mask.min())} to {int(mask.max())}" if len(mask) else "none"
