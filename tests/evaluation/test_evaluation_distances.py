"""Fréchet and kernel distances, precision and recall against closed forms, torchmetrics and brute force."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from vmddpm.evaluation.frechet import Gaussian, fit_gaussian, frechet_distance, frechet_floor
from vmddpm.evaluation.kid import kernel_distance, squared_mmd
from vmddpm.evaluation.neighbours import nearest, precision_and_recall


def draws(count, dimensions, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) * scale + shift


def gaussian(mean, covariance, count=1000):
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64), count)


def random_covariance(dimensions, seed):
    root = draws(dimensions, dimensions, seed)
    return root @ root.T / dimensions


def test_commuting_covariances():
    """Diagonal covariances: the distance is |m_a - m_b|^2 + sum of (sigma_a - sigma_b)^2."""
    sigma_a, sigma_b = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 2.0, 1.5, 0.0])
    mean_a, mean_b = [0.0, 1.0, -1.0, 2.0], [1.0, 1.0, 1.0, 0.0]
    expected = 1 + 0 + 4 + 4 + ((sigma_a - sigma_b) ** 2).sum()
    a, b = gaussian(mean_a, np.diag(sigma_a**2)), gaussian(mean_b, np.diag(sigma_b**2))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-14)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-14)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-13)


def test_two_dimensions_in_closed_form():
    """tr (A B)^1/2 = sqrt(tr AB + 2 sqrt(det AB)) for 2 x 2 covariances that do not commute."""
    a, b = random_covariance(2, 0), random_covariance(2, 1)
    assert not torch.allclose(a @ b, b @ a)
    cross = math.sqrt((a @ b).trace() + 2 * math.sqrt(torch.linalg.det(a @ b)))
    expected = 0.25 + a.trace() + b.trace() - 2 * cross
    zero = torch.zeros(2, dtype=torch.float64)
    assert frechet_distance(Gaussian(zero, a, 9), Gaussian(zero + torch.tensor([0.5, 0]), b, 9)) == pytest.approx(
        float(expected), rel=1e-12
    )


def test_rotation_changes_nothing():
    a, b = random_covariance(40, 2), random_covariance(40, 3)
    q = torch.linalg.qr(draws(40, 40, 4)).Q
    zero = torch.zeros(40, dtype=torch.float64)
    plain = frechet_distance(Gaussian(zero, a, 99), Gaussian(zero, b, 99))
    turned = frechet_distance(Gaussian(zero, q @ a @ q.T, 99), Gaussian(zero, q @ b @ q.T, 99))
    assert turned == pytest.approx(plain, rel=1e-12)


def test_fit_is_that_of_numpy_even_far_from_zero():
    """Features whose mean is 1e4 times their deviation, in chunks, the last one partial."""
    features = draws(9001, 7, 5, scale=0.5, shift=5e3)
    fit = fit_gaussian(features)
    assert np.allclose(fit.mean, features.numpy().mean(0), rtol=1e-14)
    assert np.allclose(fit.covariance, np.cov(features.numpy(), rowvar=False), rtol=0, atol=1e-12)
    assert fit.count == 9001


class Identity(torch.nn.Module):
    """An extractor that returns images as features: (B, 1, 1, d) -> (B, d)."""

    def forward(self, x):
        return x.flatten(1).double()


@pytest.mark.parametrize(("count_a", "count_b", "dimensions"), [(400, 300, 48), (60, 90, 24)])
def test_frechet_distance_of_torchmetrics(count_a, count_b, dimensions):
    a, b = draws(count_a, dimensions, 6), draws(count_b, dimensions, 7, scale=1.3, shift=0.2)
    metric = FrechetInceptionDistance(feature=Identity(), input_img_size=(1, 1, dimensions))
    metric.set_dtype(torch.float64)
    metric.num_features = dimensions
    metric.update(a.view(count_a, 1, 1, dimensions), real=True)
    metric.update(b.view(count_b, 1, 1, dimensions), real=False)
    assert frechet_distance(fit_gaussian(a), fit_gaussian(b)) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_fewer_images_than_dimensions():
    """The trace of (C_a C_b)^1/2 is the nuclear norm of A^T B, with C = A A^T, whatever the rank."""
    a, b = draws(20, 64, 8), draws(30, 64, 9, scale=2)
    roots = [(x - x.mean(0)).T / math.sqrt(len(x) - 1) for x in (a, b)]
    nuclear = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + sum(r.square().sum() for r in roots) - 2 * nuclear
    assert frechet_distance(fit_gaussian(a), fit_gaussian(b)) == pytest.approx(expected.item(), rel=1e-10)


def test_floor_is_what_a_perfect_generator_gets():
    """Against real draws of the same Gaussian: with all variances 1, and with fewer images than dimensions."""
    for dimensions, real_count, count in ((16, 200, 500), (32, 24, 400)):
        real = replace(fit_gaussian(draws(100_000, dimensions, 10)), count=real_count)
        floors = [frechet_floor(real, count, seed) for seed in range(12)]
        drawn = [
            frechet_distance(fit_gaussian(draws(real_count, dimensions, 100 + s)),
                             fit_gaussian(draws(count, dimensions, 200 + s)))
            for s in range(12)
        ]  # fmt: skip
        assert np.mean(floors) == pytest.approx(np.mean(drawn), rel=0.1)
        assert frechet_floor(real, count, 3) == frechet_floor(real, count, 3)


def test_unusable_features():
    bad = draws(10, 4, 11)
    bad[7, 2] = math.nan
    with pytest.raises(ValueError, match=r"samples: 1 of 10 images .* number 7"):
        fit_gaussian(bad, "samples")
    bad[3, 0] = math.inf
    with pytest.raises(ValueError, match=r"2 of 10 images .* number 3"):
        fit_gaussian(bad)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        fit_gaussian(draws(1, 4, 0))
    with pytest.raises(ValueError, match="at least 4 images"):
        kernel_distance(draws(3, 4, 0), draws(9, 4, 0))
    with pytest.raises(ValueError, match="more than 3 images"):
        precision_and_recall(draws(3, 4, 0), draws(9, 4, 0))
    with pytest.raises(ValueError, match="at least 2 images in each set"):
        frechet_floor(fit_gaussian(draws(9, 4, 0)), 1)


def test_constant_features_have_a_distance():
    """A collapsed model: only the means and the other set's variance remain."""
    constant = torch.full((50, 3), 2.0)
    other = draws(50, 3, 12)
    fit = fit_gaussian(other)
    expected = (fit.mean - 2).square().sum() + fit.covariance.trace()
    assert frechet_distance(fit, fit_gaussian(constant)) == pytest.approx(expected.item(), rel=1e-12)
    assert frechet_distance(fit_gaussian(constant), fit) == pytest.approx(expected.item(), rel=1e-12)


def mmd_by_loops(a, b):
    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y)) / len(x) + 1) ** 3

    m, n = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_b = sum(kernel(b[i], b[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within_a + within_b - 2 * sum(kernel(x, y) for x in a for y in b) / (m * n)


def test_kernel_distance_by_loops():
    a, b = draws(12, 5, 13), draws(9, 5, 14, shift=0.3)
    assert squared_mmd(a, b) == pytest.approx(mmd_by_loops(a.tolist(), b.tolist()), rel=1e-12)


def test_kernel_distance_of_torchmetrics():
    """Both use random subsets: the means agree within their stated errors."""
    a, b = draws(300, 16, 15), draws(260, 16, 16, scale=1.1, shift=0.1)
    metric = KernelInceptionDistance(feature=Identity(), subsets=200, subset_size=100)
    metric.update(a.view(300, 1, 1, 16), real=True)
    metric.update(b.view(260, 1, 1, 16), real=False)
    theirs, their_deviation = (float(v) for v in metric.compute())
    ours = kernel_distance(a, b, subsets=200, subset_size=100)
    assert ours.mean == pytest.approx(theirs, abs=4 * their_deviation / math.sqrt(200))
    assert ours.deviation == pytest.approx(their_deviation, rel=0.3)
    assert kernel_distance(a, b, subsets=5) == kernel_distance(a, b, subsets=5)
    assert kernel_distance(a, b, subsets=5).subset_size == 130


def test_kernel_distance_is_unbiased():
    """Between two halves of samples from one Gaussian it is 0 within its error."""
    found = kernel_distance(draws(800, 8, 17), draws(800, 8, 18), subsets=50, subset_size=100)
    assert abs(found.mean) < 3 * found.deviation


def precision_by_loops(real, synthetic, k):
    def radius(x, own):
        return sorted(np.linalg.norm(x - y) for y in own)[k]

    radii = [radius(y, real) for y in real]
    return np.mean([any(np.linalg.norm(x - y) <= r for y, r in zip(real, radii)) for x in synthetic])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_by_loops(k, monkeypatch):
    monkeypatch.setattr("vmddpm.evaluation.neighbours.BLOCK", 1000)  # several blocks
    monkeypatch.setattr("vmddpm.evaluation.neighbours.CHUNK", 32)
    real, synthetic = draws(70, 3, 19), draws(90, 3, 20, scale=0.7, shift=1.2)
    found = precision_and_recall(real, synthetic, k)
    assert found.precision == precision_by_loops(real.numpy(), synthetic.numpy(), k)
    assert found.recall == precision_by_loops(synthetic.numpy(), real.numpy(), k)
    assert 0 < found.recall < 1
    assert 0 < found.precision < 1


def test_nearest_by_loops(monkeypatch):
    monkeypatch.setattr("vmddpm.evaluation.neighbours.BLOCK", 500)
    queries, references = draws(33, 4, 21).float(), draws(40, 4, 22).float()
    queries[5] = references[17]
    found = nearest(queries, references)
    distances = np.linalg.norm(queries.numpy()[:, None].astype(float) - references.numpy()[None], axis=2)
    assert found.index.tolist() == distances.argmin(1).tolist()
    assert np.allclose(found.distance, distances.min(1), rtol=1e-12)
    assert (found.distance[5], found.index[5]) == (0, 17)
    alone = nearest(references, references, exclude_self=True)
    own = np.linalg.norm(references.numpy()[:, None].astype(float) - references.numpy()[None], axis=2)
    np.fill_diagonal(own, np.inf)
    assert alone.index.tolist() == own.argmin(1).tolist()
    with pytest.raises(ValueError, match="give more real images"):
        nearest(queries[:1], queries[:1], exclude_self=True)
