"""The parts of gpu.py, each a function of the bench that returns or fills a result."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from gpu_bench import CAPTION, ROOT, SMALL, Bench, Skipped, or_reason, relative

import torch  # isort: skip (gpu_bench comes first: it finds this project's packages)


def machine(bench: Bench) -> dict[str, Any]:
    """Which device, which versions."""
    import diffusers

    found: dict[str, Any] = {
        "device": bench.device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
    }
    if bench.device == "cuda":
        from l2p_train.flops import PEAK_TFLOPS

        about = torch.cuda.get_device_properties(0)
        bench.peak = next((peak for name, peak in PEAK_TFLOPS.items() if name in about.name), None)
        found |= {
            "name": about.name,
            "memory_gb": round(about.total_memory / 1e9, 1),
            "capability": f"{about.major}.{about.minor}",
            "peak_tflops_bf16": bench.peak,
        }
    return found


def products(bench: Bench) -> dict[str, Any]:
    """What one large matrix product reaches: the roof of everything below."""
    n = bench.size.matmul
    left, right = (torch.randn(n, n, device=bench.device, dtype=bench.dtype) for _ in range(2))
    return bench.rate(2.0 * n**3, bench.seconds(lambda: left @ right))


def parity(bench: Bench) -> dict[str, Any]:
    """Velocity and gradients of a small model against the CPU's float32, in two data types."""
    small, wanted = Bench(SMALL, "cpu"), None
    found = {}
    for name, device, dtype in (
        ("cpu float32", "cpu", torch.float32),
        ("float32", bench.device, torch.float32),
        ("bfloat16", bench.device, torch.bfloat16),
    ):
        torch.manual_seed(0)
        model = small.pixel_model(16, dtype=torch.float32, device="cpu").to(device, dtype)
        velocity = model(*small.inputs(64, device, dtype))
        velocity.float().square().mean().backward()
        got = [velocity, *(one.grad for one in model.parameters() if one.grad is not None)]
        got = [one.detach().float().cpu() for one in got]
        wanted = wanted or got
        errors = [relative(one, other) for one, other in zip(got, wanted, strict=True)]
        found[name] = {"velocity": errors[0], "gradients_median": statistics.median(errors[1:])}
    del found["cpu float32"]
    return found


# ------------------------------------------------------------------------------------------------- Fig. 4


def figure_4(bench: Bench, side: int, found: dict[str, Any]) -> None:
    """A step of the source and its VAE's decoding, and a step of L2P (Fig. 4)."""
    trunk, vae = bench.source()
    on = {"device": bench.device, "dtype": bench.dtype}
    caption = torch.randn(CAPTION, bench.size.caption_width, **on)
    latents = torch.randn(1, 16, side // 8, side // 8, **on)
    time_ = torch.tensor([0.5], device=bench.device)
    with torch.inference_mode():
        found["source"] = bench.measured(lambda: trunk([latents[0].unsqueeze(1)], time_, [caption]))
        trunk = None
        found["vae"] = or_reason(lambda: bench.measured(lambda: vae.decode(latents)))
    vae = None
    bench.empty()
    model = bench.pixel_model(bench.size.sides[side])
    with torch.inference_mode():
        found["l2p"] = bench.measured(lambda: model(*bench.inputs(side)))
        model.detailer_head.enable_tiling(bench.size.tile)
        found["l2p, head in tiles"] = bench.measured(lambda: model(*bench.inputs(side)))
    found["step_ratio"] = round(found["l2p"]["seconds"] / found["source"]["seconds"], 4)


def compiled(bench: Bench) -> dict[str, Any]:
    """The repeated blocks compiled, at the smallest size."""
    side = min(bench.size.sides)
    model = bench.pixel_model(bench.size.sides[side])
    with torch.inference_mode():
        eager = bench.measured(lambda: model(*bench.inputs(side)))
        started = time.perf_counter()
        model.compile_repeated_blocks(fullgraph=True)
        model(*bench.inputs(side))
        bench.wait()
        first_call = time.perf_counter() - started
        fast = bench.measured(lambda: model(*bench.inputs(side)))
    ratio = round(fast["seconds"] / eager["seconds"], 3)
    return {"eager": eager, "compiled": fast, "first_call": round(first_call, 1), "ratio": ratio}


# ----------------------------------------------------------------------------------------------- training


def training(bench: Bench, side: int, found: dict[str, Any]) -> None:
    """Forward and backward of eq. 5 without an optimiser: what freezing, checkpoints and tiles do."""
    base = bench.pixel_model(bench.size.sides[side])
    for name, trainable, checkpointing, tile in (
        ("first and last blocks", bench.size.blocks, False, None),
        ("all", "full", False, None),
        ("head only", "head-only", False, None),
        ("first and last blocks, checkpointing", bench.size.blocks, True, None),
        ("first and last blocks, checkpointing, tiles", bench.size.blocks, True, bench.size.tile),
    ):
        _train_only(base, trainable)
        base.train()
        base.enable_gradient_checkpointing() if checkpointing else base.disable_gradient_checkpointing()
        base.detailer_head.enable_tiling(tile)
        found[name] = or_reason(lambda: _step_measured(bench, base, side))
        base.zero_grad(set_to_none=True)
        bench.empty()


def int8(bench: Bench) -> dict[str, Any]:
    """A training step whose frozen weights are held in 8 bit."""
    from l2p_train.zero.quantised import quantise_frozen

    side = min(bench.size.sides)
    model = bench.pixel_model(bench.size.sides[side])
    plan = _train_only(model, bench.size.blocks)
    before = _step_measured(bench, model.train(), side)
    model.zero_grad(set_to_none=True)
    quantise_frozen(model, plan)
    return {"bfloat16": before, "int8": _step_measured(bench, model, side)}


def _train_only(model: Any, trainable: Any) -> Any:
    """Freeze a model as the trainer does; return the plan."""
    from l2p_train.freeze import plan_for_model

    plan = plan_for_model(model, trainable=trainable)
    chosen = set(plan.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return plan


def _step_measured(bench: Bench, model: Any, side: int) -> dict[str, Any]:
    from l2p_train.objective import l2p_loss

    pixels, sigma, conditioning = bench.inputs(side)
    noise = torch.randn_like(pixels)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        l2p_loss(model, pixels, noise, sigma, conditioning).mean().backward()

    found = bench.measured(step)
    return found | bench.rate(_step_flops(bench, model, side), [found["seconds"]])


def _step_flops(bench: Bench, model: Any, side: int) -> float:
    """Model FLOPs of a forward and backward pass of what trains now, counted on meta tensors: what gradient
    checkpointing computes again is not in it."""
    from torch.utils.flop_counter import FlopCounterMode

    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    twin = bench.pixel_model(bench.size.sides[side], device="meta", dtype=torch.float32)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name in trains)
    with FlopCounterMode(display=False) as counter:
        pixels = torch.empty(1, 3, side, side, device="meta")
        caption = {"caption": torch.empty(CAPTION, bench.size.caption_width, device="meta")}
        twin(pixels, torch.empty(1, device="meta"), [caption]).sum().backward()
    return float(counter.get_total_flops())


# ------------------------------------------------------------------------------------------------- 8 bits


def fp8(bench: Bench) -> dict[str, Any]:
    """8-bit floats: one large product, and weights that are stored so and computed in bfloat16."""
    found: dict[str, Any] = {"product": or_reason(lambda: _fp8_product(bench))}
    side = min(bench.size.sides)
    model = bench.pixel_model(bench.size.sides[side])
    with torch.inference_mode():
        found["bfloat16"] = bench.measured(lambda: model(*bench.inputs(side)))
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=bench.dtype)
        bench.empty()
        found["stored in fp8"] = or_reason(lambda: bench.measured(lambda: model(*bench.inputs(side))))
    return found


def _fp8_product(bench: Bench) -> dict[str, Any]:
    n = bench.size.matmul
    left, right = (torch.randn(n, n, device=bench.device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=bench.device)
    run = lambda: torch._scaled_mm(left, right.T, one, one, out_dtype=bench.dtype)  # noqa: E731
    return bench.rate(2.0 * n**3, bench.seconds(run))


# -------------------------------------------------------------------------------------------------- tests


def accelerator_tests(bench: Bench) -> dict[str, Any]:
    """tests/arch/test_accelerator.py, which a CPU skips."""
    missing = [name for name in ("pytest", "tokenizers") if importlib.util.find_spec(name) is None]
    if missing:
        raise Skipped(f"{' and '.join(missing)} is not installed")
    environment = os.environ | {
        "L2P_TEST_DEVICE": bench.device,
        "PYTHONPATH": os.pathsep.join(str(path) for path in ROOT.glob("packages/*/src")),
    }
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    command += ["--import-mode=importlib", "tests/arch/test_accelerator.py"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    last = ended.stdout.strip().splitlines()[-1:] or [ended.stderr.strip()[-300:]]
    return {"exit_code": ended.returncode, "failed": lines, "summary": last[0]}


def load_libraries() -> None:
    """Import what the parts need, before their clocks run: an import that is cut off cannot be done again."""
    import diffusers
    import torch.utils.flop_counter  # noqa: F401
    from l2p_arch import L2PTransformer  # noqa: F401
    from l2p_train.freeze import plan_for_model  # noqa: F401
    from l2p_train.objective import l2p_loss  # noqa: F401
    from l2p_train.zero.quantised import quantise_frozen  # noqa: F401

    assert diffusers.ZImageTransformer2DModel and diffusers.AutoencoderKL
    diffusers.utils.logging.set_verbosity_error()


def parts(bench: Bench) -> list[tuple[str, int, Callable[[dict[str, Any]], None]]]:
    """(name, seconds, function that fills a result) of every part, the most wanted first."""
    sides = sorted(bench.size.sides)
    whole = lambda run: lambda found: found.update(run(bench))  # noqa: E731
    at = lambda run, side: lambda found: run(bench, side, found)  # noqa: E731
    return [
        ("machine", 20, whole(machine)),
        ("products", 20, whole(products)),
        ("parity", 40, whole(parity)),
        *((f"figure 4 at {side}", 60 + 30 * (side == sides[-1]), at(figure_4, side)) for side in sides),
        *((f"training at {side}", 60, at(training, side)) for side in sides),
        ("int8", 40, whole(int8)),
        ("fp8", 40, whole(fp8)),
        ("compiled", 90, whole(compiled)),
        ("accelerator tests", 120, whole(accelerator_tests)),
    ]
