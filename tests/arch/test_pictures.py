"""The reader of pictures for `convert --images`, held to the one that the other packages share."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from l2p_arch.errors import ArchError
from l2p_arch.surgery.pictures import decode_picture, read_picture
from l2p_run.pictures import open_picture


def test_both_readers_see_the_same_in_every_kind_of_picture(picture_zoo: list[Any]) -> None:
    for animal in picture_zoo:
        ours = np.asarray(decode_picture(animal.content, animal.name))
        assert np.array_equal(ours, np.asarray(open_picture(animal.content))), animal.name


def test_what_is_no_picture_is_one_line_that_names_the_file(tmp_path: Path, picture_zoo: list[Any]) -> None:
    with pytest.raises(ArchError, match=r"none.png cannot be read: No such file"):
        read_picture(tmp_path / "none.png")
    for content in (b"", b"no picture", picture_zoo[0].content[:60], b"%!PS-Adobe-3.0 EPSF-3.0"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ArchError, match=r"a.png cannot be read as a picture") as caught:
            read_picture(tmp_path / "a.png")
        assert "\n" not in str(caught.value)
