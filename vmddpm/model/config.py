"""The architecture of the model: each ambiguous sentence of the paper is one named field."""

from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

from vmddpm.errors import InputError
from vmddpm.numbers import check_numbers
from vmddpm_kernels.checks import MAX_STATES
from vmddpm_kernels.curves import route_names

MAX_CHANNELS = 2**14  # channels of a stage: one convolution of that width has 2.4 billion weights
MAX_CLASSES = 2**12
MAX_VALUES = {
    "base_channels": MAX_CHANNELS, "channel_multipliers": MAX_CHANNELS, "sampling": 2**13, "layers_per_stage": 256,
    "expand": 64, "dt_rank": MAX_CHANNELS, "regeneration_patch_size": 2**13, "time_embedding_dim": 4 * MAX_CHANNELS,
    "norm_groups": MAX_CHANNELS, "condition_channels": MAX_CHANNELS,
}  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of VM-DDPM. Each field quotes the sentence of the paper it reads, if there is one.

    Raises:
        InputError: if a field is invalid; the message has its name, its value and what it must be.
    """

    spatial_dims: Literal[2, 3] = 2
    """Number of spatial axes: 2 for images (H, W), as in the paper, or 3 for volumes (D, H, W), with the same stages,
    blocks and scans over one more axis. Must equal `data.spatial_dims`."""

    image_channels: int = 1
    """Channels of the image, 1 (grey) or 3 (colour)."""

    base_channels: int = 96
    """Width of the first stage, C. The paper's C cannot be both the channels of the image and the width of the
    features; we read the latter as a base width. 96 is the value of VM-UNet; its encoder has the paper's output shape.
    III-B: "Assuming the input image size is (B, C, H, W), after passing through the encoder, it will output feature
    vectors of (B, 8C, H/32, W/32)." """

    channel_multipliers: tuple[int, ...] = (1, 2, 4, 8)
    """Width of each stage as a multiple of base_channels; the last gives 8C. III-B: "Each stage performs up or down
    sampling operations to increase or decrease the size of input features and adjust the number of channels." """

    sampling: tuple[int, ...] = (4, 2, 2, 2)
    """Downsampling factor of each stage. Four factors of 2 would end at H/16, but the paper's output is at H/32, so the
    first is 4, as in the patch embedding of VMamba and VM-UNet. (2, 2, 2, 2) treats H/32 as a misprint: finer detail,
    four times the tokens. III-B: "a symmetrical structure, both consisting of four sampling stages"."""

    image_skip: bool = False
    """Fuse the noisy image with the decoder's output at full resolution, with a ResNet block. This takes more
    computation, but the model learns fine detail and low noise levels much sooner. The paper's final projection
    "restores" the image from the decoder alone. III-B: "perform feature fusion on the feature map extracted from the
    encoding path and the corresponding resolution on the decoding path"."""

    layers_per_stage: int = 2
    """State Space Layers of each stage. The paper leaves the order within a stage open; the encoder samples first and
    the decoder last, so they mirror each other. III-B: "connect two State Space Layers (SSLayers) in series and perform
    up or down sampling operations"."""

    d_state: int = 16
    """States per channel of S6; not stated, the value of Mamba and VM-UNet."""

    expand: int = 2
    """Inner width of a CSM over its outer width; not stated, the value of Mamba and VM-UNet."""

    dt_rank: int | None = None
    """Rank of the step-size projection; not stated. None is ceil(width / 16), as in Mamba and VM-UNet."""

    discretization: Literal["mamba", "zoh"] = "mamba"
    """Discretization of the state equation: "zoh" is Eq. 6 as printed; "mamba" is B̄ = ΔB, which Mamba and VMamba also
    call zero-order hold. III-A: "use the zero-order preservation (ZOH) rule to discretize the parameters"."""

    scans: int | str = 0
    """Routes of the scan: 0 is VMamba's cross scan (rows, columns and both reversed; for volumes the six routes of
    "cross3d"), and 1 to 3 are its other sets. Sets of other models are chosen by name, such as "hilbert", "local",
    "omnidirectional" or "tri-orientated", and single routes by a comma-separated list; see `vmddpm_kernels.routes`. S6
    has separate weights for each route. III-D: "from the upper left corner or lower right corner in four directions:
    up, down, left, and right"."""

    regeneration: bool = True
    """Shuffle the patches before each S6. Each S6 has a new order, shared by the batch and all routes, instead of the
    ordered sequences; merging "into image form" undoes it. False is the ablation "VM-DDPM + CSM" of Table II.
    III-D: "Before the scan expansion operation, the input image is randomly shuffled in the patch dimension", "before
    each S6 operation"."""

    regeneration_patch_size: int = 1
    """Side of a patch in tokens: 1 as in VMamba; p > 1 moves blocks of p tokens along every axis. III-D: "in the patch
    dimension"."""

    regeneration_at_sampling: bool = True
    """Also shuffle during sampling: a network trained on shuffled sequences has never seen an ordered one. False turns
    the shuffle off in eval mode. III-D describes training only: "the S6 module will receive a diverse and evenly
    distributed set of extended sequences"."""

    time_embedding_dim: int | None = None
    """Width of the perceptron that embeds the time step. Its input is sinusoids; every CNN projects its output to a
    scale and a shift per channel. None is 4 * base_channels, as in Ho et al. (2020). III-B: "each part supports
    vectorized embedding of time information"."""

    norm_groups: int = 32
    """Groups of every GroupNorm, a divisor of every stage's width; not stated, the value of Ho et al.
    (2020)."""

    classes: tuple[str, ...] = ()
    """Names of the classes that can be sampled, in the order of the model's labels; empty for the paper's unconditional
    model. Each class has a learned vector that is added to the time embedding. Training takes the names from its
    labels, see `condition`. I: "unconditional"."""

    condition_channels: int = 0
    """Channels of the conditioning image, such as a mask or another modality; 0 is the paper's model. The noisy image
    and the conditioning image are concatenated, as in Palette (Saharia et al., 2022)."""

    def __post_init__(self) -> None:
        for name in ("channel_multipliers", "sampling", "classes"):  # JSON and YAML have only lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_numbers(self, limits=MAX_VALUES)
        self._require(self.spatial_dims in (2, 3), "spatial_dims", "2, for images, or 3, for volumes")
        self._require(self.image_channels in (1, 3), "image_channels", "1 or 3")
        for name in ("layers_per_stage", "expand", "regeneration_patch_size", "norm_groups"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        self._require(1 <= self.d_state <= MAX_STATES, "d_state", f"from 1 to {MAX_STATES}")
        self._require(self.condition_channels >= 0, "condition_channels", "at least 0")
        self._require(
            all(isinstance(name, str) and name.strip() == name != "" for name in self.classes)
            and len(set(self.classes)) == len(self.classes) != 1 and len(self.classes) <= MAX_CLASSES,
            "classes", f"from 2 to {MAX_CLASSES:,} names, each once and without surrounding blanks, or none",
        )
        for name in ("dt_rank", "time_embedding_dim"):
            value = getattr(self, name)
            self._require(value is None or value >= 1, name, "at least 1, or None for the default")
        self._require(
            self.base_channels >= 2 and self.base_channels % 2 == 0,
            "base_channels", "even: half of the time sinusoids are sines, half cosines",
        )
        self._require(
            bool(self.sampling) and all(factor >= 1 for factor in self.sampling),
            "sampling", "one factor of at least 1 for each stage",
        )
        stages = len(self.sampling)
        self._require(
            len(self.channel_multipliers) == stages and all(m >= 1 for m in self.channel_multipliers),
            "channel_multipliers", f"{stages} multipliers of at least 1, one for each factor of sampling",
        )
        self._require(
            max(self.widths) <= MAX_CHANNELS, "channel_multipliers",
            f"at most {MAX_CHANNELS:,} when multiplied by base_channels, {self.base_channels}",
        )
        self._require(self.discretization in ("mamba", "zoh"), "discretization", '"mamba" or "zoh"')
        kind = "images" if self.spatial_dims == 2 else "volumes"
        try:
            route_names(self.scans, self.spatial_dims)
        except ValueError as error:
            raise InputError(f"scans is {self.scans!r}; it must be a set of routes for {kind}: {error}") from None
        self._require(
            all(width % self.norm_groups == 0 for width in self.widths),
            "norm_groups", f"a divisor of every stage's width {self.widths}",
        )

    def _require(self, fits: bool, name: str, needed: str) -> None:
        if not fits:
            raise InputError(f"{name} is {getattr(self, name)!r}; it must be {needed}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage: (C, 2C, 4C, 8C) by default."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def input_channels(self) -> int:
        """Channels of the network's input: the noisy image's, then the condition's."""
        return self.image_channels + self.condition_channels

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return self.time_embedding_dim or 4 * self.base_channels

    @property
    def size_multiple(self) -> int:
        """Every side of an image or volume must be a multiple of this, so that every stage holds whole patches."""
        return prod(self.sampling) * (self.regeneration_patch_size if self.regeneration else 1)

    @property
    def route_count(self) -> int:
        """Routes of every scan, K."""
        return len(route_names(self.scans, self.spatial_dims))

    @property
    def s6_count(self) -> int:
        """Number of S6 in a forward pass: in every stage, down and up, and in the bottleneck."""
        return 2 * len(self.sampling) * self.layers_per_stage + 1

    def rank(self, width: int) -> int:
        """Rank of the step-size projection in a CSM of this width."""
        return self.dt_rank or ceil(width / 16)
