"""TOML tables into frozen dataclasses and back, strictly: what cannot be meant is refused before anything
runs.

A field says its range where it is declared:

    @dataclass(frozen=True, kw_only=True)
    class Training:
        steps: int = setting(1000, ge=1)
        learning_rate: float = setting(5e-5, gt=0)
        seed: int = seed_setting()

No number may be NaN or infinite, or a whole one of more than 64 bits, whatever its range. Every error is one
line that names the key with its whole path; an unknown key names the nearest known one.
"""

from l2p_run.settings.arguments import checked
from l2p_run.settings.checking import check_settings
from l2p_run.settings.ranges import LARGEST_SEED, Range, check_value, seed_setting, setting
from l2p_run.settings.reading import check_keys, convert, cut, describe, options_of, read_table, table_of
from l2p_run.settings.writing import defaults_of, identity_table, marked, to_table

__all__ = [
    "LARGEST_SEED",
    "Range",
    "check_keys",
    "check_settings",
    "check_value",
    "checked",
    "convert",
    "cut",
    "defaults_of",
    "describe",
    "identity_table",
    "marked",
    "options_of",
    "read_table",
    "seed_setting",
    "setting",
    "table_of",
    "to_table",
]
