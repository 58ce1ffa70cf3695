"""Statistics against the paper's numbers, other libraries and numerical maximisation, and coverage of intervals."""

import math
from functools import cache
from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import hypergeom, norm
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters, cohens_kappa, fleiss_kappa
from statsmodels.stats.proportion import proportion_confint, test_proportions_2indep

from vmddpm.study import statistics as st

test_proportions_2indep.__test__ = False  # not a pytest test despite its name

DOCTORS = (st.Counts(86, 14, 81, 17), st.Counts(44, 28, 58, 21))
TABLES = [  # Tables III and IV: precision real, synthetic; recall real, synthetic. Table V: p
    (DOCTORS[0], (0.860, 0.173), (0.515, 0.548), 0.56136),
    (DOCTORS[1], (0.611, 0.266), (0.431, 0.429), 0.11982),
]


@pytest.mark.parametrize(("counts", "precision", "recall", "p"), TABLES)
def test_the_papers_tables(counts, precision, recall, p):
    assert tuple(round(x, 3) for x in st.paper_precision(counts)) == precision
    assert tuple(round(x, 3) for x in st.paper_recall(counts)) == recall
    assert round(st.fisher(counts), 5) == p


def random_counts(number, most=60):
    rng = np.random.default_rng(0)
    return [st.Counts(*map(int, rng.integers(1, most, 4))) for _ in range(number)]


@pytest.mark.parametrize("c", [*DOCTORS, *random_counts(20)])
def test_fisher_is_the_sum_over_tables_that_are_as_unlikely(c):
    judged_real = c.real_as_real + c.synthetic_as_real
    tables = hypergeom(sum(c), c.real, judged_real)
    probabilities = tables.pmf(np.arange(min(c.real, judged_real) + 1))
    p = probabilities[probabilities <= tables.pmf(c.real_as_real) * (1 + 1e-9)].sum()
    assert st.fisher(c) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("c", [*DOCTORS, *random_counts(10)])
def test_accuracy_has_wilsons_interval(c):
    right = c.real_as_real + c.synthetic_as_synthetic
    assert st.accuracy(c)[1:] == pytest.approx(proportion_confint(right, sum(c), method="wilson"), rel=1e-12)


def test_values_of_the_two_doctors():
    assert st.accuracy(DOCTORS[0]) == pytest.approx((0.5202, 0.4509, 0.5887), abs=1e-4)
    assert st.accuracy(DOCTORS[1]) == pytest.approx((0.4305, 0.3542, 0.5102), abs=1e-4)
    assert [round(st.d_prime(c).value, 3) for c in DOCTORS] == [0.140, -0.343]
    assert [round(st.difference(c).value, 3) for c in DOCTORS] == [0.033, -0.123]


# Newcombe (1998), Statistics in Medicine 17, 873-890: Miettinen and Nurminen's interval in his Table II.
@pytest.mark.parametrize(
    ("counts", "low", "high"), [((56, 14, 48, 32), 0.0528, 0.3382), ((9, 1, 3, 7), 0.1700, 0.8406)]
)
def test_difference_has_the_published_interval(counts, low, high):
    assert st.difference(st.Counts(*counts))[1:] == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("c", [*DOCTORS, *random_counts(15), st.Counts(5, 51, 0, 29), st.Counts(10, 0, 3, 20)])
@pytest.mark.parametrize("supposed", [-0.3, -0.1, 0.02, 0.1, 0.4])
def test_score_against_a_likelihood_that_is_maximised_numerically(c, supposed):
    (x1, n1), (x2, n2) = (c.real_as_real, c.real), (c.synthetic_as_real, c.synthetic)

    def minus_log_likelihood(p):
        q = p - supposed
        terms = ((x1, p), (n1 - x1, 1 - p), (x2, q), (n2 - x2, 1 - q))
        return -sum(count * math.log(share) for count, share in terms if count)

    ends = (max(0, supposed) + 1e-12, min(1, 1 + supposed) - 1e-12)
    p = minimize_scalar(minus_log_likelihood, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
    q = p - supposed
    variance = (p * (1 - p) / n1 + q * (1 - q) / n2) * (n1 + n2) / (n1 + n2 - 1)
    assert st.score(c, supposed) == pytest.approx((x1 / n1 - x2 / n2 - supposed) / math.sqrt(variance), rel=1e-5)


@pytest.mark.parametrize("c", [*DOCTORS, *random_counts(10)])
def test_score_of_no_difference_is_that_of_statsmodels(c):
    other = test_proportions_2indep(
        c.real_as_real, c.real, c.synthetic_as_real, c.synthetic, method="score", compare="diff"
    )
    assert st.score(c, 0.0) == pytest.approx(other.statistic, rel=1e-7)


@pytest.mark.parametrize("c", [*DOCTORS, *random_counts(20), st.Counts(10, 0, 12, 0), st.Counts(7, 0, 0, 9)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_score_is_at_its_limit_at_both_ends(c, level):
    value, low, high = st.difference(c, level)
    assert -1 <= low <= value <= high <= 1
    for end, sign in ((low, 1), (high, -1)):
        if abs(end) < 1:
            assert st.score(c, end) == pytest.approx(sign * norm.ppf((1 + level) / 2), abs=1e-6)


def test_every_small_table_has_an_interval():
    for cells in product(range(4), repeat=4):
        c = st.Counts(*cells)
        for value, low, high in (st.difference(c), st.d_prime(c), st.accuracy(c)):
            assert low <= value <= high or math.isnan(value)
        assert 0 <= st.equivalence(c, 0.1) <= 1 or not (c.real and c.synthetic)


@pytest.mark.parametrize("c", [*DOCTORS, *random_counts(20, most=400)])
@pytest.mark.parametrize("margin", [0.05, 0.1, 0.2])
def test_equivalence_is_shown_where_the_90_percent_interval_lies_inside_the_margin(c, margin):
    _, low, high = st.difference(c, 0.9)
    assert (st.equivalence(c, margin) < 0.05) == (-margin < low and high < margin)


def test_fisher_does_not_show_equivalence():
    """Doctor 2's p of 0.12 is compatible with differences of up to 27 points."""
    assert st.fisher(DOCTORS[1]) > 0.1
    assert st.equivalence(DOCTORS[1], 0.1) > 0.5
    assert st.equivalence(st.Counts(500, 500, 500, 500), 0.1) < 1e-4


def test_d_prime_against_its_definition_and_at_the_ends():
    c = DOCTORS[0]
    hit, false_alarm = 86 / 100, 81 / 98
    variance = sum(p * (1 - p) / n / norm.pdf(norm.ppf(p)) ** 2 for p, n in ((hit, 100), (false_alarm, 98)))
    value = norm.ppf(hit) - norm.ppf(false_alarm)
    assert st.d_prime(c) == pytest.approx((value, value - 1.959964 * variance**0.5, value + 1.959964 * variance**0.5))
    perfect = st.d_prime(st.Counts(10, 0, 0, 10))
    assert perfect.value == pytest.approx(2 * norm.ppf(10.5 / 11))


def test_nothing_to_divide_by():
    empty = st.Counts(0, 0, 0, 0)
    values = [*st.paper_precision(empty), *st.paper_recall(empty), *st.accuracy(empty), *st.d_prime(empty),
              *st.difference(empty), st.equivalence(empty, 0.1)]  # fmt: skip
    assert all(math.isnan(value) for value in values)
    assert st.fisher(empty) == 1
    assert math.isnan(st.difference(st.Counts(3, 4, 0, 0)).low)


def judgements(readers, images, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, images)
    return [["real" if (t if rng.random() < 0.8 else 1 - t) else "synthetic" for t in truth] for _ in range(readers)]


@pytest.mark.parametrize("seed", range(3))
def test_kappas_against_statsmodels_and_scikit_learn(seed):
    first, second, third = given = judgements(3, 80, seed)
    table = [[sum((a, b) == pair for pair in zip(first, second)) for b in ("real", "synthetic")]
             for a in ("real", "synthetic")]  # fmt: skip
    other = cohens_kappa(table)
    kappa = st.cohen(first, second)
    assert kappa == pytest.approx((other.kappa, other.kappa_low, other.kappa_upp), rel=1e-9)
    assert kappa.value == pytest.approx(cohen_kappa_score(first, second))
    assert st.fleiss(given) == pytest.approx(fleiss_kappa(aggregate_raters(np.array(given).T)[0]))
    assert math.isnan(st.cohen(["real"] * 5, ["real"] * 5).value)
    assert st.cohen(third, third).value == 1


def test_agreement_is_over_the_images_that_both_have_judged():
    rows = st.agreements({"a": {"1": "real", "2": "real", "3": "synthetic"}, "b": {"2": "real", "3": "real"},
                          "c": {"3": "real"}})  # fmt: skip
    assert [(row["readers"], row["images"], row["agreement"]) for row in rows] == [
        ("a, b", 2, 0.5), ("a, c", 1, 0.0), ("b, c", 1, 1.0), ("a, b, c", 1, 0.0)
    ]  # fmt: skip


@pytest.mark.parametrize(("p1", "p2"), [(0.5, 0.5), (0.86, 0.83), (0.6, 0.75), (0.95, 0.95)])
def test_intervals_cover_the_truth_as_often_as_they_say(p1, p2):
    """4000 studies of 100 + 100 images; three standard errors of the coverage are one point."""
    rng = np.random.default_rng(5)
    interval = cache(lambda kind, counts: getattr(st, kind)(st.Counts(*counts)))
    truths = {"difference": p1 - p2, "accuracy": (p1 + 1 - p2) / 2, "d_prime": norm.ppf(p1) - norm.ppf(p2)}
    covered = dict.fromkeys(truths, 0)
    studies = 4000
    for x1, x2 in zip(rng.binomial(100, p1, studies), rng.binomial(100, p2, studies)):
        for kind, truth in truths.items():
            _, low, high = interval(kind, (int(x1), int(100 - x1), int(x2), int(100 - x2)))
            covered[kind] += low <= truth <= high
    shares = {kind: count / studies for kind, count in covered.items()}
    print(p1, p2, shares)
    assert 0.94 <= shares["difference"] <= 0.965
    # Right answers over two classes vary less than over 200 equal images: intervals may be too wide, never too narrow.
    assert 0.94 <= shares["accuracy"] <= 1
    assert 0.935 <= shares["d_prime"] <= 0.97


def test_cohens_interval_covers_the_truth():
    """Two readers, independently right in 8 of 10 images: kappa is (0.8² + 0.2² - 0.5) / 0.5."""
    pairs = [judgements(2, 100, seed) for seed in range(1000)]
    covered = sum(low <= 0.36 <= high for _, low, high in (st.cohen(*pair) for pair in pairs))
    print(covered / len(pairs))
    assert 0.93 <= covered / len(pairs) <= 0.97
