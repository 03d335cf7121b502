"""The two towers and the loader of CLIP's weights, against CLIP's equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from pfljax import models
from pfljax.core.params import join_params
from pfljax.errors import UserError
from pfljax.models import adapters, clip, params_file

PATCH, WIDTH, CLASS_WIDTH, FEATURES, CONTEXT, VOCABULARY = 2, 6, 4, 5, 7, 9
HEADS = {"vision_model": 3, "text_model": 2}
NAMES = ((7, 3, 8, 0), (7, 1, 5, 8), (7, 6, 8, 2))  # 8 is the end
SHAPE = (4, 2, 3)


def two_tower():
    return models.MODELS["two_tower"](
        SHAPE,
        3,
        patch=PATCH,
        width=WIDTH,
        layers=2,
        heads=HEADS["vision_model"],
        features=FEATURES,
        context=CONTEXT,
        class_width=CLASS_WIDTH,
        class_layers=1,
        class_heads=HEADS["text_model"],
        name_vocabulary=VOCABULARY,
        names=NAMES,
    )


def random_weights():
    """Arrays of the names and forms of CLIP's in safetensors, all of them random."""
    draw = np.random.default_rng(0)
    shapes = {
        "logit_scale": (),
        "visual_projection.weight": (FEATURES, WIDTH),
        "text_projection.weight": (FEATURES, CLASS_WIDTH),
        "vision_model.embeddings.class_embedding": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": (3, WIDTH),
        "text_model.embeddings.token_embedding.weight": (VOCABULARY, CLASS_WIDTH),
        "text_model.embeddings.position_embedding.weight": (CONTEXT, CLASS_WIDTH),
        "text_model.embeddings.position_ids": (1, CONTEXT),
    }
    norms = {
        "vision_model": ("pre_layrnorm", "post_layernorm"),
        "text_model": ("final_layer_norm",),
    }
    for tower, width, layers in (("vision_model", WIDTH, 2), ("text_model", CLASS_WIDTH, 1)):
        of_norms = [f"{tower}.{name}" for name in norms[tower]]
        for number in range(layers):
            prefix = f"{tower}.encoder.layers.{number}"
            of_norms += [f"{prefix}.layer_norm1", f"{prefix}.layer_norm2"]
            matrices = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
            matrices |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            for name, shape in matrices.items():
                shapes |= {f"{prefix}.{name}.weight": shape, f"{prefix}.{name}.bias": shape[:1]}
        for name in of_norms:
            shapes |= {f"{name}.{kind}": (width,) for kind in ("weight", "bias")}
    return {
        name: np.asarray(0.5 * draw.normal(size=shape), np.float32)
        for name, shape in shapes.items()
    }


def norm(weights, name, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    x = centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def encoder(weights, tower, x, layers, causal):
    """The blocks for one sequence `[T, d]`, head after head."""
    size = x.shape[1] // HEADS[tower]
    for number in range(layers):
        prefix = f"{tower}.encoder.layers.{number}"
        z = norm(weights, f"{prefix}.layer_norm1", x)
        q, k, v = (linear(weights, f"{prefix}.self_attn.{name}_proj", z) for name in "qkv")
        mixed = []
        for head in range(HEADS[tower]):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / np.sqrt(size)
            if causal:
                scores[np.triu_indices(len(x), 1)] = -np.inf
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed.append(powers / powers.sum(axis=1, keepdims=True) @ v[:, part])
        x = x + linear(weights, f"{prefix}.self_attn.out_proj", np.concatenate(mixed, axis=1))
        z = linear(weights, f"{prefix}.mlp.fc1", norm(weights, f"{prefix}.layer_norm2", x))
        x = x + linear(weights, f"{prefix}.mlp.fc2", z / (1 + np.exp(-1.702 * z)))
    return x


def image_features(weights, image):
    kernel = weights["vision_model.embeddings.patch_embedding.weight"]
    tokens = [weights["vision_model.embeddings.class_embedding"]]
    for row in range(0, image.shape[0], PATCH):
        for column in range(0, image.shape[1], PATCH):
            cut = image[row : row + PATCH, column : column + PATCH].transpose(2, 0, 1)
            tokens.append(np.sum(kernel * cut, axis=(1, 2, 3)))
    x = np.stack(tokens) + weights["vision_model.embeddings.position_embedding.weight"]
    x = norm(weights, "vision_model.pre_layrnorm", x)
    x = encoder(weights, "vision_model", x, 2, causal=False)[0]
    z = weights["visual_projection.weight"] @ norm(weights, "vision_model.post_layernorm", x)
    return z / np.linalg.norm(z)


def class_features(weights, name, prompts):
    """The name's tokens up to the end, with prompts after the first."""
    ids = list(name[: name.index(VOCABULARY - 1) + 1])
    tokens = weights["text_model.embeddings.token_embedding.weight"][ids]
    x = np.concatenate([tokens[:1], prompts, tokens[1:]])
    x = x + weights["text_model.embeddings.position_embedding.weight"][: len(x)]
    x = encoder(weights, "text_model", x, 1, causal=True)
    z = weights["text_projection.weight"] @ norm(weights, "text_model.final_layer_norm", x[-1])
    return z / np.linalg.norm(z)


def loaded(tmp_path, weights):
    path, model = tmp_path / "model.safetensors", two_tower()
    safetensors.numpy.save_file(weights, path)
    return clip.load(path, jax.eval_shape(model.init, jax.random.key(0)))


def test_the_towers_with_weights_of_a_file_are_clips(tmp_path):
    weights, model = random_weights(), two_tower()
    params = loaded(tmp_path, weights)
    images = np.random.default_rng(1).normal(size=(4, *SHAPE)).astype(np.float32)
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    images_of = np.stack([image_features(wide, image.astype(float)) for image in images])
    found = jax.jit(model.features)(params, images)
    np.testing.assert_allclose(found, images_of, rtol=1e-4, atol=1e-5)
    none = np.zeros((0, CLASS_WIDTH))
    classes = np.stack([class_features(wide, name, none) for name in NAMES])
    np.testing.assert_allclose(model.class_features(params), classes, rtol=1e-4, atol=1e-5)
    logits = np.exp(wide["logit_scale"]) * images_of @ classes.T
    np.testing.assert_allclose(model.head(params, found), logits, rtol=1e-4, atol=1e-5)


def test_prompts_follow_the_first_token_of_every_class(tmp_path):
    weights = random_weights()
    params = loaded(tmp_path, weights)
    adapter = adapters.prompts(two_tower(), length=3)
    model = adapter.model(adapter.freeze(params))
    tokens = np.random.default_rng(2).normal(size=(3, CLASS_WIDTH)).astype(np.float32)
    own = {"head": {"prompts": {"tokens": jnp.asarray(tokens)}}}
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    classes = np.stack([class_features(wide, name, tokens) for name in NAMES])
    np.testing.assert_allclose(model.class_features(own), classes, rtol=1e-4, atol=1e-5)
    features = np.random.default_rng(3).normal(size=(2, FEATURES)).astype(np.float32)
    logits = np.exp(wide["logit_scale"]) * features @ classes.T
    np.testing.assert_allclose(model.head(own, features), logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="7 positions, but the name of a class has 8 tokens"):
        long = adapters.prompts(two_tower(), length=4)
        jax.eval_shape(long.model(long.freeze(params)).class_features, long_prompts())


def long_prompts():
    return {"head": {"prompts": {"tokens": jnp.zeros((4, CLASS_WIDTH))}}}


def test_loaded_weights_are_a_base(tmp_path):
    """As the file of `config.adapter.base`."""
    params, path = loaded(tmp_path, random_weights()), tmp_path / "base.safetensors"
    params_file.save(path, params)
    again = params_file.load(path, jax.eval_shape(two_tower().init, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert jax.tree.structure(join_params(again, {})) == jax.tree.structure(params)


def test_files_of_other_models_are_refused(tmp_path):
    weights = random_weights()
    name = "text_model.encoder.layers.0.self_attn.k_proj.weight"
    with pytest.raises(UserError, match=f"has no array '{name}'; it is no CLIP model"):
        loaded(tmp_path, {key: array for key, array in weights.items() if key != name})
    with pytest.raises(UserError, match="logit_scale' with values that are not finite"):
        loaded(tmp_path, {**weights, "logit_scale": np.float32(np.nan)[None].reshape(())})
    wide = np.zeros((FEATURES + 1, WIDTH), np.float32)
    with pytest.raises(UserError, match="it is of another size"):
        loaded(tmp_path, {**weights, "visual_projection.weight": wide})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": NAMES}, "config.model.name_vocabulary"),
        ({"names": NAMES[:2], "name_vocabulary": 9}, "has 2 names"),
        ({"names": NAMES, "name_vocabulary": 8}, "ids below 8"),
        ({"width": 6}, "config.model.width"),
        ({"patch": 3}, "patches of 3x3"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(UserError, match=message):
        models.MODELS["two_tower"]((4, 4, 1), 3, **{"patch": 2, "width": 4, **changes})
