"""Prompts for text: what they ask for, that held-out words stay held out, and that the OCR reward can score them."""

from __future__ import annotations

import itertools
import re

import numpy as np

from blip3o_rl.data.synthetic.text_prompts import (
    ADJECTIVES,
    NOUNS,
    TAGS,
    held_out_text_prompts,
    split_words,
    train_text_prompts,
)
from blip3o_rl.rewards.ocr.rules import edits, wanted_texts


def words_of(lines):
    return {word for line in lines for text in line["text"] for word in text.split()}


def test_words_are_split_without_a_rest():
    train, held_out = split_words(False), split_words(True)
    for words, left, right in zip((ADJECTIVES, NOUNS), train, held_out, strict=True):
        assert sorted((*left, *right)) == sorted(set(words.split()))
        assert 0.15 < len(right) / len(words.split()) < 0.25


def test_no_word_is_a_near_miss_of_another():
    for a, b in itertools.combinations((ADJECTIVES + NOUNS).split(), 2):
        assert edits([a], b, np.ones(len(b))) >= 2, (a, b)


def test_training_never_sees_a_held_out_word():
    train, held_out = train_text_prompts(2000, seed=3), held_out_text_prompts(64)
    assert words_of(train).isdisjoint(words_of(held_out))
    assert len({line["prompt"] for line in held_out}) == 64
    assert not {line["prompt"] for line in train} & {line["prompt"] for line in held_out}


def test_the_field_text_is_what_the_prompt_quotes():
    for line in (*train_text_prompts(200), *held_out_text_prompts(48)):
        assert re.findall(r'"([^"]*)"', line["prompt"]) == line["text"]
        assert wanted_texts(line["prompt"], {}, "strict") == line["text"]


def test_same_seed_same_prompts_and_tags_in_equal_shares():
    assert train_text_prompts(60, seed=1) == train_text_prompts(60, seed=1) != train_text_prompts(60, seed=2)
    for lines in (train_text_prompts(60), held_out_text_prompts(60)):
        assert [[line["tag"] for line in lines].count(tag) for tag in TAGS] == [20, 20, 20]
    assert held_out_text_prompts(60)[:12] == held_out_text_prompts(12)
