"""The zoo: networks with random weights, each with inputs.

Names: micro (one construct each, of tests/unit/graph/test_graph.py), own (tests/zoo/own.py), further
(further.py, packed.py), tv (torchvision), timm, hf (transformers), arch (architectures.py: more of
transformers). The libraries are imported when they are asked for.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "unit" / "graph"))

import architectures
import further as further_networks
import own as own_networks
import packed as packed_networks
import reference
import shim  # noqa: F401
import test_graph
import torch
from torch import Tensor, nn

warnings.simplefilter("ignore")

Inputs = tuple[Tensor, ...] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Entry:
    """How to build a network, and what one forward call takes."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    drawn: Callable[[int, int], Inputs] | None = None
    """what a call takes by batch size and seed, where dimension 0 of each input is not the batch"""
    methods: tuple[str, ...] = ()
    """methods besides forward that users call with the same inputs"""

    def fresh(self, batch: int, seed: int) -> Inputs:
        """Other inputs of the same kind, at this batch size."""
        return reference.fresh(self.inputs(), batch, seed) if self.drawn is None else self.drawn(batch, seed)


def images(size: int, batch: int = 2, channels: int = 3) -> Callable[[], Inputs]:
    return lambda: (torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0)),)


def tokens(*names: str) -> Callable[[], Inputs]:
    return lambda: {
        name: torch.randint(2, 50, (2, 9), generator=torch.Generator().manual_seed(1)) for name in names
    }


def micro() -> dict[str, Entry]:
    builders = {
        **test_graph.EQUAL,
        **test_graph.STATISTICS,
        **{name: entry[0] for name, entry in test_graph.KEPT_WHOLE.items()},
    }
    return {f"micro.{name}": Entry(build, lambda: test_graph.INPUTS) for name, build in builders.items()}


def own() -> dict[str, Entry]:
    return {f"own.{name}": Entry(build, inputs) for name, (build, inputs) in own_networks.NETWORKS.items()}


def further() -> dict[str, Entry]:
    methods = further_networks.METHODS
    return {
        f"further.{name}": Entry(build, lambda drawn=drawn: drawn(2, 0), drawn, methods.get(name, ()))
        for name, (build, drawn) in (further_networks.NETWORKS | packed_networks.NETWORKS).items()
    }


def torchvision() -> dict[str, Entry]:
    from torchvision import models as tv

    found: dict[str, Entry] = {}
    sizes = {
        64: "resnet18 resnet34 resnet50 resnet152 wide_resnet50_2 resnext50_32x4d resnext101_32x8d "
        "vgg11 vgg16_bn densenet121 densenet201 mobilenet_v2 "
        "mobilenet_v3_small mobilenet_v3_large efficientnet_b0 efficientnet_b1 efficientnet_v2_s "
        "squeezenet1_0 squeezenet1_1 shufflenet_v2_x0_5 "
        "shufflenet_v2_x1_0 regnet_y_400mf regnet_x_400mf regnet_y_1_6gf mnasnet0_5 mnasnet1_0 convnext_tiny",
        96: "alexnet",
    }
    for size, names in sizes.items():
        for name in names.split():
            found[f"tv.{name}"] = Entry(lambda name=name: getattr(tv, name)(weights=None), images(size))
    found["tv.googlenet"] = Entry(
        lambda: tv.googlenet(weights=None, aux_logits=False, init_weights=False), images(64)
    )
    found["tv.googlenet_aux"] = Entry(
        lambda: tv.googlenet(weights=None, aux_logits=True, init_weights=False), images(96)
    )
    found["tv.inception_v3"] = Entry(lambda: tv.inception_v3(weights=None, init_weights=False), images(299))
    found["tv.vit"] = Entry(lambda: tv.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10), images(32))
    swin = {
        "patch_size": [4, 4],
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": [4, 4],
        "num_classes": 10,
    }
    found["tv.swin"] = Entry(lambda: tv.SwinTransformer(**swin), images(64))
    found["tv.swin_v2"] = Entry(
        lambda: tv.SwinTransformer(
            **swin,
            block=tv.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=tv.swin_transformer.PatchMergingV2,
        ),
        images(64),
    )
    found["tv.maxvit"] = Entry(
        lambda: tv.MaxVit(
            input_size=(64, 64),
            stem_channels=16,
            partition_size=2,
            block_channels=[16, 32],
            block_layers=[1, 1],
            head_dim=8,
            stochastic_depth_prob=0.0,
            num_classes=10,
        ),
        images(64),
    )
    segmentation = tv.segmentation
    for name in ("deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large"):
        more = {"weights_backbone": None, "weights": None, "num_classes": 5}
        found[f"tv.{name}"] = Entry(
            lambda name=name, more=more: getattr(segmentation, name)(**more), images(64)
        )
    video = lambda: (torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)),)  # noqa: E731
    found["tv.r3d_18"] = Entry(lambda: tv.video.r3d_18(weights=None), video)
    found["tv.r2plus1d_18"] = Entry(lambda: tv.video.r2plus1d_18(weights=None), video)
    return found


def timm() -> dict[str, Entry]:
    import timm

    names = {
        64: "resnet18 resnetv2_50 efficientnet_b0 regnety_004 ghostnet_100 res2net50_26w_4s "
        "hrnet_w18_small repvgg_a0 poolformer_s12 mobilevit_xs "
        "nfnet_l0 skresnet18 xception41 convnext_pico convformer_s18 resnest14d dpn48b selecsls42 "
        "cspresnet50 vovnet39a dla34 mobilenetv3_small_050 "
        "tinynet_e lcnet_050 fbnetc_100 semnasnet_075 hardcorenas_a gernet_s eca_resnet33ts "
        "edgenext_xx_small",
        224: (
            "mixer_s32_224 vit_tiny_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224 "
            "beit_base_patch16_224 cait_xxs24_224 gmixer_12_224 resmlp_12_224"
        ),
    }
    found = {}
    for size, listed in names.items():
        for name in listed.split():
            if timm.is_model(name):
                found[f"timm.{name}"] = Entry(
                    lambda name=name: timm.create_model(name, pretrained=False, num_classes=10), images(size)
                )
    return found


def transformers() -> dict[str, Entry]:
    import transformers as tf

    tf.logging.set_verbosity_error()
    small = {
        "vocab_size": 50,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    plain = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    causal = {**small, **plain, "use_cache": False}
    ids = tokens("input_ids")
    return {
        "hf.bert": Entry(lambda: tf.BertForSequenceClassification(tf.BertConfig(**small)), ids),
        "hf.roberta": Entry(
            lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**small, **plain)), ids
        ),
        "hf.electra": Entry(
            lambda: tf.ElectraForSequenceClassification(tf.ElectraConfig(**small, embedding_size=48)), ids
        ),
        "hf.distilbert": Entry(
            lambda: tf.DistilBertForSequenceClassification(
                tf.DistilBertConfig(vocab_size=50, dim=48, n_layers=2, n_heads=4, hidden_dim=96)
            ),
            ids,
        ),
        "hf.gpt2": Entry(
            lambda: tf.GPT2LMHeadModel(
                tf.GPT2Config(vocab_size=50, n_embd=48, n_layer=2, n_head=4, use_cache=False, **plain)
            ),
            ids,
        ),
        "hf.llama": Entry(lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**causal, num_key_value_heads=4)), ids),
        "hf.llama_gqa": Entry(
            lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**causal, num_key_value_heads=2)), ids
        ),
        "hf.mistral": Entry(
            lambda: tf.MistralForCausalLM(tf.MistralConfig(**causal, num_key_value_heads=2)), ids
        ),
        "hf.qwen2_tied": Entry(
            lambda: tf.Qwen2ForCausalLM(
                tf.Qwen2Config(**causal, num_key_value_heads=2, tie_word_embeddings=True)
            ),
            ids,
        ),
        "hf.t5": Entry(
            lambda: tf.T5ForConditionalGeneration(
                tf.T5Config(
                    vocab_size=50,
                    d_model=48,
                    d_kv=12,
                    d_ff=96,
                    num_layers=2,
                    num_heads=4,
                    use_cache=False,
                    **plain,
                )
            ),
            tokens("input_ids", "decoder_input_ids"),
        ),
        "hf.vit": Entry(
            lambda: tf.ViTForImageClassification(
                tf.ViTConfig(
                    **{k: v for k, v in small.items() if k != "vocab_size"}, image_size=32, patch_size=8
                )
            ),
            lambda: {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))},
        ),
        "hf.whisper": Entry(
            lambda: tf.WhisperForConditionalGeneration(
                tf.WhisperConfig(
                    vocab_size=50,
                    d_model=48,
                    encoder_layers=2,
                    decoder_layers=2,
                    encoder_attention_heads=4,
                    decoder_attention_heads=4,
                    encoder_ffn_dim=96,
                    decoder_ffn_dim=96,
                    num_mel_bins=8,
                    max_source_positions=16,
                    max_target_positions=16,
                    use_cache=False,
                    decoder_start_token_id=0,
                    suppress_tokens=None,
                    begin_suppress_tokens=None,
                    **plain,
                )
            ),
            lambda: {
                "input_features": torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0)),
                "decoder_input_ids": torch.randint(2, 50, (2, 9), generator=torch.Generator().manual_seed(1)),
            },
        ),
    }


def all_architectures() -> dict[str, Entry]:
    import transformers as tf

    tf.logging.set_verbosity_error()
    found = {}
    for kind in architectures.ALL:
        drawn = partial(architectures.draw, kind)
        found[f"arch.{kind}"] = Entry(partial(architectures.build, kind), partial(drawn, 2, 0), drawn)
    return found


SOURCES = {
    "micro": micro,
    "own": own,
    "further": further,
    "tv": torchvision,
    "timm": timm,
    "hf": transformers,
    "arch": all_architectures,
}
"""First part of a name -> what builds the networks of that name."""


def everything() -> dict[str, Entry]:
    """Every network there is."""
    return {name: entry for source in SOURCES.values() for name, entry in source().items()}
