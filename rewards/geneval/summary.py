"""GenEval's summary of a benchmark run: the numbers and the text of its published `summary_scores.py`.

It looks at verdicts alone, so it is the same whatever detector gave them. The overall score is the mean of the tags'
accuracies and not of the images: a tag with few prompts counts as much as one with many.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Verdict = tuple[str, str, bool | None]
"""Tag, prompt (whatever identifies it), and whether the image is right (`rules.official`), None if nobody knows."""


@dataclass
class GenEvalSummary:
    """Counts over the images of a benchmark run.

    Attributes:
        tags: tag -> (right images, images), in the order in which the tags come.
        prompts: prompt -> whether any of its images is right.
    """

    tags: dict[str, tuple[int, int]] = field(default_factory=dict)
    prompts: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> GenEvalSummary:
        """Of at least one image with a verdict; the others are left out."""
        found = cls()
        for tag, prompt, correct in verdicts:
            if correct is None:
                continue
            right, images = found.tags.get(tag, (0, 0))
            found.tags[tag] = right + correct, images + 1
            found.prompts[prompt] = found.prompts.get(prompt, False) or correct
        return found

    @property
    def accuracies(self) -> dict[str, float]:
        """Tag -> share of its images that are right."""
        return {tag: right / images for tag, (right, images) in self.tags.items()}

    @property
    def overall(self) -> float:
        """The unweighted mean of the tags' accuracies, 0..1: the number that papers report."""
        return sum(self.accuracies.values()) / len(self.tags)

    @property
    def correct_images(self) -> float:
        """Share of the images that are right."""
        return sum(right for right, _ in self.tags.values()) / sum(images for _, images in self.tags.values())

    @property
    def correct_prompts(self) -> float:
        """Share of the prompts of which at least one image is right."""
        return sum(self.prompts.values()) / len(self.prompts)

    def __str__(self) -> str:
        rows = [
            f"{tag:<16} = {self.accuracies[tag]:.2%} ({right} / {images})" for tag, (right, images) in self.tags.items()
        ]
        head = [
            f"Total images: {sum(images for _, images in self.tags.values())}",
            f"Total prompts: {len(self.prompts)}",
            f"% correct images: {self.correct_images:.2%}",
            f"% correct prompts: {self.correct_prompts:.2%}",
        ]
        overall = f"Overall score (avg. over tasks): {self.overall:.5f}"
        return "\n".join(["Summary", "=======", *head, "", "Task breakdown", "=" * 14, *rows, "", overall])
