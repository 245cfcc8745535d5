"""Numbers and sizes in sentences."""

import pytest
from l2p_run.sizes import Size, in_words, nearest_shape
from l2p_run.words import counted, rate


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "image", "1 image"),
        (0, "image", "0 images"),
        (2000, "shard", "2,000 shards"),
        (3, "category", "3 categories"),
    ],
)
def test_a_noun_follows_its_number(number: int, noun: str, said: str) -> None:
    assert counted(number, noun) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.0431, "0.043"), (9.64, "9.6"), (10.4, "10"), (1234.5, "1,234")]
)
def test_a_rate_has_two_digits_at_least(value: float, said: str) -> None:
    assert rate(value) == said


def test_sizes_are_named_and_the_nearest_shape_is_found_in_both_directions() -> None:
    wide, tall, square = Size(96, 48), Size(48, 96), Size(1024, 1024)
    assert in_words([square]) == "1024x1024 px" and in_words([wide, tall]) == "96x48, 48x96 px"
    assert nearest_shape(Size(200, 90), [square, wide, tall]) == wide
    assert nearest_shape(Size(90, 200), [square, wide, tall]) == tall
    assert nearest_shape(Size(70, 64), [wide, square, tall]) == square
