"""The registry of methods: a row for each, from which all that lists methods is made.

Configs, the README's table, the contract tests and refusals read the rows. A method's module is
imported when its factory is used for the first time.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable

from pfljax.algorithms.requirements import NEEDS, Setting, require
from pfljax.core import Algorithm, LocalTraining, Task, check_hyperparameters

# How methods personalize; a method may have several tags, and is listed under the first
# in tables, which have this order.
TAGS = (
    "no federation",
    "one model",
    "second model",
    "multi-task",
    "body and head",
    "normalization",
    "low rank",
    "element-wise mixing",
    "sparse models",
    "trees",
    "mixtures of models",
    "hypernetwork",
    "prototypes",
    "fine-tuning",
    "meta-learning",
    "proximal term",
    "contrastive term",
    "control variates",
    "calibration",
    "distillation",
    "generator",
    "clusters",
    "neighbours",
    "asynchronous",
    "fairness",
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the registry: what is known of a method without importing it.

    A row is called like the method's factory, `(task, local, **hyperparameters) -> Algorithm`.

    Attributes:
      source: The dotted name of the module whose last part is also the name of the factory in it;
        or the factory itself, for a method outside the library.
      title: The name of the method in sentences and tables; empty for the factory's name.
      year: The year of the paper; None for a method without one.
      tags: Families to which the method belongs, of `TAGS`; it is listed under the first in tables.
      needs: What the method cannot be used without, keys of `requirements.NEEDS`.
    """

    source: str | Callable[..., Algorithm]
    title: str = ""
    year: int | None = None
    tags: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()

    def __post_init__(self):
        unknown = [*(set(self.tags) - set(TAGS)), *(set(self.needs) - set(NEEDS))]
        if unknown:
            raise ValueError(f"{self.source} has the tag or need {unknown[0]!r}, which is unknown.")

    @property
    def factory(self) -> Callable[..., Algorithm]:
        """The function that makes the method; its module is imported at the first use."""
        if not isinstance(self.source, str):
            return self.source
        return getattr(importlib.import_module(self.source), self.source.rpartition(".")[2])

    def require_usable(
        self,
        task: Task,
        *,
        full_participation: bool = True,
        has_server_data: bool = True,
        random_init: bool = True,
    ) -> None:
        """Raises a `UserError` where the method cannot be used, before any of it is traced.

        Args:
          task: The model and the loss.
          full_participation: Whether all clients that take part in training do so in every round.
          has_server_data: Whether the server has its own examples.
          random_init: Whether `task.init` returns other params for another key.

        Raises:
          UserError: The sentence names the method, what it needs, and what to do.
        """
        title = self.title or self.factory.__name__
        setting = Setting(task, full_participation, has_server_data, random_init)
        require(title, self.needs, setting)

    def __call__(self, task: Task, local: LocalTraining, **hyperparameters) -> Algorithm:
        """Returns the method; see `checked` for its errors."""
        return self.factory(task, local, **hyperparameters)


def checked(factory: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
    """Returns the factory of a method with checks before it.

    The ranges of the hyper-parameters, which the signature declares, and the needs of the method's
    row, so that a factory that is imported from its own module refuses the same in the same words.

    Args:
      factory: `(task, local, *, hyper-parameters) -> Algorithm`.

    Raises:
      UserError: On a call: a value is not in its range, or a need is not met.
    """

    @functools.wraps(factory)
    def checking(task, local, **hyperparameters):
        check_hyperparameters(factory, hyperparameters, f"{factory.__name__}: ")
        row = ALGORITHMS.get(factory.__name__)
        if row is not None and row.source in (factory.__module__, checking):
            has_server_data = hyperparameters.get("server_data") is not None
            row.require_usable(task, has_server_data=has_server_data)
        return factory(task, local, **hyperparameters)

    return checking


def _row(name: str, title: str, year: int | None, *tags: str, needs: str = "") -> tuple:
    """Returns an item of `ALGORITHMS`; `needs` are separated by spaces."""
    source = f"{__package__}.{name}"
    return name, Method(source, title, year, tags, frozenset(needs.split()))


# The order is that of listings and tables.
ALGORITHMS: dict[str, Method] = dict(
    [
        _row("local", "Local", None, "no federation"),
        _row("fedavg", "FedAvg", 2017, "one model"),
        _row("fedavg_ft", "FedAvg with fine-tuning", 2020, "one model", "fine-tuning"),
        _row("fedprox", "FedProx", 2020, "one model", "proximal term"),
        _row("scaffold", "SCAFFOLD", 2020, "one model", "control variates"),
        _row("ditto", "Ditto", 2021, "second model", "proximal term"),
        _row("apfl", "APFL", 2020, "second model", "mixtures of models"),
        _row("fedper", "FedPer", 2019, "body and head", needs="body"),
        _row("fedrep", "FedRep", 2021, "body and head", needs="body"),
        _row("fedbabu", "FedBABU", 2022, "body and head", "fine-tuning", needs="body"),
        _row("perfedavg", "Per-FedAvg", 2020, "one model", "meta-learning", "fine-tuning"),
        _row("pfedme", "pFedMe", 2020, "second model", "proximal term"),
        _row("fedproto", "FedProto", 2022, "prototypes", needs="classes features head"),
        _row("fedala", "FedALA", 2023, "element-wise mixing", needs="layers"),
        _row("fedcac", "FedCAC", 2023, "element-wise mixing"),
        _row("fedbn", "FedBN", 2021, "normalization", needs="normalization"),
        _row("fedem", "FedEM", 2021, "mixtures of models", needs="classes random_init"),
        _row("fedfomo", "FedFomo", 2021, "mixtures of models"),
        _row("apple", "APPLE", 2022, "mixtures of models", needs="no_statistics"),
        _row("pfedhn", "pFedHN", 2021, "hypernetwork", needs="no_statistics"),
        _row(
            "fedpac",
            "FedPAC",
            2023,
            "body and head",
            "prototypes",
            needs="classes features head body",
        ),
        _row(
            "fedkd",
            "FedKD",
            2022,
            "second model",
            "distillation",
            needs="classes features head",
        ),
        _row(
            "fedgen",
            "FedGen",
            2021,
            "one model",
            "generator",
            "distillation",
            needs="classes features head",
        ),
        _row(
            "fedcp",
            "FedCP",
            2023,
            "body and head",
            needs="classes features head body no_head_statistics",
        ),
        _row("fednova", "FedNova", 2020, "one model"),
        _row("qffl", "q-FFL", 2020, "one model", "fairness"),
        _row("afl", "AFL", 2019, "one model", "fairness"),
        _row("ifca", "IFCA", 2020, "clusters", needs="random_init"),
        _row("cfl", "CFL", 2019, "clusters", needs="full_participation"),
        _row("knnper", "kNN-Per", 2022, "neighbours", needs="classes_or_numbers features head"),
        _row("mime", "Mime", 2020, "one model", "control variates"),
        _row("mimelite", "MimeLite", 2020, "one model"),
        _row("reptile", "Reptile", 2018, "one model", "meta-learning", "fine-tuning"),
        _row("fedbuff", "FedBuff", 2022, "one model", "asynchronous", needs="no_statistics"),
        _row("fedasync", "FedAsync", 2019, "one model", "asynchronous", "proximal term"),
        _row("feddyn", "FedDyn", 2021, "one model", "proximal term"),
        _row("moon", "MOON", 2021, "one model", "contrastive term", needs="features"),
        _row("fedlc", "FedLC", 2022, "one model", "calibration", needs="classes"),
        _row("fedntd", "FedNTD", 2022, "one model", "distillation", needs="classes"),
        _row("fedamp", "FedAMP", 2021, "mixtures of models", "proximal term"),
        _row("fedphp", "FedPHP", 2021, "second model", "distillation", needs="features"),
        _row("fedmtl", "FedMTL", 2017, "multi-task", "proximal term"),
        _row("pflda", "PFL-DA", 2023, "body and head", "proximal term", needs="head body"),
        _row("fedgc", "FedGC", 2022, "body and head", needs="classes features head body"),
        _row("fedcross", "FedCross", 2024, "mixtures of models"),
        _row("lg_fedavg", "LG-FedAvg", 2020, "body and head", needs="head body"),
        _row(
            "fedrod",
            "FedRoD",
            2022,
            "one model",
            "body and head",
            needs="classes features head no_head_statistics",
        ),
        _row("feddbe", "FedDBE", 2023, "one model", "prototypes", needs="classes features head"),
        _row(
            "fedgh",
            "FedGH",
            2023,
            "body and head",
            "prototypes",
            needs="classes features head body no_head_statistics",
        ),
        _row(
            "gpfl",
            "GPFL",
            2023,
            "body and head",
            "prototypes",
            needs="classes features head body no_head_statistics",
        ),
        _row(
            "fedas",
            "FedAS",
            2024,
            "body and head",
            "prototypes",
            needs="classes features head body",
        ),
        _row("fd", "FD", 2018, "distillation", needs="classes"),
        _row("fml", "FML", 2020, "second model", "distillation", needs="classes"),
        _row("fedpcl", "FedPCL", 2022, "prototypes", needs="classes features head body"),
        _row("mr_mtl", "MR-MTL", 2022, "second model", "proximal term"),
        _row("adafedprox", "AdaFedProx", 2020, "one model", "proximal term"),
        _row("lp_ft", "LP-FT", 2025, "one model", "fine-tuning", needs="head body"),
        _row(
            "pfedfda",
            "pFedFDA",
            2024,
            "body and head",
            "prototypes",
            needs="classes features body",
        ),
        _row(
            "feddf",
            "FedDF",
            2020,
            "one model",
            "distillation",
            needs="classes server_data",
        ),
        _row("fedmd", "FedMD", 2019, "distillation", needs="classes server_data"),
        _row("fedselect", "FedSelect", 2024, "element-wise mixing"),
        _row("pgfed", "PGFed", 2023, "multi-task"),
        _row("pgfedmo", "PGFedMo", 2023, "multi-task"),
        _row("fedpara", "FedPara", 2022, "one model", "low rank", needs="kernels random_init"),
        _row("pfedpara", "pFedPara", 2022, "low rank", needs="kernels random_init"),
        _row(
            "spectral_codist",
            "Spectral co-distillation",
            2023,
            "second model",
            "distillation",
            "proximal term",
            needs="layers",
        ),
        _row("self_fl", "Self-FL", 2022, "multi-task", "mixtures of models"),
        _row(
            "fedloge",
            "FedLoGe",
            2024,
            "body and head",
            "calibration",
            needs="classes features linear_head body",
        ),
        _row("fedgmm", "FedGMM", 2023, "mixtures of models", needs="classes features random_init"),
        _row(
            "proar_pfed",
            "PROAR-PFed",
            2024,
            "second model",
            "proximal term",
            needs="no_statistics",
        ),
        _row("fedjets", "FedJETs", 2023, "mixtures of models", needs="classes features"),
        _row("group_pfl", "Group PFL", 2022, "clusters", "fine-tuning"),
        _row("pefll", "PeFLL", 2023, "hypernetwork", needs="classes features no_statistics"),
        _row("pfedpg", "pFedPG", 2023, "hypernetwork", needs="prompts"),
        _row(
            "fedpgp",
            "FedPGP",
            2024,
            "low rank",
            "contrastive term",
            needs="class_features prompts no_statistics",
        ),
        _row("pfedgate", "pFedGate", 2023, "sparse models", needs="array_inputs"),
        _row("fedperfix", "FedPerfix", 2023, "body and head", needs="adapters"),
        _row(
            "fedrap",
            "FedRAP",
            2023,
            "body and head",
            needs="head body no_statistics random_init",
        ),
        _row("em_gmm", "EM-GMM", 2024, "one model", needs="classes array_inputs"),
        _row(
            "fedgbdt",
            "Federated GBDT",
            2024,
            "one model",
            "trees",
            needs="array_inputs features output_losses",
        ),
        _row(
            "persona_plug",
            "Persona-Plug",
            2024,
            "neighbours",
            needs="classes features head output_losses",
        ),
        _row("dpl", "DPL", 2025, "neighbours", needs="classes features head"),
        _row(
            "fspo",
            "FSPO",
            2025,
            "one model",
            "meta-learning",
            needs="features output_losses no_statistics",
        ),
    ]
)
