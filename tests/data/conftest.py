"""Fixtures of the data tests."""

from pathlib import Path

import pytest

GRAMMAR = """
name = "shapes"
exclude_modulus = 8
[slots]
color = ["red", "green", "blue", "yellow", "white", "black"]
shape = ["circle", "square", "triangle", "star"]
background = ["gray", "beige", "navy"]
[[category]]
superclass = "Nature"
subclass = "Objects"
category = "two objects"
weight = 3
templates = ["a {color} {shape} left of a {color} {shape} on a {background} background"]
[[category]]
superclass = "Nature"
subclass = "Objects"
category = "single object"
templates = ["a {shape} on a {background} background"]
"""


@pytest.fixture
def grammar_file(tmp_path: Path) -> Path:
    path = tmp_path / "grammar.toml"
    path.write_text(GRAMMAR)
    return path
