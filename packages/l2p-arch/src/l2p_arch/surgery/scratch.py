"""From scratch (Fig. 9): the same architecture without what it inherits."""

from pathlib import Path


def forget_trunk(model: Path, seed: int) -> None:
    """Replace every inherited tensor of a converted model by a random one, in place.

    The text encoder stays, as in any training from scratch, and so do the new ends.

    Args:
        model: an L2P model directory, as `convert` writes it.
        seed: of the random tensors.
    """
    import torch

    from l2p_arch.model import L2PTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = L2PTransformer.from_config(L2PTransformer.load_config(model / "transformer"))
        made = L2PTransformer.from_pretrained(
            model / "transformer", local_files_only=True, use_safetensors=True
        )
        fresh, kept = dict(transformer.named_parameters()), dict(made.named_parameters())
        new_ends = ("detailer_head.", f"trunk.{made.source_family.embedder}.")
        with torch.no_grad():
            for name, parameter in kept.items():
                if name.startswith(new_ends):
                    continue
                if name.endswith("pad_token"):  # allocated without values by their class
                    torch.nn.init.normal_(parameter, std=0.02)
                else:
                    parameter.copy_(fresh[name])
    made.save_pretrained(model / "transformer")
