"""What the parts of gpu.py share: the sizes, models of random weights, and the clock."""

from __future__ import annotations

import gc
import statistics
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
ENOUGH = 15  # s of repeats
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

    @property
    def caption_width(self) -> int:
        """Of a token that the text encoder gives."""
        return int(self.trunk.get("cap_feat_dim", 2560))


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


class Skipped(Exception):
    """A part that cannot be done here, with the reason."""


class Bench:
    """A device, the sizes, and how both are measured."""

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device, self.dtype = size, device, torch.bfloat16
        self.peak: float | None = None  # TFLOP/s in the data sheet, known after the part "machine"

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
        pixels = torch.randn(1, 3, side, side, generator=generator).to(device)
        caption = torch.randn(CAPTION, self.size.caption_width, generator=generator).to(device, dtype)
        return pixels, torch.tensor([0.5], device=device), [{"caption": caption}]

    def seconds(self, run: Callable[[], Any]) -> list[float]:
        """Times of some runs after one that does not count."""
        run()
        times: list[float] = []
        while len(times) < REPEATS and sum(times) <= ENOUGH:
            self.wait()
            started = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - started)
        return times

    def measured(self, run: Callable[[], Any]) -> dict[str, Any]:
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

    def rate(self, flops: float, times: list[float]) -> dict[str, Any]:
        """What was reached, and the share of the data sheet's peak."""
        reached = flops / statistics.median(times) / 1e12
        share = {"share_of_peak": round(reached / self.peak, 3)} if self.peak else {}
        return {"tflop": round(flops / 1e12, 4), "tflops": round(reached, 3), **share}

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


def relative(found: Tensor, wanted: Tensor) -> float:
    """How far two tensors are apart, as a share of the second."""
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))


def or_reason(run: Callable[[], Any]) -> Any:
    """A result, or why there is none; what is out of time is out of time altogether."""
    try:
        return run()
    except TimeoutError:
        raise
    except (RuntimeError, NotImplementedError, AttributeError, Skipped) as error:
        return {"skipped": one_line(error)}


def one_line(error: BaseException) -> str:
    """An exception as a part's result."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
