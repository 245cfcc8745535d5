"""The text side of the pipeline: prompts to conditioning, and what was cut off of them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from l2p_arch.arguments import check_counts, check_texts
from l2p_arch.errors import ArchError
from l2p_arch.families import Conditioning, Family
from l2p_arch.sampling.cut_prompts import CutPromptWarning, cut_prompts


class Prompts(DiffusionPipeline):
    """`L2PPipeline`'s methods about text."""

    _warned: frozenset[str] = frozenset()

    @torch.no_grad()
    def encode(
        self,
        prompts: str | Sequence[str],
        *,
        max_sequence_length: int | None = None,
        negative: bool = False,
    ) -> list[Conditioning]:
        """Return the conditioning of each prompt, as the source family encodes text.

        What exceeds `max_sequence_length` tokens is cut off, with a `CutPromptWarning`; None stands for the
        family's own limit. With `negative` as it encodes negative prompts, before which some families put no
        instruction.
        """
        check_texts(prompts=prompts)
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ArchError(f"prompts {prompts!r} are not all text")
        if max_sequence_length is not None:
            check_counts(max_sequence_length=max_sequence_length)
        if self.transformer is None:
            raise ArchError(
                "this pipeline was loaded without its transformer, which knows how text is encoded"
            )
        family: Family = self.transformer.source_family
        components = {name: getattr(self, name) for name in family.text_components}
        # SD3 may do without T5, but nothing without the first encoder, or without an encoder's tokenizer.
        missing = [] if self.text_encoder is not None else ["text_encoder"]
        for name, encoder in components.items():
            tokenizer = name.replace("text_encoder", "tokenizer")
            if name.startswith("text_encoder") and encoder is not None and components[tokenizer] is None:
                missing.append(tokenizer)
        if missing:
            raise ArchError(
                f"this pipeline was loaded without its {', '.join(missing)}; pass prompt_conditioning, and "
                "negative_conditioning where guidance_scale is above 1"
            )
        encode = (negative and family.encode_negative_text) or family.encode_text
        most = max_sequence_length or family.text_tokens
        cuts = cut_prompts(family, components, prompts, max_sequence_length=most, negative=negative)
        cuts = [cut for cut in cuts if cut.prompt not in self._warned]
        if cuts:
            self._warned |= {cut.prompt for cut in cuts}
            warnings.warn(CutPromptWarning(cuts, len(prompts)), stacklevel=2)
        return encode(
            {**components, "trunk": self.transformer.trunk},
            prompts,
            device=self._execution_device,
            max_sequence_length=most,
        )

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        do_classifier_free_guidance: bool = True,
        prompt_embeds: Sequence[Conditioning] | None = None,
        negative_prompt_embeds: Sequence[Conditioning] | None = None,
        max_sequence_length: int | None = None,
    ) -> tuple[list[Conditioning], list[Conditioning]]:
        """Return (prompt_embeds, negative_prompt_embeds), as a call takes them; one each per prompt.

        The negative ones are empty without guidance. What is given already is returned as it is.
        """
        positive = self._conditioning(prompt, prompt_embeds, max_sequence_length)
        if not do_classifier_free_guidance:
            return positive, []
        negative = self._conditioning(
            negative_prompt or "", negative_prompt_embeds, max_sequence_length, len(positive)
        )
        return positive, negative

    def _conditioning(
        self,
        prompt: str | Sequence[str] | None,
        given: Conditioning | Sequence[Conditioning] | Tensor | None,
        max_sequence_length: int | None,
        prompts_against: int | None = None,
    ) -> list[Conditioning]:
        """Return what was given, or else the prompts' encoding; as many as the prompts that they are set
        against.
        """
        negative = prompts_against is not None
        if given is None and (prompt is None or (not isinstance(prompt, str) and not list(prompt))):
            raise ArchError("nothing to draw: give a prompt, a list of prompts, or prompt_conditioning")
        if given is None:
            assert prompt is not None
            given = self.encode(prompt, max_sequence_length=max_sequence_length, negative=negative)
        elif prompt is not None and not negative:
            raise ArchError("prompt and prompt_conditioning were both given; one of them says what to draw")
        elif prompt:
            raise ArchError("negative_prompt and its conditioning were both given; leave one of them out")
        given = self._mappings(given)
        if not given:
            raise ArchError("the conditioning is empty; wanted one mapping per prompt")
        if prompts_against is not None and len(given) == 1:
            given = [*given] * prompts_against
        if prompts_against not in (None, len(given)):
            raise ArchError(
                f"{len(given)} negative prompts for {prompts_against} prompts; give one text, or as many"
            )
        return given

    def _mappings(self, given: Any) -> list[Conditioning]:
        """Return conditioning as the model takes it; the bare text embeddings of diffusers' pipelines become
        it.
        """
        if not isinstance(given, Iterable) or isinstance(given, str):
            raise ArchError(
                f"the conditioning is {given!r}; wanted what encode or encode_prompt return, one mapping per "
                "prompt"
            )
        samples: list[Any] = [given] if isinstance(given, Mapping) else list(given)
        if all(isinstance(sample, Mapping) for sample in samples):
            return samples
        family = self.transformer.source_family
        kinds = ", ".join(sorted({type(sample).__name__ for sample in samples})) or "nothing"
        if not all(isinstance(sample, Tensor) and sample.ndim == 2 for sample in samples):
            raise ArchError(
                f"the conditioning is a list of {kinds}; wanted what encode or encode_prompt return, one "
                "mapping per prompt"
            )
        if family.pooled_text:
            raise ArchError(
                f"{family.name} wants pooled text beside the embeddings; pass what encode or encode_prompt "
                "return, one mapping per prompt"
            )
        return [{family.text_key: sample} for sample in samples]

    def _embedding(
        self, conditioning: Sequence[Conditioning], guidance: float | None, copies: int
    ) -> list[Conditioning]:
        """Return the conditioning of each image, with the guidance that a distilled model embeds."""
        embeds = self.transformer.guidance_range or self.transformer.trunk.config.get("guidance_embeds")
        if guidance is not None and not embeds:
            family = self.transformer.source_family.name
            raise ArchError(
                f"distilled_guidance_scale {guidance} is for models that embed their guidance, and this "
                f"{family} does not; use guidance_scale"
            )
        embedded = {} if guidance is None else {"guidance": torch.tensor(float(guidance))}
        return [{**sample, **embedded} for sample in conditioning for _ in range(copies)]
