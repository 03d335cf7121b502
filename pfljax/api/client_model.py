"""The model of one client, apart from its run: predictions, and a file of its own."""

from __future__ import annotations

import copy
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors
import safetensors.numpy

from pfljax.core import Context, Params
from pfljax.data import FederatedDataset, ServerExamples, Split
from pfljax.data.input_arrays import by_name, map_inputs
from pfljax.engine import init
from pfljax.engine.programs import Inputs, Make
from pfljax.errors import UserError
from pfljax.training.run import runtime, workdir
from pfljax.training.study import experiment, placement
from pfljax.training.study.placement import Bounds

_FORMAT = "pfljax client model 1"
# Number of examples that are predicted at once.
_BATCH = 256


class Form(NamedTuple):
    """What a model depends on of a data set, besides the config.

    Attributes:
      inputs: The shape and the dtype of one example's inputs; a dict of such by name for inputs
        that are a dict.
      targets: The shape and the dtype of one target.
      statistics: `mean`, `std`, `target_mean` and `target_std` of the data set.
      num_classes: `C`.
      task: The kind of targets.
      vocabulary: The sizes of the id spaces.
      class_names: The names of the classes.
      num_clients: Number of clients, held-out ones included.
      num_unseen: Number of held-out clients.
      bounds: The sizes for which the programs of the run were compiled.
      server: Whether the server has examples.
      name: The name of the data set.
    """

    inputs: Any
    targets: tuple[list[int], str]
    statistics: dict[str, Any]
    num_classes: int
    task: str
    vocabulary: Any
    class_names: list[str]
    num_clients: int
    num_unseen: int
    bounds: list[int]
    server: bool
    name: str

    @classmethod
    def of(cls, dataset: FederatedDataset) -> Form:
        """Returns the form of a data set."""

        def described(form):
            return list(form.shape), form.dtype.str

        def plain(value):
            if isinstance(value, Mapping):
                return {name: plain(one) for name, one in value.items()}
            return np.asarray(value).tolist()

        statistics = ("mean", "std", "target_mean", "target_std")
        return cls(
            # Of items, where there are some: a deployed model reads the item itself.
            inputs=map_inputs(described, dataset.input_forms),
            targets=described(dataset.targets[0]),
            statistics={name: plain(getattr(dataset, name)) for name in statistics},
            num_classes=dataset.num_classes,
            task=dataset.task,
            vocabulary=plain(dataset.vocabulary),
            class_names=list(dataset.class_names),
            num_clients=dataset.num_clients,
            num_unseen=dataset.num_unseen,
            bounds=list(placement.bounds_of([dataset])),
            server=dataset.server is not None,
            name=dataset.name,
        )

    def dataset(self) -> FederatedDataset:
        """Returns a data set of this form: one example of zeros, clients without examples."""

        def zeros(described):
            shape, dtype = described
            return np.zeros((1, *shape), np.dtype(dtype))

        def restored(value):
            if isinstance(value, dict):
                return {name: restored(one) for name, one in value.items()}
            return np.asarray(value, np.float32) if isinstance(value, list) else value

        def sizes(value):
            if isinstance(value, dict):
                return {name: sizes(one) for name, one in value.items()}
            return tuple(value)

        several = isinstance(self.inputs, dict)
        inputs = (
            {name: zeros(one) for name, one in self.inputs.items()}
            if several
            else zeros(self.inputs)
        )
        targets, none = zeros(self.targets), np.zeros(self.num_clients, np.int32)
        split = Split(none, none)
        return FederatedDataset(
            name=self.name,
            inputs=inputs,
            targets=targets,
            train=split,
            validation=split,
            test=split,
            num_classes=self.num_classes,
            task=self.task,
            vocabulary=sizes(self.vocabulary),
            class_names=tuple(self.class_names),
            num_unseen=self.num_unseen,
            server=ServerExamples(inputs, targets) if self.server else None,
            **{name: restored(value) for name, value in self.statistics.items()},
        )


class Shared:
    """What the models of a run share, so that their programs are compiled once.

    Attributes:
      config: The config of the run; with `config.architectures`, that of these models is its model.
      form: The form of its data set.
      frozen: The frozen parameters, NumPy arrays; `()` for none.
      kind: 'personal' or 'global'.
    """

    def __init__(self, config: ml_collections.ConfigDict, form: Form, frozen: Params, kind: str):
        self.config, self.form, self.frozen, self.kind = config, form, frozen, kind

    @functools.cached_property
    def method(self) -> tuple[Make, Inputs]:
        """What builds the method, and its inputs with the frozen parameters of these models."""
        config = copy.deepcopy(self.config)
        config.adapter.base = config.adapter.start = ""  # replaced by those of this model
        config.init_from = ""  # training is over
        make, inputs = experiment.build_method(
            config, self.form.dataset(), jax.devices()[:1], Bounds(*self.form.bounds)
        )
        if jax.tree.leaves(self.frozen):
            inputs = inputs._replace(frozen=self.frozen)
        return make, inputs

    @functools.cached_property
    def apply(self) -> Callable[..., jax.Array]:
        """`(params, inputs, mask, key) -> outputs`, compiled once for all models."""
        make, inputs = self.method

        def outputs(inputs, params, batch, mask, key):
            algorithm, task = make(*inputs)
            if self.kind == "global":
                return task.predict(params, batch)
            if algorithm.adapt is not None:
                params = algorithm.adapt(params, batch, mask)
            if algorithm.predict is not None:
                return algorithm.predict(params, batch, key)
            return task.predict(params, batch)

        return functools.partial(jax.jit(outputs), inputs)


class ClientModel:
    """The model that one client would deploy: its personalized model, or the global one.

    Attributes:
      params: The params of the model, NumPy arrays.
      client: The name of the client, or its number if clients have no names.
      kind: 'personal' or 'global'.
      config: The config of the run; with `config.architectures`, that of this client is its model.

    Example:
      >>> import pfljax
      >>> data = pfljax.load_dataset("digits", num_clients=5)
      >>> run = pfljax.fit("fedavg_ft", data, rounds=2)
      >>> model = run.client(0)
      >>> model.predict(data.inputs[:3]).shape, model.predict_proba(data.inputs[:3]).shape
      ((3,), (3, 10))
    """

    def __init__(self, shared: Shared, params: Params, client: str | int):
        self._shared, self.params, self.client = shared, params, client
        self.kind, self.config = shared.kind, shared.config
        self._form, self._frozen = shared.form, shared.frozen

    def outputs(self, inputs: Any) -> np.ndarray:
        """Returns the outputs of the model; for classification, logits.

        Args:
          inputs: `[n, ...]` in the units of the training data: one array, or a dict of arrays.

        Returns:
          `[n, ...]` float32.

        Raises:
          UserError: The inputs have another shape than those of the training data.
        """
        batch = self._checked(inputs)
        count = len(next(iter(by_name(batch).values())))
        key, found = jax.random.key(0), []
        for begin in range(0, count, _BATCH):
            numbers = np.arange(begin, begin + _BATCH)
            rows, mask = np.minimum(numbers, count - 1), numbers < count
            part = map_inputs(lambda array, rows=rows: array[rows], batch)
            outputs = np.asarray(self._shared.apply(self.params, part, mask, key))
            found.append(outputs[: count - begin])
        return np.concatenate(found)

    def predict(self, inputs: Any) -> np.ndarray:
        """Returns predictions in the form of the targets.

        Args:
          inputs: As for `outputs`.

        Returns:
          For classification, `[n]` names of classes, or numbers for classes without names; for a
          regression, `[n]` numbers in the units of the targets; for next_token, `[n, T]` ids; for
          several labels, `[n, labels]` bools; otherwise the outputs.
        """
        outputs, task = self.outputs(inputs), self._form.task
        if task == "classification":
            found = outputs.argmax(axis=-1)
            names = self._form.class_names
            return np.asarray(names)[found] if names else found
        if task in ("regression", "rating"):
            statistics = self._form.statistics
            return outputs[:, 0] * statistics["target_std"] + statistics["target_mean"]
        if task == "next_token":
            return outputs.argmax(axis=-1)
        return outputs > 0 if task == "multi_label" else outputs

    def predict_proba(self, inputs: Any) -> np.ndarray:
        """Returns `[n, C]`, the probability of each class.

        Args:
          inputs: As for `outputs`.

        Raises:
          UserError: The task is not a classification.
        """
        if self._form.task != "classification":
            raise UserError(
                f"The task {self._form.task} has no classes with probabilities: use predict or "
                "outputs."
            )
        return np.asarray(jax.nn.softmax(self.outputs(inputs)))

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the model to a file that `load_model` reads, in another process too.

        The file has the format safetensors; its metadata contain the config, and its arrays are
        named by their paths, such as `params/body/Dense_0/kernel`.

        Args:
          path: The file.

        Raises:
          UserError: The file cannot be written.
        """
        arrays = {
            f"{part}/{name}".rstrip("/"): np.asarray(leaf, order="C")
            for part, tree in (("params", self.params), ("frozen", self._frozen))
            for name, leaf in _named(tree).items()
        }
        content = {
            "format": _FORMAT,
            "config": workdir.settings(self.config),
            "form": self._form._asdict(),
            "client": self.client,
            "kind": self.kind,
        }
        try:
            safetensors.numpy.save_file(arrays, str(path), {"pfljax": json.dumps(content)})
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} cannot be written ({error}): choose another file.") from error

    def _checked(self, inputs: Any) -> Any:
        """Returns inputs in stored dtype."""

        def one(array, described):
            shape, dtype = described
            array = np.asarray(array)
            if array.shape[1:] != tuple(shape) or not len(array):
                raise UserError(
                    f"The inputs have the shape {array.shape}; the model of client {self.client} "
                    f"takes {('n', *shape)}, as in its training data.".replace("'n'", "n")
                )
            if not np.can_cast(array.dtype, dtype, "same_kind") and array.dtype.kind != "b":
                exact = array.astype(dtype)
                if not np.array_equal(exact, array):
                    raise UserError(
                        f"The inputs are of type {array.dtype}, and those of the training data of "
                        f"type {np.dtype(dtype)}, which cannot hold them: convert them first."
                    )
            return array.astype(dtype)

        form = self._form.inputs
        if not isinstance(form, dict):
            return one(inputs, form)
        if not isinstance(inputs, Mapping) or set(inputs) != set(form):
            raise UserError(f"The inputs must be a dict of the arrays {', '.join(form)}.")
        found = {name: one(inputs[name], form[name]) for name in form}
        if len({len(array) for array in found.values()}) > 1:
            raise UserError("The arrays of the inputs have different numbers of examples.")
        return found


def _named(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def load_model(path: str | pathlib.Path) -> ClientModel:
    """Reads a model that `ClientModel.save` wrote.

    Args:
      path: The file.

    Returns:
      The model, with equal predictions.

    Raises:
      UserError: The file cannot be read, is no such file, or is of a method that is not registered.

    Example:
      >>> import pathlib, tempfile
      >>> import pfljax
      >>> data = pfljax.load_dataset("digits", num_clients=5)
      >>> model = pfljax.fit("local", data, rounds=2).client(0)
      >>> file = pathlib.Path(tempfile.mkdtemp()) / "client.safetensors"
      >>> model.save(file)
      >>> bool((pfljax.load_model(file).predict(data.inputs) == model.predict(data.inputs)).all())
      True
    """
    runtime.start()
    try:
        with safetensors.safe_open(str(path), "numpy") as file:
            content = json.loads((file.metadata() or {}).get("pfljax", "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a model ({error}): check the file.") from error
    try:
        if content["format"] != _FORMAT:
            raise UserError(f"{path} was written by another version ({content['format']}).")
        settings, client, kind = content["config"], content["client"], content["kind"]
        form = Form(**content["form"])
    except (TypeError, KeyError) as error:
        raise UserError(f"{path} is not a model of a client: write it with save.") from error
    config = workdir.config_from(settings, str(path))
    make, inputs = Shared(config, form, (), kind).method
    shapes = jax.eval_shape(functools.partial(_deployed, make, form, kind), inputs, *_shapes(form))
    shared = Shared(config, form, _filled(path, "frozen", inputs.frozen, arrays), kind)
    return ClientModel(shared, _filled(path, "params", shapes, arrays), client)


def _shapes(form: Form) -> Any:
    return placement.shapes(form.dataset(), form.bounds[0])


def _deployed(make, form: Form, kind: str, inputs, population, data) -> Params:
    """Returns the model of a client, for the structure of its params."""
    algorithm, _ = make(*inputs)
    server, client = init.first_states(algorithm, population)
    if kind == "global":
        return algorithm.global_params(server)
    key = jax.random.key(0)
    context = Context(key, jnp.int32(0), jnp.int32(1), jnp.int32(0), key)
    return algorithm.personalize(server, client, data, context)


def _filled(path, part: str, like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Returns the arrays of a file in the structure of `like`."""
    wanted = {f"{part}/{name}".rstrip("/"): leaf for name, leaf in _named(like).items()}
    for name, leaf in wanted.items():
        found = arrays.get(name)
        if found is None or found.shape != leaf.shape:
            state = "is missing" if found is None else f"has the shape {found.shape}"
            raise UserError(f"{path}: the array {name!r} {state}; the model has {leaf.shape}.")
        if not np.all(np.isfinite(found)):
            raise UserError(f"{path}: the array {name!r} has values that are not finite.")
    return jax.tree.unflatten(
        jax.tree.structure(like),
        [arrays[name].astype(leaf.dtype) for name, leaf in wanted.items()],
    )
