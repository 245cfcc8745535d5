"""The category tree (sec. 3.2, Fig. 2b): 4 super-classes, 17 named sub-classes, groups, and 1,300 fine
categories.

The tree ships as `taxonomy_data/taxonomy.toml`. A user's TOML of the same shape is merged onto it: new
groups and leaves are added, a super-class's or sub-class's `weight` replaces the shipped one.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from l2p_data.corpus.files import read_toml, shown
from l2p_data.corpus.identity import digest
from l2p_data.engines.llm import MOST_WEIGHT, Category
from l2p_data.errors import DataError, checks
from l2p_data.prompts.generation import apportion

#: The paper's named sub-classes; "Others" is not one of the seventeen.
NAMED_SUBCLASSES: Mapping[str, tuple[str, ...]] = {
    "Nature": ("Objects", "Cityscape", "Food", "Plants", "Indoor", "Landscape", "Animals"),
    "Design": ("Arts", "Posters", "Slides", "Cartoon", "UI"),
    "People": ("Portrait", "Sports", "Activities"),
    "Synthetic text": ("English Text", "Chinese Text"),
}
_SETTINGS = {"weight", "language"}


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """Leaves with weights that sum to 1, in the order of their files."""

    categories: tuple[Category, ...]

    @checks
    def find(
        self,
        *,
        superclass: str | None = None,
        subclass: str | None = None,
        group: str | None = None,
        text: str = "",
    ) -> "Taxonomy":
        """Return the part of the tree below a node, or the leaves whose name contains `text`; weights stay
        as they are."""
        wanted = {"superclass": superclass, "subclass": subclass, "group": group}
        found = [
            leaf
            for leaf in self.categories
            if all(value is None or getattr(leaf, name) == value for name, value in wanted.items())
            and text.casefold() in leaf.category.casefold()
        ]
        return Taxonomy(categories=tuple(found))

    @checks
    def sample(self, count: int, seed: int = 0) -> list[Category]:
        """Return `count` leaves by weight: each leaf as often as its weight says, to within one; then
        shuffled by `seed`.

        Which leaves get the rounding's last places differs from seed to seed.
        """
        if not self.categories or count < 1:
            raise DataError(f"cannot draw {count} of {len(self.categories)} categories")
        order = sorted(self.categories, key=lambda leaf: digest(seed, *leaf.path))
        shares = apportion(count, [leaf.weight for leaf in order])
        drawn = [leaf for leaf, share in zip(order, shares, strict=True) for _ in range(share)]
        keys = [(digest(seed, *leaf.path, index), index) for index, leaf in enumerate(drawn)]
        return [drawn[index] for _, index in sorted(keys)]

    def tree(self) -> dict[str, dict[str, dict[str, list[str]]]]:
        """Super-class -> sub-class -> group -> names of the leaves."""
        tree: dict[str, dict[str, dict[str, list[str]]]] = {}
        for leaf in self.categories:
            groups = tree.setdefault(leaf.superclass, {}).setdefault(leaf.subclass, {})
            groups.setdefault(leaf.group, []).append(leaf.category)
        return tree


@checks
def load_taxonomy(extension: str | Path | None = None) -> Taxonomy:
    """Return the shipped tree, with a user's TOML merged onto it.

    Raises:
        DataError: the file is wrong, or adds a leaf that is there already (also under another spelling).
    """
    shipped = resources.files("l2p_data").joinpath("taxonomy_data/taxonomy.toml").read_text(encoding="utf-8")
    content = tomllib.loads(shipped)
    where = "shipped taxonomy"
    if extension is not None:
        where = str(extension)
        added = read_toml(Path(extension), "taxonomy file")
        _merge(content, added, where)
    taxonomy = Taxonomy(categories=tuple(_leaves(content, where)))
    if repeated := near_duplicates(taxonomy):
        first, second = repeated[0]
        raise DataError(
            f"{where}: {' > '.join(second.path)!r} repeats {' > '.join(first.path)!r}; keep one of them"
        )
    return taxonomy


def near_duplicates(taxonomy: Taxonomy) -> list[tuple[Category, Category]]:
    """Return pairs of leaves that are the same words: other case, order, plural, accents or punctuation."""
    seen: dict[tuple[str, ...], Category] = {}
    pairs = []
    for leaf in taxonomy.categories:
        key = name_key(leaf.category)
        if key in seen:
            pairs.append((seen[key], leaf))
        seen.setdefault(key, leaf)
    return pairs


def name_key(name: str) -> tuple[str, ...]:
    """Equal for names that are the same words: case, order, plural, accents and punctuation aside."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    return tuple(
        sorted(_singular(word) for word in re.findall(r"\w+", plain) if word not in {"a", "an", "the", "of"})
    )


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _merge(tree: dict[str, Any], added: Mapping[str, Any], where: str) -> None:
    for superclass, subclasses in added.items():
        if not isinstance(subclasses, dict):
            raise DataError(f"{where}: [{superclass}] must be a table of sub-classes")
        branch = tree.setdefault(superclass, {})
        for subclass, groups in subclasses.items():
            if subclass == "weight":
                branch["weight"] = groups
                continue
            if not isinstance(groups, dict):
                raise DataError(f"{where}: [{superclass}.{subclass}] must be a table of groups")
            target = branch.setdefault(subclass, {})
            for group, leaves in groups.items():
                if group in _SETTINGS or group not in target:
                    target[group] = leaves
                else:
                    target[group] = (
                        f"{target[group]}, {_text(leaves, f'{where}: {superclass}.{subclass}.{group}')}"
                    )


def _leaves(tree: Mapping[str, Any], where: str) -> Iterator[Category]:
    weights = {name: _weight(branch, f"{where}: [{name}]") for name, branch in tree.items()}
    total = sum(weights.values())
    if not total:
        raise DataError(f"{where}: every weight is 0; nothing would be drawn")
    for superclass, branch in tree.items():
        subclasses = {name: groups for name, groups in branch.items() if name != "weight"}
        shares = {
            name: _weight(groups, f"{where}: [{superclass}.{name}]") for name, groups in subclasses.items()
        }
        for subclass, groups in subclasses.items():
            named = [
                (group, name)
                for group, leaves in groups.items()
                if group not in _SETTINGS
                for name in _split(leaves, f"{where}: {superclass}.{subclass}.{group}")
            ]
            below = sum(shares.values())
            share = weights[superclass] / total * shares[subclass] / below if below else 0.0
            for group, name in named:
                yield Category(
                    superclass=superclass,
                    subclass=subclass,
                    group=group,
                    category=name,
                    language=groups.get("language", "en"),
                    weight=share / len(named),
                )


def _split(leaves: object, where: str) -> list[str]:
    names = [" ".join(name.split()) for name in _text(leaves, where).split(",")]
    if not all(names):
        raise DataError(f"{where}: there is an empty name between two commas")
    return names


def _text(leaves: object, where: str) -> str:
    if isinstance(leaves, list) and all(isinstance(name, str) and "," not in name for name in leaves):
        leaves = ", ".join(leaves)
    if not isinstance(leaves, str) or not leaves.strip():
        raise DataError(f"{where}: wanted names separated by commas, or a list of names")
    return leaves


def _weight(node: Mapping[str, Any], where: str) -> float:
    weight = node.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MOST_WEIGHT:
        raise DataError(f"{where}: weight is {shown(weight)}; it must be a number from 0 to {MOST_WEIGHT:g}")
    return float(weight)
