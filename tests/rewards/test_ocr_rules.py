"""The OCR formulas against a plain edit distance, hand-computed cases, and what must hold for every input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from blip3o_rl.data.prompts import read_prompts
from blip3o_rl.errors import UserError
from blip3o_rl.rewards.ocr import rules
from blip3o_rl.rewards.ocr.reader import TextLine, reading_order, text_area
from blip3o_rl.rewards.ocr.reward import OCRReward
from blip3o_rl.scoring.rubric import Rubric


def box(x: float, y: float, width: float = 10, height: float = 10) -> np.ndarray:
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float64)


def line(text: str, confidence: float = 0.9, polygon: np.ndarray | None = None) -> TextLine:
    return TextLine(text, confidence, box(0, 0) if polygon is None else polygon)


def levenshtein(a: str, b: str) -> int:
    """The definition, written once more and slowly."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row, above = [i], row
        for j, y in enumerate(b, start=1):
            row.append(min(row[-1] + 1, above[j] + 1, above[j - 1] + (x != y)))
    return row[-1]


# Few letters, so that texts often share some; a space and two cases, so that folding matters.
words = st.text("aAbBc é1!", max_size=8)
wanted_words = words.filter(lambda text: rules.folded(text) != "")
lines = st.lists(st.builds(line, words, st.floats(0, 1)), max_size=4)
wanted_lists = st.lists(wanted_words, min_size=1, max_size=3)


# ---- edit distance


@given(words, words)
def test_edits_of_one_target_are_levenshteins(target, read):
    assert rules.edits([target], read, np.ones(len(read))) == levenshtein(read, target)


@given(st.lists(words, min_size=1, max_size=4), words)
def test_several_targets_take_their_best_order(targets, read):
    best = min(levenshtein(read, "".join(order)) for order in itertools.permutations(targets))
    assert rules.edits(targets, read, np.ones(len(read))) == best


# ---- original


@pytest.mark.parametrize(
    ("wanted", "read", "score"),
    [
        ("OPEN", ["OPEN"], 1.0),
        ("OPEN", ["open"], 1.0),
        ("OPEN 24", ["op", "en24"], 1.0),
        ("OPEN", ["XXOPENYY"], 1.0),  # the exemption: one of these letters is not paid for
        ("OPEN", ["OPN"], 0.75),
        ("OPEN", ["OPEM"], 0.75),
        ("OPEN", ["OPENS".replace("E", "3")], 0.5),
        ("OPEN", [], 0.0),
        ("OPEN", ["far too long for that"], 0.0),
        ("OPEN!", ["OPEN"], 0.8),
    ],
)
def test_original_by_hand(wanted, read, score):
    assert rules.original(wanted, read) == pytest.approx(score)


@given(wanted_words, st.lists(words, max_size=3))
def test_original_is_the_published_formula(wanted, read):
    s, t = "".join(read).replace(" ", "").lower(), wanted.replace(" ", "").lower()
    d = min(0 if t in s else levenshtein(s, t), len(t))
    assert rules.original(wanted, read) == pytest.approx(1 - d / len(t))


@given(wanted_words, words, words)
def test_original_exempts_text_around_the_wanted_one(wanted, before, after):
    assert rules.original(wanted, [before, wanted, after]) == 1


# ---- strict


@pytest.mark.parametrize(
    ("wanted", "read", "score"),
    [
        (["OPEN"], ["OPEN"], 1.0),
        (["OPEN"], ["OPN"], 3 / 4),
        (["OPEN"], ["OPEN", "OPEN"], 1 / 2),
        (["OPEN"], ["OPEN"] * 4, 1 / 4),
        (["OPEN"], ["XXOPENYY"], 1 / 2),
        (["OPEN"], [], 0.0),
        (["OPEN"], ["zzzz"], 0.0),
        (["Forever Yours"], ["forever", "yours"], 1.0),
        (["SALE", "OPEN"], ["OPEN", "SALE"], 1.0),
        (["SALE", "OPEN"], ["OPENSALE"], 1.0),
        (["SALE", "OPEN"], ["OPEN"], 1 / 2),
        (["SALE", "OPEN"], ["SALE", "and", "OPEN"], 8 / 11),
    ],
)
def test_strict_by_hand(wanted, read, score):
    assert rules.strict(wanted, [line(text) for text in read]) == pytest.approx(score)


@given(wanted_lists, lines, st.booleans())
def test_strict_is_in_range_and_more_text_pays_less(wanted, read, weighting):
    score = rules.strict(wanted, read, weighting)
    length, target = (sum(len(rules.folded(text)) for text in texts) for texts in ([r.text for r in read], wanted))
    assert 0 <= score <= 1
    if length > target:
        assert score <= target / length + 1e-9


@given(wanted_lists, lines)
def test_strict_is_one_for_the_wanted_texts_and_nothing_else(wanted, read):
    said = "".join(rules.folded(r.text) for r in read)
    right = said in {"".join(map(rules.folded, order)) for order in itertools.permutations(wanted)}
    assert (rules.strict(wanted, read) == 1) == right


@given(wanted_lists, wanted_words, st.booleans())
def test_text_added_to_a_right_image_always_loses(wanted, surplus, weighting):
    right = [line(text) for text in wanted]
    worse = [*right, line(surplus, 1.0)]
    assert rules.strict(wanted, worse, weighting) < rules.strict(wanted, right, weighting)


@given(wanted_lists, lines, st.integers(0, 5))
def test_strict_ignores_case_blanks_width_line_breaks_and_the_order_of_wanted_texts(wanted, read, at):
    score = rules.strict(wanted, read)
    swapped = [line(f" {r.text.swapcase()}\t") for r in read]
    wide = [line("".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in r.text)) for r in read]
    broken = [line(part) for r in read for part in (r.text[:at], r.text[at:])]
    for same in (swapped, wide, broken):
        assert rules.strict(wanted, same) == score
    assert rules.strict(wanted[::-1], read) == score


@given(wanted_lists, lines)
def test_confidence_weighting_only_takes_away(wanted, read):
    assert rules.strict(wanted, read, True) <= rules.strict(wanted, read) + 1e-9


@given(wanted_lists, lines, st.integers(0, 3), st.floats(0, 1))
def test_more_confidence_never_loses(wanted, read, index, more):
    assume(index < len(read))
    old = read[index]
    surer = [*read[:index], line(old.text, max(old.confidence, more)), *read[index + 1 :]]
    assert rules.strict(wanted, surer, True) >= rules.strict(wanted, read, True) - 1e-9


def test_a_right_text_is_worth_its_mean_confidence_a_character():
    read = [line("for", 1.0), line("ever", 0.5)]
    assert rules.strict(["forever"], read, True) == pytest.approx((3 * 1.0 + 4 * 0.5) / 7)


def test_six_long_texts_are_scored():
    wanted = [letter * 20 for letter in "abcdef"]
    assert rules.strict(wanted, [line(text) for text in wanted[::-1]]) == 1


# ---- wanted texts


@pytest.mark.parametrize(
    ("prompt", "metadata", "mode", "texts"),
    [
        ('a sign that says "OPEN"', {}, "strict", ["OPEN"]),
        ('a "red" sign that says "OPEN"', {}, "strict", ["red", "OPEN"]),
        ('a "red" sign that says "OPEN"', {}, "original", ["red"]),
        ("a sign that says “OPEN late”", {}, "strict", ["OPEN late"]),
        ('a 12" sign that says "OPEN"', {}, "original", [" sign that says "]),
        ('a 12" sign', {"text": "OPEN"}, "strict", ["OPEN"]),
        ("two signs", {"text": ["IN", "OUT"]}, "strict", ["IN", "OUT"]),
        ('a sign that says "OPEN"', {"text": "SHUT"}, "original", ["SHUT"]),
    ],
)
def test_wanted_texts(prompt, metadata, mode, texts):
    assert rules.wanted_texts(prompt, metadata, mode) == texts


@pytest.mark.parametrize(
    ("row", "mode", "word"),
    [
        ('{"prompt": "a sign"}', "strict", "double quotes"),
        ('{"prompt": "a sign"}', "original", "double quotes"),
        ('{"prompt": "a 12\\" sign"}', "original", "double quotes"),
        ('{"prompt": "a 12\\" sign that says \\"OPEN\\""}', "strict", "pair up"),
        ('{"prompt": "a sign that says \\" \\""}', "strict", "blank"),
        ('{"prompt": "a sign that says \\"\\""}', "original", "blank"),
        ('{"prompt": "a sign", "text": ""}', "strict", "blank"),
        ('{"prompt": "a sign", "text": []}', "strict", "'text'"),
        ('{"prompt": "a sign", "text": 7}', "strict", "'text'"),
        ('{"prompt": "a sign", "text": ["A", "B", "C", "D", "E", "F", "G"]}', "strict", "7 texts"),
    ],
)
def test_prompts_without_a_target_are_refused_when_the_data_is_loaded(tmp_path, row, mode, word):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a sign that says \\"OPEN\\""}\n' + row + "\n")
    rubric = Rubric.of(OCRReward(mode=mode, reader=Blind()))
    with pytest.raises(UserError, match=f"^{file}:2: .*'ocr'.*{word}"):
        rubric.check_prompts(read_prompts(file))


class Blind:
    """A reader for tests in which nothing is to be read."""

    def read(self, images):
        raise AssertionError("no image was to be read")


# ---- lines


def test_reading_order_goes_by_rows_of_any_size():
    # At 64 pixels, rows are closer than the 10 pixels by which engines tell them apart; the first row is slanted.
    scattered = {"there": box(30, 8, 20, 6), "hello": box(2, 5, 20, 6), "world": box(2, 13, 20, 6)}
    for order in itertools.permutations(scattered):
        read = reading_order([line(text, polygon=scattered[text]) for text in order])
        assert [r.text for r in read] == ["hello", "there", "world"]


def test_text_area_counts_overlaps_once_and_cuts_at_the_border():
    assert text_area([], 50, 100) == 0
    half = line("x", polygon=box(0, 0, 49, 49))
    assert text_area([half], 50, 100) == pytest.approx(0.5)
    assert text_area([half, half], 50, 100) == pytest.approx(0.5)
    assert text_area([line("x", polygon=box(-9, -9, 500, 500))], 50, 100) == 1


@given(st.lists(st.builds(box, st.floats(-20, 80), st.floats(-20, 80), st.floats(1, 60), st.floats(1, 60)), max_size=4))
def test_text_area_is_a_share_that_grows_with_every_line(boxes):
    areas = [text_area([line("x", polygon=polygon) for polygon in boxes[:n]], 64, 64) for n in range(len(boxes) + 1)]
    assert areas == sorted(areas) and areas[0] == 0 and areas[-1] <= 1
    assert all(math.isfinite(area) for area in areas)


@pytest.mark.parametrize(
    ("wanted", "read"), [("OPEN\u200b", "OPEN"), ("DON’T", "DON'T"), ("“A”", '"A"'), ("9–5", "9-5"), ("−5", "-5")]
)
def test_strict_ignores_what_fonts_draw_alike_or_not_at_all(wanted, read):
    assert rules.strict([wanted], [line(read)]) == 1
    assert rules.folded("\u200b") == ""
