"""Where networks run and in which precision, when nobody says: one rule for every command.

torch is imported when a function is called, not before.
"""

DTYPES = ("float32", "bfloat16", "float16")
_MULTIPLY_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # torch's names of what a CPU can


def choose_device(device: str | None = None) -> str:
    """Return the device as asked for; None: the first GPU where there is one, else the CPU."""
    if device:
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_dtype(dtype: str, device: str | None = None) -> str:
    """Return the name of a torch dtype; "auto" is bfloat16 where the device multiplies in it, else float32.

    A GPU counts as one that does. Of CPUs those do that have AVX-512 BF16, AMX or Arm's BF16 instructions;
    others would convert every number there and back.

    Args:
        device: where the network will run; None: as `choose_device` chooses.
    """
    if dtype != "auto":
        return dtype
    import torch

    known = torch.cpu.get_capabilities()
    fast = choose_device(device) != "cpu" or any(known.get(name) for name in _MULTIPLY_BF16)
    return "bfloat16" if fast else "float32"
