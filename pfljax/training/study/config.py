"""The keys of all configs, with their defaults; `config_checks` checks their values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import ml_collections
from ml_collections import config_dict

from pfljax import core, extensions
from pfljax.aggregation import AGGREGATORS
from pfljax.algorithms import ALGORITHMS
from pfljax.data import SOURCES
from pfljax.errors import UserError

# Arguments of a factory that a config does not set by `hparams`, but by keys that methods share.
_OF_OTHER_KEYS = ("server_optimizer", "server_data")


def hyperparameters(factory: Callable) -> dict[str, bool | int | float | str | dict[str, str]]:
    """Returns the names and defaults of a method's hyper-parameters, read from its signature.

    A hyper-parameter that is a network is `{'name': ''}`, without a model, which takes the
    model's arguments as further keys. `server_optimizer` and `server_data` are made from keys of
    their own.

    Args:
      factory: Of a method, or the loader of a data set.

    Raises:
      UserError: A config could not set one of them, so that it would be dropped.

    Example:
      >>> from pfljax.algorithms import ALGORITHMS
      >>> hyperparameters(ALGORITHMS['fedprox'].factory)
      {'mu': 0.1}
    """
    networks, found = core.networks(factory), {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or name in _OF_OTHER_KEYS:
            continue
        if name in networks:
            found[name] = {"name": ""}
        elif isinstance(parameter.default, bool | int | float | str):
            found[name] = parameter.default
        else:
            raise UserError(
                f"{factory.__name__}: no config can set {name}; give it a number, a bool or a "
                "string as default, or annotate it with core.NETWORK."
            )
    return found


def model_keys() -> tuple[str, ...]:
    """Returns the keys of a config that name a model, with its arguments as further keys."""
    return "model", *(
        f"hparams.{method}.{name}"
        for method, row in ALGORITHMS.items()
        for name in core.networks(row.factory)
    )


def optimizer_config(name: str, learning_rate: float) -> ml_collections.ConfigDict:
    """Returns the keys of an optimizer: any optax optimizer, and arguments it may take.

    An argument that is None is not passed, so that optax's default holds.

    Args:
      name: in optax, such as 'sgd' or 'adam'.
      learning_rate: its first argument.
    """
    config = ml_collections.ConfigDict({"name": name, "learning_rate": learning_rate})
    for argument in ("momentum", "b1", "b2", "eps", "weight_decay"):
        config[argument] = config_dict.placeholder(float)
    config.nesterov = config_dict.placeholder(bool)
    return config


def schedule_config() -> ml_collections.ConfigDict:
    """Returns the keys of a schedule: any optax schedule whose arguments are numbers.

    An argument that is None is not passed; `training.study.schedules` describes the defaults.
    """
    config = ml_collections.ConfigDict({"name": "constant", "per": "round"})
    for argument in ("decay_steps", "transition_steps", "transition_begin", "warmup_steps"):
        config[argument] = config_dict.placeholder(int)
    values = ("init_value", "peak_value", "end_value", "decay_rate", "alpha", "exponent", "power")
    cycle = ("pct_start", "pct_final", "div_factor", "final_div_factor")
    for argument in (*values, *cycle):
        config[argument] = config_dict.placeholder(float)
    config.staircase = config_dict.placeholder(bool)
    config.boundaries, config.scales = (), ()
    return config


def default_config() -> ml_collections.ConfigDict:
    """Returns all keys with their defaults, which config files override.

    Example:
      >>> config = default_config()
      >>> config.algorithm, config.hparams.ditto.lam
      ('fedavg', 0.1)
    """
    config = ml_collections.ConfigDict()
    # Python files with methods, networks, data sets and metrics of the user, imported before.
    config.imports = extensions.imported()
    config.seed = 0  # seed of all randomness in training; data.seed is that of the data
    config.rounds = 100  # number of communication rounds
    # The length of schedules and annealing; 0 uses `rounds`. Set it from the start for a run that
    # may be extended later.
    config.planned_rounds = 0
    config.eval_every = 10  # number of rounds between evaluations
    config.checkpoint_every = 50  # number of rounds between checkpoints; 0: only at the end
    # Keep a checkpoint of the evaluated round with the best validation score of the personalized
    # models too, in best_checkpoint. Needs engine.residence='device'.
    config.keep_best = False

    config.algorithm = "fedavg"  # the name of the method
    config.hparams = {name: hyperparameters(row.factory) for name, row in ALGORITHMS.items()}
    # Keys of single methods in compare.py and sweep.py, set in a config file:
    # config.per_method.ditto = {'server_optimizer': {'momentum': 0.9}}.
    config.per_method = {name: {} for name in ALGORITHMS}
    # Scenarios that compare.py runs one after the other, with the keys in which each differs, set
    # in a config file: config.scenarios = {'dirichlet': {}, 'shards': {'data': {'partition':
    # 'shards'}}}. Without any, the config is the only one.
    config.scenarios = {}
    # The methods of compare.py; train.py runs `algorithm` with `seed`.
    config.algorithms = ("local", "fedavg", "fedavg_ft")
    config.seeds = (0,)  # the seeds of compare.py and sweep.py, instead of `seed`
    # What the seeds of compare.py vary: 'everything', including partition and splits (the seed is
    # added to data.seed), or 'training' only, on the partition of data.seed.
    config.seeds_vary = "everything"

    # Further metrics, of pfljax.metrics.METRICS or of the task itself, that results, tables and
    # curves show beside the score, such as ('auc', 'macro_f1').
    config.metrics = ()
    # The metric by which rounds, sweeps and tables choose, one of the task's own or of `metrics`;
    # '' for the score of the task.
    config.score = ""
    # How sweep.py ranks values by the validation score.
    config.selection = {
        "mean": "weighted",  # of the clients, 'weighted' by their examples or 'unweighted'
        "which_round": "best",  # of each run, 'best' or 'last'
    }

    config.batch_size = 10  # number of examples in a local step
    config.local_epochs = 1  # number of passes over a client's training examples
    # Number of local steps in a round for every client, whatever its size, in place of
    # local_epochs; epochs that are a hyper-parameter of a method remain. 0 uses local_epochs.
    config.local_steps = 0
    # With drop_remainder, a client with fewer examples than a batch trains on all of them as one.
    config.shrink_batch = False
    config.drop_remainder = False  # drop the last batch of an epoch if it is partial
    config.client_optimizer = optimizer_config("sgd", 0.05)
    config.client_optimizer.decay = 1.0  # factor of the clients' steps per round
    # Maximum L2 norm of the gradient of a batch, with penalties, over all arrays of one
    # optimizer: APFL's two models have one together, FedKD's have one each. None does not clip.
    config.client_optimizer.clip_norm = config_dict.placeholder(float)
    # The learning rate of one method's clients; None uses client_optimizer.learning_rate.
    config.learning_rates = {name: config_dict.placeholder(float) for name in ALGORITHMS}
    # name: optax schedule of the clients' learning rate, such as 'cosine_decay_schedule',
    # 'exponential_decay', 'piecewise_constant_schedule' or 'warmup_cosine_decay_schedule', whose
    # values are factors of the learning rate; 'constant' for none; per: 'round', a function of the
    # round, which also multiplies a method's other rates for steps on models, or 'step', a function
    # of the step since the beginning of a local training, for steps of the optimizer only;
    # init_value: passed to the schedule; None passes 1, or 0 if the schedule takes a peak_value;
    # peak_value: passed to the schedule; None passes 1; decay_steps: passed to the schedule; None
    # passes the planned number of rounds, and must be replaced if the schedule is per step;
    # transition_steps: as decay_steps; boundaries: rounds or steps of piecewise_constant_schedule,
    # in ascending order; scales: the number by which each of the boundaries multiplies the factor.
    config.client_schedule = schedule_config()
    config.server_optimizer = optimizer_config("sgd", 1.0)
    # Maximum L2 norm of the mean change of the clients in a round; None does not clip.
    config.server_optimizer.clip_norm = config_dict.placeholder(float)

    # size: number of clients in a round, 0 for all; sampling: 'fixed' or 'poisson'; dropout:
    # fraction of sampled clients that fail; join: the server's state from which a client's private
    # state is initialized, 'current' for that of the round in which it first takes part or is
    # evaluated, 'initial' for that before the first round.
    config.cohort = {"size": 0, "sampling": "fixed", "dropout": 0.0, "join": "current"}

    # stages: aggregators that the clients' messages pass through before the server, in the order in
    # which clients apply them; () for the plain mean; metrics: 'public' reports the mean of the
    # clients' training metrics, which no aggregator protects; 'none' reports none of them.
    config.aggregation = {"stages": (), "metrics": "public"}
    for name, factory in AGGREGATORS.items():
        config.aggregation[name] = hyperparameters(factory)

    config.data = {
        "name": "digits",  # the name of the data set
        "dir": "",  # the directory of its files
        "partition": "dirichlet",  # how examples are partitioned among clients
        "alpha": 0.1,  # concentration of the Dirichlet partitions
        "classes_per_client": 2,  # pathological, dirichlet_extended: number of classes
        "balanced": True,  # pathological: a class is split equally among its clients
        "shards_per_client": 2,  # shards: number of shards of a client
        "size_sigma": 1.0,  # quantity_log_normal: standard deviation of log sizes
        "size_exponent": 1.0,  # quantity_power_law: exponent of sizes over ranks
        "num_groups": 4,  # number of groups, for the partition groups and both shifts
        "group_by": "class",  # groups: assign single classes ('class') or 'superclass'
        # The shift of the groups' features: 'none', 'rotation', 'contrast' or 'noise'.
        "feature_shift": "none",
        "shift_strength": 0.5,  # strength of contrast and noise, from 0 to 1
        "concept_shift": "none",  # the shift of the groups' labels: 'none' or 'permutation'
        "num_clients": 20,  # number of clients, including held-out ones
        "num_owners": 0,  # natural: number of clients, drawn by the seed; 0 uses all of them
        "seed": 0,  # seed of the partition, the splits and the choice of held-out clients
        "test_fraction": 0.25,  # fraction of each client's examples
        "validation_fraction": 0.1,  # fraction of each client's other examples
        "unseen_fraction": 0.0,  # fraction of held-out clients, which are evaluated only
        "server_fraction": 0.0,  # fraction of the examples that belong to the server only
        "server_name": "",  # the data set of the server's examples; '' for that of the clients
        # How examples are split: 'stratified' keeps the fractions of a client's labels, 'plain' is
        # scikit-learn's split by the seed, 'by_item' tests items of which no client has a training
        # example, 'temporal' tests each client's last examples, and 'last_two' its last one, with
        # the one before it for validation, whatever the fractions.
        "split": "stratified",
        # The mean and the deviation by which inputs are standardized: those 'given' with the data
        # set, those of all training examples ('pooled'), or each client's own ('client').
        "standardize": "given",
        # Features of a user that are added to the inputs of its examples: 'none', or 'difference',
        # how its training labels deviate from those of other users on the same items.
        "user_features": "none",
        "shrinkage": 5.0,  # difference: ratings without a deviation, added to each user's
        "server_dir": "",  # the directory of its files
        "checksum": "",  # of a data set passed from Python, which is named 'python'
    }
    # Minimum number of examples of a client in the Dirichlet and quantity partitions; the natural
    # partition drops owners with fewer. None uses the defaults of the partitions.
    config.data.min_size = config_dict.placeholder(int)
    # Options of data sets: the keyword-only arguments of their loaders.
    config.data.options = {
        name: options for name, load in SOURCES.items() if (options := hyperparameters(load))
    }
    config.zero_init = False  # all params of the model are zero before the first round
    config.model = {
        "name": "mlp",  # the name of the network; its arguments are further keys
    }
    # Models of different architectures, in place of `model`: a text for each with the name of the
    # network and its arguments, such as ('mlp(widths=(200, 84))', 'lenet'); client i has the model
    # i modulo their number. () gives all clients `model`. Methods whose clients exchange no whole
    # model can be used, such as local, fedproto and fd.
    config.architectures = ()
    # File with the params with which training starts: one array for each path in the model, such as
    # body/Dense_0/kernel, in .safetensors or .npz; '' draws them from the seed. In this path and
    # the two of adapters, {seed} is the seed of the run.
    config.init_from = ""
    # Adapters, trained in place of the model's parameters, which stay frozen.
    config.adapter = {
        # Kind of adapter: 'lora', 'ia3', 'bias', 'houlsby', 'prefix', 'prompt', 'p_tuning',
        # 'user_token', 'hidden_map', 'basis' or 'lora_mixture'; 'head' trains only the head, and
        # 'none' all parameters.
        "name": "none",
        "rank": 4,  # lora, lora_mixture, basis, hidden_map: rank of an update
        "scale": 1.0,  # lora, lora_mixture, basis, hidden_map: factor on an update
        "experts": 4,  # lora_mixture: number of updates of each layer
        "width": 16,  # houlsby, p_tuning: number of hidden units
        "tokens": 8,  # prompt, p_tuning, prefix: number of trained tokens
        "layers": "",  # regular expression for the paths of adapted layers; '' for all but the head
        # ia3: regular expression for the paths of layers whose inputs are scaled in place of their
        # outputs; '' for none.
        "input_layers": "",
        # How the head is trained: starting with that of the 'base', as a 'new' one drawn from the
        # seed, or not at all, 'frozen'.
        "head": "base",
        # 'frozen', or 'trained' together with the adapter, which is then the part that methods with
        # personalized heads, such as fedper, keep private in place of the head.
        "network": "frozen",
        # File of frozen parameters, as init_from; '' draws them from base_seed.
        "base": "",
        "base_seed": 0,  # of frozen parameters without a file
        # File with the initial values of all trained arrays, those of the adapter and the head,
        # such as the model of another run; '' draws those of the adapter from the seed.
        "start": "",
    }
    # The loss of a preference, of which each example is a chosen answer and a rejected one.
    config.preference = {
        "loss": "bradley_terry",  # 'bradley_terry', 'dpo', 'cdpo' or 'ipo'
        "beta": 0.1,  # dpo, cdpo, ipo: strength of the divergence to the reference
        "smoothing": 0.1,  # cdpo: probability of a wrong label
        # Whether the outputs of the frozen base of an adapter, or of the model of init_from, are
        # those of the reference; False has the reference that all answers are equally likely.
        "reference": False,
    }
    # The weights of the losses of a recommendation; 0 leaves a task out of the training.
    config.recommendation = {
        "next_item": 1.0,  # which of several items is chosen next
        "rating": 0.1,  # how the chosen item is rated
        "tags": 1.0,  # which tags the chosen item has
        # next_item, tags: exponent of the focal factor, which lowers the loss of what is predicted
        # well already; 0 has the cross-entropy.
        "gamma": 2.0,
    }
    # The dtype in which models compute, 'float32' or 'bfloat16'; parameters are float32.
    config.compute_dtype = "float32"
    config.engine = {
        "devices": 0,  # number of devices; 0: all, on CPU one for each core
        # Client batch size: a number in quotes, 'default' (1 on CPU, else up to 64), or 'auto',
        # measured before the run.
        "clients_per_chunk": "default",
        "rounds_per_call": 10,  # maximum number of rounds in one call of the program
        "eval_batch_size": 32,  # maximum number of examples evaluated at once
        # Where private states and examples are stored: 'device', or 'host' for populations larger
        # than device memory, in files of which a cohort at a time is copied to the devices.
        "residence": "device",
        "eval_clients": 0,  # number of evaluated clients, chosen once; 0: all
    }
    return config


def comparison_config(
    data: str,
    model: str,
    *,
    partition: str = "natural",
    rounds: int,
    eval_every: int = 5,
    learning_rate: float,
    learning_rates: Mapping[str, float] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
) -> ml_collections.ConfigDict:
    """Returns the config of a comparison of six methods on a data set, the base of `configs/`.

    Args:
      data: Name of the data set.
      model: Name of the model.
      partition: Name of the partition.
      rounds: Number of rounds.
      eval_every: Number of rounds between evaluations.
      learning_rate: The learning rate of the clients.
      learning_rates: Learning rates of single methods, by name.
      seeds: The seeds of the comparison.

    Example:
      >>> config = comparison_config('mnist', 'mlp', rounds=10, learning_rate=0.1)
      >>> config.data.name, config.algorithms[:2]
      ('mnist', ('local', 'fedavg'))
    """
    config = default_config()
    config.seeds = tuple(seeds)
    config.algorithms = ("local", "fedavg", "fedavg_ft", "ditto", "fedper", "fedrep")
    config.rounds, config.eval_every = rounds, eval_every
    config.client_optimizer.learning_rate = learning_rate
    config.learning_rates.update(learning_rates or {})
    config.data.name, config.data.partition, config.model.name = data, partition, model
    return config
