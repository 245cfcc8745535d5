"""What GenEval as it was published needs, and where that is."""

PUBLISHED_JUDGES = {
    "detector_model": "facebook/mask2former-swin-small-coco-instance",
    "color_model": "openai/clip-vit-large-patch14",
}
GENEVAL_METADATA = "prompts/evaluation_metadata.jsonl of the repository djghosh13/geneval"
