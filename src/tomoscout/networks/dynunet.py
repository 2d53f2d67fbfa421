"""MONAI's DynUNet, the U-Net of nnU-Net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from tomoscout.networks.options import (
    DROPOUT_SPACE,
    Count,
    NetworkOptions,
    PerAxis,
    check_deep_supervision,
    check_kernels,
    check_lengths,
    doubled_channels,
    per_axis,
    product_per_axis,
)

if TYPE_CHECKING:
    import torch
    from torch import nn


class Options(NetworkOptions):
    """MONAI's DynUNet (Isensee et al. 2021): kernels, strides and channels level by level, deep supervision. MONAI has
    plain blocks; residual ones are the default here, as in octopi."""

    family: Literal["DynUNet"] = "DynUNet"
    strides: list[PerAxis] = Field(default=[1, 2, 2, 2], min_length=3)
    """Downsampling at the entry of each level, the first 1: a number, or one per axis (z, y, x). Deeper sees farther;
    `[1, 2, 2, 1]` keeps the deepest level fine enough for small objects, `[1, [1, 2, 2], 2, 2]` is for thin
    tomograms."""
    kernel_sizes: list[PerAxis] | None = None
    """Convolution kernel per level, odd: a number, or one per axis. Default: 3 throughout."""
    filters: list[Count] | None = None
    """Feature channels per level. Default: 32, doubled from level to level up to 320 (512 in two dimensions), as in
    nnU-Net; halve them where memory is short."""
    residual_blocks: bool = True
    """Convolutions in residual blocks, with strides of at most 2; false for plain ones."""
    norm: Literal["instance", "batch"] = "instance"
    """Normalise each crop by itself, or the batch together, which needs batches of eight crops or more."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the channels' values dropped while training, MONAI drops those of the logits too: try 0.1."""
    deep_supervision: int = Field(default=1, ge=1)
    """How many resolutions the loss sees: 1 the full one alone, 2 the half one, too, and so on. Meant for objects that
    are still larger than a voxel of the coarsest."""

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        check_lengths(len(self.strides), kernel_sizes=self.kernel_sizes, filters=self.filters)
        if self.strides[0] not in (1, [1, 1], [1, 1, 1]):
            raise ValueError(f"strides {self.strides} start with {self.strides[0]}, expected 1")
        check_kernels(self.kernels, self.strides)
        if (
            self.residual_blocks
            and max(max(stride) if isinstance(stride, list) else stride for stride in self.strides) > 2
        ):
            raise ValueError(f"strides {self.strides}, expected 1 or 2; MONAI's residual blocks take no larger ones")
        check_deep_supervision(self.deep_supervision, len(self.strides) - 1)
        return self

    @property
    def kernels(self) -> list[int | list[int]]:
        """The convolution kernel of each level."""
        return self.kernel_sizes or [3] * len(self.strides)

    def size_step(self, dimensions: int = 3) -> tuple[int, ...]:
        """The product of the strides."""
        return product_per_axis(self.strides, dimensions)

    @classmethod
    def from_search(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`width`: filters of the first level. No more resolutions are supervised than there are."""
        rest = dict(values)
        levels = len(rest.get("strides", cls.model_fields["strides"].default))
        if "width" in rest:
            rest["filters"] = doubled_channels(rest.pop("width"), levels)
        if "deep_supervision" in rest:
            rest["deep_supervision"] = min(rest["deep_supervision"], levels - 1)
        return rest


SPACE = {
    "strides": {"choices": [[1, 2, 2], [1, 2, 2, 2], [1, 2, 2, 1]]},
    "width": {"choices": [16, 32]},
    "deep_supervision": {"low": 1, "high": 3},
    "dropout": DROPOUT_SPACE,
}


def build(options: Options, inputs: int, outputs: int, dimensions: int) -> nn.Module:
    """Build the DynUNet of the options. Its outputs for deep supervision are all of the full size."""
    from monai.networks.nets import DynUNet

    strides = [per_axis(stride, dimensions) for stride in options.strides]
    network: Any = DynUNet(
        spatial_dims=dimensions,
        in_channels=inputs,
        out_channels=outputs,
        kernel_size=[per_axis(kernel, dimensions) for kernel in options.kernels],
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=options.filters,
        dropout=options.dropout or None,
        norm_name=(options.norm, {"affine": True}),
        deep_supervision=options.deep_supervision > 1,
        deep_supr_num=max(1, options.deep_supervision - 1),
        res_block=options.residual_blocks,
    )
    network.register_forward_hook(_list_outputs)
    network.register_state_dict_post_hook(_drop_aliases)
    network.register_load_state_dict_post_hook(_excuse_aliases)
    built: nn.Module = network
    return built


def _list_outputs(network: Any, inputs: Any, outputs: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
    # MONAI keeps the last outputs in the network, where they hold memory and cannot be copied with it.
    network.heads[:] = [outputs.new_empty(0)] * len(network.heads)
    return list(outputs.unbind(1)) if network.training and network.deep_supervision else outputs


# MONAI registers every block twice, once in `skip_layers`. A file of weights holds none twice.
_ALIASES = "skip_layers."


def _drop_aliases(network: nn.Module, weights: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in weights if name.startswith(prefix + _ALIASES)]:
        del weights[name]


def _excuse_aliases(network: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if not name.startswith(_ALIASES)]
