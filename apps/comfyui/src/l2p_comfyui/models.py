"""`Model`: what goes along the wire between the nodes, and how it paints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from l2p_arch.errors import ArchError
from l2p_arch.sampling.settings import Sampling
from PIL import Image

Adapters = tuple[tuple[str, float], ...]
"""(file, weight) of each LoRA."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded L2P model, and the LoRAs that this branch of the workflow wants on it.

    Branches share the pipeline, so a LoRA is put on when one samples, and the model is itself again, bit by
    bit, for a branch without.
    """

    pipeline: Any  # L2PPipeline
    sampling: Sampling  # the model's own defaults
    adapters: Adapters = ()
    _on: list[Adapters] = field(default_factory=lambda: [()])  # what the shared pipeline has now

    def with_adapter(self, file: str, weight: float) -> "Model":
        """Return the same with one more LoRA."""
        if not Path(file).is_file():
            raise ArchError(f"the LoRA {file} does not exist; give a safetensors file")
        return replace(self, adapters=(*self.adapters, (file, weight)))

    def paint(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        on_step: Callable[[int, float, Any], None],
        **options: Any,
    ) -> list[Image.Image]:
        """Return one image of each prompt and seed.

        Args:
            options: of the pipeline's call, over the model's own defaults.
        """
        from l2p_arch.sampling.painter import check_options, paint_images

        self._put_on()
        given = self.sampling.options | options
        check_options(self.pipeline, given)
        return paint_images(self.pipeline, prompts, seeds, on_step=on_step, **given)

    def _put_on(self) -> None:
        if self._on[0] == self.adapters:
            return
        self.pipeline.unload_lora_weights()
        self._on[0] = ()
        names = [f"lora_{number}" for number in range(len(self.adapters))]
        for name, (file, _) in zip(names, self.adapters, strict=True):
            self.pipeline.load_lora_weights(file, adapter_name=name)
        if names:
            self.pipeline.set_adapters(names, [weight for _, weight in self.adapters])
        self._on[0] = self.adapters


def load(
    path: str, components: str, *, device: str, dtype: str, cpu_offload: bool, tile: int | None
) -> Model:
    """Return the model that a run directory, a model directory or a published single file holds."""
    from l2p_arch.sampling.painter import find_pixel_model, load_pipeline, sampling_defaults

    found = find_pixel_model(path, components or None)
    pipeline = load_pipeline(found.directory, device=device, dtype=dtype, cpu_offload=cpu_offload, tile=tile)
    return Model(pipeline=pipeline, sampling=sampling_defaults(found.directory))
