"""Statistics of trainings: pure functions of data frames whose rows are trainings, and of their columns."""

from math import comb

import numpy as np
from scipy.stats import percentileofscore, ttest_ind

from scores import Resamples

RESAMPLES = 2000  # of the bootstrap


def by_row(trained, order):
    """{row: its trainings}, the rows in that order, and behind them those that are not in it."""
    runs = dict(list(trained.groupby("row", sort=False)))
    return {row: runs[row] for row in dict.fromkeys([*order, *runs]) if row in runs}


def difference(values, others):
    """The difference of two means and its 95 % interval over trainings (Welch's t): (difference, low, high).

    The limits are NaN where one of the two has fewer than two trainings.
    """
    low, high = ttest_ind(values, others, equal_var=False).confidence_interval(0.95)
    return values.mean() - others.mean(), low, high


def p_value(values, others):
    """Welch's p-value, two-sided, of the difference of two means over trainings; NaN as for `difference`."""
    return ttest_ind(values, others, equal_var=False).pvalue


def holm(p_values):
    """The p-values of a family of comparisons, corrected for their number (Holm 1979); NaN stays and does not count."""
    p_values = np.array(p_values, float)
    known = np.flatnonzero(~np.isnan(p_values))
    rising = known[np.argsort(p_values[known])]
    factors = np.arange(len(rising), 0, -1)
    p_values[rising] = np.maximum.accumulate(factors * p_values[rising]).clip(max=1)
    return p_values


def share_of_lead(part, whole, base):
    """How much of the lead that `whole` has over `base` in the mean `part` has, too: (share, low, high).

    The interval is a 95 % percentile bootstrap over the trainings of each of the three.
    """
    rng = np.random.default_rng(0)
    means = [np.append(v.mean(), rng.choice(v, (RESAMPLES, len(v))).mean(axis=1)) for v in (part, whole, base)]
    shares = (means[0] - means[2]) / (means[1] - means[2])
    return shares[0], *np.quantile(shares[1:], [0.025, 0.975])


def format_interval(middle, low, high, form):
    """A number, and its interval where there is one."""
    return form.format(middle) + (f" [{form}, {form}]".format(low, high) if low < high else "")


def percentile(values, among):
    """The mean share, in %, of `among` that a value is better than; equal ones count half."""
    return percentileofscore(among, values, kind="mean").mean()


def best_of(drawn, k):
    """Expected test AUC of the training with the best val AUC among k of these, drawn without replacement."""
    ranked = drawn.sort_values("val_auc")["test_auc"]
    # The training with i worse ones is the best of k in comb(i, k − 1) of all comb(n, k) draws.
    return sum(comb(i, k - 1) * auc for i, auc in enumerate(ranked)) / comb(len(ranked), k)


def draws_in_equal_time(searched, drawn):
    """How many drawn cells can be trained in the mean minutes of a search and a training: 1 to all, or 0 of none."""
    minutes = (searched["search_minutes"] + searched["minutes"]).mean()
    each = max(0.01, drawn["minutes"].mean())  # minutes are rounded: the shortest training has 0.00
    return min(len(drawn), max(1, round(minutes / each))) if len(drawn) else 0


def rank_correlation(pairs):
    """Spearman's rank correlation of the two columns of `pairs` and its 95 % interval: (correlation, low, high).

    The interval is a percentile bootstrap over the rows.
    """
    resamples = [pairs, *(pairs.sample(frac=1, replace=True, random_state=seed) for seed in range(RESAMPLES))]
    correlation, *by_chance = [resample.corr("spearman").iloc[0, 1] for resample in resamples]
    low, high = np.nanquantile(by_chance, [0.025, 0.975])  # NaN: a resample of one row alone
    return correlation, low, high


def reliability(values, cells, of_means=False):
    """The share of the variance of trainings' values that is not chance of a training: 0 to 1.

    cells: which cell each training has; the variance within those that several have is the chance. of_means: the
    share for the cells' means instead. NaN where no cell has two trainings. Two measured quantities cannot be
    expected to correlate better than the root of the product of their reliabilities (Spearman 1904).
    """
    trainings = values.groupby(cells)
    within, count = trainings.var(), trainings.size()
    chance = (within * (count - 1)).sum() / (count - 1).sum() if (count > 1).any() else np.nan
    share = chance * (1 / count).mean() / trainings.mean().var() if of_means else chance / values.var()
    return np.maximum(0, 1 - share)


def auc_over_folds(folds, resamples):
    """{command: mean AUC over the findings, (1 + resamples,)}, and how many findings: over pairs of films of one fold.

    folds: [(positive (N, findings) bool, patients (N,), {command: [probabilities (N, findings) of each seed]})]. The
    networks of different folds have different scales, so their films are not compared. Value 0 is that of all films;
    the others are resamples of the patients within their folds. Findings that more than 1 % of the resamples cannot
    score are left out.
    """
    pairs, wins = 0, {}
    for k, (positive, patients, predictions) in enumerate(folds):
        drawn = Resamples(patients, resamples, seed=k)
        inside = drawn.sums(positive.astype(float)) * drawn.sums((~positive).astype(float))
        pairs = pairs + inside
        for command, seeds in predictions.items():
            auc = [drawn.aucs(zip(positive.T, p.T, strict=True)) for p in seeds]
            wins[command] = wins.get(command, 0) + inside * np.nan_to_num(np.mean(auc, axis=0))
    known = (pairs == 0).mean(axis=0) <= 0.01
    with np.errstate(invalid="ignore"):
        return {command: (won / pairs)[:, known].mean(axis=1) for command, won in wins.items()}, int(known.sum())
