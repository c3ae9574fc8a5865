"""The `monitors` group of a training run.

How drift is measured is in `monitoring.drift`. A limit is in the statistic's own unit; null is none.
"""

from __future__ import annotations

from pydantic import Field

from blip3o_rl.config.base import Strict


class DriftLimits(Strict):
    """Per statistic, how far it may be from its baseline; null: any distance."""

    renamed = {"colour_entropy": "color_entropy"}

    dark_share: float | None = Field(None, ge=0, description="share of the pixels that are nearly black")
    flat_share: float | None = Field(None, ge=0, description="share of the pixels without detail around them")
    edge_density: float | None = Field(None, ge=0, description="share of the pixels on an edge")
    color_entropy: float | None = Field(None, ge=0, description="share of the largest possible entropy of the colors")
    near_duplicate_share: float | None = Field(None, ge=0, description="share of the pairs in a group")
    pixel_distance: float | None = Field(None, ge=0, description="mean distance of the images in a group")
    text_area: float | None = Field(None, ge=0, description="share of the pixels, where an OCR reward measures it")
    near_copy: float | None = Field(None, ge=0, description="share of the edits, where the reward edit measures it")
    regenerated: float | None = Field(None, ge=0, description="share of the edits, where the reward edit measures it")
    held_out: float | None = Field(
        None, ge=0, description="each held-out reward, in its own unit; 0: the standard deviations decide"
    )
    probs_diff: float | None = Field(
        None, ge=0, description="mean difference of sampler's and trainer's probabilities of the tokens, from step 1 on"
    )


class MonitorSettings(Strict):
    """When a run warns (`warn`) or ends (`stop`), because its images have drifted from where they began."""

    baseline_steps: int = Field(5, ge=2, description="the first steps, whose mean is the baseline")
    window: int = Field(3, ge=1, description="the last steps, whose mean is compared with it")
    deviations: float = Field(
        4.0, ge=0, description="standard deviations of single steps that the difference must exceed, whatever its limit"
    )
    warn: DriftLimits | None = DriftLimits(
        dark_share=0.15,
        flat_share=0.15,
        edge_density=0.03,
        color_entropy=0.06,
        near_duplicate_share=0.25,
        pixel_distance=0.05,
        text_area=0.15,
        near_copy=0.15,
        regenerated=0.15,
        held_out=0.0,
        probs_diff=0.01,
    )
    stop: DriftLimits | None = DriftLimits()
