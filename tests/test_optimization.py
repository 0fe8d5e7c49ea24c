"""Learning rates, optimizers and losses against numbers worked by hand."""

import math
from typing import Any

import keras
import numpy as np
import pytest
from conftest import PARAMS

from stages.shared import params
from stages.training.optimization import (
    Table,
    learning_rates,
    make_loss,
    make_optimizer,
    orthogonalized,
)

RECIPES = {name: recipe.model_dump() for name, recipe in params.load(PARAMS).recipes.items()}


def rates_of(schedule: dict[str, Any], epochs: int, steps: int, rate: float = 1.0) -> np.ndarray:
    recipe = {"epochs": epochs, "optimizer": {"learning_rate": rate}, "schedule": schedule}
    return learning_rates(recipe, steps)


def apply(config: dict[str, Any], rates: list[float], gradients: list[float]) -> list[float]:
    """The values that a scalar variable takes from 1.0 on, one per gradient."""
    variable = keras.Variable(1.0)
    optimizer = make_optimizer(config, np.array(rates, np.float32))
    optimizer.build([variable])
    values = []
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)])
        values.append(float(variable.value))
    return values


def sgd(**changes: Any) -> dict[str, Any]:
    plain = {"learning_rate": 1.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    return {"name": "sgd", **plain, **changes}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "constant"}, [2, 2, 2, 2, 2, 2]),
        ({"name": "inverse_time", "decay_per_step": 0.5}, [2, 4 / 3, 1, 0.8, 2 / 3, 4 / 7]),
        ({"name": "piecewise", "from_epochs": [1], "factors": [0.5]}, [2, 2, 1, 1, 1, 1]),
        (
            {"name": "piecewise", "from_epochs": [1, 2], "factors": [3.0, 0.1]},
            [2, 2, 6, 6, 0.2, 0.2],
        ),
        ({"name": "piecewise", "from_epochs": [9], "factors": [0.5]}, [2, 2, 2, 2, 2, 2]),
        (
            {"name": "linear", "warmup_epochs": 0, "final_fraction": 0.4},
            [2, 1.8, 1.6, 1.4, 1.2, 1.0],
        ),
        (
            {"name": "linear", "warmup_epochs": 1.0, "final_fraction": 0.0},
            [0, 1, 2, 1.5, 1.0, 0.5],
        ),
        (
            {"name": "cosine", "warmup_epochs": 1, "final_fraction": 0.0},
            [0, 1, 2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)],
        ),
        (
            {"name": "cosine", "warmup_epochs": 0, "final_fraction": 1.0},
            [2, 2, 2, 2, 2, 2],
        ),
    ],
)
def test_learning_rates_of_three_epochs_of_two_steps(
    schedule: dict[str, Any], expected: list[float]
) -> None:
    rates = rates_of(schedule, epochs=3, steps=2, rate=2.0)
    assert rates.dtype == np.float32
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_decay_starts_after_the_warmup_and_ends_near_the_final_fraction(name: str) -> None:
    schedule = {"name": name, "warmup_epochs": 2, "final_fraction": 0.1}
    rates = rates_of(schedule, epochs=12, steps=1000)
    assert rates[0] == 0
    assert rates[1000] == pytest.approx(0.5)
    assert rates[2000] == rates.max() == 1
    assert rates[7000] == pytest.approx(0.55)  # half-way, both the line and the half cosine
    assert rates[-1] == pytest.approx(0.1, abs=1e-4)
    assert rates.min() == 0
    assert (np.diff(rates[:2001]) > 0).all()
    assert (np.diff(rates[2000:]) <= 0).all()


@pytest.mark.parametrize("name", ["tutorial-simple", "tutorial-deep"])
def test_the_tutorials_learning_rate_falls_with_each_update(name: str) -> None:
    steps = math.ceil(50_000 / RECIPES[name]["batch_size"])
    rates = learning_rates(RECIPES[name], steps)
    assert len(rates) == 25 * steps
    expected = [0.01 / (1 + 4e-4 * step) for step in range(25 * steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_tutorial_deep_bn_halves_after_epoch_75_and_drops_again_after_100() -> None:
    rates = learning_rates(RECIPES["tutorial-deep-bn"], steps_per_epoch=782).reshape(125, 782)
    np.testing.assert_allclose(rates[:76], 0.001, rtol=1e-6)
    np.testing.assert_allclose(rates[76:101], 0.0005, rtol=1e-6)
    np.testing.assert_allclose(rates[101:], 0.0003, rtol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_recipe_never_exceeds_its_learning_rate(name: str) -> None:
    rates = learning_rates(RECIPES[name], steps_per_epoch=4)
    assert len(rates) == 4 * RECIPES[name]["epochs"]
    assert rates.max() == np.float32(RECIPES[name]["optimizer"]["learning_rate"])
    assert rates.min() >= 0


def test_the_table_is_looked_up_by_step_and_stays_at_its_end() -> None:
    table = Table(np.array([0.5, 0.25, 0.125], np.float32))
    assert [float(table(step)) for step in (0, 1, 2, 3, 1000)] == [0.5, 0.25, 0.125, 0.125, 0.125]


def test_the_optimizer_uses_the_table_step_by_step() -> None:
    values = apply(sgd(), rates=[0.5, 0.25, 0.125], gradients=[1, 1, 1, 1])
    assert values == [0.5, 0.25, 0.125, 0.0]


def test_momentum_remembers_earlier_gradients() -> None:
    # velocity: -.1, then .5 * -.1 - .1 = -.15, then .5 * -.15 - 0 = -.075
    values = apply(sgd(momentum=0.5), rates=[0.1], gradients=[1, 1, 0])
    assert values == pytest.approx([0.9, 0.75, 0.675])


def test_nesterov_looks_ahead() -> None:
    # the same velocities v, but each step moves by .5 * v - .1 * gradient
    values = apply(sgd(momentum=0.5, nesterov=True), rates=[0.1], gradients=[1, 1, 0])
    assert values == pytest.approx([0.85, 0.675, 0.6375])


def test_rmsprop_divides_by_the_mean_square() -> None:
    values = apply({"name": "rmsprop", "learning_rate": 1.0, "rho": 0.75}, [0.1], [2, 2])
    first = 1 - 0.1 * 2 / math.sqrt(0.25 * 4)
    assert values == pytest.approx([first, first - 0.1 * 2 / math.sqrt(0.75 * 1 + 0.25 * 4)])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_corrects_its_moments_for_their_start_at_zero(name: str) -> None:
    config = {"name": name, "learning_rate": 1.0, "beta_1": 0.5, "beta_2": 0.75}
    if name == "adamw":
        config["weight_decay"] = 1e-9
    values = apply(config, [0.1], [2, 4])
    mean, square = (0.25 * 2 + 0.5 * 4) / 0.75, (0.75 * 0.25 * 4 + 0.25 * 16) / (1 - 0.75**2)
    assert values == pytest.approx([0.9, 0.9 - 0.1 * mean / math.sqrt(square)], rel=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("decay", [0.5, 0.0])
def test_weight_decay_shrinks_by_the_learning_rate_times_it(name: str, decay: float) -> None:
    config = {"name": "adamw", "learning_rate": 1.0, "beta_1": 0.9, "beta_2": 0.999}
    config = (sgd() if name == "sgd" else config) | {"weight_decay": decay}
    values = apply(config, [0.5], [0, 0])
    assert values == [1 - 0.5 * decay, (1 - 0.5 * decay) ** 2]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_cross_entropy_with_smoothed_labels(
    shape: tuple[int, ...], smoothing: float
) -> None:
    logits = np.log([[2, 3, 5], [6, 3, 1]]).astype(np.float32)  # probabilities are tenths
    labels = np.array([2, 0], np.int32).reshape(shape)
    wrong, right = smoothing / 3, 1 - smoothing + smoothing / 3
    first = -(wrong * math.log(0.2) + wrong * math.log(0.3) + right * math.log(0.5))
    second = -(right * math.log(0.6) + wrong * math.log(0.3) + wrong * math.log(0.1))
    losses = make_loss(smoothing)(labels, logits)
    assert float(keras.ops.mean(losses)) == pytest.approx((first + second) / 2, rel=1e-6)


def test_the_smoothed_loss_tends_to_the_plain_one(random: np.random.Generator) -> None:
    logits = random.standard_normal((50, 10), np.float32)
    labels = random.integers(0, 10, 50).astype(np.int32)
    plain = float(make_loss(0.0)(labels, logits))
    assert float(keras.ops.mean(make_loss(1e-9)(labels, logits))) == pytest.approx(plain, rel=1e-6)
    assert float(keras.ops.mean(make_loss(0.1)(labels, logits))) != pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("shape", [(3, 3, 4, 20), (3, 3, 8, 16), (2, 2, 2, 50)])
def test_an_orthogonalized_update_keeps_its_directions_and_evens_their_sizes(
    random: np.random.Generator, shape: tuple[int, ...]
) -> None:
    update = random.standard_normal(shape, np.float32)
    before = update.reshape(-1, shape[-1])
    after = np.asarray(orthogonalized(update)).reshape(before.shape)
    left, sizes, right = np.linalg.svd(before, full_matrices=False)
    in_its_own_basis = left.T @ after @ right.T
    new = np.diag(in_its_own_basis)
    np.testing.assert_allclose(in_its_own_basis, np.diag(new), atol=1e-4)
    assert new.min() > 0.3
    assert new.max() < 1.3
    assert new.max() / new.min() < sizes.max() / sizes.min()
    np.testing.assert_allclose(orthogonalized(100 * update), orthogonalized(update), rtol=1e-3)


def test_an_update_is_orthogonalized_by_three_steps_of_its_sources_polynomial() -> None:
    sizes = np.array([0.6, 0.8])  # of norm 1
    after = orthogonalized(np.diag(5 * sizes).astype(np.float32))
    for _ in range(3):
        sizes = 3.4445 * sizes - 4.7750 * sizes**3 + 2.0315 * sizes**5
    np.testing.assert_allclose(after, np.diag(sizes), rtol=1e-4, atol=1e-6)


MUON = {
    "name": "muon",
    "learning_rate": 0.5,
    "momentum": 0.5,
    "head_learning_rate": 0.25,
    "bias_learning_rate": 1.0,
    "sgd_momentum": 0.75,
    "weight_decay": 0.125,
}


def test_muon_treats_vectors_and_matrices_as_sgd_does_each_at_its_own_rate() -> None:
    head, bias = keras.Variable([[1.0, 2.0]]), keras.Variable([1.0, 2.0])
    optimizer = make_optimizer(MUON, np.array([0.5, 0.25], np.float32))
    optimizer.build([head, bias])
    optimizer.apply([keras.ops.ones((1, 2)), keras.ops.ones(2)])
    # decay 1/8 of the value; then the rate times 1 + momentum * 1
    np.testing.assert_allclose(head, [[0.875 - 0.4375, 1.75 - 0.4375]])
    np.testing.assert_allclose(bias, [0.875 - 1.75, 1.75 - 1.75])
    optimizer.apply([keras.ops.zeros((1, 2)), keras.ops.zeros(2)])
    # half of the rates, as the table says; the velocity is .75, and 3/4 of that is ahead
    np.testing.assert_allclose(head, [[0.4375 * 0.9375 - 0.0703125, 1.3125 * 0.9375 - 0.0703125]])
    np.testing.assert_allclose(bias, [-0.875 * 0.9375 - 0.28125, -0.28125])


def test_muon_keeps_a_kernels_norm_and_moves_it_by_the_orthogonalized_momentum(
    random: np.random.Generator,
) -> None:
    expected = random.standard_normal((3, 3, 2, 4), np.float32)
    kernel = keras.Variable(expected)
    optimizer = make_optimizer(MUON, np.array([0.5, 0.25], np.float32))
    optimizer.build([kernel])
    velocity = np.zeros_like(expected)
    for rate in (0.5, 0.25):
        gradient = random.standard_normal((3, 3, 2, 4), np.float32)
        optimizer.apply([keras.ops.convert_to_tensor(gradient)])
        velocity = 0.5 * velocity + gradient
        scaled = expected * 2 / np.linalg.norm(expected)  # 2 is the root of 4 channels
        update = np.asarray(orthogonalized(gradient + 0.5 * velocity))
        expected = scaled - rate * update
        np.testing.assert_allclose(kernel, expected, rtol=1e-3, atol=1e-4)
