"""Pre-trained language models: GPT-2, BERT and T5, with the names of arrays that others use."""

from pfljax.models.language.bert import bert, bert_activations, bert_upper
from pfljax.models.language.gpt2 import gpt2
from pfljax.models.language.hugging_face import FORMATS, Format, import_params
from pfljax.models.language.t5 import distance_buckets, t5

__all__ = [
    "FORMATS",
    "Format",
    "bert",
    "bert_activations",
    "bert_upper",
    "distance_buckets",
    "gpt2",
    "import_params",
    "t5",
]
