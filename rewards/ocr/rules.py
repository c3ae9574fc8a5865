"""The OCR rules: from what was wanted and what was read to a score in [0, 1].

Two scorings, because one is in use and can be hacked:
    original  BLIP3o-NEXT's reward and, but for its confidence filter, Flow-GRPO's (`flow_grpo/ocr.py`): only the first
              quoted span; s = all recognized text, t = the span, both in lower case without blanks; d = 0 if t occurs
              anywhere in s, else min(Levenshtein(s, t), |t|); score = 1 - d / |t|.
    strict    the default. R = all recognized text in reading order, T = all wanted texts in whichever order fits
              best, both as characters after NFKC and case folding, with plain quotes and dashes and without what is
              invisible; d = the cheapest way to turn R into T, an extra, a missing or a wrong character costs 1;
              score = 1 - d / max(|R|, |T|).
In `strict` an image with n times as much text as was asked for scores at most 1/n, because d >= |R| - |T|. Dividing by
the longer side keeps the score in [0, 1] without cutting it off, so nearly right beats far off at every length. With
confidence weighting (strict only) a right character read with confidence c costs 1 - c instead of 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from blip3o_rl.rewards.ocr.reader import TextLine

MODES = ("strict", "original")
MAX_TEXTS = 6
"""Maximum per prompt; the search for the best order takes time in 2 to this power."""
TYPOGRAPHIC = str.maketrans("‘’‚“”„‐‑‒–—−", "'''\"\"\"------")
"""Quotes and dashes, which look nearly alike, as the plain ones."""
QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”')


def wanted_texts(prompt: str, metadata: Mapping[str, Any], mode: str) -> list[str]:
    """What the image should say; a `ValueError` says why the prompt cannot be scored.

    The metadata field `text` (a string or a list of strings) if there is one, else the prompt's spans in double quotes,
    straight or typographic; in the mode `original` only the first straight one.
    """
    if metadata.get("text") is not None:
        text = metadata["text"]
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError("field 'text' is neither a string nor a list of strings; write what the image should say")
    elif mode == "original":
        texts = prompt.split('"')[1:2] if prompt.count('"') > 1 else []
    else:
        texts = [straight or curly for straight, curly in QUOTED.findall(prompt)]
        if re.search('["“”]', QUOTED.sub("", prompt)):
            raise ValueError("its quotation marks do not pair up; fix them or add the field 'text'")
    if not texts:
        raise ValueError("it names no text to write; put it in double quotes (\"OPEN\") or add the field 'text'")
    if not all(folded(text) for text in texts):
        raise ValueError("one of its wanted texts is blank; write what the image should say")
    if len(texts) > MAX_TEXTS:
        raise ValueError(f"it wants {len(texts)} texts, at most {MAX_TEXTS} can be scored; split the prompt")
    return texts


def folded(text: str) -> str:
    """The characters that `strict` compares: NFKC form, case folded, plain quotes and dashes, nothing invisible."""
    plain = unicodedata.normalize("NFKC", text).translate(TYPOGRAPHIC).casefold()
    return "".join(c for c in plain if not c.isspace() and unicodedata.category(c) != "Cf")


def original(wanted: str, read: Sequence[str]) -> float:
    """The original score of the first wanted text (not blank), given all recognized texts in the engine's order."""
    t = wanted.replace(" ", "").lower()
    s = "".join(read).replace(" ", "").lower()
    if t in s:
        return 1.0
    return 1 - min(edits([t], s, np.ones(len(s))), len(t)) / len(t)


def strict(wanted: Sequence[str], lines: Sequence[TextLine], confidence_weighting: bool = False) -> float:
    """The strict score of one to MAX_TEXTS wanted texts, none blank, in any order.

    Args:
        lines: recognized lines in reading order, those of too little confidence left out.
        confidence_weighting: right characters count as much as their line's confidence.
    """
    targets = [folded(text) for text in wanted]
    texts = [folded(line.text) for line in lines]
    weights = [line.confidence if confidence_weighting else 1.0 for line in lines]
    confidence = np.repeat(np.array(weights, np.float64), np.array([len(text) for text in texts], np.int64))
    read = "".join(texts)
    longest = max(len(read), sum(map(len, targets)))
    return float(np.clip(1 - edits(targets, read, confidence) / longest, 0, 1))


def edits(targets: Sequence[str], read: str, confidence: np.ndarray) -> float:
    """Cost of the cheapest edit from `read` to the targets one after the other, in the best order.

    Dynamic programming over sets of targets: `cost[done][i]` is the cheapest way to turn the first i characters read
    into the targets of the bit set `done`. Each step is the row by row recursion of Levenshtein's distance.

    Args:
        confidence: float [len(read)], 0..1; a character that is kept costs 1 minus its confidence.
    """
    letters = np.array(list(read), dtype="<U1")
    cost = [np.arange(len(read) + 1, dtype=np.float64)]
    for done in range(1, 1 << len(targets)):
        last = [k for k in range(len(targets)) if done >> k & 1]
        ways = [_append(cost[done ^ (1 << k)], targets[k], letters, confidence) for k in last]
        cost.append(np.minimum.reduce(ways))
    return float(cost[-1][-1])


def _append(row: np.ndarray, target: str, letters: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Costs after one more target: `row` and the result are float [len(letters) + 1], by number of letters used."""
    step = np.arange(len(row))
    for letter in target:
        missing = row + 1
        kept_or_wrong = row[:-1] + np.where(letters == letter, 1 - confidence, 1.0)
        row = np.append(missing[:1], np.minimum(missing[1:], kept_or_wrong))
        # An extra letter costs 1: the minimum of row[j] + (i - j) over all j <= i.
        row = np.minimum.accumulate(row - step) + step
    return row
