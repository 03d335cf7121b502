"""Makes the files of this directory with peft, of adapters of tiny GPT-2, BERT and T5 networks.

    pip install '.[peft]' && python third_party/peft_adapters/make.py

All arrays are drawn from their names, and so are those of the adapters; of each case the files that
peft writes are kept, and the outputs of its model. Needs torch, transformers and peft, not pfljax.
"""

from __future__ import annotations

import pathlib
import tempfile
import zlib

import numpy as np
import peft
import torch
import transformers

HERE = pathlib.Path(__file__).parent
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
PADDED = np.array([[3, 1, 4, 0, 0], [9, 2, 6, 5, 3]])  # 0 is padding, where it is masked
TARGETS = np.array([[0, 7, 8], [0, 2, 10]])
# dropout is 0 everywhere: the outputs are those in training too
_SIZES = {"vocab_size": 11, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def gpt2() -> torch.nn.Module:
    """A GPT-2 of two blocks of width 8."""
    drop = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    size = {"n_positions": 12, "n_embd": 8, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**_SIZES, **size, **drop))


def bert() -> torch.nn.Module:
    """A BERT of two blocks of width 8, with three outputs."""
    drop = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "num_labels": 3}
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    long = {"intermediate_size": 32, "max_position_embeddings": 12}
    config = transformers.BertConfig(**_SIZES, **size, **drop, **long)
    return transformers.BertForSequenceClassification(config)


def t5() -> torch.nn.Module:
    """A T5 of two blocks of width 8 each way."""
    size = {"d_model": 8, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(**_SIZES, **size, dropout_rate=0, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


NETWORKS = {"gpt2": (gpt2, "CAUSAL_LM"), "bert": (bert, "SEQ_CLS"), "t5": (t5, "SEQ_2_SEQ_LM")}
_LORA = {"r": 2, "lora_alpha": 6}
CASES = {
    "gpt2_lora": ("gpt2", peft.LoraConfig, {**_LORA, "target_modules": ["c_attn", "c_fc"]}),
    "gpt2_ia3": ("gpt2", peft.IA3Config, {}),
    "gpt2_prompt": ("gpt2", peft.PromptTuningConfig, {"num_virtual_tokens": 3}),
    "gpt2_p_tuning": (
        "gpt2",
        peft.PromptEncoderConfig,
        {"num_virtual_tokens": 3, "encoder_hidden_size": 5},
    ),
    "gpt2_prefix": ("gpt2", peft.PrefixTuningConfig, {"num_virtual_tokens": 3}),
    "bert_lora": (
        "bert",
        peft.LoraConfig,
        {**_LORA, "use_rslora": True, "target_modules": ["query", "value", "dense"]},
    ),
    "bert_ia3": ("bert", peft.IA3Config, {}),
    "bert_prompt": ("bert", peft.PromptTuningConfig, {"num_virtual_tokens": 3}),
    "t5_lora": ("t5", peft.LoraConfig, {**_LORA, "target_modules": ["q", "v", "wo"]}),
    "t5_ia3": ("t5", peft.IA3Config, {}),
    "t5_prompt": (
        "t5",
        peft.PromptTuningConfig,
        {"num_virtual_tokens": 2, "num_transformer_submodules": 1},
    ),
}


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array that is drawn from its name."""
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    return (0.5 * draw.standard_normal(shape)).astype(np.float32)


def draw_all(arrays: dict[str, torch.Tensor]) -> None:
    """Replaces the values of arrays in place; one with several names is drawn by the first."""
    known = set()
    with torch.no_grad():
        for name, array in arrays.items():
            if array.data_ptr() in known:
                continue
            known.add(array.data_ptr())
            array.copy_(torch.tensor(drawn(name, tuple(array.shape))))


def make(case: str) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """Returns the model of a case with its adapter, and `{'base', 'adapted'}`, its outputs."""
    name, config, settings = CASES[case]
    network, task_type = NETWORKS[name]
    base = network().eval()
    draw_all(base.state_dict())
    inputs = {"input_ids": torch.tensor(IDS if name == "gpt2" else PADDED)}
    if name != "gpt2":
        inputs["attention_mask"] = inputs["input_ids"].ne(0).long()
    if name == "t5":
        inputs["decoder_input_ids"] = torch.tensor(TARGETS)
    with torch.no_grad():
        outputs = {"base": base(**inputs).logits.numpy()}
        model = peft.get_peft_model(base, config(task_type=task_type, **settings)).eval()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        draw_all(trained)
        outputs["adapted"] = model(**inputs).logits.numpy()
    if outputs["adapted"].ndim == 3:  # without the positions of a prompt
        outputs["adapted"] = outputs["adapted"][:, -outputs["base"].shape[1] :]
    return model, outputs


def main() -> None:
    kept = {}
    for case in CASES:
        model, outputs = make(case)
        kept |= {f"{case}/{name}": array for name, array in outputs.items()}
        with tempfile.TemporaryDirectory() as directory:
            model.save_pretrained(directory)
            (HERE / case).mkdir(exist_ok=True)
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                content = (pathlib.Path(directory) / name).read_bytes()
                (HERE / case / name).write_bytes(content)
    np.savez_compressed(HERE / "outputs.npz", **kept)


if __name__ == "__main__":
    main()
