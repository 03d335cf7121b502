"""What happens to the clients' messages between `ClientOutput.sum` and the server.

Each aggregator is one file; `AGGREGATORS` lists them for configs. An aggregator's factory
takes its hyper-parameters as keyword-only arguments. Without any the messages are added up as they
are: the plain mean.
"""

from collections.abc import Callable

from pfljax.aggregation.apply import (
    Upload,
    WithAggregation,
    apply,
    require_order,
    shapes_of_upload,
    without_metrics,
)
from pfljax.aggregation.clipping import adaptive_clip, clip
from pfljax.aggregation.low_rank import low_rank
from pfljax.aggregation.messages import Message, Public, Size
from pfljax.aggregation.over_the_air import over_the_air
from pfljax.aggregation.quantization import quantize
from pfljax.aggregation.robust import median, trimmed_mean
from pfljax.aggregation.top_k import top_k
from pfljax.aggregation.types import Aggregator, Encoded, Kind, Total

AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
    "low_rank": low_rank,
    "top_k": top_k,
    "quantize": quantize,
    "clip": clip,
    "adaptive_clip": adaptive_clip,
    "over_the_air": over_the_air,
    "median": median,
    "trimmed_mean": trimmed_mean,
}

__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "Encoded",
    "Kind",
    "Message",
    "Public",
    "Size",
    "Total",
    "Upload",
    "WithAggregation",
    "adaptive_clip",
    "apply",
    "clip",
    "low_rank",
    "median",
    "over_the_air",
    "quantize",
    "require_order",
    "shapes_of_upload",
    "top_k",
    "trimmed_mean",
    "without_metrics",
]
