"""Pictures on request: what a picture's metadata say, batches of requests, OpenAI's image endpoints and a web
page, over an L2P model or a painter of your own."""

from importlib import import_module
from typing import Any

_HOME = {
    "Adapter": "recipe",
    "Recipe": "recipe",
    "read_recipe": "recipe",
    "Sampling": "recipe",
    "ServeError": "errors",
    "Limits": "limits",
    "Paints": "painter",
    "Painter": "painting",
    "Picture": "painting",
    "load_painter": "painting",
    "paint": "painting",
    "paint_each": "painting",
    "BatchQueue": "api.batching",
    "api_application": "api.application",
    "serve_api": "api.application",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Load the home of a public name on first use."""
    if name in _HOME:
        return getattr(import_module(f"l2p_serve.{_HOME[name]}"), name)
    raise AttributeError(f"module 'l2p_serve' has no attribute {name!r}")
