"""A config as what `l2p_plan` counts."""

from l2p_eval.geneval.published import PUBLISHED_JUDGES
from l2p_plan.transfer import Corpus, Evaluation, Source, Surgery, Transfer

from l2p_transfer.config import Config, resolve_processes
from l2p_transfer.sizes import evaluated_size, painted_sizes, source_size, trained_sizes


def describe(config: Config) -> Transfer:
    """Return the transfer that a config asks for."""
    source, images, surgery, evaluate = config.source, config.images, config.surgery, config.evaluate
    return Transfer(
        source=Source(
            directory=source.model,
            family=source.family,
            repository=source.repository,
            num_inference_steps=source.num_inference_steps,
            guidance_scale=max(source.guidance_scale, source.pipeline_kwargs.get("true_cfg_scale", 0)),
            max_sequence_length=source.max_sequence_length,
            dtype=source.dtype,
        ),
        corpus=Corpus(
            prompts=config.prompts.count,
            seeds_per_prompt=images.seeds_per_prompt,
            sizes=painted_sizes(config),
            cpu_offload=images.cpu_offload,
        ),
        trained_sizes=trained_sizes(config),
        surgery=Surgery(
            patch_size=surgery.patch_size,
            head_channels=surgery.head_channels,
            recipe=surgery.recipe,
            decoder=surgery.decoder,
            reading=surgery.reading,
            polish=surgery.polish,
            dtype=surgery.dtype,
        ),
        train=config.train,
        processes=resolve_processes(config),
        evaluation=Evaluation(
            images_per_prompt=evaluate.images_per_prompt,
            num_inference_steps=evaluate.num_inference_steps,
            guidance_scale=evaluate.guidance_scale,
            size=evaluated_size(config),
            source_size=source_size(config),
            floor=evaluate.frechet_floor,
            dtype=evaluate.dtype,
            cpu_offload=evaluate.cpu_offload,
            metadata=evaluate.metadata,
            judges={key: getattr(evaluate, key) for key in PUBLISHED_JUDGES}
            if evaluate.detector == "coco"
            else {},
        ),
    )
