"""exp, softplus and the zero-order-hold weight in Triton, as in csrc/common/gpu_math.h: float32 in base 2 through the
special-function unit, float64 through the math library. Triton's own exp and log are not used for float32: they round
their arguments once more, which costs several units in the last place."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def as_rate(A):
    """The decay e^(delta A) is computed from v = delta * rate: in float32 log2(e) is folded into the rate once."""
    return A if A.dtype == tl.float64 else A * 1.4426950408889634


@triton.jit
def from_rate(v):
    """v = delta * rate -> delta A."""
    return v if v.dtype == tl.float64 else v * 0.6931471805599453


@triton.jit
def decay(v):
    """e^(delta A) from v = delta * rate."""
    return tl.exp(v) if v.dtype == tl.float64 else tl.exp2(v)


@triton.jit
def exp_negative(m):
    """e^-m for m >= 0: -m = n ln(2) + r with whole n, and ln(2) in two parts, so that r has one rounding."""
    if m.dtype == tl.float64:
        return tl.exp(-m)
    else:  # noqa: RET505 - Triton compiles one of two branches
        m = tl.minimum(m, 200.0, propagate_nan=tl.PropagateNan.ALL)
        n = tl.floor(m * -1.4426950408889634 + 0.5)
        r = (-m - n * 0.693359375) + n * 2.12194440e-4
        return tl.exp2(n) * tl.exp2(r * 1.4426950408889634)


@triton.jit
def log1p_unit(y):
    """log(1 + y) for y in [0, 1] through 2 atanh(y / (2 + y)), so that small y keep their relative accuracy."""
    s = y / (y + 2.0)
    s2 = s * s
    if y.dtype == tl.float64:
        q = s2 * 0.0
        for i in tl.static_range(17):
            q = (q + 1.0 / (35.0 - 2.0 * i)) * s2
    else:
        q = 0.1400599457809141 * s2 + 0.14000902473850074
        q = q * s2 + 0.2001076361974317
        q = q * s2 + 0.33333208143249743
        q = q * s2
    return 2.0 * (s + s * q)


@triton.jit
def softplus(x):
    """log(1 + e^x), or x above 20 (PyTorch's threshold)."""
    value = tl.maximum(x, 0.0) + log1p_unit(exp_negative(tl.abs(x)))
    return tl.where(x > 20.0, x, value)


@triton.jit
def softplus_slope(y):
    """The derivative of softplus at the value y: 1 - e^-y, from its Taylor series if the difference would cancel."""
    TERMS: tl.constexpr = 16 if y.dtype == tl.float64 else 8
    series = y * 0.0 + 1.0
    for i in tl.static_range(TERMS - 1):
        series = 1.0 - series * y / (TERMS - i)
    return tl.where(y < 0.5, series * y, 1.0 - exp_negative(y))


@triton.jit
def zoh_weight(v, exp_v, SLOPE: tl.constexpr):
    """phi(v) = (e^v - 1) / v, the zero-order-hold weight of Eq. 6, given e^v; with SLOPE also its derivative,
    (e^v - phi) / v.

    Below |v| = 1 both use their Taylor series, because the quotients would cancel."""
    TERMS: tl.constexpr = 20 if v.dtype == tl.float64 else 11
    series = v * 0.0 + 1.0
    slope = v * 0.0
    for i in tl.static_range(TERMS):
        if SLOPE:
            slope = (series + v * slope) * (1.0 / (TERMS + 1.0 - i))
        series = 1.0 + v * series * (1.0 / (TERMS + 1.0 - i))
    small = tl.abs(v) < 1.0
    over_v = 1.0 / tl.where(small, 1.0, v)
    quotient = (exp_v - 1.0) * over_v
    phi = tl.where(small, series, quotient)
    if SLOPE:
        return phi, tl.where(small, slope, (exp_v - quotient) * over_v)
    else:  # noqa: RET505
        return phi
