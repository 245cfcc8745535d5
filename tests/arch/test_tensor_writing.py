"""Whatever way the bytes take, every tensor arrives as it was, where safetensors expects it."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest
import torch
from l2p_arch.files.tensor_files import dtype_name, index_directory, read_header
from l2p_arch.files.tensor_writing import (
    DirectoryWriter,
    PlannedTensor,
    copy_range,
    write_directory,
    write_file,
)
from safetensors.torch import load_file, save_file
from torch import Tensor


def many_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(3,), (40, 300), (1,), (0, 5), (7, 11, 13), (2, 60_000)]
    dtypes = [torch.float32, torch.bfloat16, torch.int8]
    return {
        f"{dtype_name(dtype)}.{index}": torch.randint(-100, 100, size, generator=generator).to(dtype)
        for index, size in enumerate(sizes)
        for dtype in dtypes
    }


def planned(path: Path, names: Sequence[str] | None = None) -> list[PlannedTensor]:
    stored = read_header(path)[0]
    return [
        PlannedTensor(name=name, dtype=stored[name].dtype, shape=stored[name].shape, origin=stored[name])
        for name in (stored if names is None else names)
    ]


def made(tensors: dict[str, Tensor]) -> list[PlannedTensor]:
    def plan(name: str, value: Tensor) -> PlannedTensor:
        dtype = dtype_name(value.dtype)
        return PlannedTensor(name=name, dtype=dtype, shape=tuple(value.shape), origin=lambda: value)

    return [plan(name, value) for name, value in tensors.items()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(many_tensors(), tmp_path / "source.safetensors")
    return tmp_path / "source.safetensors"


def failing(code: int, after: int) -> Callable[..., int]:
    """A kernel that copies some bytes and then refuses."""
    copy = os.copy_file_range

    def copy_file_range(reader: int, writer: int, count: int, *offsets: int) -> int:
        if after == 0 or offsets[0] > after:
            raise OSError(code, os.strerror(code))
        return copy(reader, writer, min(count, after), *offsets)

    return copy_file_range


@pytest.mark.parametrize(
    "kernel",
    [
        None,
        failing(errno.ENOSYS, 0),
        failing(errno.EXDEV, 0),
        failing(errno.EINVAL, 5000),
        lambda *_: 0,  # some file systems say so instead of refusing
    ],
)
@pytest.mark.parametrize("dropped", [[], ["F32.0"], ["F32.1", "I8.0", "BF16.2"]])
def test_every_way_of_copying_gives_the_same_tensors(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: Any, dropped: list[str]
) -> None:
    if kernel is not None:
        monkeypatch.setattr(os, "copy_file_range", kernel)
    monkeypatch.setattr("l2p_arch.files.tensor_writing._PIECE", 8192)  # smaller than the largest tensors
    wanted = {name: value for name, value in many_tensors().items() if name not in dropped}
    write_file(tmp_path / "out.safetensors", planned(source, list(wanted)))
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], value) for name, value in wanted.items())
    for stored in read_header(tmp_path / "out.safetensors")[0].values():
        assert stored.start % torch.empty(0, dtype=written[stored.name].dtype).itemsize == 0


def test_the_longest_range_lies_at_its_sources_place_within_a_page(source: Path, tmp_path: Path) -> None:
    kept = [name for name in many_tensors() if name != "F32.1"]
    write_file(tmp_path / "out.safetensors", [*planned(source, kept), *made({"new": torch.ones(3)})])
    before, after = read_header(source)[0], read_header(tmp_path / "out.safetensors")[0]
    assert before["F32.5"].start != after["F32.5"].start
    assert (before["F32.5"].start - after["F32.5"].start) % 4096 == 0
    assert torch.equal(load_file(tmp_path / "out.safetensors")["new"], torch.ones(3))


def test_what_comes_later_goes_into_the_last_file_where_there_is_room(source: Path, tmp_path: Path) -> None:
    late = {"new": torch.arange(6.0), "other": torch.ones(2, 2, dtype=torch.bfloat16)}
    early = ["F32.1", "F32.5", "BF16.1", "BF16.5"]
    for limit, files in ((1 << 20, 1), (600_000, 2), (264_010, 4)):
        out = tmp_path / str(limit)
        out.mkdir()
        with DirectoryWriter(out, limit) as writer:
            writer.start(planned(source, early))
            writer.write(made(late))
        assert len(list(out.glob("*.safetensors"))) == files
        result = {name: stored.read() for name, stored in index_directory(out).items()}
        assert result.keys() == {*early, *late}
        assert all(torch.equal(value, (many_tensors() | late)[name]) for name, value in result.items())


def test_a_wide_tensor_that_comes_late_is_aligned(tmp_path: Path) -> None:
    save_file({"odd": torch.ones(3, dtype=torch.int8)}, tmp_path / "source.safetensors")
    (tmp_path / "out").mkdir()
    with DirectoryWriter(tmp_path / "out", 1 << 20) as writer:
        writer.start(planned(tmp_path / "source.safetensors"))
        writer.write(made({"wide": torch.ones(4)}))
    stored = index_directory(tmp_path / "out")
    assert stored["wide"].start % 4 == 0
    assert stored["wide"].path != stored["odd"].path


def test_files_end_where_those_of_the_source_end(tmp_path: Path) -> None:
    """So that each can be copied as one range, in whole pages; small ones are still joined."""
    (tmp_path / "source").mkdir()
    tensors = {f"{n}": torch.full((50_000,), float(n)) for n in range(8)}
    write_directory(tmp_path / "source", made(tensors), max_shard_bytes=600_000)
    stored = index_directory(tmp_path / "source")
    plan = [PlannedTensor(name=t.name, dtype=t.dtype, shape=t.shape, origin=t) for t in stored.values()]
    for limit, files in ((700_000, 3), (10_000_000, 1), (300_000, 8)):
        out = tmp_path / str(limit)
        out.mkdir()
        write_directory(out, plan, max_shard_bytes=limit)
        assert len(list(out.glob("*.safetensors"))) == files
        assert all(torch.equal(t.read(), tensors[t.name]) for t in index_directory(out).values())


def test_what_was_started_goes_on_in_the_background_and_stops_with_its_context(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, go_on, copied = Event(), Event(), []

    def slow(_: object, start: int, count: int, __: object) -> None:
        copied.append(start)
        waiting.set()
        assert go_on.wait(60)

    monkeypatch.setattr("l2p_arch.files.tensor_writing.copy_range", slow)
    monkeypatch.setattr("l2p_arch.files.tensor_writing._PIECE", 1000)
    with pytest.raises(KeyboardInterrupt), DirectoryWriter(tmp_path, 1 << 20) as writer:
        writer.start(planned(source))
        assert waiting.wait(60)
        Timer(0.2, go_on.set).start()
        raise KeyboardInterrupt
    assert len(copied) == 1  # of hundreds of pieces


def test_a_failure_of_the_background_is_raised(source: Path, tmp_path: Path) -> None:
    plan = planned(source)
    source.unlink()
    with pytest.raises(FileNotFoundError), DirectoryWriter(tmp_path, 1 << 20) as writer:
        writer.start(plan)


def test_a_source_that_ends_early_is_named(source: Path, tmp_path: Path) -> None:
    with (
        source.open("rb") as reader,
        (tmp_path / "out").open("wb") as writer,
        pytest.raises(ValueError, match="ended 100 bytes early"),
    ):
        copy_range(reader, 50, source.stat().st_size + 50, writer)
