"""What a sampler is heading for, while it samples: for previews."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Preview:
    """The image that an earlier step headed for, from the states that `on_step` of a pipeline's call is told.

    A state is noise still, but two of them with their sigmas give the velocity between them (eq. 4). A
    state's sigma is known when the next step begins there.
    """

    def __init__(self) -> None:
        self._state: Tensor | None = None
        self._passed: list[tuple[float, Tensor]] = []  # (sigma, state), the last two

    def after(self, sigma: float, x_t: "Tensor") -> "Tensor | None":
        """Take a step's sigma and the state that it led to; return x_0 as far as it can be said.

        Args:
            sigma: where the step began, in (0, 1].
            x_t: (N, 3, H, W), of which the first image is kept.

        Returns:
            (3, H, W), about [-1, 1], on the CPU; None in the first two steps, and of steps of no length.
        """
        if self._state is not None:
            self._passed = [*self._passed[-1:], (sigma, self._state)]
        self._state = x_t[0].cpu()
        if len(self._passed) < 2:
            return None
        (before, x_before), (now, x_now) = self._passed
        return None if before == now else x_now - now * (x_now - x_before) / (now - before)
