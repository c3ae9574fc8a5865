"""Whether an image shows what its prompt asks for rather than what a prompt that differs in one thing asks for.

A row may say what its counterpart asks for: `counterfactual` holds the metadata fields that differ, such as the layout
with another color of the logo. The images of such rows are scored a second time, against the counterpart. A model that
makes the same image for both has 0 on average, whatever its score is: it copies a composition that pays and reads
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from blip3o_rl.data.synthetic.splits import COUNTERFACTUAL
from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.rubric import Rubric, RubricScore

COMPONENT = "counterfactual"
"""1: the image fulfils its own row better than the counterpart, -1: the other way round, 0: both alike."""


def with_counterfactuals(rubric: Rubric, samples: Sequence[Sample], scores: Sequence[RubricScore]) -> list[RubricScore]:
    """The scores, with `COMPONENT` where the sample's row has a counterpart and both could be scored."""
    found = list(scores)
    asked = [place for place, sample in enumerate(samples) if sample.metadata.get(COUNTERFACTUAL)]
    if not asked:
        return found
    for place, other in zip(asked, rubric.score([_counterpart(samples[place]) for place in asked]), strict=True):
        own = found[place]
        if not own.failed and not other.failed:
            verdict = float(np.sign(own.value - other.value))
            found[place] = replace(own, components={**own.components, COMPONENT: verdict})
    return found


def _counterpart(sample: Sample) -> Sample:
    metadata = {**sample.metadata, **sample.metadata[COUNTERFACTUAL]}
    prompt = metadata.get("prompt", sample.prompt)
    return replace(sample, id=f"{sample.id}/{COUNTERFACTUAL}", prompt=prompt, metadata=metadata)
