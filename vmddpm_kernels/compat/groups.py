"""Converts B and C of the drop-ins to the operator's layout, with groups of channels."""

from torch import Tensor

from vmddpm_kernels.checks import check_shape


def common_groups(u: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """B and C as (batch, groups, d_state, length) with the same number of groups, as views if possible.

    Both may be (dim, d_state), (batch, d_state, length) or (batch, groups, d_state, length). A matrix (dim, d_state) is
    constant over steps and differs by channel, so each channel becomes a group."""
    dim = u.shape[1]
    groups_B, groups_C = _group_count("B", B, dim), _group_count("C", C, dim)
    groups = max(groups_B, groups_C)
    if groups % groups_B or groups % groups_C:
        raise ValueError(
            f"the number of groups of B must divide that of C or be a multiple of it, got {groups_B} and {groups_C}"
        )
    return _with_groups("B", B, u, groups), _with_groups("C", C, u, groups)


def _group_count(name: str, matrix: Tensor, dim: int) -> int:
    axes = "(dim, d_state), (batch, d_state, length) or (batch, groups, d_state, length)"
    if matrix.dim() not in (2, 3, 4):
        raise ValueError(f"{name} must have shape {axes}, got {tuple(matrix.shape)}")
    groups = (dim, 1, matrix.shape[1])[matrix.dim() - 2]
    if groups == 0 or dim % groups:
        raise ValueError(f"the {dim} channels of u must divide into the {groups} groups of {name} {axes}")
    return groups


def _with_groups(name: str, matrix: Tensor, u: Tensor, groups: int) -> Tensor:
    batch, dim, length = u.shape
    if matrix.dim() == 2:
        check_shape(name, matrix, "dim, d_state", (dim, matrix.shape[1]))
        return matrix[None, :, :, None].expand(batch, -1, -1, length)
    if matrix.dim() == 3:
        return matrix[:, None].expand(-1, groups, -1, -1)
    return matrix if matrix.shape[1] == groups else matrix.repeat_interleave(groups // matrix.shape[1], dim=1)
