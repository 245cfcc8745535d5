"""Areas `prompts`, `metadata` and `corpora`: what people hand in as files."""

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzzing.case import Case, Edit, encoded
from fuzzing.values import changed, damaged, damaged_text, json_bytes, json_values, texts, toml_values

PROMPTS = [
    {"id": "a", "prompt": "A red circle left of a blue square.", "language": "en", "category": "two_object"},
    {"id": "b", "prompt": 'A poster that says "open".', "subclass": "Posters", "seed": 3},
    {"id": "c", "prompt": "灰色背景上的三角形。", "language": "zh", "status": "keep", "reason": None},
]
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "triangle", "count": 1}], "prompt": "a triangle"},
    {
        "tag": "position",
        "include": [
            {"class": "circle", "count": 1},
            {"class": "square", "count": 1, "color": "red", "position": ["left of", 0]},
        ],
        "exclude": [{"class": "ring", "count": 3}],
        "prompt": "a red square left of a circle",
    },
]
DPG = [
    ("item_id", "text", "proposition_id", "dependency", "category_broad", "category_detailed", "tuple",
     "question_natural_language"),
    ("p0", "a dog", "1", "0", "entity", "whole", "entity - whole (dog)", "Is there a dog?"),
    ("p0", "a dog", "2", "1", "attribute", "color", "attribute - color (dog, red)", "Is the dog red?"),
    ("p1", "a cat", "1", "0", "entity", "whole", "entity - whole (cat)", "Is there a cat?"),
]  # fmt: skip


def lines(rows: Any) -> bytes:
    return (
        "".join(json.dumps(row) + "\n" for row in rows).encode()
        if isinstance(rows, list)
        else json_bytes(rows)
    )


def table(rows: Any) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode()


def tables() -> st.SearchStrategy[bytes]:
    """CSV of the DPG kind: cells exchanged, rows moved, text damaged."""
    cell = st.one_of(texts(), st.sampled_from(["0", "1", "2", "3", "-1", "1,2", "99", "p0"]))

    @st.composite
    def moved(draw: Any) -> bytes:
        rows = [list(row) for row in DPG]
        for _ in range(draw(st.integers(1, 3))):
            row = draw(st.sampled_from(rows))
            if row:
                row[draw(st.integers(0, len(row) - 1))] = draw(cell)
        rows = draw(st.permutations(rows)) if draw(st.integers(0, 5)) == 0 else rows
        return table([[part.encode("utf-8", "replace").decode() for part in row] for row in rows])

    return st.one_of(moved(), damaged_text(table(DPG)))


def prompts(seeds: Path) -> st.SearchStrategy[Case]:
    """Prompt files of every format, grammars and category trees."""
    jsonl = st.one_of(changed(PROMPTS).map(lines), damaged_text(lines(PROMPTS)))
    text = damaged_text(b"A red circle.\nA blue square on gray.\n\n# no comment\n")
    parquet = (seeds / "prompts.parquet").read_bytes()
    grammar = (seeds / "grammar.toml").read_bytes()
    tree = b'[Nature.Animals]\nPets = ["cat", "dog"]\n'

    def judged(name: str, content: bytes) -> Case:
        command = ("l2p-data", "filter", name, "--out", "out.parquet", "--near-duplicates", "--json")
        return Case(area="prompts", command=command, files={name: encoded(content)})

    def counted(name: str, content: bytes) -> Case:
        return Case(
            area="prompts", command=("l2p-data", "stats", name, "--json"), files={name: encoded(content)}
        )

    def ruled(content: bytes) -> Case:
        command = (
            "l2p-data",
            "prompts",
            "--grammar",
            "g.toml",
            "--count",
            "5",
            "--out",
            "p.parquet",
            "--json",
        )
        twin = (*command, "--dry-run")
        return Case(area="prompts", command=command, twin=twin, files={"g.toml": encoded(content)})

    def listed(content: bytes) -> Case:
        command = ("l2p-data", "taxonomy", "--extend", "t.toml", "--json")
        return Case(area="prompts", command=command, files={"t.toml": encoded(content)})

    return st.one_of(
        jsonl.map(lambda content: judged("p.jsonl", content)),
        text.map(lambda content: judged("p.txt", content)),
        damaged_text(table([("prompt", "language"), ("A red circle.", "en"), ("A dog.", "en")])).map(
            lambda content: judged("p.csv", content)
        ),
        damaged(parquet).map(lambda content: judged("p.parquet", content)),
        jsonl.map(lambda content: counted("p.jsonl", content)),
        damaged(parquet).map(lambda content: counted("p.parquet", content)),
        st.one_of(damaged_text(grammar), _tables_of(grammar)).map(ruled),
        st.one_of(damaged_text(tree), _tables_of(tree)).map(listed),
    )


def _tables_of(content: bytes) -> st.SearchStrategy[bytes]:
    import tomllib

    import tomli_w

    def write(tables_: Any) -> bytes:
        try:
            return tomli_w.dumps(tables_).encode()
        except (TypeError, ValueError, AttributeError):
            return content

    return changed(tomllib.loads(content.decode()), toml_values()).map(write)


def metadata(seeds: Path) -> st.SearchStrategy[Case]:
    """GenEval's metadata, DPG-Bench's questions, and prompts beside pictures."""
    rows = st.one_of(changed(GENEVAL).map(lines), damaged_text(lines(GENEVAL)))
    named = [{"file_name": "a.png", "text": "a circle"}, {"file_name": "b.png", "text": "a square"}]

    def judged(content: bytes) -> Case:
        command = ("l2p-evaluate", "geneval", "--images", "x=pictures", "--detector", "scenes")
        options = ("--metadata", "m.jsonl", "-o", "out", "--json")
        return _pictured(command + options, "m.jsonl", content)

    def asked(content: bytes) -> Case:
        command = ("l2p-evaluate", "dpg", "--images", "x=pictures", "--csv", "q.csv", "-o", "out")
        judge = ("--judge-server", "http://127.0.0.1:9/v1", "--judge-name", "m")  # nobody answers there
        return _pictured(command + judge, "q.csv", content)

    def beside(name: str, content: bytes) -> Case:
        command = ("l2p-evaluate", "patch-grid", "--images", "x=pictures", "--prompts", name, "-o", "out")
        return _pictured((*command, "--json"), name, content)

    return st.one_of(
        rows.map(judged),
        tables().map(asked),
        st.one_of(changed(named).map(lines), damaged_text(lines(named))).map(
            lambda one: beside("n.jsonl", one)
        ),
        st.one_of(changed(named).map(json_bytes)).map(lambda one: beside("n.json", one)),
        damaged_text(b"file_name,text\na.png,a circle\nb.png,a square\n").map(
            lambda one: beside("n.csv", one)
        ),
    )


def _pictured(command: tuple[str, ...], name: str, content: bytes) -> Case:
    return Case(
        area="metadata", command=command, copies={"pictures": "pictures"}, files={name: encoded(content)}
    )


def corpora(seeds: Path) -> st.SearchStrategy[Case]:
    """A corpus whose manifest, ledger or shards are damaged; folders, Parquet and tar to import."""
    manifest = json.loads((seeds / "corpus/_manifest.json").read_text())
    text = (seeds / "corpus/_manifest.json").read_bytes()
    picture = (seeds / "pictures/a.png").read_bytes()
    commands = st.sampled_from(
        [("verify", "corpus", "--decode"), ("stats", "corpus"), ("export", "corpus", "--out", "out")]
    )

    def listed(command: tuple[str, ...], content: bytes) -> Case:
        return Case(
            area="corpora",
            command=("l2p-data", *command, "--json"),
            copies={"corpus": "corpus"},
            files={"corpus/_manifest.json": encoded(content)},
        )

    @st.composite
    def shard(draw: Any) -> Case:
        edit = Edit(
            file="corpus/part-00000.parquet",
            offset=draw(st.one_of(st.integers(0, 20_000), st.integers(-2000, -1))),
            content=encoded(draw(st.binary(min_size=1, max_size=16))),
            cut=draw(st.booleans()),
        )
        bare = {"corpus/_manifest.json": encoded(b"")} if draw(st.integers(0, 3)) == 0 else {}
        return Case(
            area="corpora",
            command=("l2p-data", *draw(commands), "--json"),
            copies={"corpus": "corpus"},
            files=bare,
            edits=(edit,),
        )

    def folder(name: str, content: bytes) -> Case:
        return _imported({f"in/{name}": content, "in/a.png": picture}, "in")

    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "../a.png", "text": "two"}]
    captions = st.one_of(st.binary(max_size=40), texts().map(lambda one: one.encode("utf-16", "replace")))
    return st.one_of(
        st.builds(listed, commands, changed(manifest).map(json_bytes)),
        st.builds(listed, commands, damaged_text(text)),
        shard(),
        st.one_of(changed(rows).map(lines), damaged_text(lines(rows))).map(
            lambda one: folder("metadata.jsonl", one)
        ),
        st.one_of(changed(rows).map(json_bytes)).map(lambda one: folder("metadata.json", one)),
        damaged_text(b"file_name,text\na.png,one\n").map(lambda one: folder("metadata.csv", one)),
        captions.map(lambda one: folder("a.txt", one)),
        captions.map(lambda one: folder("a.caption", one)),
        _hub(picture),
        _tar(picture),
    )


def _imported(files: dict[str, bytes], source: str) -> Case:
    made = {name: encoded(content) for name, content in files.items()}
    command = ("l2p-data", "import", source, "--out", "corpus", "--json")
    return Case(area="corpora", command=command, twin=(*command, "--dry-run"), files=made)


@st.composite
def _hub(draw: Any, picture: bytes) -> Case:
    """Parquet of the Hub with columns of other types, nulls and foreign values."""
    import pyarrow as pa
    from pyarrow import parquet

    images = st.sampled_from([{"bytes": picture, "path": "a.png"}, {"bytes": b"", "path": None}, None])
    columns: dict[str, list[Any]] = {
        draw(st.sampled_from(["image", "png", "picture"])): [draw(images) for _ in range(2)],
        draw(st.sampled_from(["text", "caption", "prompt", "n"])): [
            draw(st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=9))) for _ in range(2)
        ],
    }
    if draw(st.booleans()):
        columns["extra"] = draw(
            st.sampled_from([[1, None], [1.5, float("nan")], [[1], []], [{"a": 1}, None]])
        )
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    content = buffer.getvalue()
    if draw(st.integers(0, 2)) == 0:
        content = draw(damaged(content))
    return _imported({"in.parquet": content}, "in.parquet")


@st.composite
def _tar(draw: Any, picture: bytes) -> Case:
    """A tar of webdataset with odd names, links and damage."""
    buffer = io.BytesIO()
    names = st.sampled_from(
        [
            "a.png",
            "a.txt",
            "b.png",
            "../c.png",
            "/d.png",
            "e.json",
            "e.jpg",
            "a.seg.png",
            ".png",
            "f/g.png",
            "f/g.txt",
        ]
    )
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for _ in range(draw(st.integers(0, 5))):
            entry = tarfile.TarInfo(draw(names))
            entry.type = draw(st.sampled_from([tarfile.REGTYPE] * 4 + [tarfile.SYMTYPE, tarfile.DIRTYPE]))
            entry.linkname = "/etc/passwd" if entry.type == tarfile.SYMTYPE else ""
            content = draw(st.sampled_from([picture, b"a circle", b"", b'{"caption": 5}', b"\xff"]))
            entry.size = len(content) if entry.type == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(content))
    content = buffer.getvalue()
    if draw(st.integers(0, 2)) == 0:
        content = draw(damaged(content))
    return _imported({"in.tar": content}, "in.tar")


__all__ = ["corpora", "json_values", "metadata", "prompts"]
