"""Files are whole or absent; what cannot be read or written says why, and what helps against that cause."""

import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from l2p_run import hashes, places
from l2p_run.errors import UserError, raised_as
from l2p_run.storage.atomic import refuse_device
from l2p_run.storage.store import Store


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L2P_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def remote() -> Iterator[str]:
    import fsspec

    yield "memory://ground/floor"
    fsspec.filesystem("memory").rm("/ground", recursive=True)


def test_a_failed_write_leaves_the_file_as_it_was_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    places.write_json(path, {"ä": 1})
    with pytest.raises(KeyError), places.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert places.read_json(path) == {"ä": 1}
    assert os.listdir(path.parent) == ["x.json"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, ended = tmp_path / "x.json", threading.Event()
    places.write_json(path, [0] * 10_000)

    def write() -> None:
        for value in range(60):
            places.write_json(path, [value] * 10_000)
        ended.set()

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not ended.is_set():
        assert len(json.loads(path.read_text())) == 10_000
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EACCES, "chmod"),
        (errno.EROFS, "mount it for writing"),
        (errno.EIO, "the file may be whole"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EFBIG, "ulimit -f"),
    ],
)
def test_the_remedy_suits_the_cause(tmp_path: Path, number: int, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught, places.atomic_path(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert "delete" not in str(caught.value)


def test_a_source_that_cannot_be_read_is_not_called_unwritable(tmp_path: Path) -> None:
    secret = str(tmp_path / "elsewhere" / "secret")
    refused = pytest.raises(UserError, match=r"because .*secret cannot be read")
    with refused, places.atomic_path(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "Permission denied", secret)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "file/below", "folder"])
def test_hostile_names_are_one_line_for_reading_and_writing(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    path = Path(f"{tmp_path}/{name}")
    for act in (lambda: places.read_text(path), lambda: places.write_text(path, "x")):
        with pytest.raises(UserError) as caught:
            act()
        assert "\n" not in str(caught.value)


def test_questions_about_what_cannot_be_looked_at_are_errors_and_not_no(tmp_path: Path) -> None:
    assert not places.is_file(tmp_path / "none") and not places.is_folder(tmp_path / "none")
    assert places.is_folder(tmp_path)
    with pytest.raises(UserError, match="shorter"):
        places.is_file(tmp_path / ("y" * 400))
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(UserError, match="circle"):
        places.is_folder(tmp_path / "loop" / "x")


@pytest.mark.parametrize(
    "content", [b"{", b"", b"\xff\xfe{}", b"[" * 100_000, b"nul", b"9" * 5_000, b'{"a": }'], ids=range(7)
)
def test_damaged_json_is_one_line_and_as_a_marker_it_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        places.read_json(path)
    assert "\n" not in str(caught.value)
    assert places.read_json_if_whole(path) is None


@pytest.mark.parametrize("value", [5, [], "x", None, True])
def test_a_marker_that_is_no_object_is_none(tmp_path: Path, value: Any) -> None:
    places.write_json(tmp_path / "x.json", value)
    assert places.read_json_if_whole(tmp_path / "x.json") is None


def test_lines_are_told_by_number(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    places.write_jsonl(path, [{"a": 1}, {"b": "\u2028"}])
    assert [value for _, value in places.read_jsonl(path)] == [{"a": 1}, {"b": "\u2028"}]
    path.write_text('{"a": 1}\n\n{"b": \n')
    with pytest.raises(UserError, match=r"x\.jsonl:3 is not readable JSON"):
        list(places.read_jsonl(path))


def test_a_folder_appears_whole_and_replaces_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in ("old", "new"):
        with places.atomic_folder(target) as folder:
            (folder / text).write_text(text)
    with pytest.raises(KeyError), places.atomic_folder(target) as folder:
        raise KeyError
    assert os.listdir(target) == ["new"] and os.listdir(tmp_path) == ["model"]


def test_an_address_reads_and_writes_as_a_path_does(tmp_path: Path, remote: str) -> None:
    place = places.location(f"{remote}/x.json")
    places.write_json(place, [1, 2])
    assert places.read_json(place) == [1, 2] and places.is_file(place)
    places.get(place, tmp_path / "copy.json")
    places.put(tmp_path / "copy.json", places.location(f"{remote}/y.json"))
    assert hashes.of_file(places.location(f"{remote}/y.json")) == hashes.of_file(tmp_path / "copy.json")


@pytest.mark.parametrize("address", ["nosuchscheme://x", "://", "://x"])
def test_an_unknown_address_is_one_line(address: str) -> None:
    with pytest.raises(UserError) as caught:
        places.location(address)
    assert "\n" not in str(caught.value)


def test_a_store_mirrors_a_folder(tmp_path: Path, remote: str) -> None:
    source = tmp_path / "source"
    for name in ("a/one.txt", "two.txt", "state.json"):
        places.write_text(source / name, name)
    store = Store(remote)
    store.check()
    store.push(source, "run", last=["state.json"])
    (source / "two.txt").unlink()
    store.push(source, "run", last=["state.json"])
    store.pull("run", tmp_path / "copy")
    assert hashes.of_folder(tmp_path / "copy") == hashes.of_folder(source)
    assert store.read("nothing") is None


def test_a_large_file_is_hashed_whole_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    content = bytearray(os.urandom(3 << 20))
    path.write_bytes(content)
    long_ago = 1_700_000_000
    os.utime(path, (long_ago, long_ago))
    first = hashes.of_file(path)
    assert len(list((tmp_path / "cache" / "sha256").iterdir())) == 1
    assert hashes.of_file(path) == first
    content[len(content) // 2] ^= 1  # one bit in the middle; size and time of modification as before
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, (long_ago, long_ago))
    assert hashes.of_file(path) == hashes.of_bytes(bytes(content)) != first


def test_a_damaged_or_unwritable_cache_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(2 << 20))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    wanted = hashes.of_file(path)
    (note,) = (tmp_path / "cache" / "sha256").iterdir()
    for damage in ("{", "[]", '{"state": 5}'):
        note.write_text(damage)
        assert hashes.of_file(path) == wanted
    monkeypatch.setenv("L2P_CACHE", "/proc/nowhere")
    assert hashes.of_file(path) == wanted


def test_a_copied_folder_has_the_same_hash_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    for root in ("one", "two"):
        places.write_text(tmp_path / root / "deep" / "x.txt", "x")
        places.write_text(tmp_path / root / ".hidden", root)
        os.symlink("..", tmp_path / root / "deep" / "back")
    assert hashes.of_folder(tmp_path / "one") == hashes.of_folder(tmp_path / "two")
    places.write_text(tmp_path / "two" / "deep" / "y.txt", "")
    assert hashes.of_folder(tmp_path / "one") != hashes.of_folder(tmp_path / "two")
    assert hashes.of_settings({"a": 1, "b": 2}) == hashes.of_settings({"b": 2, "a": 1})


def test_a_package_raises_its_own_error(tmp_path: Path) -> None:
    class OwnError(UserError):
        pass

    read_json = raised_as(OwnError)(places.read_json)
    with pytest.raises(OwnError, match="does not exist"):
        read_json(tmp_path / "none")
    with pytest.raises(KeyError), raised_as(OwnError):
        raise KeyError


def test_nothing_takes_the_place_of_a_pipe_or_a_device(tmp_path: Path) -> None:
    """As root, `-o /dev/null` took the machine's /dev/null away."""
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "pipe", tmp_path / "link")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    for name in ("pipe", "link", "socket"):
        with pytest.raises(UserError, match="is a device or a pipe, and would be replaced; give the name"):
            places.write_text(tmp_path / name, "text")
    for name in ("null", "full", "stdout"):
        with pytest.raises(UserError, match=f"/dev/{name} is a device or a pipe"):
            refuse_device(Path("/dev") / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "socket"]
    places.write_text(tmp_path / "file", "one")
    places.write_text(tmp_path / "file", "two")
    assert (tmp_path / "file").read_text() == "two"
    listening.close()
