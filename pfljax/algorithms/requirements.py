"""What methods need of a task and of a run, and the sentences that refuse what lacks it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax

from pfljax.core import Params, Path, Task
from pfljax.core.params import split_params
from pfljax.errors import UserError
from pfljax.ops import hadamard


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a method is to be used on.

    Attributes:
      task: The model and the loss.
      full_participation: Whether all clients that take part in training do so in every round.
      has_server_data: Whether the server has its own examples.
      random_init: Whether `task.init` returns other params for another key.
    """

    task: Task
    full_participation: bool = True
    has_server_data: bool = True
    random_init: bool = True

    @functools.cached_property
    def shapes(self) -> Params:
        """The shapes of the model's arrays, none of which is computed."""
        return jax.eval_shape(self.task.init, jax.eval_shape(jax.random.key, 0))

    def has(self, is_selected: Callable[[Path], bool]) -> bool:
        """Whether the model has an array whose path is selected."""
        return bool(split_params(self.shapes, is_selected)[0])

    def has_one_matrix(self, is_selected: Callable[[Path], bool]) -> bool:
        """Whether one array is selected, and it is a matrix."""
        selected = jax.tree.leaves(split_params(self.shapes, is_selected)[0])
        return [leaf.ndim for leaf in selected] == [2]

    @property
    def has_linear_head(self) -> bool:
        """Whether the head is a matrix `[num_features, num_classes]`, possibly with a bias."""
        head, _ = split_params(self.shapes, self.task.is_head)
        shapes = {leaf.shape for leaf in jax.tree.leaves(head)}
        size, classes = self.task.num_features, self.task.num_classes
        alone = len(jax.tree.leaves(head)) == len(shapes)
        return alone and {(size, classes)} <= shapes <= {(size, classes), (classes,)}

    def is_head_statistic(self, path: Path) -> bool:
        """Whether the array at `path` is a running statistic in the model's head."""
        return self.task.is_head(path) and self.task.is_statistic(path)


class Need(NamedTuple):
    """Something without which a method cannot be used.

    Attributes:
      is_met: `Setting -> bool`.
      noun: What the method needs, as the object of a sentence.
      remedy: What the user may do, as an imperative.
    """

    is_met: Callable[[Setting], bool]
    noun: str
    remedy: str


NEEDS: dict[str, Need] = {
    "classes": Need(
        lambda setting: setting.task.num_classes > 0,
        "classes",
        "choose a data set whose targets are classes",
    ),
    "classes_or_numbers": Need(
        lambda setting: setting.task.num_classes > 0 or setting.task.encode is not None,
        "classes or numbers to predict",
        "choose a data set whose targets are classes or numbers",
    ),
    "features": Need(
        lambda setting: setting.task.num_features > 0,
        "features that are rows of numbers",
        "choose another model",
    ),
    "array_inputs": Need(
        lambda setting: bool(setting.task.input_shape),
        "inputs that are one array of numbers",
        "choose another data set",
    ),
    "output_losses": Need(
        lambda setting: setting.task.output_losses is not None,
        "a loss that follows from the outputs",
        "choose another data set",
    ),
    "head": Need(
        lambda setting: setting.has(setting.task.is_head),
        "a head on the model's features",
        "choose another model",
    ),
    "body": Need(
        lambda setting: setting.has(setting.task.is_body),
        "a body before the model's head",
        "choose another model",
    ),
    "linear_head": Need(
        lambda setting: setting.has_linear_head,
        "a head that is one linear layer on the model's features",
        "choose another model",
    ),
    "layers": Need(
        lambda setting: bool(setting.task.layers),
        "the order of the model's layers",
        "name them in `Task.layers`, or choose another model",
    ),
    "kernels": Need(
        lambda setting: hadamard.has_kernels(setting.shapes),
        "dense layers or convolutions",
        "choose another model",
    ),
    "adapters": Need(
        lambda setting: setting.has(setting.task.is_adapter),
        "a model with adapters in its attention",
        "set config.model.name=vit_ti and config.model.adapter_width=128",
    ),
    "normalization": Need(
        lambda setting: setting.has(setting.task.is_norm),
        "normalization layers",
        "name a model that has some, such as mlp_bn",
    ),
    "no_statistics": Need(
        lambda setting: setting.task.observe is None,
        "a model without running statistics",
        "name one without batch normalization, such as one with GroupNorm",
    ),
    "no_head_statistics": Need(
        lambda setting: not setting.has(setting.is_head_statistic),
        "a head without running statistics",
        "move batch normalization into the body, or choose another model",
    ),
    "class_features": Need(
        lambda setting: setting.task.class_features is not None,
        "a model that compares features with those of classes",
        "set config.model.name=two_tower, config.adapter.name=prompt, config.adapter.layers=head "
        "and config.adapter.head=frozen",
    ),
    "prompts": Need(
        lambda setting: setting.has_one_matrix(setting.task.is_prompt),
        "a Transformer with prompts",
        "set config.model.name=vit and config.adapter.name=prompt",
    ),
    "full_participation": Need(
        lambda setting: setting.full_participation,
        "all clients in every round",
        "set config.cohort.size=0 and config.cohort.dropout=0",
    ),
    "server_data": Need(
        lambda setting: setting.has_server_data,
        "examples at the server",
        "set config.data.server_fraction, such as to 0.1",
    ),
    "random_init": Need(
        lambda setting: setting.random_init,
        "models that start with different params",
        "remove config.init_from and config.zero_init, and of an adapter set adapter.head=new",
    ),
}


def require(title: str, needs: Iterable[str], setting: Setting) -> None:
    """Raises a `UserError` for the first need that is not met.

    Args:
      title: The name of the method in sentences.
      needs: Keys of `NEEDS`.
      setting: What the method is to be used on.

    Raises:
      UserError: The sentence names the method, what it needs, and what to do.
    """
    needs = set(needs)
    for name, need in NEEDS.items():
        if name in needs and not need.is_met(setting):
            raise UserError(f"{title} needs {need.noun}; {need.remedy}.")
