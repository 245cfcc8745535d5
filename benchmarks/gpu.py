"""The GPU's hour: what this project assumes about a GPU, measured on one in at most ten minutes.

    python benchmarks/gpu.py --out gpu.json            on a GPU, at the true width of Z-Image
    python benchmarks/gpu.py --small                   the same parts, small, on a CPU

It needs a checkout and a Python with torch, diffusers, transformers, accelerate, einops, numpy and pillow;
this project's packages are read from the checkout, and no weights: they are random. pytest and tokenizers add
tests/arch/test_accelerator.py. Beside a torch that is there already, the wheels of the others are 30 MB.

Every part has a budget of seconds, and is reported as skipped, with the reason, where it does not fit, is out
of memory or is not supported. Prints one JSON object; --out has it after every part.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
for source in sorted(ROOT.glob("packages/*/src")):
    sys.path.insert(0, str(source))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

CAPTION = 128  # tokens
REPEATS = 5
VAE: dict[str, Any] = {
    "latent_channels": 16,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured: the true one, or one that a CPU can do."""

    trunk: dict[str, Any]
    vae_channels: tuple[int, ...]
    sides: dict[int, int]  # px of an image -> patch
    matmul: int
    blocks: int  # that train at each end
    tile: int


TRUE = Size(
    trunk={},
    vae_channels=(128, 256, 512, 512),
    sides={1024: 16, 2048: 32, 4096: 64},
    matmul=8192,
    blocks=5,
    tile=1024,
)
SMALL = Size(
    trunk={
        **{"dim": 192, "n_layers": 4, "n_refiner_layers": 1, "n_heads": 6, "n_kv_heads": 6},
        **{"cap_feat_dim": 128, "axes_dims": [8, 12, 12], "axes_lens": [1024, 512, 512]},
    },
    vae_channels=(32, 32, 32, 32),
    sides={64: 16, 128: 32, 256: 64},
    matmul=512,
    blocks=1,
    tile=128,
)


class Bench:
    """The parts, and what they share."""

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device, self.dtype = size, device, torch.bfloat16
        self.peak: float | None = None  # TFLOP/s in the data sheet

    # ---------------------------------------------------------------------------------------- models

    def pixel_model(self, patch: int, *, dtype: torch.dtype | None = None, device: str = "") -> Any:
        """An L2P model of random weights with the head that goes with the patch."""
        from l2p_arch import L2PTransformer
        from l2p_arch.surgery.head_widths import default_head_channels

        with _made(device or self.device, dtype or self.dtype):
            config = {"dim": 3840, **self.size.trunk}
            return _finite(L2PTransformer("z-image", config, patch, default_head_channels(patch)))

    def source(self) -> tuple[Any, Any]:
        """The source's transformer, and its VAE."""
        from diffusers import AutoencoderKL, ZImageTransformer2DModel

        with _made(self.device, self.dtype):
            trunk = ZImageTransformer2DModel(**self.size.trunk)
            vae = AutoencoderKL(**VAE, block_out_channels=self.size.vae_channels)
        return _finite(trunk), vae

    def inputs(self, side: int, device: str = "", dtype: torch.dtype | None = None) -> tuple[Any, ...]:
        """x_t, sigma and one caption, the same on every device."""
        device, dtype = device or self.device, dtype or self.dtype
        generator = torch.Generator().manual_seed(0)
        width = self.size.trunk.get("cap_feat_dim", 2560)
        pixels = torch.randn(1, 3, side, side, generator=generator).to(device)
        caption = torch.randn(CAPTION, width, generator=generator).to(device, dtype)
        return pixels, torch.tensor([0.5], device=device), [{"caption": caption}]

    # ----------------------------------------------------------------------------------------- parts

    def machine(self) -> dict[str, Any]:
        """Which device, which versions."""
        import diffusers

        found: dict[str, Any] = {
            "device": self.device,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "threads": torch.get_num_threads(),
        }
        if self.device == "cuda":
            from l2p_train.flops import PEAK_TFLOPS

            about = torch.cuda.get_device_properties(0)
            self.peak = next((peak for name, peak in PEAK_TFLOPS.items() if name in about.name), None)
            found |= {
                "name": about.name,
                "memory_gb": round(about.total_memory / 1e9, 1),
                "capability": f"{about.major}.{about.minor}",
                "peak_tflops_bf16": self.peak,
            }
        return found

    def products(self) -> dict[str, Any]:
        """What one large matrix product reaches: the roof of everything below."""
        n = self.size.matmul
        left, right = (torch.randn(n, n, device=self.device, dtype=self.dtype) for _ in range(2))
        return self._rate(2.0 * n**3, self.seconds(lambda: left @ right))

    def parity(self) -> dict[str, Any]:
        """Velocity and gradients of a small model against the CPU's float32, in two data types."""
        small, wanted = Bench(SMALL, "cpu"), None
        found = {}
        for name, device, dtype in (
            ("cpu float32", "cpu", torch.float32),
            ("float32", self.device, torch.float32),
            ("bfloat16", self.device, torch.bfloat16),
        ):
            torch.manual_seed(0)
            model = small.pixel_model(16, dtype=torch.float32, device="cpu").to(device, dtype)
            velocity = model(*small.inputs(64, device, dtype))
            velocity.float().square().mean().backward()
            got = [velocity, *(one.grad for one in model.parameters() if one.grad is not None)]
            got = [one.detach().float().cpu() for one in got]
            wanted = wanted or got
            errors = [_relative(one, other) for one, other in zip(got, wanted, strict=True)]
            found[name] = {"velocity": errors[0], "gradients_median": statistics.median(errors[1:])}
        del found["cpu float32"]
        return found

    def figure_4(self, side: int, found: dict[str, Any]) -> None:
        """A step of the source and its VAE's decoding, and a step of L2P (Fig. 4)."""
        trunk, vae = self.source()
        width = self.size.trunk.get("cap_feat_dim", 2560)
        caption = torch.randn(CAPTION, width, device=self.device, dtype=self.dtype)
        latents = torch.randn(1, 16, side // 8, side // 8, device=self.device, dtype=self.dtype)
        time_ = torch.tensor([0.5], device=self.device)
        with torch.inference_mode():
            found["source"] = self.measured(lambda: trunk([latents[0].unsqueeze(1)], time_, [caption]))
            trunk = None
            found["vae"] = _or_reason(lambda: self.measured(lambda: vae.decode(latents)))
        vae = None
        self.empty()
        model = self.pixel_model(self.size.sides[side])
        with torch.inference_mode():
            found["l2p"] = self.measured(lambda: model(*self.inputs(side)))
            model.detailer_head.enable_tiling(self.size.tile)
            found["l2p, head in tiles"] = self.measured(lambda: model(*self.inputs(side)))
        found["step_ratio"] = round(found["l2p"]["seconds"] / found["source"]["seconds"], 4)

    def training(self, side: int, found: dict[str, Any]) -> None:
        """Forward and backward of eq. 5 without an optimiser: what freezing, checkpoints and tiles do."""
        base = self.pixel_model(self.size.sides[side])
        for name, trainable, checkpointing, tile in (
            ("first and last blocks", self.size.blocks, False, None),
            ("all", "full", False, None),
            ("head only", "head-only", False, None),
            ("first and last blocks, checkpointing", self.size.blocks, True, None),
            ("first and last blocks, checkpointing, tiles", self.size.blocks, True, self.size.tile),
        ):
            _train_only(base, trainable)
            base.train()
            base.enable_gradient_checkpointing() if checkpointing else base.disable_gradient_checkpointing()
            base.detailer_head.enable_tiling(tile)
            found[name] = _or_reason(lambda: self._step_measured(base, side))
            base.zero_grad(set_to_none=True)
            self.empty()

    def compiled(self) -> dict[str, Any]:
        """The repeated blocks compiled, at the smallest size."""
        side = min(self.size.sides)
        model = self.pixel_model(self.size.sides[side])
        with torch.inference_mode():
            eager = self.measured(lambda: model(*self.inputs(side)))
            started = time.perf_counter()
            model.compile_repeated_blocks(fullgraph=True)
            model(*self.inputs(side))
            self.wait()
            compile_seconds = time.perf_counter() - started
            fast = self.measured(lambda: model(*self.inputs(side)))
        ratio = fast["seconds"] / eager["seconds"]
        return {
            "eager": eager,
            "compiled": fast,
            "first_call": round(compile_seconds, 1),
            "ratio": round(ratio, 3),
        }

    def int8(self) -> dict[str, Any]:
        """A training step whose frozen weights are held in 8 bit."""
        from l2p_train.zero.quantised import quantise_frozen

        side = min(self.size.sides)
        model = self.pixel_model(self.size.sides[side])
        plan = _train_only(model, self.size.blocks)
        before = self._step_measured(model.train(), side)
        model.zero_grad(set_to_none=True)
        quantise_frozen(model, plan)
        return {"bfloat16": before, "int8": self._step_measured(model, side)}

    def fp8(self) -> dict[str, Any]:
        """8-bit floats: one large product, and weights that are stored so and computed in bfloat16."""
        found: dict[str, Any] = {"product": _or_reason(self._fp8_product)}
        side = min(self.size.sides)
        model = self.pixel_model(self.size.sides[side])
        with torch.inference_mode():
            found["bfloat16"] = self.measured(lambda: model(*self.inputs(side)))
            model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=self.dtype)
            self.empty()
            found["stored in fp8"] = _or_reason(lambda: self.measured(lambda: model(*self.inputs(side))))
        return found

    def accelerator_tests(self) -> dict[str, Any]:
        """tests/arch/test_accelerator.py, which a CPU skips."""
        missing = [name for name in ("pytest", "tokenizers") if importlib.util.find_spec(name) is None]
        if missing:
            raise Skipped(f"{' and '.join(missing)} is not installed")
        environment = os.environ | {
            "L2P_TEST_DEVICE": self.device,
            "PYTHONPATH": os.pathsep.join(str(path) for path in ROOT.glob("packages/*/src")),
        }
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
        command += ["--import-mode=importlib", "tests/arch/test_accelerator.py"]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        lines = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        last = ended.stdout.strip().splitlines()[-1:] or [ended.stderr.strip()[-300:]]
        return {"exit_code": ended.returncode, "failed": lines, "summary": last[0]}

    # --------------------------------------------------------------------------------------- measuring

    def seconds(self, run: Callable[[], Any]) -> list[float]:
        """Times of some runs after one that does not count."""
        run()
        times = []
        for _ in range(REPEATS):
            self.wait()
            started = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - started)
            if sum(times) > 15:
                break
        return times

    def measured(self, run: Callable[[], Any]) -> dict[str, float]:
        """Median seconds, and on a GPU the most memory that was allocated and reserved."""
        self.empty()
        times = self.seconds(run)
        found = {"seconds": round(statistics.median(times), 5), "spread": round(max(times) - min(times), 5)}
        if self.device == "cuda":
            found |= {
                "allocated_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
                "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
            }
        return found

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def empty(self) -> None:
        """Give back what nothing uses, and count peaks from here."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _step_measured(self, model: Any, side: int) -> dict[str, Any]:
        from l2p_train.objective import l2p_loss

        pixels, sigma, conditioning = self.inputs(side)
        noise = torch.randn_like(pixels)

        def step() -> None:
            model.zero_grad(set_to_none=True)
            l2p_loss(model, pixels, noise, sigma, conditioning).mean().backward()

        found: dict[str, Any] = self.measured(step)
        return found | self._rate(_step_flops(self, model, side), [found["seconds"]])

    def _rate(self, flops: float, times: list[float]) -> dict[str, Any]:
        reached = flops / statistics.median(times) / 1e12
        share = {"share_of_peak": round(reached / self.peak, 3)} if self.peak else {}
        return {"tflop": round(flops / 1e12, 4), "tflops": round(reached, 3), **share}

    def _fp8_product(self) -> dict[str, Any]:
        n = self.size.matmul
        left, right = (torch.randn(n, n, device=self.device).to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device=self.device)
        run = lambda: torch._scaled_mm(left, right.T, one, one, out_dtype=self.dtype)  # noqa: E731
        return self._rate(2.0 * n**3, self.seconds(run))


class Skipped(Exception):
    """A part that cannot be done here, with the reason."""


def _train_only(model: Any, trainable: Any) -> Any:
    """Freeze a model as the trainer does; return the plan."""
    from l2p_train.freeze import plan_for_model

    plan = plan_for_model(model, trainable=trainable)
    chosen = set(plan.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return plan


def _step_flops(bench: Bench, model: Any, side: int) -> float:
    """Model FLOPs of a forward and backward pass of what trains now, counted on meta tensors: what gradient
    checkpointing computes again is not in it."""
    from torch.utils.flop_counter import FlopCounterMode

    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    twin = bench.pixel_model(bench.size.sides[side], device="meta", dtype=torch.float32)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name in trains)
    width = bench.size.trunk.get("cap_feat_dim", 2560)
    with FlopCounterMode(display=False) as counter:
        pixels = torch.empty(1, 3, side, side, device="meta")
        caption = {"caption": torch.empty(CAPTION, width, device="meta")}
        twin(pixels, torch.empty(1, device="meta"), [caption]).sum().backward()
    return float(counter.get_total_flops())


@contextmanager
def _made(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Modules that are made inside are on this device, in this data type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _finite(model: nn.Module) -> nn.Module:
    """Fill what its class leaves as it finds it in memory."""
    for name, parameter in model.named_parameters():
        if name.endswith("pad_token"):
            nn.init.normal_(parameter, std=0.02)
    return model


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))


def _or_reason(run: Callable[[], Any]) -> Any:
    """A result, or why there is none; what is out of time is out of time altogether."""
    try:
        return run()
    except TimeoutError:
        raise
    except (RuntimeError, NotImplementedError, AttributeError, Skipped) as error:
        return {"skipped": _one_line(error)}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


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
    whole = lambda run: lambda found: found.update(run())  # noqa: E731
    at = lambda run, side: lambda found: run(side, found)  # noqa: E731
    return [
        ("machine", 20, whole(bench.machine)),
        ("products", 20, whole(bench.products)),
        ("parity", 40, whole(bench.parity)),
        *((f"figure 4 at {side}", 60 + 30 * (side == sides[-1]), at(bench.figure_4, side)) for side in sides),
        *((f"training at {side}", 60, at(bench.training, side)) for side in sides),
        ("int8", 40, whole(bench.int8)),
        ("fp8", 40, whole(bench.fp8)),
        ("compiled", 90, whole(bench.compiled)),
        ("accelerator tests", 120, whole(bench.accelerator_tests)),
    ]


def main() -> int:
    """Run the parts and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--device", help="cuda, cpu; default: a GPU where there is one")
    parser.add_argument("--seconds", type=int, default=570, help="for everything (default 570)")
    parser.add_argument("--only", action="append", metavar="PART", help="these parts; can be repeated")
    parser.add_argument("--out", type=Path, help="a JSON file, written after every part")
    options = parser.parse_args()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(SMALL if options.small else TRUE, device)
    started, results = time.perf_counter(), dict[str, Any]()
    load_libraries()
    patience = 3 if options.small else 1
    for name, seconds, run in parts(bench):
        budget = patience * seconds
        left = int(options.seconds - (time.perf_counter() - started))
        if options.only and not any(wanted in name for wanted in (*options.only, "machine")):
            continue
        results[name] = _guarded(run, min(budget, left), budget)
        bench.empty()
        print(f"{name}: {results[name]['took']} s", file=sys.stderr, flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))
    return 0


def _guarded(run: Callable[[dict[str, Any]], None], seconds: int, wanted: int) -> dict[str, Any]:
    """What a part has found in its time, and the reason if that is not all."""
    if seconds < min(10, wanted):
        return {"skipped": f"no time is left for it; it may take {wanted} s", "took": 0.0}

    def too_long(*_: object) -> None:
        raise TimeoutError(f"it took longer than its {seconds} s")

    started, found = time.perf_counter(), dict[str, Any]()
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        run(found)
    except Exception as error:  # one part must not cost the others: its reason is the result
        found["skipped"] = _one_line(error)
    finally:
        signal.alarm(0)
    return {**found, "took": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    sys.exit(main())
