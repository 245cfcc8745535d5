"""ComfyUI nodes for L2P models of either recipe."""

from l2p_comfyui.nodes import LoadLora, LoadModel, Sample

NODE_CLASS_MAPPINGS = {"L2PLoadModel": LoadModel, "L2PLoadLora": LoadLora, "L2PSample": Sample}
"""The names that workflows keep; they stay."""
NODE_DISPLAY_NAME_MAPPINGS = {
    "L2PLoadModel": "Load L2P model",
    "L2PLoadLora": "Load LoRA (L2P)",
    "L2PSample": "Sample (L2P)",
}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "LoadLora", "LoadModel", "Sample"]
