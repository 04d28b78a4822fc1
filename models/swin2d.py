"""Swin V2 with a head on every token: the network that scores images (SAMA, arXiv 2401.02614, section on IQA).

The backbone (Liu et al., arXiv 2111.09883) is timm's.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from sama.kernels.layout import PATCH, STEMMED, TOKEN
from sama.models.heads import TokenHead, by_sample
from sama.models.swin3d import SIZES as VIDEO_SIZES
from sama.models.swin3d import Swin3D, cut_patches, initialise

IMAGE = 256  # pixels a side
STILL: dict[str, Any] = {"scale_bias": False, "scale_steps": None}  # of a network with a stem
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "nano": {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)},
}


class ImageQuality(nn.Module):
    """Scores images: Swin V2-T (window 8, 256 x 256) and a head on every token.

    `size` is "tiny" (timm's `swinv2_tiny_window8_256`, 28 M parameters), "nano" (2.2 M), "pico" or "lite" (1.4 M
    each), to train on a laptop; the packaged one is lite. A pico or lite model is the video model of that size on an
    image that stands still for a pair of frames, so that each can start from the other's weights; it takes inputs of
    any square `grid` of fragments.
    `drop_path` is the stochastic depth of the last block, `dropout` that of the head.
    `checkpointing` recomputes every block in the backward pass, which needs less memory and more time.

    In evaluation on a CPU each image is computed on its own, so its score does not depend on its batch.
    ValueError for an unknown size.
    """

    kind = "image"

    def __init__(
        self,
        size: Literal["tiny", "nano", "pico", "lite"] = "tiny",
        *,
        grid: tuple[int, int] = (8, 8),
        drop_path: float = 0.1,
        dropout: float = 0.5,
        checkpointing: bool = False,
    ) -> None:
        from timm.models.swin_transformer_v2 import SwinTransformerV2

        super().__init__()
        if size not in (*SIZES, *STEMMED):
            raise ValueError(f"got {size = }, expected one of {', '.join(map(repr, (*SIZES, *STEMMED)))}")
        self.size = size
        rows, columns = grid
        if rows != columns or (size not in STEMMED and rows != IMAGE // TOKEN):
            raise ValueError(
                f"got {grid = } for a {size} model, expected a square one, of 8x8 unless it is {' or '.join(STEMMED)}"
            )
        self.options: dict[str, Any] = {"drop_path": drop_path, "dropout": dropout}
        if size in STEMMED:
            self.options["grid"] = (rows, columns)
        self.backbone: Any
        if size in STEMMED:
            self.backbone = Swin3D(
                **VIDEO_SIZES[size], drop_path=drop_path, checkpointing=checkpointing, grid=(rows, columns), **STILL
            )
            self.head = TokenHead(self.backbone.width, dropout=dropout)
            self.apply(partial(initialise, narrow=True))
            return
        self.backbone = SwinTransformerV2(
            img_size=IMAGE, window_size=8, num_classes=0, drop_path_rate=drop_path, **SIZES[size]
        )
        self.backbone.set_grad_checkpointing(checkpointing)
        self.head = TokenHead(self.backbone.num_features, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """One value per token, `[B, 64]`, of normalised images `[B, 3, 256, 256]`; ValueError for any other shape.

        A pico or lite model has a token for each 32x32 pixels of square images of any such size.
        """
        return by_sample(self, lambda x: self.head(self._tokens(x)), x).squeeze(-1)

    def features(self, x: Tensor) -> Tensor:
        """Input of the head: `[B, 64, width]`."""
        return by_sample(self, self._tokens, x)

    def score(self, x: Tensor) -> Tensor:
        """One score per image, `[B]`: the mean of its tokens' values."""
        return self(x).mean(1)

    def _tokens(self, x: Tensor) -> Tensor:
        side = IMAGE
        if self.size in STEMMED and x.ndim == 4:
            side = max(x.shape[2] // TOKEN, 1) * TOKEN
        if x.shape[1:] != (3, side, side) or x.shape[0] == 0:
            raise ValueError(f"got {tuple(x.shape) = }, expected [B, 3, {side}, {side}]")
        if isinstance(self.backbone, Swin3D):
            still = x[:, :, None].expand(-1, -1, PATCH[0], -1, -1)
            return self.backbone(cut_patches(still), patches=True).flatten(1, 3)
        return self.backbone.forward_features(x).flatten(1, 2)
