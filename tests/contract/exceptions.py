"""The promises that rows do not keep, and why. A cell listed here must fail: `xfail(strict=True)`."""

from __future__ import annotations

from collections.abc import Mapping

_RATES_ONLY = "inputs are read as firing rates, which do not know the order"
_ONE_STEP_LATER = "the decay of the adaptation acts one step later"
_NOISY = (
    "noisy_spikes",
    "spiking_bayes_agr",
    "spiking_bayes_binary",
    "spiking_bayes_posterior_mean",
    "spiking_bayes_recurrent",
    "spiking_bayes_samples",
    "spiking_bayes_step",
    "spiking_bayes_trace",
    "spiking_bayes_weights",
)
_EP = (
    "expectation_propagation",
    "expectation_propagation_average",
    "expectation_propagation_signs",
    "expectation_propagation_winner",
)
_REPLACING = (
    "rate_backprop",
    "rate_backprop_windows",
    "rate_backprop_linked",
    "rate_backprop_streaming",
    "rate_backprop_step",
    "online_through_time",
    "online_through_time_streaming",
    "online_through_time_space",
    "eprop",
    "eprop_adaptive",
    "eprop_streaming",
)
# for all rows of a table
EVERY = "*"
_OWN_NOISE = "noise is drawn for each part of the batch, so a draw for the whole batch is another one"
_MESSAGES = "messages are exchanged within a batch, so two batches are not their union"


def _of(rows: tuple[str, ...], reason: str) -> dict[str, str]:
    return dict.fromkeys(rows, reason)


# by promise, the name of its test without `test_`, and by row or EVERY
EXCEPTIONS: Mapping[str, Mapping[str, str]] = {
    "it_learns_the_order_of_two_events": {
        "time_to_first_spike": "every time step is a presentation of its own, forgotten at the next",
        **_of(_EP, _RATES_ONLY),
    },
    "a_prediction_does_not_depend_on_the_size_of_the_batch": {
        "spiking_bayes_samples": "noise is drawn for the whole batch at once",
    },
    "rates_of_one_step_windows_keep_the_output_and_reach_all": {
        "adaptive_lif_learned": _ONE_STEP_LATER,
        "recurrent_around_learned_adaptive_lif": _ONE_STEP_LATER,
        "bayes_recurrent_lif": "refused: noise of weights has no rate rule",
    },
    "several_instances_share_a_run": {
        "hardware_fine_tuning": "weights of a run are those of one chip",
        "pass_scores": "one curve a run",
    },
    "two_accumulated_halves_are_one_batch": {**_of(_NOISY, _OWN_NOISE), **_of(_EP, _MESSAGES)},
    "two_processes_are_one_with_the_joint_batch": {**_of(_NOISY, _OWN_NOISE), **_of(_EP, _MESSAGES)},
    "two_processes_accumulate_as_one_with_the_joint_batches": {**_of(_NOISY, _OWN_NOISE), **_of(_EP, _MESSAGES)},
    "unequal_last_batches_count_by_process": {
        "spiking_bayes_binary": "by hand the second process already uses the lambda that the first one measured",
        **_of(
            ("expectation_propagation", "expectation_propagation_average", "expectation_propagation_winner"),
            "displacements of known batches are summed over processes, not averaged",
        ),
    },
    "a_stream_without_a_length_trains_as_its_batches": {
        "expectation_propagation_average": "refused by name: it needs the number of training samples",
    },
    "a_compiled_network_trains_as_it_is": {
        **_of(_REPLACING, "refused by name: calls of layers are replaced"),
        **_of(_EP, "refused by name: messages do not call the network"),
    },
    "the_learning_rate_finder_leaves_nothing_but_the_rate": _of(_EP, "refused by name: it has no learning rate"),
    "detecting_anomalies_finds_a_nan": _of(_EP, "a batch with NaN is skipped, so nothing is differentiated"),
}


def reason(promise: str, row: str) -> str | None:
    """Return why a row does not keep a promise; None if it does."""
    exceptions = EXCEPTIONS.get(promise, {})
    return exceptions.get(row, exceptions.get(EVERY))
