"""Numbers in sentences for people."""


def counted(number: int, noun: str) -> str:
    """Return "1 image", "2,000 images", "3 categories"."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def rate(per_second: float) -> str:
    """Return at least two digits: a large model on one card does one image in some seconds."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"
