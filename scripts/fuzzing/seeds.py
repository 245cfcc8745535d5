"""What cases begin with: a tiny source, a model, a corpus, pictures, a recipe; made once, in seconds."""

import json
import shutil
from pathlib import Path

import tomli_w

TINY = {
    "run": {"output": "run"},
    "source": {"model": "source", "num_inference_steps": 1, "max_sequence_length": 32},
    "prompts": {"grammar": "grammar.toml", "count": 4},
    "images": {"seeds_per_prompt": 1, "width": 64, "height": 64, "batch_size": 4, "workers": 0},
    "surgery": {"head_channels": [8, 8, 16, 16]},
    "train": {"steps": 2, "batch_size": 2, "processes": 1, "trainable": 1, "precision": "fp32"},
    "evaluate": {"metadata": "metadata.jsonl", "num_inference_steps": 1, "workers": 0},
}


def make_seeds(folder: Path) -> None:
    """Fill `folder`. Computes, so it belongs into a process of its own."""
    import torch
    from l2p_arch import convert
    from l2p_mini.architecture import write_untrained_source
    from l2p_mini.paths import EVALUATION_METADATA, GRAMMAR

    torch.set_num_threads(1)
    write_untrained_source(folder / "source", seed=0)
    convert(folder / "source", folder / "run/model", head_channels=(8, 8, 16, 16))
    sampling = {
        "height": 64,
        "width": 64,
        "num_inference_steps": 1,
        "guidance_scale": 1.0,
        "noise_shift": 3.0,
    }
    (folder / "run/model/sampling.json").write_text(json.dumps(sampling))
    (folder / "run/config.toml").write_text('[source]\nmodel = "source"\nnum_inference_steps = 1\n')
    shutil.copy(GRAMMAR, folder / "grammar.toml")
    rows = EVALUATION_METADATA.read_text().splitlines()
    (folder / "metadata.jsonl").write_text(f"{rows[0]}\n{rows[-1]}\n")
    (folder / "tiny.toml").write_text(tomli_w.dumps(TINY))
    _pictures(folder / "pictures")
    _corpus(folder)
    _recipe(folder)
    _adapter(folder / "lora.safetensors", folder / "run/model")


def _pictures(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        Image.effect_noise((64, 64), 40 + number).convert("RGB").save(folder / name)


def _corpus(folder: Path) -> None:
    from l2p_data import commands
    from l2p_data.prompts.grammar import GrammarGenerator

    commands.prompts(GrammarGenerator(folder / "grammar.toml", seed=0), 4, folder / "prompts.parquet")
    commands.filter(folder / "prompts.parquet", folder / "prompts.parquet")
    source = folder / "captioned"
    shutil.copytree(folder / "pictures", source)
    for name in ("a", "b"):
        (source / f"{name}.txt").write_text(f"a picture called {name}")
    commands.import_(source, folder / "corpus")


def _recipe(folder: Path) -> None:
    from l2p_generate.cli import main
    from l2p_serve.recipe import read_recipe

    out = folder / "painted.png"
    size = ["--height", "16", "--width", "16", "--device", "cpu"]
    if main(["--model", str(folder / "run/model"), *size, "a ring", "-o", str(out)]):
        raise RuntimeError("the seeds' picture was not painted")
    (folder / "recipe.json").write_text(read_recipe(out).to_json())


def _adapter(file: Path, model: Path) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(model / "transformer/diffusion_pytorch_model.safetensors", framework="pt") as weights:
        names = [name for name in weights.keys() if name.endswith("attention.to_q.weight")][:2]  # noqa: SIM118
        shapes = {name: weights.get_tensor(name).shape for name in names}
    made = {}
    for name, (out, into) in shapes.items():
        base = "diffusion_model." + name.removesuffix(".weight").removeprefix("trunk.")
        made |= {f"{base}.lora_A.weight": torch.ones(2, into), f"{base}.lora_B.weight": torch.ones(out, 2)}
    save_file(made, file)
