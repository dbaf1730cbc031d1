"""Metrics whose states are not those of other tests, over two processes with unequal shares."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.metrics import (
    AdaptiveCalibrationError,
    AreaUnderGeneralizedRiskCoverage,
    AreaUnderRiskCoverage,
    ClasswiseCalibrationError,
    ConformalThreshold,
    OutOfDistributionAUPR,
    OutOfDistributionAUROC,
    OutOfDistributionFPR,
    SetCoverage,
    SetSize,
    SmoothCalibrationError,
    SynapticOperations,
)
from lightning_snn.metrics.activity import operations_per_sample, record_activity
from lightning_snn.metrics.functional import (
    adaptive_calibration_error,
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    classwise_calibration_error,
    conformal_scores,
    conformal_threshold,
    ood_aupr,
    ood_auroc,
    ood_fpr,
    prediction_sets,
    set_coverage,
    set_size,
    smooth_calibration_error,
    true_class_scores,
)
from tests.support.processes import on_two_processes

SAMPLES = 31
SHARES = (slice(0, 20), slice(20, SAMPLES))


def data() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network with inputs `[T, N, 6]`, uncertainties `[N]` and errors `[N]`."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), LIF(), nn.Linear(8, 3))
    x = (torch.rand(5, SAMPLES, 6, generator=generator) < 0.6).float()
    uncertainty = torch.rand(SAMPLES, generator=generator)
    return network, x, uncertainty, torch.rand(SAMPLES, generator=generator) < uncertainty


def sets_of_all() -> tuple[Tensor, Tensor, Tensor]:
    """Return the predictions `[N, 2]`, their classes `[N]`, and the threshold of their sets."""
    _, _, uncertainty, errors = data()
    both = torch.stack([uncertainty, 1 - uncertainty], 1).double()
    return (
        both,
        errors.long(),
        conformal_threshold(true_class_scores(conformal_scores(both, "lac"), errors.long()), 0.2),
    )


def of_all() -> dict[str, Tensor]:
    network, x, uncertainty, errors = data()
    with record_activity(network) as activity:
        run(network, x)
    return {
        **operations_per_sample(activity),
        "aurc": area_under_risk_coverage(uncertainty, errors),
        "auroc": ood_auroc(uncertainty[~errors], uncertainty[errors]),
        **scores_of_all(),
    }


def scores_of_all() -> dict[str, Tensor]:
    both, classes, threshold = sets_of_all()
    uncertainty, errors = both[:, 0], classes.bool()
    groups = uncertainty[~errors], uncertainty[errors]
    sets = prediction_sets(conformal_scores(both, "lac"), threshold)
    return {
        "augrc": area_under_generalized_risk_coverage(uncertainty, errors),
        "fpr": ood_fpr(*groups),
        "aupr": ood_aupr(*groups),
        "classwise": classwise_calibration_error(both, classes),
        "smooth": smooth_calibration_error(both, classes),
        "threshold": threshold,
        "coverage": set_coverage(sets, classes),
        "size": set_size(sets),
    }


def _scores_of(share: slice) -> dict[str, Tensor]:
    """Return the scores of all processes, of which this one updates them with a share, also an empty one."""
    both, classes, threshold = (each[share] if each.ndim else each for each in sets_of_all())
    sets = prediction_sets(conformal_scores(both, "lac"), threshold)
    ranking = {
        "augrc": AreaUnderGeneralizedRiskCoverage(),
        "fpr": OutOfDistributionFPR(),
        "aupr": OutOfDistributionAUPR(),
    }
    calibration = {
        "classwise": ClasswiseCalibrationError(2),
        "smooth": SmoothCalibrationError(),
        "threshold": ConformalThreshold(0.2, "lac"),
    }
    coverage, size = SetCoverage(), SetSize()
    if len(classes):
        for metric in ranking.values():
            metric.update(both[:, 0], classes.bool())
        for metric in calibration.values():
            metric.update(both, classes)
        coverage.update(sets, classes)
        size.update(sets)
    metrics = {**ranking, **calibration, "coverage": coverage, "size": size}
    return {name: metric.compute() for name, metric in metrics.items()}


def _of_share(rank: int) -> dict[str, Tensor]:
    network, x, uncertainty, errors = data()
    share = SHARES[rank]
    operations, risk, outside = SynapticOperations(), AreaUnderRiskCoverage(), OutOfDistributionAUROC()
    for part in (x[:, share][:, :4], x[:, share][:, 4:]):
        with record_activity(network) as activity:
            run(network, part)
        operations.update(activity)
    risk.update(uncertainty[share], errors[share])
    outside.update(uncertainty[share], errors[share])
    return {**operations.compute(), "aurc": risk.compute(), "auroc": outside.compute(), **_scores_of(share)}


def test_two_processes_with_unequal_shares_get_the_value_of_all_samples(tmp_path: Path) -> None:
    expected = of_all()
    assert expected["effective_acs"] > 0
    for found in on_two_processes(_of_share, tmp_path):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0, msg=name)


def _of_the_second(rank: int) -> dict[str, Tensor]:
    """Update metrics that store samples in float64 and bool in the second process only."""
    _, _, uncertainty, errors = data()
    metrics = {
        "aurc": AreaUnderRiskCoverage(),
        "auroc": OutOfDistributionAUROC(),
        "adaptive": AdaptiveCalibrationError(),
    }
    if rank == 1:
        metrics["aurc"].update(uncertainty.double(), errors)
        metrics["auroc"].update(uncertainty.double(), errors)
        metrics["adaptive"].update(torch.stack([uncertainty, 1 - uncertainty], 1).double(), errors.long())
    share = slice(0, SAMPLES if rank == 1 else 0)
    return {**{name: metric.compute() for name, metric in metrics.items()}, **_scores_of(share)}


def test_a_process_without_samples_takes_part(tmp_path: Path) -> None:
    _, _, uncertainty, errors = data()
    wide = uncertainty.double()
    both = torch.stack([uncertainty, 1 - uncertainty], 1).double()
    expected = {
        "aurc": area_under_risk_coverage(wide, errors),
        "auroc": ood_auroc(wide[~errors], wide[errors]),
        "adaptive": adaptive_calibration_error(both, errors.long(), 15),
        **scores_of_all(),
    }
    for found in on_two_processes(_of_the_second, tmp_path):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0, msg=name)
