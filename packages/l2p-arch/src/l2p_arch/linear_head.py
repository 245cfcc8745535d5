"""The plain linear head that sec. 3.3 holds the Detailer Head against: every token projected to its patch."""

from torch import Tensor, nn

from l2p_arch.patchify import patches_to_pixels


class LinearHead(nn.Module):
    """A linear map from each token to the pixels of its patch; it sees neither x_t nor other tokens.

    Args:
        feature_channels: width D of the transformer's tokens.
        patch_size: side P of a patch, px.
        pixel_channels: channels of the image.
    """

    output_layer = "linear"

    def __init__(self, feature_channels: int, patch_size: int, *, pixel_channels: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.linear = nn.Conv2d(feature_channels, pixel_channels * patch_size**2, 1)

    def enable_tiling(self, tile: int | None = 1024) -> None:
        """Accept what the Detailer Head accepts and change nothing: the output is the largest tensor here."""

    def forward(self, pixels: Tensor, features: Tensor) -> Tensor:
        """Map features (B, D, H/P, W/P) to the raw output (B, 3, H, W); the pixels x_t are not read.

        The linear map's channels are in the order (c, py, px), as `pixels_to_patches` has them.
        """
        return patches_to_pixels(self.linear(features), self.patch_size)
