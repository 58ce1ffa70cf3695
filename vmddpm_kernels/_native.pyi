"""The compiled extension, built from csrc/bindings.cpp. Its kernels trust shapes and dtypes. They check the values of
tables on a CPU, and that every tensor has memory for its elements."""

from torch import Tensor

from vmddpm_kernels.backends.extension import ScanGradients, ScanOutputs
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanSizes

MOST_ROWS: int  # of `linear`
CHUNK: int  # steps between checkpoints, at least

class ScanPlan:
    @property
    def checkpoints(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def pieces(self) -> int: ...

def describe() -> str: ...
def scan_sizes(inputs: ScanInputs, dy: Tensor | None, dlast_state: Tensor | None) -> ScanSizes | None:
    """`inputs.sizes()` if `inputs.check()` would pass and any gradients of y and the last state fit the inputs, else
    None; also None if only Python can decide."""
def lanes(wide: bool) -> int: ...
def scan_plan(sizes: ScanSizes) -> ScanPlan: ...
def scan_forward(
    inputs: ScanInputs, options: ScanOptions, sizes: ScanSizes, outputs: ScanOutputs, threads: int
) -> None: ...
def scan_backward(
    inputs: ScanInputs,
    options: ScanOptions,
    sizes: ScanSizes,
    dy: Tensor | None,
    dlast_state: Tensor | None,
    checkpoints: Tensor,
    grads: ScanGradients,
    threads: int,
) -> None: ...
def cross_scan(
    image: Tensor, table: Tensor | None, height: int, width: int, scans: int, sequences: Tensor, threads: int
) -> None: ...
def cross_merge(
    image: Tensor,
    table: Tensor | None,
    height: int,
    width: int,
    scans: int,
    sequences: Tensor,
    threads: int,
    sum_routes: bool,
) -> None: ...

def cross_image(
    tensor: Tensor,
    height: int,
    width: int,
    in_channel_first: bool,
    out_channel_first: bool,
    one_by_one: bool,
    scans: int | str,
    merge: bool,
    threads: int,
) -> Tensor | None:
    """`cross_scan` or `cross_merge` of vmddpm_kernels.cross_scan; None if only Python can check the call."""
def conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor | None,
    y: Tensor,
    wide: bool,
    silu: bool,
    columns: bool,
    threads: int,
) -> None: ...
def conv_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor | None,
    dx: Tensor,
    dweight: Tensor,
    dbias: Tensor | None,
    dhistory: Tensor | None,
    wide: bool,
    silu: bool,
    columns: bool,
    threads: int,
) -> None: ...
def conv_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, wide: bool, silu: bool
) -> None: ...
def group_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    y: Tensor,
    eps: float,
    threads: int,
) -> None: ...
def group_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dx: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    threads: int,
) -> None: ...

def linear(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, threads: int) -> None: ...
def state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    y: Tensor,
    wide: bool,
    softplus: bool,
    threads: int,
) -> None: ...

class GpuScanPlan:
    @property
    def states_per_thread(self) -> int: ...
    @property
    def slices(self) -> int: ...
    @property
    def tiles(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def passes(self) -> int: ...
    @property
    def segments(self) -> int: ...
    @property
    def chunks(self) -> int: ...
    @property
    def walks(self) -> int: ...
    @property
    def images(self) -> int: ...
    @property
    def matrices(self) -> int: ...
    @property
    def part(self) -> int: ...

class CudaKernels:
    """The submodule `cuda`, which a build without CUDA lacks."""

    CHUNK: int
    architectures: str
    def probe(self, device: int) -> tuple[str, str, int, int]:
        """The fields of backends.cuda_runtime.Probe. The device becomes the current one."""
    def scan_plan(
        self, sizes: ScanSizes, options: ScanOptions, limits: tuple[int, int], backward: bool
    ) -> GpuScanPlan: ...
    def scan_forward(
        self,
        inputs: ScanInputs,
        options: ScanOptions,
        sizes: ScanSizes,
        outputs: ScanOutputs,
        plan: GpuScanPlan,
        segment_state: Tensor | None,
        segment_delta: Tensor | None,
        images: Tensor | None,
        device: int,
        stream: int,
    ) -> None: ...
    def scan_backward(
        self,
        inputs: ScanInputs,
        options: ScanOptions,
        sizes: ScanSizes,
        dy: Tensor | None,
        dlast_state: Tensor | None,
        checkpoints: Tensor,
        grads: ScanGradients,
        plan: GpuScanPlan,
        segment_state: Tensor | None,
        segment_delta: Tensor | None,
        images: Tensor | None,
        matrices: Tensor | None,
        device: int,
        stream: int,
    ) -> None: ...
    def cross_scan(
        self,
        image: Tensor,
        table: Tensor | None,
        height: int,
        width: int,
        scans: int,
        sequences: Tensor,
        inverse: Tensor | None,
        limits: tuple[int, int],
        device: int,
        stream: int,
    ) -> None: ...
    def cross_merge(
        self,
        image: Tensor,
        table: Tensor | None,
        height: int,
        width: int,
        scans: int,
        sequences: Tensor,
        sum_routes: bool,
        inverse: Tensor | None,
        limits: tuple[int, int],
        device: int,
        stream: int,
    ) -> None: ...

cuda: CudaKernels
