"""Prepare what `make real` reads and probes, from data that the package sae-probes carries.

Its probing tasks come with texts of many kinds. The SAEs are trained on those of tasks that are not
probed: English prose from several places, and code, which is more like what a language model reads
than any single corpus that a package on PyPI carries.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

from sparse_but_wrong.atomic import write_bytes

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
TASKS = (
    *("5_hist_fig_ismale", "7_hist_fig_ispolitician", "21_headline_istrump"),
    *("26_headline_isfrontpage", "36_sciq_tf", "41_truthqa_tf", "42_temp_sense", "44_phys_tf"),
    *("47_reasoning_tf", "50_deon_isvalid", "51_just_is", "52_virtue_is", "54_cs_tf"),
    *("65_high-school", "69_blood-pressure", "73_control-group", "76_trial-court"),
    *("79_human-rights", "85_mental-health", "87_glue_cola", "90_glue_qnli", "91_glue_qqp"),
    *("92_glue_sst2", "95_toxic_is", "96_spam_is", "105_click_bait", "106_hate_hate"),
    *("110_aimade_humangpt3", "113_movie_sent", "114_nyc_borough_Manhattan", "117_us_state_FL"),
    *("121_us_timezone_New_York", "123_world_country_United_Kingdom", "126_art_type_book"),
    *("128_art_type_movie", "136_glue_mnli_entailment", "139_news_class_Politics"),
    *("149_twt_emotion_happiness", "151_it_tick_HR Support", "154_athlete_sport_football"),
)
"""Forty with short texts, of as many kinds as there are, chosen before any was probed."""

CHARACTERS = 400_000
"""Of each, to train on."""
HELD_OUT = 20_000
"""Of each, to measure the model's loss on."""
SHORTEST = 200


def main(tasks: Path, out: Path) -> None:
    """Write texts/texts.jsonl and held_out/texts.jsonl, a document a line, the sources by turns,
    and copy the tasks to probe."""
    chosen: dict[str, list[tuple[float, str]]] = {"texts": [], "held_out": []}
    for name in SOURCES:
        prompts = pd.Series(pd.read_csv(tasks / f"{name}.csv.zst")["prompt"]).drop_duplicates()
        long = prompts.loc[prompts.str.len() >= SHORTEST].sample(frac=1, random_state=0)
        end = long.str.len().cumsum()
        parts = {
            "texts": long[end <= CHARACTERS],
            "held_out": long[(end > CHARACTERS) & (end <= CHARACTERS + HELD_OUT)],
        }
        for part, documents in parts.items():
            n = len(documents)
            chosen[part] += [((i + 0.5) / n, text.strip()) for i, text in enumerate(documents)]
    for part, documents in chosen.items():
        documents.sort(key=lambda document: document[0])
        lines = "".join(json.dumps({"text": text}) + "\n" for _, text in documents)
        write_bytes(out / part / "texts.jsonl", lines.encode())
    for name in TASKS:
        write_bytes(out / "tasks" / f"{name}.csv.zst", (tasks / f"{name}.csv.zst").read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
