"""Color distances against published values."""

from __future__ import annotations

import pytest

from blip3o_rl.data.synthetic.scenes import BACKGROUND, COLORS
from blip3o_rl.rewards.color import ciede2000, contrast, distance, lab, matches

# Sharma, Wu, Dalal 2005, table 1: L*a*b* pairs and their difference.
PAIRS = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, -1, 2), (50, 0, 0), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((50, 2.5, 0), (61, -5, 29), 22.8977),
    ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
]


@pytest.mark.parametrize(("a", "b", "expected"), PAIRS)
def test_ciede2000_gives_the_published_values_in_both_directions(a, b, expected):
    assert ciede2000(a, b) == pytest.approx(expected, abs=5e-5)
    assert ciede2000(b, a) == pytest.approx(expected, abs=5e-5)


def test_white_black_and_the_palette():
    assert lab((255, 255, 255)) == pytest.approx((100, 0, 0), abs=1e-3)
    assert contrast((255, 255, 255), (0, 0, 0)) == pytest.approx(21)
    ratios = {name: round(contrast(color, BACKGROUND), 1) for name, color in COLORS.items()}
    assert ratios == {"red": 4.1, "green": 2.8, "blue": 7.1, "yellow": 1.3, "black": 15.2}
    assert all(distance(a, b) > 20 for a in COLORS.values() for b in COLORS.values() if a != b)


def test_a_name_is_the_observers_and_a_value_may_be_a_little_off():
    assert matches("red", (0, 0, 0), "red") and not matches("red", (220, 40, 40), "blue")
    assert matches("#dc2828", (200, 60, 50), "brown") and not matches("#dc2828", (20, 60, 205), "red")
