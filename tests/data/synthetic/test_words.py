from __future__ import annotations

import numpy as np

from blip3o_rl.data.synthetic import words
from blip3o_rl.rewards.ocr.reward import OCRReward
from blip3o_rl.scoring.api import Sample


def test_the_split_trains_every_letter_in_both_places_and_no_held_out_word() -> None:
    training, held_out = words.split()
    assert len(training) + len(held_out) == 369
    assert not {line["text"] for line in training} & {line["text"] for line in held_out}
    for place in range(2):
        assert {line["text"][place] for line in training} == set(words.LETTERS)
    assert words.held_out_words(5) == list(held_out[:5])


def test_training_words_follow_their_seed() -> None:
    assert words.train_words(20, 3) == words.train_words(20, 3) != words.train_words(20, 4)


def test_a_word_is_drawn_inside_the_image_with_a_free_column_between_its_letters() -> None:
    rng = np.random.default_rng(0)
    line = {"text": "HH"}
    for _ in range(50):
        dark = words.write(rng, line).draw(90).min(axis=2) < 128
        assert dark.sum() == 22 * 100, "eleven cells of ten by ten pixels for each H"
        columns = np.flatnonzero(dark.any(axis=0))
        assert len(columns) == 60 and columns[-1] - columns[0] == 69


def test_words_can_be_read() -> None:
    rng = np.random.default_rng(2)
    lines = words.held_out_words(12)
    samples = [
        Sample(line["text"], line["prompt"], words.write(rng, line).draw(), line) for line in lines for _ in range(2)
    ]
    exact = [score.components["exact"] for score in OCRReward().score(samples)]
    assert np.mean(exact) > 0.9
