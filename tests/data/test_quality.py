"""Near-duplicate texts, and images that are no pictures."""

import numpy as np
import pytest
from l2p_data import FilterRules, filter_prompts, prompt_records
from l2p_data.corpus.images import image_fault
from l2p_data.filters.dedup import near_duplicates

SENTENCE = (
    "A quiet harbour rests under a pale morning sky while {} drift beside the pier and gulls circle above."
)


def test_near_duplicates_agree_with_the_exact_similarity_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    words = [
        f"{a}{b}"
        for a in ("lake", "stone", "wind", "amber", "tall")
        for b in ("side", "work", "fall", "light")
    ]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(60)]
    for index in range(0, 60, 3):
        texts.append(texts[index] + " again")
        texts.append(" ".join(rng.permutation(texts[index].split())))

    def similarity(first: str, second: str) -> float:
        a, b = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (first, second))
        return len(a & b) / len(a | b)

    stays: list[str] = []
    expected = []
    for text in texts:
        expected.append(any(similarity(text, other) >= 0.8 for other in stays))
        if not expected[-1]:
            stays.append(text)
    assert near_duplicates(texts, [True] * len(texts)).to_list() == expected
    assert sum(expected) >= 20


def test_the_filter_drops_near_duplicates_only_if_asked_and_keeps_the_first() -> None:
    frame = prompt_records(
        [SENTENCE.format(what) for what in ("boats", "small boats", "boats")] + ["A red fox.", ""]
    )
    assert filter_prompts(frame)["reason"].to_list() == [None, None, "duplicate", None, "empty"]
    judged = filter_prompts(frame, FilterRules(near_duplicates=True))
    assert judged["reason"].to_list() == [None, "near-duplicate", "duplicate", None, "empty"]


def test_a_dead_text_makes_nothing_a_duplicate() -> None:
    assert near_duplicates(["a red fox"] * 3, [False, True, True]).to_list() == [False, False, True]


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (np.full((8, 8, 3), np.nan), "not-finite"),
        (np.zeros((8, 8, 3)), "blank"),
        (np.full((8, 8, 3), 0.7) + np.random.default_rng(0).uniform(0, 0.003, (8, 8, 3)), "blank"),
        (np.stack([np.tile([0.0, 1.0], (8, 4))] * 3, -1), "low-entropy: 1.00 bits, wanted 2"),
        (np.random.default_rng(0).random((8, 8, 3)), None),
    ],
)
def test_images_that_are_no_pictures_are_named(pixels: np.ndarray, fault: str | None) -> None:
    found = image_fault(pixels, min_entropy=2.0)
    assert (found is None) if fault is None else str(found).startswith(fault)
    if fault is not None and "entropy" in fault:
        assert image_fault(pixels) is None  # two flat colours are a picture in a world of flat colours
