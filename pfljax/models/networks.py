"""The table of networks: `(input_shape, outputs, **arguments) -> Model` for each."""

from __future__ import annotations

from collections.abc import Callable

from pfljax.models.attention import transformer, transformer_lm, vit, vit_ti
from pfljax.models.clip import two_tower
from pfljax.models.images import cnn, leaf_cnn, lenet, simple_cnn
from pfljax.models.language import bert, bert_upper, gpt2, t5
from pfljax.models.model import Model
from pfljax.models.recommendation import unimp
from pfljax.models.residual import mobilenet_v2, resnet8, resnet10, resnet18
from pfljax.models.tabular import amazon_mlp, har_cnn, logistic, matrix_factorization, mlp, mlp_bn
from pfljax.models.text import fasttext, lstm, lstm_lm, textcnn

MODELS: dict[str, Callable[..., Model]] = {
    "logistic": logistic,
    "mlp": mlp,
    "mlp_bn": mlp_bn,
    "amazon_mlp": amazon_mlp,
    "har_cnn": har_cnn,
    "cnn": cnn,
    "leaf_cnn": leaf_cnn,
    "simple_cnn": simple_cnn,
    "lenet": lenet,
    "resnet8": resnet8,
    "resnet10": resnet10,
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
    "vit": vit,
    "vit_ti": vit_ti,
    "two_tower": two_tower,
    "fasttext": fasttext,
    "textcnn": textcnn,
    "lstm": lstm,
    "transformer": transformer,
    "lstm_lm": lstm_lm,
    "transformer_lm": transformer_lm,
    "gpt2": gpt2,
    "bert": bert,
    "bert_upper": bert_upper,
    "t5": t5,
    "matrix_factorization": matrix_factorization,
    "unimp": unimp,
}
