"""Options of a training: network, loss, crops, augmentation, schedule. Defined once, here and in the families of
networks; nothing else is imported, since the workflow reads them while it is parsed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import MinLen
from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from tomoscout.learning.augmentations import Augmentation
from tomoscout.learning.augmentations import search_space as augmentation_space
from tomoscout.learning.losses import Loss, LossName, parse_losses
from tomoscout.learning.losses import search_space as loss_space
from tomoscout.learning.losses.cross_entropy_tversky import CrossEntropyTversky
from tomoscout.learning.optimisers import AdamW
from tomoscout.learning.schedule import Schedule
from tomoscout.machine.errors import shown
from tomoscout.models.options import FineTuning
from tomoscout.networks import parse_network
from tomoscout.networks.options import NetworkOptions, axes
from tomoscout.options.names import Name, ObjectName
from tomoscout.options.sections import (
    HOW_MANY,
    WHERE_IT_RUNS,
    Fraction,
    NotSearched,
    Precision,
    Section,
    as_meant,
    note_change,
)

_NUMBERS = {2: "two", 3: "three"}

Network = Annotated[SerializeAsAny[NetworkOptions], BeforeValidator(parse_network)]


TRAINING_SPACE: dict[str, Any] = {
    **Schedule.SPACE,
    **AdamW.SPACE,
    "patch": {"low": 48, "high": 160, "step": 16},
    "batch_size": {"choices": [4, 8, 16, 24, 32, 48]},
    "background_fraction": {"low": 0.0, "high": 0.5},
}


class Recipe(Section):
    """What is trained on what: the network, and the crops that it sees."""

    DIMENSIONS: ClassVar[int]
    """Number of spatial dimensions of the volumes that a task trains on."""

    name: Annotated[Name, HOW_MANY, NotSearched("trials have names of their own")] = "unet"
    """Name of the model: `results/models/{name}/`."""
    network: Annotated[Network, NotSearched("list the families under explore.networks")] = Field(
        default_factory=lambda: parse_network({})
    )
    """The network: `family` and that family's options. A list of one stands for it, too: of several configuration files
    the last then replaces it whole."""
    augmentation: Augmentation = Augmentation()
    patch: list[int] | Literal["auto"] = "auto"
    """Crop size in voxels per axis: multiples of what the network halves. `auto`: planned with the network from the
    median tomogram and `plan_memory_gb`."""
    plan_memory_gb: float = Field(default=8.0, gt=0, le=1e6)
    """Memory in GiB that a training step may take where patch or network are planned. nnU-Net's rules mean a step of
    two crops: set accumulation to half of batch_size for larger batches."""
    background_fraction: Fraction = 0.1
    """Fraction of crops drawn at random places of any training tomogram; the others are centred near a particle or on
    a voxel of a continuous class."""
    validate_every: Annotated[int | None, NotSearched("set explore.validations")] = Field(default=None, ge=1)
    """Steps between validations on the whole validation tomograms. Default: 500, or more where these are so many that
    validation would take more than a seventh of the work."""

    @field_validator("patch", mode="before", json_schema_input_type=list[int] | Literal["auto"])
    @classmethod
    def _read_patch(cls, value: Any) -> Any:
        """Convert one number, as in octopi's dim_in, to the same size along all axes."""
        meant = value if value == "auto" else as_meant(value, list[int], [MinLen(cls.DIMENSIONS)])
        if meant is not value:
            note_change(cls, "patch", value, meant)
        return meant

    @property
    def crop(self) -> tuple[int, ...]:
        """The planned patch: the size of a crop in voxels per axis."""
        assert self.patch != "auto"
        return tuple(self.patch)

    def check_patch_of(self, network: NetworkOptions) -> None:
        """Check that a network takes the patch.

        Raises:
            ValueError: a size is not a multiple of what the network halves, or is too small.
        """
        steps, smallest = network.size_step(self.DIMENSIONS), network.smallest_size(self.DIMENSIONS)
        if any(size % step or size < least for size, step, least in zip(self.crop, steps, smallest, strict=True)):
            raise ValueError(
                f"patch {self.patch} ({axes(self.DIMENSIONS)}) must be multiples of {list(steps)} and at least "
                f"{list(smallest)} for the network {network.family}"
            )


class ClassRecipe(Recipe):
    """What tells classes of voxels apart: the loss, and how much of it and how many crops each class gets."""

    loss: list[Loss] = Field(default=[CrossEntropyTversky()], min_length=1)
    """The loss: `name` and its options, or a list of losses that are added up, each with a `weight`."""
    class_weights: dict[ObjectName, Annotated[float, Field(gt=0)]] = {}
    """Weight of a class (by name, or `background`) in the loss: of its voxels in cross-entropy and focal losses, on
    top of foreground_weight and size_balance; of the class in the mean over classes in the others. Default 1."""
    class_sampling: dict[ObjectName, Annotated[float, Field(ge=0)]] = {}
    """How often crops are centred on a class (by name), against 1 for the others."""
    harder_classes: Fraction = 0.0
    """Draw classes more often that the last validation found badly: a class is drawn 1 − this × its score times as
    often."""

    @field_validator("loss", mode="before", json_schema_input_type=LossName | Loss | list[LossName | Loss])
    @classmethod
    def _list_losses(cls, value: Any) -> Any:
        return parse_losses(value)


class Optimisation(AdamW, Schedule):
    """What steers an optimisation. A step is one update of the weights."""

    batch_size: int = Field(default=8, ge=1, le=100_000)
    """Crops per step, drawn from all training tomograms alike."""
    accumulation: int = Field(default=1, ge=1, le=100_000)
    """Work through a batch in this many parts and add up their gradients: nearly the same step (losses that compare
    whole batches compare the parts) with less memory. Raised by itself where the device runs out of memory."""
    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 for no limit."""
    ema_decay: float = Field(default=0.995, ge=0, lt=1)
    """Decay per step of the averaged weights that are validated and kept; ramped up at the start. 0 turns it off."""
    early_stopping: int = Field(default=0, ge=0)
    """Stop after this many validations without a better score; 0 for never."""
    precision: Precision = "auto"
    """Arithmetic of the network. auto: bf16 on a GPU or CPU that has instructions for it, fp16 on an older GPU, float32
    on another CPU."""
    compile: bool = False
    """Let torch.compile translate the network first: minutes at the start for faster steps on some GPUs."""
    seed: Annotated[int, NotSearched("set train.seed, which all trials share")] = Field(default=42, ge=0, lt=2**32)
    """Seed of weights, crops and augmentation."""


_FOR_THE_MACHINE = NotSearched("it is for the machine")


class Resources(Section):
    """Where a training runs and what it may take there."""

    checkpoint_seconds: Annotated[float, WHERE_IT_RUNS, _FOR_THE_MACHINE] = Field(default=60, ge=0)
    """Seconds between checkpoints: what a killed job loses at most."""
    device: Annotated[Literal["auto", "cpu", "cuda"], WHERE_IT_RUNS, _FOR_THE_MACHINE] = "auto"
    """Where to train."""
    memory_gb: Annotated[float | None, WHERE_IT_RUNS, _FOR_THE_MACHINE] = Field(default=None, gt=0, le=1e6)
    """Main memory in GiB that the training may take. Default: what the machine, or the job, has left. Tomograms that
    do not fit are read from files beside the model while training."""
    gpu_memory_gb: Annotated[float | None, WHERE_IT_RUNS, _FOR_THE_MACHINE] = Field(default=None, gt=0, le=1e6)
    """GPU memory in GiB that the training may take. Default: what is free. A training that needs more is over for good;
    one that only finds less free, or a smaller GPU than stated, can be tried again elsewhere. Of an exploration it is
    a setting as others are: another makes another study."""


class Training(Resources, FineTuning, Optimisation, Recipe):
    """How a network is trained, whatever the task. A step is one optimiser update."""

    SPACE: ClassVar[dict[str, Any]] = {**TRAINING_SPACE, **augmentation_space()}
    """The built-in search space, in the order in which values are proposed; `explore.space` changes it. The families of
    networks have a `SPACE` of their own."""

    @model_validator(mode="after")
    def _check_patch(self) -> Self:
        if self.patch == "auto":
            return self
        expected = f"{_NUMBERS[self.DIMENSIONS]} numbers of voxels, {axes(self.DIMENSIONS)}"
        if len(self.patch) != self.DIMENSIONS:
            raise ValueError(f"patch {shown(self.patch)} must be {expected}")
        # The network of a fine-tuning is that of its base, which is not known before the training.
        if self.base is None:
            self.check_patch_of(self.network)
        elif min(self.patch) < 1:
            raise ValueError(f"patch {self.patch} must be {expected}, from 1 on")
        if self.augmentation.rotate90 and self.patch[-1] != self.patch[-2]:
            raise ValueError(
                f"augmentation.rotate90 needs a patch as wide as it is high, found {self.patch} "
                f"({axes(self.DIMENSIONS)})"
            )
        return self

    @model_validator(mode="after")
    def _check_base(self) -> Self:
        if self.base is None:
            for name in ("base_weights", "freeze", "freeze_steps"):
                if getattr(self, name) not in (None, "nothing"):
                    raise ValueError(f"{name} is for a fine-tuning; give base, a model folder, too")
        elif self.base_weights and not self.base.endswith((".yaml", ".yml")):
            raise ValueError("base_weights is for an octopi base; the weights of a model folder lie in it")
        return self


class ClassTraining(Training, ClassRecipe):
    """How a network is trained that tells classes of voxels apart."""

    SPACE = {**TRAINING_SPACE, **loss_space(), **augmentation_space()}
