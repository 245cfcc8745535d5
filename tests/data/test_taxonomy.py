"""The shipped category tree is what the paper describes, and a user's file extends it safely."""

import itertools
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path

import polars as pl
import pytest
from l2p_data import DataError, filter_prompts, prompt_records
from l2p_data.prompts.generation import apportion
from l2p_data.prompts.taxonomy import NAMED_SUBCLASSES, Taxonomy, load_taxonomy, near_duplicates


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return load_taxonomy()


def test_the_tree_has_the_papers_classes_and_over_1200_leaves(taxonomy: Taxonomy) -> None:
    tree = taxonomy.tree()
    named = {
        superclass: tuple(name for name in subs if name != "Others") for superclass, subs in tree.items()
    }
    assert named == dict(NAMED_SUBCLASSES)
    assert sum(len(names) for names in named.values()) == 17
    assert {superclass for superclass, subs in tree.items() if "Others" in subs} == {
        "Design",
        "People",
        "Synthetic text",
    }
    assert len(taxonomy.categories) >= 1200


def test_no_leaf_is_a_near_duplicate_of_another(taxonomy: Taxonomy) -> None:
    assert near_duplicates(taxonomy) == []
    names = [leaf.category for leaf in taxonomy.categories]
    alike = [
        (first, second)
        for first, second in itertools.combinations(sorted(names), 2)
        if first[:3] == second[:3] and SequenceMatcher(None, first, second).ratio() > 0.9
    ]
    assert alike == []


def test_the_tree_is_balanced(taxonomy: Taxonomy) -> None:
    per_subclass = Counter((leaf.superclass, leaf.subclass) for leaf in taxonomy.categories)
    assert min(per_subclass.values()) >= 45 and max(per_subclass.values()) <= 90
    per_group = Counter((leaf.superclass, leaf.subclass, leaf.group) for leaf in taxonomy.categories)
    assert min(per_group.values()) >= 6 and max(per_group.values()) <= 12
    assert min(sum(1 for path in per_group if path[:2] == node) for node in per_subclass) >= 6


def test_leaves_are_short_concrete_and_in_the_language_of_their_class(taxonomy: Taxonomy) -> None:
    for leaf in taxonomy.categories:
        assert 2 <= len(leaf.category) <= 45 and not leaf.category.endswith((".", "etc")), leaf
        chinese = any("\u4e00" <= character <= "\u9fff" for character in leaf.category)
        assert chinese == (leaf.subclass == "Chinese Text") == (leaf.language == "zh"), leaf
        assert not {"various", "misc", "other", "things", "stuff"} & set(leaf.category.split()), leaf


def test_no_leaf_is_unsafe_or_a_brand(taxonomy: Taxonomy) -> None:
    judged = filter_prompts(
        prompt_records([leaf.category for leaf in taxonomy.categories if leaf.language == "en"])
    )
    assert judged.filter(pl.col("reason").is_in(["unsafe", "brand"]))["prompt"].to_list() == []


def test_weights_sum_to_one_and_follow_the_super_classes(taxonomy: Taxonomy) -> None:
    shares: Counter[str] = Counter()
    for leaf in taxonomy.categories:
        shares[leaf.superclass] += leaf.weight  # type: ignore[assignment]
    expected = {"Nature": 0.55, "Design": 0.27, "People": 0.13, "Synthetic text": 0.05}
    assert shares == pytest.approx(expected)


def test_a_sample_follows_the_weights_and_its_seed(taxonomy: Taxonomy) -> None:
    drawn = taxonomy.sample(10_000, seed=3)
    counts = Counter(leaf.superclass for leaf in drawn)
    assert len(drawn) == 10_000 and len({leaf.path for leaf in drawn}) == len(taxonomy.categories)
    assert counts["Nature"] == pytest.approx(5500, abs=100) and counts["Synthetic text"] == pytest.approx(
        500, abs=60
    )
    assert drawn == taxonomy.sample(10_000, seed=3) != taxonomy.sample(10_000, seed=4)
    assert [leaf.superclass for leaf in drawn] != sorted(leaf.superclass for leaf in drawn)
    assert len(set(leaf.path for leaf in taxonomy.sample(100))) == 100


@pytest.mark.parametrize("count", [24, 500, 20_000])
def test_every_sub_class_gets_its_share_of_any_count(taxonomy: Taxonomy, count: int) -> None:
    leaves = taxonomy.categories
    exact: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    for leaf, share in zip(leaves, apportion(count, [leaf.weight for leaf in leaves]), strict=True):
        exact[leaf.subclass] += count * leaf.weight  # type: ignore[assignment]
        drawn[leaf.subclass] += share
    others = exact.pop("Others")  # several super-classes have one
    assert all(abs(drawn[name] - wanted) < 1 + 1e-6 for name, wanted in exact.items())
    assert abs(drawn["Others"] - others) < 4


def test_queries_find_nodes_and_names(taxonomy: Taxonomy) -> None:
    assert [leaf.path for leaf in taxonomy.find(text="teapot").categories] == [
        ("Nature", "Objects", "teapot")
    ]
    soccer = taxonomy.find(superclass="People", subclass="Sports", group="Ball", text="Soccer")
    assert [leaf.category for leaf in soccer.categories] == ["soccer"]
    assert taxonomy.find(subclass="Nothing").categories == ()


def test_a_users_file_adds_leaves_and_changes_weights(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[Nature]\nweight = 0.1\n[Nature.Objects]\nPot = "wok, bain-marie"\n'
        'Lock = ["padlock", "combination lock"]\n'
        '[Medicine.Imaging]\nScan = "hand x-ray, knee scan"\n'
    )
    extended, shipped = load_taxonomy(path), load_taxonomy()
    assert len(extended.categories) == len(shipped.categories) + 6
    assert [leaf.group for leaf in extended.find(text="padlock").categories] == ["Lock"]
    assert extended.find(text="wok").categories[0].group == "Pot"
    assert sum(leaf.weight for leaf in extended.categories) == pytest.approx(1)
    assert sum(leaf.weight for leaf in extended.find(superclass="Medicine").categories) == pytest.approx(
        1 / 1.55
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[Nature.Objects]\nPot = "Teapots"',
            "'Nature > Objects > Teapots' repeats 'Nature > Objects > teapot'",
        ),
        ('[Nature.Objects]\nPot = "wok,, pan"', "empty name between two commas"),
        ("[Nature.Objects]\nPot = 3", "wanted names separated by commas"),
        ('Nature = "x"', "must be a table of sub-classes"),
        ("[Nature]\nweight = -1", "weight is -1"),
        ("[Nature", "not readable TOML"),
    ],
)
def test_a_wrong_extension_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_taxonomy(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("".join(f"[{name!r}]\nweight = 0\n" for name in NAMED_SUBCLASSES), "every weight is 0"),
        ("[Nature]\nweight = nan", "weight is nan"),
        ("[Nature]\nweight = 1e300", "from 0 to 1e"),
        ("[Nature.Food]\nweight = inf", "weight is inf"),
        ("[Nature.Food]\nweight = true", "weight is True"),
    ],
)
def test_weights_that_add_up_to_nothing_or_to_infinity_are_refused(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "t.toml").write_text(content)
    with pytest.raises(DataError, match=message):
        load_taxonomy(tmp_path / "t.toml")
