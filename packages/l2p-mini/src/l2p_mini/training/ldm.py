"""Train the miniature's text encoder and transformer together, by flow matching on cached latents.

    torchrun --nproc-per-node 2 -m l2p_mini.training.ldm --vae runs/source-vae/vae --output runs/source-ldm

Writes the whole source, in Z-Image-Turbo's directory layout, to OUTPUT/source_model. `--initial SOURCE` goes
on from a source's weights with a new schedule.
"""

import argparse
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from l2p_mini.architecture import TRANSFORMER, build_text_encoder, build_tokenizer
from l2p_mini.training.run import Ema, Run
from l2p_mini.training.vae import task_share, to_images, to_pixels, training_scene
from l2p_mini.world import BASE_SIZE, render

CAPTION = 32  # tokens: every caption of the grammar fits into one multiple of 32
GRID = 4  # latent patches a side
PADDING = 16  # Z-Image fills the 16 image tokens up to 32


class BatchedZImage(nn.Module):
    """diffusers' Z-Image forward for one size: its own weights and sums, without a loop over samples.

    The padding tokens of an image all have the same content and place, so they stay the same through every
    block: one of them stands for all, and attention counts it `PADDING` times. That is a quarter less work.

    Takes latents (B, 16, 8, 8), sigma (B,) in [0, 1] with 1 = noise, token ids and their mask (B, 32);
    returns the velocity noise - x_0, (B, 16, 8, 8).
    """

    def __init__(self, transformer: Any, text_encoder: Any) -> None:
        super().__init__()
        self.transformer, self.text_encoder = transformer, text_encoder
        caption = torch.stack(
            [torch.arange(1, CAPTION + 1)] + [torch.zeros(CAPTION, dtype=torch.long)] * 2, -1
        )
        h, w = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
        image = torch.stack([torch.full((GRID * GRID,), CAPTION + 1), h.flatten(), w.flatten()], -1)
        image = torch.cat([image, torch.zeros(1, 3, dtype=torch.long)])
        self.register_buffer("caption_rope", transformer.rope_embedder(caption)[None], persistent=False)
        self.register_buffer("image_rope", transformer.rope_embedder(image)[None], persistent=False)
        times = torch.zeros(1, 1, 1, len(image) + CAPTION)  # log of how often each token counts
        times[..., GRID * GRID] = math.log(PADDING)
        self.register_buffer("times", times, persistent=False)

    def text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.text_encoder(
            input_ids=tokens, attention_mask=mask, output_hidden_states=True
        ).hidden_states[-2]

    def forward(self, latents: Tensor, sigma: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        model = self.transformer
        b = len(latents)
        time = model.t_embedder((1 - sigma) * model.t_scale)
        x = model.all_x_embedder["2-1"](rearrange(latents, "b c (h p) (w q) -> b (h w) (p q c)", p=2, q=2))
        x = torch.cat([x, repeat(model.x_pad_token, "1 d -> b 1 d", b=b).to(x.dtype)], 1)
        for block in model.noise_refiner:
            x = block(x, self.times[..., : x.shape[1]], self.image_rope, time)
        caption = model.cap_embedder(self.text_features(tokens, mask))
        caption = torch.where(mask[..., None].bool(), caption, model.cap_pad_token.to(caption.dtype))
        for block in model.context_refiner:
            caption = block(caption, None, self.caption_rope)
        both, rope = torch.cat([x, caption], 1), torch.cat([self.image_rope, self.caption_rope], 1)
        for block in model.layers:
            both = block(both, self.times, rope, time)
        out = model.all_final_layer["2-1"](both[:, : GRID * GRID], c=time)
        return -rearrange(out, "b (h w) (p q c) -> b c (h p) (w q)", h=GRID, p=2, q=2)


def tokenize(tokenizer: Any, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B, 32) of prompts, through the chat template as ZImagePipeline does."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        for prompt in prompts
    ]
    encoded = tokenizer(texts, padding="max_length", max_length=CAPTION, truncation=True, return_tensors="pt")
    return encoded.input_ids, encoded.attention_mask


@torch.no_grad()
def cache_scenes(
    vae: Any, tokenizer: Any, path: Path, count: int, seed: int, focus: dict[str, float] | None = None
) -> dict[str, Tensor]:
    """Render `count` scenes, encode them once, and keep latents (N, 16, 8, 8), ids and masks (N, 32) in a
    file. `focus`: the share of scenes drawn for a task alone; the rest is of any task."""
    from safetensors.torch import load_file, save_file

    if path.exists():
        return load_file(path)
    rng, latents, prompts = random.Random(seed), [], []
    focus = focus or {}
    tasks, shares = [None, *focus], [1 - sum(focus.values()), *focus.values()]
    for _ in range(0, count, 100):
        pairs = [training_scene(rng, rng.choices(tasks, shares)[0]) for _ in range(100)]
        prompts += [prompt for prompt, _ in pairs]
        pixels = to_pixels([render(scene, BASE_SIZE) for _, scene in pairs])
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(pixels).latent_dist.mean.float())
    tokens, mask = tokenize(tokenizer, prompts)
    cache = {"latents": torch.cat(latents).contiguous(), "tokens": tokens, "mask": mask}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(cache, path)
    return cache


def sample_sigma(size: int, shift: float, generator: torch.Generator) -> Tensor:
    """Return (size,) noise levels: stratified uniform, then shifted towards noise as in SD3, eq. 23."""
    u = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    return (shift * u / (1 + (shift - 1) * u)).clamp(1e-3, 1.0)


def optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the blocks, AdamW for everything else."""
    inside = [
        p
        for n, p in model.named_parameters()
        if p.ndim == 2 and any(k in n for k in (".layers.", "refiner")) and "adaLN" not in n
    ]
    known = {id(p) for p in inside}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    return [
        torch.optim.Muon(inside, lr=rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def batches(
    cache: dict[str, Tensor], empty: tuple[Tensor, Tensor], args: argparse.Namespace, rank: int
) -> Iterator[Any]:
    """Yield (latents, sigma, noise, ids, mask) of every step; each is a function of (seed, step, rank)."""
    for step in range(args.first, args.steps):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step * 64 + rank)
        index = torch.randint(len(cache["latents"]), (args.batch,), generator=generator)
        dropped = torch.rand(args.batch, generator=generator)[:, None] < args.caption_dropout
        tokens = torch.where(dropped, empty[0], cache["tokens"][index])
        mask = torch.where(dropped, empty[1], cache["mask"][index])
        latents = cache["latents"][index]
        yield (
            latents,
            sample_sigma(args.batch, args.shift, generator),
            torch.randn(latents.shape, generator=generator),
            tokens,
            mask,
        )


def write_source(path: Path, model: BatchedZImage, vae: Any, tokenizer: Any, shift: float) -> Any:
    """Save the pipeline; the weights go to disk in bfloat16, as Z-Image's do. Return it, in float32."""
    import copy

    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    parts = {"vae": vae, "text_encoder": model.text_encoder, "transformer": model.transformer}
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift),
        tokenizer=tokenizer,
        **{name: copy.deepcopy(part).to(torch.bfloat16).eval() for name, part in parts.items()},
    )
    pipeline.save_pretrained(path, safe_serialization=True)
    return pipeline.to(torch.float32)


def sample_grid(pipeline: Any, prompts: list[str], seed: int, **kwargs: Any) -> Any:
    """Return one picture with an image of each prompt, eight in a row."""
    images = pipeline(
        list(prompts), height=BASE_SIZE, width=BASE_SIZE, max_sequence_length=CAPTION, output_type="np",
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))], **kwargs,
    ).images  # fmt: skip
    pixels = torch.from_numpy(images).mul(2).sub(1)
    return to_images(rearrange(pixels, "(r k) h w c -> r k c h w", k=8))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=Path("runs/source-vae/vae"))
    parser.add_argument("--output", type=Path, default=Path("runs/source-ldm"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64, help="samples per process")
    parser.add_argument("--scenes", type=int, default=20_000, help="cached scenes per process")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--caption-dropout", type=float, default=0.1)
    parser.add_argument(
        "--focus",
        nargs="*",
        default=[],
        type=task_share,
        metavar="TASK=SHARE",
        help="draw a share of scenes for a task alone; the rest is of any task",
    )
    parser.add_argument(
        "--ema-decay", type=float, default=0.998, help="of the average of weights that is saved"
    )
    parser.add_argument("--initial", type=Path, help="a source to go on from; default: random weights")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.focus = dict(args.focus)
    if sum(args.focus.values()) > 1:
        parser.error(f"--focus gives shares of {sum(args.focus.values()):g} in all; they may be at most 1")
    return args


def build_model(seed: int, initial: Path | None = None) -> BatchedZImage:
    """Return a source's model in float32, or an untrained one; the text encoder's last layer, behind
    hidden_states[-2], is frozen."""
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen3Model

    torch.manual_seed(seed)
    if initial:
        transformer = ZImageTransformer2DModel.from_pretrained(
            initial / "transformer", local_files_only=True, use_safetensors=True
        )
        text_encoder = Qwen3Model.from_pretrained(
            initial / "text_encoder", local_files_only=True, use_safetensors=True
        )
        model = BatchedZImage(transformer.float().train(), text_encoder.float().train())
    else:
        transformer = ZImageTransformer2DModel(**TRANSFORMER)
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            nn.init.normal_(token, std=0.02)
        model = BatchedZImage(transformer, build_text_encoder())
    for parameter in model.text_encoder.layers[-1].parameters():
        parameter.requires_grad = False
    return model


def velocity_loss(
    model: BatchedZImage, latents: Tensor, sigma: Tensor, noise: Tensor, tokens: Tensor, mask: Tensor
) -> Tensor:
    """Return the mean squared error of the velocity of one batch of `batches`."""
    s = sigma[:, None, None, None]
    # For 64 tokens plain matrix products are twice as fast on a CPU as the fused attention.
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
        velocity = model((1 - s) * latents + s * noise, sigma, tokens, mask)
    return (velocity.float() - (noise - latents)).square().mean()


def write_with_samples(
    model: BatchedZImage, vae: Any, tokenizer: Any, args: argparse.Namespace, step: int
) -> None:
    """Write the source as the model's weights now are, and a picture of what it paints."""
    prompts = [p for p, _ in (training_scene(random.Random(f"show-{i}")) for i in range(32))]
    pipeline = write_source(args.output / "source_model", model, vae, tokenizer, args.shift)
    pipeline.set_progress_bar_config(disable=True)
    grid = sample_grid(pipeline, prompts, 1, num_inference_steps=16, guidance_scale=1.0)
    grid.resize((grid.width * 2, grid.height * 2)).save(args.output / f"samples-{step:06d}.png")


def main() -> None:
    from diffusers import AutoencoderKL

    args = parse_arguments()
    run = Run(output=args.output, steps=args.steps, warmup=args.warmup)
    vae = (
        AutoencoderKL.from_pretrained(args.vae, local_files_only=True, use_safetensors=True)
        .eval()
        .to(memory_format=torch.channels_last)
    )
    tokenizer = build_tokenizer()
    scenes = args.output / f"scenes-{run.rank}.safetensors"
    cache = cache_scenes(vae, tokenizer, scenes, args.scenes, args.seed + 300 + run.rank, args.focus)
    cache["latents"] = (cache["latents"] - vae.config.shift_factor) * vae.config.scaling_factor

    model = build_model(args.seed, args.initial)
    muon, adamw = optimizers(model, args.learning_rate)
    ema = Ema(model, args.ema_decay)
    args.first = run.resume(model=model, muon=muon, adamw=adamw, ema=ema)
    trunk = model.transformer
    for block in [*trunk.layers, *trunk.noise_refiner, *trunk.context_refiner]:
        block.compile()

    empty = tokenize(tokenizer, [""])
    for step, batch in enumerate(batches(cache, empty, args, run.rank), args.first):
        for optimizer in (muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * run.learning_rate(step)
        loss = velocity_loss(model, *batch)
        loss.backward()
        run.average_gradients(model.parameters())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
        ema.update(model, step)
        if step % 25 == 0:
            run.log(step, loss=loss.item(), gradient=norm.item())
        if (step + 1) % run.save_every == 0 or step + 1 == args.steps:
            run.save(step + 1, model=model, muon=muon, adamw=adamw, ema=ema)
            if run.rank == 0:
                ema.swap(model)
                write_with_samples(model, vae, tokenizer, args, step + 1)
                ema.swap(model)


if __name__ == "__main__":
    main()
