"""Text that users hand in: prompts that are no text are refused before anything is loaded."""

from l2p_serve.errors import ServeError


def check_text(text: str, what: str) -> str:
    """Return the text, if it can be written as UTF-8.

    Args:
        what: for the error, "the prompt".

    Raises:
        ServeError: bytes of another encoding (Python keeps them as lone surrogates), or half a pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        start = max(0, error.start - 20)
        shown = ascii(text[start : error.end + 20])
        raise ServeError(
            f"{what} is no valid text near {shown}: character {error.start + 1} is half a character, or a"
            " byte of another encoding; write it in UTF-8"
        ) from None
    return text
