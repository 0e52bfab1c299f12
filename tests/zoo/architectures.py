"""Architectures of transformers with random weights, small: one of each that people bring.

Each is built by its configuration class, with the sizes below where it has such a field and with its own
differences. `AutoModel` classes choose the head: a language model, else a classifier, else what there is.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "d_inner", "n_inner", "hidden_dim"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 96),
    **dict.fromkeys(("head_dim", "d_kv", "v_head_dim"), 12),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "original_max_position_embeddings"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "embedding_size", "true_hidden_size"), 24),
    **dict.fromkeys(("intra_bottleneck_size", "q_lora_rank"), 24),
    "vocab_size": 50,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 48,
    "kv_lora_rank": 12,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "word_embed_proj_dim": 48,
    "sliding_window": 4,
    "attention_window": 4,
    "max_source_positions": 32,
    "max_target_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "use_cache": False,
    "image_size": 32,
    "patch_size": 8,
}
SPEECH = {
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
LATENT = {
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "head_dim": 6,
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 18,
}
STAGES = {"hidden_sizes": [16, 24], "depths": [1, 1]}
TEXT: dict[str, dict[str, Any]] = {
    "albert": {"num_hidden_groups": 1},
    "arcee": {},
    "big_bird": {"attention_type": "original_full"},
    "biogpt": {},
    "bloom": {},
    "codegen": {"rotary_dim": 6},
    "cohere": {},
    "cohere2": {},
    "ctrl": {"dff": 96},
    "deberta": {},
    "deberta-v2": {},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "ernie": {},
    "ernie4_5": {},
    "exaone4": {},
    "falcon": {"ffn_hidden_size": 96},
    "fnet": {"tpu_short_seq_length": 9},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gpt_neox": {},
    "gpt_oss": {},
    "gptj": {"rotary_dim": 6},
    "granite": {},
    "granitemoe": {},
    "helium": {},
    "jamba": {"mamba_d_state": 4},
    "longformer": {"attention_window": [4, 4]},
    "mistral": {},
    "mixtral": {},
    "mobilebert": {"num_feedforward_networks": 2},
    "mpt": {"expansion_ratio": 2, "max_seq_len": 64},
    "nemotron": {},
    "nystromformer": {"num_landmarks": 3, "segment_means_seq_len": 9},
    "olmo": {},
    "olmo2": {},
    "olmoe": {},
    "openai-gpt": {},
    "opt": {},
    "persimmon": {},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_moe": {},
    "rembert": {"input_embedding_size": 24, "output_embedding_size": 24},
    "roformer": {},
    "rwkv": {"attention_hidden_size": 48},
    "seed_oss": {},
    "smollm3": {},
    "starcoder2": {},
    "xglm": {"attention_heads": 4},
}
IMAGES: dict[str, dict[str, Any]] = {
    "beit": {"use_relative_position_bias": True},
    "bit": {"embedding_size": 16, "num_groups": 4, **STAGES},
    "clip_vision_model": {},
    "convnext": {"num_stages": 2, **STAGES},
    "convnextv2": {"num_stages": 2, **STAGES},
    "data2vec-vision": {},
    "dinov2": {"mlp_ratio": 2},
    "focalnet": {"embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "focal_levels": [1, 1]},
    "mobilenet_v1": {},
    "mobilenet_v2": {},
    "mobilevit": {
        "hidden_sizes": [24, 24, 24],
        "neck_hidden_sizes": [8, 16, 16, 16, 16, 24, 32],
        "num_attention_heads": 2,
    },
    "poolformer": {
        "num_encoder_blocks": 2,
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "padding": [2, 1],
        **STAGES,
    },
    "pvt": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 24, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [2, 2, 2, 4],
        "num_encoder_blocks": 4,
    },
    "regnet": {"embedding_size": 16, "groups_width": 8, **STAGES},
    "resnet": {"embedding_size": 16, **STAGES},
    "sam_vision_model": {"output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 96},
    "segformer": {
        "hidden_sizes": [16, 16, 24, 32],
        "num_attention_heads": [2, 2, 3, 4],
        "depths": [1, 1, 1, 1],
        "num_encoder_blocks": 4,
        "decoder_hidden_size": 16,
    },
    "vit_msn": {},
    "yolos": {"image_size": [32, 32], "num_detection_tokens": 5},
}
SOUND: dict[str, dict[str, Any]] = {
    "audio-spectrogram-transformer": {
        "max_length": 32,
        "num_mel_bins": 16,
        "frequency_stride": 8,
        "time_stride": 8,
    },
    "hubert": SPEECH,
    "speech_to_text": {"conv_channels": 16, "conv_kernel_sizes": [3, 3], "input_feat_per_channel": 8},
    "wav2vec2": SPEECH,
    "wav2vec2-conformer": {"conv_depthwise_kernel_size": 3, **SPEECH},
    "wavlm": SPEECH,
}
ALL = TEXT | IMAGES | SOUND


def build(kind: str) -> nn.Module:
    """The smallest model of an architecture, by the name that transformers gives it."""
    import transformers as tf

    plain = tf.AutoConfig.for_model(kind)
    own = ALL[kind]
    computed = {key for key in SIZES if isinstance(getattr(type(plain), key, None), property)}
    sizes = {key: value for key, value in SIZES.items() if hasattr(plain, key) and key not in computed}
    if kind == "segformer":
        return tf.SegformerForSemanticSegmentation(tf.SegformerConfig(**own))
    config = type(plain)(**(sizes | own))
    heads = ("CausalLM", "SequenceClassification", "Seq2SeqLM", "ImageClassification")
    for head in (*(f"AutoModelFor{name}" for name in heads), "AutoModel"):
        try:
            return getattr(tf, head).from_config(config).float()
        except (ValueError, KeyError):
            continue
    raise ValueError(f"transformers has no head for {kind}")


def draw(kind: str, batch: int, seed: int) -> Mapping[str, Tensor]:
    """What one call of the architecture takes."""
    generator = torch.Generator().manual_seed(seed)
    normal, whole = partial(torch.randn, generator=generator), partial(torch.randint, generator=generator)
    if kind in IMAGES:
        size = 64 if kind in ("segformer", "pvt") else 32
        return {"pixel_values": normal(batch, 3, size, size)}
    if kind == "audio-spectrogram-transformer":
        return {"input_values": normal(batch, 32, 16)}
    if kind == "speech_to_text":
        return {"input_features": normal(batch, 32, 8), "decoder_input_ids": whole(3, 50, (batch, 9))}
    if kind in SOUND:
        return {"input_values": normal(batch, 400)}
    return {"input_ids": whole(3, 50, (batch, 9))}
