"""MONAI's Swin UNETR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from tomoscout.networks.options import DROPOUT_SPACE, Count, NetworkOptions, PerAxis, check_lengths, per_axis

if TYPE_CHECKING:
    from torch import nn

STAGES = 4


class Options(NetworkOptions):
    """MONAI's Swin UNETR (Hatamizadeh et al. 2022): a transformer of shifted windows as encoder, convolutions as
    decoder. It sees farthest and needs the most data and memory; inputs are multiples of 32 voxels, so it is not for
    thin tomograms. Defaults are MONAI's; octopi searches about the same sizes."""

    family: Literal["SwinUNETR"] = "SwinUNETR"
    feature_size: int = Field(default=24, ge=12, multiple_of=12)
    """Feature channels of the first level, a multiple of 12, doubled four times. 12 is small, 24 medium, 36 and 48
    large."""
    depths: list[Count] = [2, 2, 2, 2]
    """Transformer blocks in each of the four stages; every second one has its windows shifted, so even numbers."""
    num_heads: list[Count] = [3, 6, 12, 24]
    """Attention heads in each stage. Each must have at least four of that stage's channels to work with: feature_size,
    doubled from stage to stage, divided by the heads."""
    window_size: PerAxis = 7
    """Voxels of a stage that attend to each other, along each axis or per axis (z, y, x). Memory and time rise with
    their number; where a stage is smaller, the window is."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the features dropped while training: try up to 0.3 where a few tomograms are learnt by heart."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the attention dropped while training, likewise."""
    path_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of whole blocks skipped while training, rising to this in the deepest: try up to 0.2."""
    checkpointing: bool = False
    """Compute the transformer's features once more in the backward pass instead of keeping them: less memory, more
    time. octopi always does."""

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        check_lengths(STAGES, depths=self.depths, num_heads=self.num_heads)
        for stage, heads in enumerate(self.num_heads):
            channels = self.feature_size * 2**stage
            if channels % heads or channels // heads < 4:
                raise ValueError(
                    f"num_heads {self.num_heads}: {heads} heads share {channels} channels in stage {stage + 1}, "
                    "expected at least four for each and none left over"
                )
        return self

    def size_step(self, dimensions: int = 3) -> tuple[int, ...]:
        """32: a voxel of the transformer is two of the tomogram, and each of its four stages halves the resolution."""
        per_axis(self.window_size, dimensions)
        return (2 * 2**STAGES,) * dimensions

    @classmethod
    def from_search(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`first_heads`: heads of the first stage, doubled from stage to stage; fewer where they had not four channels
        each."""
        if "first_heads" not in values:
            return values
        rest = dict(values)
        size = rest.get("feature_size", cls.model_fields["feature_size"].default)
        first = min(rest.pop("first_heads"), size // 4)
        return {**rest, "num_heads": [first * 2**stage for stage in range(STAGES)]}


SPACE = {
    "feature_size": {"choices": [12, 24, 36, 48]},
    "first_heads": {"choices": [3, 6]},
    "depths": {"choices": [[2, 2, 2, 2], [2, 2, 4, 2], [2, 4, 2, 2], [2, 4, 4, 2], [2, 4, 4, 4]]},
    "window_size": {"choices": [5, 7, 8]},
    "dropout": DROPOUT_SPACE,
    "attention_dropout": DROPOUT_SPACE,
    "path_dropout": {"low": 0.0, "high": 0.2},
}


def build(options: Options, inputs: int, outputs: int, dimensions: int) -> nn.Module:
    """Build the Swin UNETR of the options."""
    import torch
    from monai.networks.nets import SwinUNETR

    # Also where only shapes are asked for (the meta device): MONAI reads numbers from tensors as it builds.
    with torch.device("cpu"):
        network: nn.Module = SwinUNETR(
            spatial_dims=dimensions,
            in_channels=inputs,
            out_channels=outputs,
            feature_size=options.feature_size,
            depths=options.depths,
            num_heads=options.num_heads,
            window_size=per_axis(options.window_size, dimensions),
            drop_rate=options.dropout,
            attn_drop_rate=options.attention_dropout,
            dropout_path_rate=options.path_dropout,
            use_checkpoint=options.checkpointing,
        )
    return network
