"""What the example's reward says about a square in the middle, one in a corner, and an empty image."""

import numpy as np
from centered import centered


def square(top: int, left: int) -> np.ndarray:
    image = np.full((64, 64, 3), 238, np.uint8)
    image[top : top + 16, left : left + 16] = (200, 30, 30)
    return image


def test_the_middle_is_best_and_nothing_is_worst() -> None:
    assert centered(square(24, 24)) == 1.0
    assert 0 < centered(square(0, 0)) < centered(square(12, 24)) < 1
    assert centered(np.full((64, 64, 3), 238, np.uint8)) == 0.0
