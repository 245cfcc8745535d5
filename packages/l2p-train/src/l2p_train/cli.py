"""`l2p-train CONFIG`, one process of a training run; `l2p-train distill MODEL`, a student of few passes."""

from __future__ import annotations

import sys


def command_line() -> None:
    """Run the installed command."""
    if sys.argv[1:2] == ["distill"]:
        from l2p_train.distill import main

        sys.exit(main(sys.argv[2:]))
    from l2p_train.__main__ import run_process

    run_process()
