"""Write the text that `make real` reads, from data that the package sae-probes carries.

Its probing tasks come with texts of many kinds. Those of tasks that `make real` does not probe are
English prose from several places, and code: more like what a language model reads than any single
corpus that a package on PyPI carries.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

SOURCES = {
    "57_wikidatais_alive": "people in an encyclopedia",
    "100_news_fake": "news, true and false",
    "94_ai_gen": "essays",
    "45_context_ans": "stories, with a question",
    "111_yelp_data": "reviews",
    "48_cm_correct": "anecdotes and their morals",
    "98_cancer_cat": "medical papers",
    "159_code_Python": "code",
}
CHARACTERS = 400_000
"""Of each."""
SHORTEST = 200


def main(data: Path, out: Path) -> None:
    """Write a line of JSON per document, the sources by turns."""
    documents = []
    for name in SOURCES:
        prompts = pd.read_csv(data / f"{name}.csv.zst")["prompt"].drop_duplicates()
        long = prompts[prompts.str.len() >= SHORTEST].sample(frac=1, random_state=0)
        chosen = long[long.str.len().cumsum() <= CHARACTERS]
        documents += [((i + 0.5) / len(chosen), text) for i, text in enumerate(chosen)]
    documents.sort(key=lambda document: document[0])
    lines = (json.dumps({"text": text.strip()}) + "\n" for _, text in documents)
    unfinished = out.with_suffix(".unfinished")
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.rename(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
