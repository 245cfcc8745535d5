"""Area `requests`: what clients send to the image API."""

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzzing.case import Case, encoded
from fuzzing.values import changed, damaged, json_bytes, json_values, texts

GENERATION = {
    **{"prompt": "a circle", "model": "m", "n": 1, "size": "16x16", "response_format": "b64_json"},
    **{"output_format": "png", "seed": 1, "steps": 1, "guidance_scale": 1.0, "negative_prompt": "a ring"},
    **{"noise_shift": 3.0, "stream": False, "quality": "high", "user": "u"},
}


def requests(seeds: Path) -> st.SearchStrategy[Case]:
    """Bodies of /v1/images/generations and /v1/images/edits, and odd paths, methods and headers."""
    picture = (seeds / "pictures/a.png").read_bytes()
    body = st.one_of(
        changed(GENERATION, json_values(quick=True)).map(json_bytes),
        changed(GENERATION, json_values(quick=True)).map(json_bytes).flatmap(damaged),
        st.sampled_from([b"", b"{}", b"[]", b"null", b"5", b"\xff", b"[" * 50_000, b'{"prompt":' * 9_000]),
    )
    json_type = {"content-type": "application/json"}
    paths = st.sampled_from(
        [
            *("/v1/models", "/v1/models/m", "/v1/models/../..", "/v1/models/%ff", "/v1/%00", "//"),
            *("/v1/images/files/..%2f..%2fetc%2fpasswd", "/v1/images/files/.x", "/v1/images/edits"),
            *("/health", "/metrics", "/openapi.json", "/docs"),
        ]
    )
    methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE"])
    return st.one_of(
        body.map(lambda one: sent("POST", "/v1/images/generations", json_type, one)),
        _form(picture).map(lambda one: sent("POST", "/v1/images/edits", *one)),
        st.builds(lambda method, path: sent(method, path, {}, b""), methods, paths),
    )


def sent(method: str, path: str, headers: dict[str, str], body: bytes) -> Case:
    head = json.dumps({"method": method, "path": path, "headers": headers}).encode()
    files = {"request.json": encoded(head), "body": encoded(body)}
    return Case(area="requests", command=("request",), copies={"m": "run/model"}, files=files)


@st.composite
def _form(draw: Any, picture: bytes) -> tuple[dict[str, str], bytes]:
    """A multipart form with fields twice, missing, of other kinds, and damage to its frame."""
    image = draw(st.one_of(st.just(picture), damaged(picture), st.sampled_from([b"", b"x"])))
    fields: list[tuple[str, str | bytes]] = [
        ("image", image),
        *(("prompt", "a ring"), ("size", "16x16"), ("steps", "1"), ("response_format", "b64_json")),
    ]
    for _ in range(draw(st.integers(0, 3))):
        name = draw(
            st.sampled_from(
                ["image", "image[]", "mask", "prompt", "n", "seed", "strength", "size", "steps", "x"]
            )
        )
        value = draw(
            st.one_of(texts(), st.just(picture), st.sampled_from(["0.5", "-1", "nan", "1e999", "2"]))
        )
        place = draw(st.integers(0, len(fields)))
        fields.insert(place, (name, value))
    if draw(st.booleans()):
        fields.pop(draw(st.integers(0, len(fields) - 1)))
    parts = []
    for name, value in fields:
        kind = f'; filename="{name}.png"\r\nContent-Type: image/png' if isinstance(value, bytes) else ""
        content = value if isinstance(value, bytes) else value.encode("utf-8", "replace")
        parts.append(
            f'--b\r\nContent-Disposition: form-data; name="{name}"{kind}\r\n\r\n'.encode() + content + b"\r\n"
        )
    body = b"".join(parts) + b"--b--\r\n"
    if draw(st.integers(0, 3)) == 0:
        body = draw(damaged(body))
    kind = draw(
        st.sampled_from(
            ["multipart/form-data; boundary=b"] * 5
            + ["multipart/form-data", "text/plain", "application/json"]
        )
    )
    return {"content-type": kind}, body
