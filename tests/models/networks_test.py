"""Networks: sizes, initialization, heads, and equality with plain flax, alone and under vmap."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pfljax import core, models, tasks
from pfljax.core import Batch, params
from pfljax.errors import UserError
from pfljax.models import language
from pfljax.models.layers import BatchNorm, Dense, max_pool, max_pool_time

IMAGE, CHARACTERS, NEWS = (32, 32, 3), {"vocabulary": 90}, {"vocabulary": 32000}
RATINGS = {"vocabulary": (610, 9724)}
WORDS = {"vocabulary": 10000, "embedding": 96, "widths": (670,)}

TEXTS = {"source": (32,), "target": (8,)}

# Name, shape, outputs, arguments; entries of all arrays, those of the head, features.
COUNTS = [
    ("logistic", (28, 28, 1), 10, {}, 7_850, 7_850, 784),
    ("mlp", (28, 28, 1), 10, {}, 79_510, 1_010, 100),
    ("mlp_bn", (28, 28, 1), 10, {}, 79_910, 1_010, 100),
    ("amazon_mlp", (5000,), 2, {}, 5_551_802, 202, 100),
    ("har_cnn", (128, 9), 6, {}, 2_253_958, 3_078, 512),
    ("cnn", (28, 28, 1), 10, {}, 582_026, 5_130, 512),
    ("cnn", IMAGE, 10, {}, 878_538, 5_130, 512),
    ("cnn", IMAGE, 100, {}, 924_708, 51_300, 512),
    ("cnn", (64, 64, 3), 200, {}, 5_694_600, 102_600, 512),
    ("leaf_cnn", (28, 28, 1), 62, {}, 6_603_710, 127_038, 2048),
    ("simple_cnn", IMAGE, 10, {}, 1_626_442, 1_290, 128),
    ("simple_cnn", (28, 28, 1), 62, {}, 1_206_590, 7_998, 128),
    ("lenet", (28, 28, 1), 10, {}, 61_706, 850, 84),
    ("lenet", IMAGE, 10, {}, 62_006, 850, 84),
    ("resnet8", IMAGE, 10, {}, 78_042, 650, 64),
    ("resnet8", IMAGE, 10, {"norm": "batch"}, 78_714, 650, 64),
    ("resnet10", IMAGE, 10, {}, 4_903_242, 5_130, 512),
    ("resnet18", IMAGE, 10, {}, 11_173_962, 5_130, 512),
    ("mobilenet_v2", IMAGE, 10, {}, 2_236_682, 12_810, 1280),
    ("vit", IMAGE, 10, {}, 809_098, 1_290, 128),
    ("vit", IMAGE, 10, {"adapter_width": 64}, 908_682, 1_290, 128),
    ("vit_ti", IMAGE, 10, {}, 5_362_378, 1_930, 192),
    ("vit_ti", IMAGE, 10, {"adapter_width": 128}, 6_253_258, 1_930, 192),
    ("two_tower", IMAGE, 10, {}, 218_625, 107_009, 64),
    ("fasttext", (200,), 4, NEWS, 1_025_188, 132, 32),
    ("textcnn", (200,), 4, NEWS, 4_251_104, 1_204, 300),
    ("transformer", (200,), 4, NEWS, 4_493_316, 516, 128),
    ("lstm", (80,), 90, CHARACTERS, 820_522, 23_130, 256),
    ("lstm_lm", (80,), 90, CHARACTERS, 820_522, 23_130, 0),
    ("lstm_lm", (20,), 10_000, WORDS, 9_725_560, 6_710_000, 0),
    ("transformer_lm", (80,), 90, CHARACTERS, 418_650, 346, 0),
    ("gpt2", (80,), 50257, {"vocabulary": 50257}, 124_439_808, 0, 0),
    ("bert", (80,), 2, {"vocabulary": 30522}, 109_483_778, 1_538, 768),
    ("bert_upper", (80, 768), 2, {"first": 11}, 7_680_002, 1_538, 768),
    ("t5", TEXTS, 32128, {"vocabulary": dict.fromkeys(TEXTS, 32128)}, 60_506_624, 0, 0),
    ("matrix_factorization", (2,), 1, RATINGS, 165_325, 17, 17),
    ("matrix_factorization", (2,), 1, RATINGS | {"user_table": True}, 175_696, 18, 17),
    ("unimp", (15,), 59, {"vocabulary": (9725, 11, *(572,) * 13)}, 179_545, 1_324, 0),
]


@pytest.mark.parametrize("name, shape, outputs, arguments, total, head, features", COUNTS)
def test_parameter_counts_of_model_and_head(name, shape, outputs, arguments, total, head, features):
    factory = models.MODELS[name]
    model = factory(shape, outputs, **arguments)
    parameters = jax.eval_shape(model.init, jax.random.key(0))
    paths = jax.tree_util.tree_leaves_with_path(parameters)
    of_head = [leaf.size for path, leaf in paths if model.is_head(tuple(k.key for k in path))]
    assert (sum(leaf.size for _, leaf in paths), sum(of_head)) == (total, head)
    assert model.num_features == features
    # No layer's path may begin another's: a path says which arrays are its own.
    for path in model.layers:
        assert not any(other[: len(path)] == path for other in model.layers if other != path)


def test_every_model_has_a_count_that_its_docstring_gives():
    assert {row[0] for row in COUNTS} == set(models.MODELS)
    for name, factory in models.MODELS.items():
        counts = [f"{row[4]:,}" for row in COUNTS if row[0] == name]
        assert any(count in factory.__doc__ for count in counts), name


def test_initialization_is_uniform_within_one_over_the_root_of_fan_in():
    parameters = models.cnn((28, 28, 1), 10).init(jax.random.key(0))
    body = parameters["body"]
    for layer, fan_in in {
        "Conv_0": 25,
        "Conv_1": 800,
        "Dense_0": 1024,
    }.items():
        bound = fan_in**-0.5
        for leaf in body[layer].values():
            assert jnp.max(jnp.abs(leaf)) <= bound
        kernel = body[layer]["kernel"]
        np.testing.assert_allclose(jnp.std(kernel), bound / 3**0.5, rtol=0.1)
        assert jnp.max(jnp.abs(body[layer]["bias"])) > 0.5 * bound


def test_an_image_too_small_for_the_cnn_is_refused():
    with pytest.raises(UserError, match="8x8"):
        models.cnn((8, 8, 1), 10)


class PlainCnn(nn.Module):
    """The same network of flax's own layers."""

    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(512)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def test_loss_and_gradient_equal_plain_flax_also_with_weights_per_client():
    model = models.cnn((28, 28, 1), 10)
    task = tasks.classification(model, num_classes=10, mean=127.5, std=127.5)
    draw = np.random.default_rng(0)
    images = jnp.asarray(draw.integers(0, 256, (3, 4, 28, 28, 1)).astype(np.uint8))
    labels = jnp.asarray(draw.integers(0, 10, (3, 4)))
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    parameters = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 3))

    def ours(parameters, images, labels, mask):
        return task.loss(parameters, Batch(images, labels, mask), jax.random.key(0))

    def plain(parameters, images, labels, mask):
        body = parameters["body"]
        named = {
            "Conv_0": body["Conv_0"],
            "Conv_1": body["Conv_1"],
            "Dense_0": body["Dense_0"],
            "Dense_1": parameters["head"],
        }
        logits = PlainCnn().apply({"params": named}, (images.astype(jnp.float32) - 127.5) / 127.5)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
        return (losses * mask).sum() / mask.sum()

    args = (parameters, images, labels, mask)
    together = jax.vmap(jax.value_and_grad(ours))(*args)
    expected = jax.lax.map(lambda one: jax.value_and_grad(plain)(*one), args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), together, expected
    )
    alone = jax.lax.map(lambda one: jax.value_and_grad(ours)(*one), args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), alone, expected
    )


# Small enough to run, of each the shape, the outputs and the arguments.
TINY = {
    "logistic": ((5,), 3, {}),
    "mlp": ((5,), 3, {"widths": (4,)}),
    "mlp_bn": ((5,), 3, {"widths": (4,)}),
    "har_cnn": ((12, 2), 3, {"features": (4, 4), "size": 3, "widths": (5,)}),
    "lenet": ((12, 13, 1), 3, {}),
    "resnet8": ((6, 5, 1), 3, {}),
    "vit": ((8, 4, 1), 3, {"width": 8, "layers": 1, "heads": 2}),
    "fasttext": ((6,), 3, {"vocabulary": 7, "width": 4}),
    "textcnn": ((6,), 3, {"vocabulary": 7, "width": 4, "features": 3}),
    "transformer": ((6,), 3, {"vocabulary": 7, "width": 4, "layers": 1, "heads": 2}),
    "lstm": ((6,), 3, {"vocabulary": 7, "embedding": 3, "widths": (4, 5)}),
    "lstm_lm": ((6,), 7, {"vocabulary": 7, "embedding": 3, "widths": (4, 5)}),
    "transformer_lm": ((6,), 7, {"vocabulary": 7, "width": 4, "layers": 1, "heads": 2}),
    "gpt2": ((6,), 7, {"vocabulary": 7, "width": 4, "layers": 1, "heads": 2, "positions": 6}),
    "bert": ((6,), 3, {"vocabulary": 7, "width": 4, "layers": 1, "heads": 2, "positions": 6}),
    "bert_upper": ((6, 4), 3, {"first": 1, "layers": 2, "heads": 2}),
    "matrix_factorization": ((2,), 1, {"vocabulary": (4, 7), "width": 3}),
}


@pytest.mark.parametrize("name", TINY)
def test_features_and_head_make_the_prediction(name):
    shape, outputs, arguments = TINY[name]
    model = models.MODELS[name](shape, outputs, **arguments)
    task = tasks.classification(model, num_classes=outputs)
    parameters = model.init(jax.random.key(0))
    dtype = jnp.int32 if model.reads_ids else jnp.float32
    inputs = jnp.ones((2, *shape), dtype)
    features = task.features(parameters, inputs)
    assert features.ndim == (2 if model.num_features else 3)
    out = task.predict(parameters, inputs)
    assert out.shape == (*features.shape[:-1], outputs)
    np.testing.assert_array_equal(task.head(parameters, features), out)


def test_the_upper_part_of_bert_on_activations_is_bert():
    sizes = {"layers": 3, "heads": 2}
    whole = models.MODELS["bert"]((6,), 3, vocabulary=9, width=8, positions=6, **sizes)
    params = whole.init(jax.random.key(0))
    ids = jnp.array([[3, 1, 4, 1, 5, 2], [6, 5, 3, 0, 0, 0]])
    activations = language.bert_activations(params, ids, layers=2, heads=2)
    np.testing.assert_array_equal(np.any(activations != 0, axis=-1), ids != 0)
    upper = models.MODELS["bert_upper"]((6, 8), 3, first=2, **sizes)
    shapes = jax.eval_shape(upper.init, jax.random.key(0))
    of_upper = jax.tree_util.tree_map_with_path(
        lambda path, _: functools.reduce(lambda tree, key: tree[key.key], path, params), shapes
    )
    found = upper.head(of_upper, upper.features(of_upper, activations))
    wanted = whole.head(params, whole.features(params, ids))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_pooling_sends_the_gradient_to_the_first_of_equal_entries():
    x = jnp.array([[0.0, 0.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: max_pool(x).sum())(x)
    np.testing.assert_array_equal(gradient.reshape(2, 2), [[1, 0], [0, 0]])
    x = jnp.array([[0.0, 1.0], [2.0, 2.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: max_pool(x).sum())(x)
    np.testing.assert_array_equal(gradient.reshape(2, 2), [[0, 0], [1, 0]])
    draw = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    np.testing.assert_array_equal(max_pool(draw), nn.max_pool(draw, (2, 2), (2, 2)))
    ours, plain = (
        jax.grad(lambda x, pool=pool: jnp.sum(pool(x) ** 2))(draw)
        for pool in (max_pool, lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-6)


def test_pooling_leaves_a_last_row_without_a_partner_out():
    draw = jax.random.normal(jax.random.key(0), (2, 7, 5, 3))
    np.testing.assert_array_equal(max_pool(draw), nn.max_pool(draw, (2, 2), (2, 2)))
    np.testing.assert_array_equal(max_pool_time(draw[:, 0]), nn.max_pool(draw[:, 0], (2,), (2,)))


class PlainNet(nn.Module):
    """`mlp_bn` with widths 6, 4 of flax's own layers."""

    @nn.compact
    def __call__(self, x):
        for width in (6, 4):
            x = nn.BatchNorm(use_running_average=False)(nn.Dense(width)(x))
            x = nn.relu(x)
        return nn.Dense(3)(x)


@pytest.fixture
def partial_batch():
    """Seven rows of five features; only the first, second, fifth and sixth are examples."""
    draw = np.random.default_rng(0)
    inputs = jnp.asarray(draw.normal(size=(7, 5)).astype(np.float32))
    mask = jnp.array([1, 1, 0, 0, 1, 1, 0], bool)
    return Batch(inputs, jnp.asarray(draw.integers(0, 3, 7)), mask)


def small_net():
    """A task with batch normalization, and a model of which nothing is 0 or 1."""
    task = tasks.classification(models.mlp_bn((5,), 3, widths=(6, 4)), num_classes=3)
    leaves, structure = jax.tree.flatten(task.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [jax.random.uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return task, jax.tree.unflatten(structure, [a + b for a, b in zip(leaves, noise, strict=True)])


def test_batch_normalization_sees_the_real_examples_of_a_partial_batch(partial_batch):
    task, model = small_net()
    ours = jax.value_and_grad(task.loss)(model, partial_batch, jax.random.key(0))
    real = np.asarray(partial_batch.mask)
    inputs, targets = partial_batch.inputs[real], partial_batch.targets[real]

    def plain(model):
        body = model["body"]
        named = {**body, "Dense_2": model["head"]}
        variables = {"params": named, "batch_stats": body}
        logits, _ = PlainNet().apply(variables, inputs, mutable=["batch_stats"])
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(targets)), targets])

    theirs = jax.value_and_grad(plain)(model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), ours, theirs)
    for layer in ("BatchNorm_0", "BatchNorm_1"):
        assert np.all(ours[1]["body"][layer]["mean"] == 0)
        assert np.all(ours[1]["body"][layer]["var"] == 0)


def test_running_statistics_are_those_of_pytorch(partial_batch):
    task, model = small_net()
    seen = task.observe(model, partial_batch)
    assert set(seen) == {"body"} and set(seen["body"]) == {"BatchNorm_0", "BatchNorm_1"}
    body, x = model["body"], np.asarray(partial_batch.inputs)[np.asarray(partial_batch.mask)]
    for number in range(2):
        dense, norm = body[f"Dense_{number}"], body[f"BatchNorm_{number}"]
        x = x @ dense["kernel"] + dense["bias"]
        for name, batch in (("mean", x.mean(axis=0)), ("var", x.var(axis=0, ddof=1))):
            moved = 0.9 * norm[name] + 0.1 * batch
            np.testing.assert_allclose(seen["body"][f"BatchNorm_{number}"][name], moved, rtol=1e-4)
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0)
    rows = jnp.ones((3, 5))
    body, head = model["body"], model["head"]
    x = rows
    for number in range(2):  # outside of training the running statistics answer
        dense, norm = body[f"Dense_{number}"], body[f"BatchNorm_{number}"]
        x = x @ dense["kernel"] + dense["bias"]
        x = (x - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0)
    np.testing.assert_allclose(task.features(model, rows), x, rtol=1e-4)
    logits = x @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(task.predict(model, rows), logits, rtol=1e-4)


@pytest.mark.parametrize("examples", [0, 1, 2])
def test_statistics_that_a_batch_does_not_have_stay(examples, partial_batch):
    task, model = small_net()
    batch = partial_batch._replace(mask=jnp.arange(7) < examples)
    loss, gradient = jax.value_and_grad(task.loss)(model, batch, jax.random.key(0))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((loss, gradient)))
    before, after = model["body"]["BatchNorm_0"], task.observe(model, batch)["body"]["BatchNorm_0"]
    assert np.all(before["mean"] == after["mean"]) == (examples == 0)
    assert np.all(before["var"] == after["var"]) == (examples < 2)


def test_batch_normalization_of_images_counts_every_pixel():
    images = jax.random.normal(jax.random.key(0), (4, 3, 2, 5))
    mask = jnp.array([1, 0, 1, 1], bool)
    layer = BatchNorm()
    variables = {**layer.init(jax.random.key(0), images), "examples": {"mask": mask}}
    out, state = layer.apply(variables, images, mutable=["observed"])
    rows = np.asarray(images[mask]).reshape(-1, 5)
    expected = (images - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + 1e-5)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state["observed"]["mean"], 0.1 * rows.mean(axis=0), rtol=1e-4)
    var = 0.9 + 0.1 * rows.var(axis=0, ddof=1)
    np.testing.assert_allclose(state["observed"]["var"], var, rtol=1e-5)


class Normalized(nn.Module):
    """Names of layers that say nothing of their types."""

    last: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        x = BatchNorm(name="first")(Dense(4, name="batch_norm")(x))
        return self.last(name="last")(x)


def test_a_model_lists_its_normalization_by_type_and_its_layers_in_order():
    model = models.from_flax(Normalized(nn.LayerNorm), BatchNorm(), (5,))
    assert model.layers == (("body", "batch_norm"), ("body", "first"), ("body", "last"), ("head",))
    parameters = model.init(jax.random.key(0))
    norm, other = params.split_params(parameters, model.is_norm)
    assert set(norm["body"]) == {"first", "last"} and set(norm["head"]) >= {"mean", "var"}
    assert set(other) == {"body"} and set(other["body"]) == {"batch_norm"}
    # Batch normalization in the head sees what the body makes of the batch.
    rows, mask = jax.random.normal(jax.random.key(1), (6, 5)), jnp.arange(6) < 4
    seen = model.observe(parameters, rows, mask)
    features = model.features(parameters, rows, mask)
    np.testing.assert_allclose(seen["head"]["mean"], 0.1 * features[:4].mean(axis=0), rtol=1e-5)
    assert set(seen) == {"body", "head"} and set(seen["body"]) == {"first"}
    out = model.head(parameters, features, mask)
    np.testing.assert_allclose(out[:4].mean(axis=0), 0, atol=1e-5)


def test_models_without_normalization():
    for name in ("logistic", "mlp", "cnn"):
        task = tasks.classification(models.MODELS[name]((28, 28, 1), 10), num_classes=10)
        assert task.observe is None
        parameters = jax.eval_shape(task.init, jax.random.key(0))
        assert params.split_params(parameters, task.is_norm)[0] == {}


def test_arrays_beside_the_parameters_are_refused():
    class Flax(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(x)

    with pytest.raises(UserError, match="batch_stats"):
        models.from_flax(Flax(), Dense(3), (5,))


class Own(nn.Module):
    """A user's body whose last layer is `last(x)`."""

    last: Callable

    @nn.compact
    def __call__(self, x):
        return self.last(Dense(4)(x))


def attention(**options):
    return lambda x: nn.MultiHeadDotProductAttention(2, **options)(x[:, None], x[:, None])[:, 0]


@pytest.mark.parametrize(
    "last, message",
    [
        (lambda x: nn.Dropout(0.5, deterministic=False)(x), "deterministic. of Dropout"),
        (lambda x: nn.Dropout(0.5, deterministic=True)(x), "deterministic. of Dropout"),
        (attention(dropout_rate=0.1, deterministic=False), "deterministic. of Multi"),
        (lambda x: nn.BatchNorm(use_running_average=False)(x), "batch_stats.*BatchNorm"),
        (lambda x: nn.BatchNorm()(x), "batch_stats.*BatchNorm"),
        (lambda x: x @ jnp.ones((7, 2)), r"shape \(1, 5\)"),
    ],
)
def test_layers_of_a_users_network_that_cannot_be_used(last, message):
    with pytest.raises(UserError, match=message) as refusal:
        models.from_flax(Own(last), Dense(3), (5,))
    assert "\n" not in str(refusal.value)


def test_a_users_network_that_draws_random_numbers_is_refused():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + jax.random.normal(self.make_rng("noise"), x.shape)

    with pytest.raises(UserError, match="random numbers"):
        models.from_flax(Noisy(), Dense(3), (5,))
    # Nothing is drawn without dropout.
    for last in (lambda x: nn.Dropout(0.0, deterministic=False)(x), attention()):
        assert models.from_flax(Own(last), Dense(3), (5,)).num_features == 4


@pytest.mark.parametrize(
    "make", [lambda: nnx.Linear(5, 4, rngs=nnx.Rngs(0)), lambda: nn.Dense, lambda: abs]
)
def test_a_network_that_is_no_linen_module_is_refused(make):
    body = make()
    with pytest.raises(UserError, match="network's body .*flax.linen"):
        models.from_flax(body, Dense(3), (5,))
    with pytest.raises(UserError, match="network's head .*flax.linen"):
        models.from_flax(Dense(4), body, (5,))


def test_statistics_of_a_dict_of_models_want_names(partial_batch):
    task, model = small_net()
    with pytest.raises(ValueError, match="of_models"):
        task.observe({"own": model, "other": model}, partial_batch)
    assert task.observe({"body": model["body"]}, partial_batch)  # the head is not needed


def test_keeping_statistics_costs_no_second_forward_pass():
    task, model = small_net()
    rows = jnp.ones((30, 5))
    targets = jnp.zeros(30, jnp.int32)

    def products(observe):
        local = core.LocalTraining(optax.sgd(0.1), batch_size=4, observe=observe)

        def one(model, offset, size):
            data = core.ClientData(rows, targets, offset, size, jnp.zeros(3), 9)
            key = jax.random.fold_in(jax.random.key(0), offset)
            context = core.Context(key, jnp.int32(0), jnp.int32(1))
            return core.train(task.loss, model, data, context, local).params

        clients = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), model)
        arguments = clients, jnp.array([0, 9, 15]), jnp.array([9, 6, 7])
        text = jax.jit(jax.vmap(one)).lower(*arguments).compile().as_text()
        return text.count(" dot(")

    assert products(task.observe) == products(None) > 0


def test_a_table_of_users_distinguishes_users():
    arguments = {"vocabulary": (3, 5), "width": 2, "user_table": True}
    model = models.MODELS["matrix_factorization"]((2,), 1, **arguments)
    parameters = model.init(jax.random.key(0))
    body, ids = parameters["body"], jnp.array([[0, 4], [2, 4]], jnp.int32)
    out = model.head(parameters, model.features(parameters, ids))
    users = body["user_vectors"]["embedding"][ids[:, 0]]
    items = body["items"]["vectors"]["embedding"][ids[:, 1]]
    np.testing.assert_allclose(out[:, 0], jnp.sum(users * items, axis=1), rtol=1e-5)
    assert out[0, 0] != out[1, 0]


@pytest.mark.parametrize(
    "name, shape, outputs, arguments, message",
    [
        ("cnn", (8, 8, 1), 10, {}, "8x8"),
        ("cnn", (64,), 10, {}, "reads images"),
        ("resnet8", (8, 8, 1), 10, {"norm": "layer"}, "'layer'"),
        ("vit", (9, 8, 1), 10, {}, "4x4"),
        ("vit", (8, 8, 1), 10, {"heads": 3}, "heads"),
        ("har_cnn", (64,), 10, {}, "windows"),
        ("har_cnn", (20, 3), 10, {}, "are too short for"),
        ("fasttext", (5,), 3, {"vocabulary": (3, 4)}, "one vocabulary"),
        ("textcnn", (4,), 3, {"vocabulary": 9}, "5 tokens"),
        ("transformer_lm", (4,), 3, {"vocabulary": 9}, "its 9 input tokens"),
        ("gpt2", (4,), 3, {"vocabulary": 9}, "its 9 input tokens"),
        ("gpt2", (4,), 9, {"vocabulary": 9, "positions": 5, "prefix_tokens": 2}, "positions is 5"),
        ("bert", (4,), 3, {"vocabulary": 9, "positions": 3}, "positions is 3"),
        ("bert_upper", (4,), 3, {"first": 1}, "reads activations"),
        ("bert_upper", (4, 8), 3, {"first": 2, "layers": 2}, "no block is left"),
        ("t5", (4,), 9, {"vocabulary": 9}, "'source' and 'target'"),
        ("matrix_factorization", (2,), 3, {"vocabulary": (3, 4)}, "one number"),
        ("matrix_factorization", (1,), 1, {"vocabulary": 4, "user_table": True}, "user_table"),
    ],
)
def test_models_that_do_not_fit_are_refused(name, shape, outputs, arguments, message):
    with pytest.raises(UserError, match=message):
        models.MODELS[name](shape, outputs, **arguments)
