"""Schedules by optax name: their defaults as factors, and what is refused."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pfljax.errors import UserError
from pfljax.training.run import loop, runtime, writers
from pfljax.training.study import config as config_lib
from pfljax.training.study import experiment, schedules

ROUNDS = 40
# The arguments that each known schedule needs beside its defaults, per round.
NEEDED = {
    "exponential_decay": {"decay_rate": 0.5},
    "linear_schedule": {"end_value": 0.1},
    "piecewise_constant_schedule": {"boundaries": (10, 30), "scales": (0.1, 0.5)},
    "polynomial_schedule": {"end_value": 0.1, "power": 2.0},
    "warmup_constant_schedule": {"warmup_steps": 5},
    "warmup_cosine_decay_schedule": {"warmup_steps": 5},
    "warmup_exponential_decay_schedule": {"warmup_steps": 5, "decay_rate": 0.5},
}


def changed(name, changes=(), **arguments):
    config = config_lib.default_config()
    config.rounds = ROUNDS
    config.client_schedule.name = name
    config.client_schedule.update(arguments)
    config.update_from_flattened_dict(dict(changes))
    return config


@pytest.mark.parametrize("name", schedules.known_schedules())
def test_every_known_schedule_is_made(name):
    config = changed(name, **NEEDED.get(name, {}))
    schedules.check(config)
    made = schedules.make(config)
    factors = np.array([made["schedule"](round) for round in range(ROUNDS)])
    assert made["step_schedule"] is None and np.all(np.isfinite(factors)) and np.ptp(factors) > 0
    assert factors.max() <= 1  # a factor of the learning rate, with the defaults


def test_the_names_cover_cosine_steps_and_warm_up():
    assert {*NEEDED, "cosine_decay_schedule"} <= set(schedules.known_schedules())
    excluded = {"constant_schedule", "join_schedules", "sgdr_schedule", "inject_hyperparams"}
    assert not excluded & set(schedules.known_schedules())


@pytest.mark.parametrize(
    "name, arguments, optax_arguments",
    [
        ("cosine_decay_schedule", {}, (1.0, ROUNDS)),
        ("cosine_decay_schedule", {"decay_steps": 9, "alpha": 0.2}, (1.0, 9, 0.2)),
        ("warmup_cosine_decay_schedule", {"warmup_steps": 5}, (0.0, 1.0, 5, ROUNDS)),
        (
            "piecewise_constant_schedule",
            {"boundaries": (10, 30), "scales": (0.1, 0.5)},
            (1.0, {10: 0.1, 30: 0.5}),
        ),
        (
            "exponential_decay",
            {"transition_steps": 10, "decay_rate": 0.5, "staircase": True},
            (1.0, 10, 0.5, 0, True),
        ),
    ],
)
def test_a_schedule_is_that_of_optax(name, arguments, optax_arguments):
    own = schedules.make(changed(name, **arguments))["schedule"]
    wanted = getattr(optax, name)(*optax_arguments)
    for round in (0, 1, 9, 10, 29, 30, ROUNDS - 1):
        np.testing.assert_allclose(own(jnp.int32(round)), wanted(round))


def test_without_a_schedule_nothing_is_multiplied():
    nothing = {"schedule": None, "step_schedule": None}
    assert schedules.make(changed("constant")) == nothing
    decayed = schedules.make(changed("constant", {"client_optimizer.decay": 0.9}))
    np.testing.assert_allclose(decayed["schedule"](jnp.int32(2)), 0.81, rtol=1e-6)


REFUSED = [
    (("cosine", {}), "client_schedule.name 'cosine'; known are cosine_decay_schedule"),
    (("linear_schedule", {}), "optax.linear_schedule needs config.client_schedule.end_value"),
    (("constant", {"alpha": 0.1}), "alpha is set, but config.client_schedule.name is 'constant'"),
    (("cosine_decay_schedule", {"per": "epoch"}), "client_schedule.per 'epoch'"),
    (("cosine_decay_schedule", {"power": 2.0}), "power is set, but optax.cosine_decay_schedule"),
    (("cosine_decay_schedule", {"decay_steps": 0}), "decay_steps is 0; it must be a whole"),
    (
        ("cosine_decay_schedule", {"per": "step"}),
        "needs config.client_schedule.decay_steps; set it, as config.client_schedule.per is 'step'",
    ),
    (("exponential_decay", {"decay_rate": 0.0}), "decay_rate is 0.0; it must be positive"),
    (("linear_schedule", {"end_value": float("nan")}), "end_value is nan"),
    (
        ("piecewise_constant_schedule", {"boundaries": (5, 3), "scales": (0.1, 0.1)}),
        "boundaries is \\(5, 3\\).*in ascending order",
    ),
    (("piecewise_constant_schedule", {"boundaries": (5,)}), "the same number of values"),
    (("piecewise_constant_schedule", {}), "the same number of values"),
    (("warmup_cosine_decay_schedule", {"warmup_steps": ROUNDS + 1}), "refuses its arguments"),
]


@pytest.mark.parametrize("settings, message", REFUSED)
def test_invalid_schedules_are_refused_before_anything_is_compiled(settings, message):
    name, arguments = settings
    counter = runtime.CompilationCounter()
    with pytest.raises(UserError, match=message):
        experiment.check(changed(name, **arguments))
    counter.close()
    assert counter.programs == 0


def test_a_negative_factor_is_refused():
    with pytest.raises(UserError, match="optax.linear_schedule is -0.0.* in round 21"):
        schedules.check(changed("linear_schedule", end_value=-1.0))


def test_a_run_has_one_schedule():
    config = changed("cosine_decay_schedule", {"client_optimizer.decay": 0.9})
    with pytest.raises(UserError, match="decay is 0.9 and config.client_schedule.name is 'cosine"):
        schedules.check(config)


def test_a_run_cannot_be_extended_where_its_schedule_has_the_planned_length(tmp_path):
    small = {"data.num_clients": 5, "engine.clients_per_chunk": "1", "engine.devices": 1}
    longer = {**small, "rounds": 2 * ROUNDS}
    fixed = {"decay_steps": 7}
    for arguments, refused in (({}, True), (fixed, False)):
        writers.write_json(tmp_path / "config.json", {"rounds": ROUNDS})
        resumed = experiment.build(changed("cosine_decay_schedule", longer, **arguments))
        if refused:
            with pytest.raises(UserError, match=f"Add --config.planned_rounds={ROUNDS}"):
                loop.check_plan(resumed, tmp_path)
        else:
            loop.check_plan(resumed, tmp_path)


def test_a_method_that_reads_the_rate_of_a_round_refuses_a_schedule_per_step():
    config = changed("warmup_constant_schedule", per="step", warmup_steps=3)
    config.algorithm = "apfl"
    experiment.build(config)
    config.hparams.apfl.use_client_rate = True
    with pytest.raises(UserError, match="set config.client_schedule.per='round'"):
        experiment.build(config)
