"""What diffusers and transformers say on their own."""

import os


def quiet_libraries() -> None:
    """No hub, no progress bars, no advice, and no error beside ours: commands speak for themselves, in one
    line."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity(logging.CRITICAL)
