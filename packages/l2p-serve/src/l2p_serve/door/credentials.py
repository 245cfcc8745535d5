"""Users and tokens, from files: on a command line other users of the machine could read them."""

from pathlib import Path

from l2p_run.errors import UserError
from l2p_run.places import read_text

from l2p_serve.errors import ServeError


def read_auth(path: Path | None) -> list[tuple[str, str]]:
    """Return (user, password) of each line; none without a file."""
    pairs = [line.partition(":") for line in _lines(path, "--auth-file")]
    if path and (not pairs or any(not user or not password for user, _, password in pairs)):
        raise ServeError(f"--auth-file {path} must hold lines of user:password")
    return [(user, password) for user, _, password in pairs]


def read_tokens(path: Path | None) -> list[str]:
    """Bearer tokens, one a line; none without a file."""
    tokens = _lines(path, "--token-file")
    if path and (
        not tokens or any(len(token) < 16 or not token.isascii() or " " in token for token in tokens)
    ):
        raise ServeError(f"--token-file {path} must hold a token a line, of at least 16 ASCII characters")
    return tokens


def _lines(path: Path | None, flag: str) -> list[str]:
    """Return the lines of a file that are neither empty nor comments."""
    if path is None:
        return []
    try:
        lines = [line.strip() for line in read_text(path).split("\n")]
    except UserError as error:
        raise ServeError(f"{flag} {path}: {error}") from None
    return [line for line in lines if line and not line.startswith("#")]
