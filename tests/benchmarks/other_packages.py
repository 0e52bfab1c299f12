"""Networks of other packages, none of them used by the tests: planned, cut and judged as in the zoo.

    pip install --no-deps vit-pytorch segmentation-models-pytorch monai diffusers ultralytics tsai \
        x-transformers torch-geometric open-clip-torch openai-whisper speechbrain basicsr demucs conformer \
        pytorch-tabnet perceiver-pytorch denoising-diffusion-pytorch hyper-connections \
        rotary-embedding-torch torch-einops-utils
    python tests/benchmarks/other_packages.py [--only PREFIX ...] [--modes random magnitude dead]
        [--json FILE] [--markdown FILE]

Each package asks for a few others (opencv-python-headless, beartype, jaxtyping, ftfy, regex, julius, fastai);
a network whose package is missing is a row that says so. Every network is small, has random weights and runs
in a process of its own, for at most --seconds of processor time. The columns are those of
tests/zoo/table.py.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "zoo")]

import shim  # noqa: E402, F401
import table  # noqa: E402
from networks import Entry  # noqa: E402

NETWORKS: dict[str, Entry] = {}
NOT_FOLLOWED = {
    "vit_pytorch.vit_with_patch_merger": "learnt queries leave, and a mean is taken over what they ask for",
    "vit_pytorch.nest": "positions are added to all channels, so that those that leave are no zeros where a "
    "normalisation that is written out takes its statistics; with positions of zero the reference agrees",
    "perceiver_pytorch": "learnt latents leave, and a mean is taken over them; if they stay, it agrees",
    "monai.VQVAE": "its second output is a mean over channels; the first agrees with the reference",
}
"""networks whose statistics the reference does not follow, and why: the library's own verdict stands alone"""
table.NOT_FOLLOWED |= NOT_FOLLOWED.keys()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: (torch.randn(2, *shape, generator=seeded()),)


def tokens(length: int, count: int = 64) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: (torch.randint(1, count, (2, length), generator=seeded()),)


def add(name: str, module: str, kind: str, inputs: Any, *args: Any, **options: Any) -> None:
    """A network that one class of a package builds."""
    NETWORKS[name] = Entry(lambda: getattr(importlib.import_module(module), kind)(*args, **options), inputs)


# vit-pytorch

VIT = {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 64}
LIKE_VIT = {
    "ViT": "vit deepvit:DeepViT cait:CaiT parallel_vit vit_for_small_dataset vit_with_patch_merger "
    "vit_with_decorr vit_with_keel_post_ln learnable_memory_vit vit_5 jumbo_vit:JumboViT "
    "normalized_vit:nViT xcit:XCiT ats_vit rvt:RvT",
    "SimpleViT": "simple_vit simple_vit_with_fft simple_vit_with_qk_norm simple_vit_with_register_tokens "
    "simple_vit_with_value_residual simple_vit_with_hyper_connections simple_vit_orthog_residual_update "
    "simple_vit_with_relative_proj_pos_bias simple_vit_with_specialized_cls simple_flash_attn_vit "
    "simple_uvit:SimpleUViT",
}
FURTHER_OPTIONS: dict[str, dict[str, Any]] = {
    "cait": {"cls_depth": 1},
    "xcit": {"cls_depth": 1},
    "parallel_vit": {"num_parallel_branches": 2},
    "vit_with_patch_merger": {"patch_merge_layer": 1, "patch_merge_num_tokens": 4},
    "jumbo_vit": {"num_jumbo_cls": 1, "jumbo_cls_k": 2},
    "normalized_vit": {"dim_head": 8},
    "ats_vit": {"max_tokens_per_depth": (12, 8)},
    "simple_vit_with_fft": {"freq_patch_size": 8},
    "simple_vit_with_hyper_connections": {"num_residual_streams": 2},
}


def add_vits() -> None:
    for usual, modules in LIKE_VIT.items():
        for entry in modules.split():
            module, _, kind = entry.partition(":")
            options = VIT | FURTHER_OPTIONS.get(module, {})
            add(f"vit_pytorch.{module}", f"vit_pytorch.{module}", kind or usual, normal(3, 32, 32), **options)
    line = {name: VIT[name] for name in ("num_classes", "dim", "depth", "heads", "mlp_dim")}
    film = {**line, "image_size": 32, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2}
    for module, kind in (("vit_1d", "ViT"), ("simple_vit_1d", "SimpleViT")):
        options = {**line, "seq_len": 64, "patch_size": 8}
        add(f"vit_pytorch.{module}", f"vit_pytorch.{module}", kind, normal(3, 64), **options)
    for module, kind in (("vit_3d", "ViT"), ("simple_vit_3d", "SimpleViT")):
        add(f"vit_pytorch.{module}", f"vit_pytorch.{module}", kind, normal(3, 4, 32, 32), **film)
    add(
        "vit_pytorch.vit_nd_rotary",
        "vit_pytorch.vit_nd_rotary",
        "ViTND",
        normal(3, 32, 32),
        **{**line, "ndim": 2, "input_shape": 32, "patch_size": 8},
    )
    one = {"num_classes": 10}
    staged = {"depth": (1, 1), "heads": 4, "mlp_dim": 64, "dim": 32}
    three = {f"s{i}_{name}": value for i in (1, 2, 3) for name, value in (("emb_dim", 16 * i), ("depth", 1))}
    patchless = {name: value for name, value in VIT.items() if name != "patch_size"}
    cases: list[tuple[str, str, int, dict[str, Any]]] = [
        (
            "cct",
            "CCT",
            32,
            {"img_size": 32, "embedding_dim": 32, "n_conv_layers": 2, "num_layers": 2, "num_heads": 4},
        ),
        ("pit", "PiT", 32, {**staged, "image_size": 32, "patch_size": 8}),
        ("cvt", "CvT", 32, {**three, "s1_heads": 1, "s2_heads": 2, "s3_heads": 3}),
        ("t2t", "T2TViT", 32, {**patchless, "t2t_layers": ((7, 4), (3, 2))}),
        (
            "levit",
            "LeViT",
            64,
            {"image_size": 64, "stages": 2, "dim": (32, 48), "depth": 1, "heads": (2, 2), "mlp_mult": 2},
        ),
        (
            "max_vit",
            "MaxViT",
            64,
            {"dim": 16, "depth": (1, 1), "dim_head": 8, "window_size": 4, "dim_conv_stem": 16},
        ),
        (
            "mobile_vit",
            "MobileViT",
            64,
            {
                "image_size": (64, 64),
                "dims": [24, 32, 32],
                "channels": [8, 8, 16, 16, 16, 16, 24, 24, 24, 24, 48],
            },
        ),
        (
            "nest",
            "NesT",
            32,
            {
                "image_size": 32,
                "patch_size": 4,
                "dim": 24,
                "heads": 3,
                "num_hierarchies": 2,
                "block_repeats": (1, 1),
            },
        ),
    ]
    for module, kind, size, options in cases:
        add(
            f"vit_pytorch.{module}",
            f"vit_pytorch.{module}",
            kind,
            normal(3, size, size),
            **{**one, **options},
        )


# segmentation-models-pytorch


def add_segmenters() -> None:
    architectures = "Unet UnetPlusPlus Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus MAnet PAN UPerNet Segformer"
    pairs = [(name, "resnet18") for name in architectures.split()]
    pairs += [("Unet", name) for name in ("mit_b0", "mobileone_s0", "densenet121", "tu-convnext_atto")]
    for kind, encoder in pairs:
        size = 128 if kind in ("PAN", "UPerNet") else 64
        options = {"encoder_name": encoder, "encoder_weights": None, "classes": 3}
        module = "segmentation_models_pytorch"
        add(f"{module}.{kind}.{encoder}", module, kind, normal(3, size, size), **options)


# MONAI


def add_medical() -> None:
    plain = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    small = {**plain, "channels": (8, 16, 32), "strides": (2, 2)}
    six = {**plain, "features": (8, 8, 16, 16, 32, 8)}
    kernels = {
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [8, 16, 32],
    }
    unetr = {"img_size": (32, 32), "feature_size": 8, "hidden_size": 48, "mlp_dim": 64, "num_heads": 4}
    down, up = ((2, 4, 1, 1),) * 2, ((2, 4, 1, 1, 0),) * 2
    codes: dict[str, Any] = {
        "num_embeddings": 16,
        "embedding_dim": 8,
        "num_res_layers": 1,
        "num_res_channels": 16,
    }
    codes |= {
        "channels": (16, 32),
        "downsample_parameters": down,
        "upsample_parameters": up,
        "out_channels": 1,
    }
    cases: dict[str, tuple[int, dict[str, Any]]] = {
        "UNet": (32, {**small, "num_res_units": 2}),
        "BasicUNet": (32, six),
        "BasicUNetPlusPlus": (32, six),
        "AttentionUnet": (32, small),
        "SegResNet": (32, {**plain, "init_filters": 8}),
        "SegResNetDS": (32, {**plain, "init_filters": 8, "blocks_down": (1, 2, 2)}),
        "VNet": (32, plain),
        "DynUNet": (32, {**plain, **kernels}),
        "UNETR": (32, {**plain, **unetr}),
        "SwinUNETR": (64, {**plain, "feature_size": 12}),
        "HighResNet": (32, plain),
        "DenseNet121": (32, plain),
        "AutoEncoder": (32, {**plain, "out_channels": 1, "channels": (8, 16), "strides": (2, 2)}),
        "VQVAE": (32, {**plain, **codes}),
    }
    for kind, (size, options) in cases.items():
        add(f"monai.{kind}", "monai.networks.nets", kind, normal(1, size, size), **options)


# diffusers


class Sample(nn.Module):
    """A model of diffusers, called for its tensor."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.net = getattr(importlib.import_module("diffusers"), kind)(**options)

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.net(*given, return_dict=False)[0]
        return made


def add_diffusers() -> None:
    steps = torch.tensor([3, 7])
    narrow = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
    latent = lambda: (torch.randn(2, 4, 16, 16, generator=seeded()), steps)  # noqa: E731
    text = torch.randn(2, 5, 16, generator=seeded(1))
    coder = {
        **narrow,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "UNet2DModel": (
            lambda: (torch.randn(2, 3, 32, 32, generator=seeded()), steps),
            {
                **narrow,
                "sample_size": 32,
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
                "attention_head_dim": 8,
            },
        ),
        "UNet2DConditionModel": (
            lambda: (*latent(), text),
            {
                **narrow,
                "sample_size": 16,
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
                "attention_head_dim": 4,
                "cross_attention_dim": 16,
            },
        ),
        "AutoencoderKL": (normal(3, 32, 32), {**coder, "latent_channels": 4}),
        "AutoencoderTiny": (
            normal(3, 32, 32),
            {
                "encoder_block_out_channels": (16, 16),
                "decoder_block_out_channels": (16, 16),
                "num_encoder_blocks": (1, 1),
                "num_decoder_blocks": (1, 1),
            },
        ),
        "VQModel": (normal(3, 32, 32), {**coder, "latent_channels": 4, "num_vq_embeddings": 16}),
        "DiTTransformer2DModel": (
            lambda: (*latent(), torch.tensor([1, 2])),
            {
                "num_attention_heads": 4,
                "attention_head_dim": 8,
                "in_channels": 4,
                "out_channels": 8,
                "num_layers": 2,
                "sample_size": 16,
                "norm_num_groups": 8,
                "num_embeds_ada_norm": 1000,
            },
        ),
    }
    for kind, (inputs, options) in cases.items():
        NETWORKS[f"diffusers.{kind}"] = Entry(lambda k=kind, o=options: Sample(k, **o), inputs)


# Ultralytics


def add_detectors() -> None:
    os.environ |= {"YOLO_VERBOSE": "False", "YOLO_OFFLINE": "1"}
    names = "yolov3-tiny yolov5n yolov6n yolov8n yolov8n-ghost yolov9t yolov10n yolo11n yolo12n yolo26n"
    kinds = [(name, "DetectionModel") for name in names.split()]
    kinds += [
        ("yolov8n-seg", "SegmentationModel"),
        ("yolov8n-pose", "PoseModel"),
        ("yolo11n-obb", "OBBModel"),
    ]
    kinds += [("yolov8n-cls", "ClassificationModel")]
    for name, kind in kinds:
        module = "ultralytics.nn.tasks"
        add(f"ultralytics.{name}", module, kind, normal(3, 64, 64), f"{name}.yaml", ch=3, verbose=False)


# Time series, language, graphs, sound, images


def add_series() -> None:
    flat = "InceptionTime FCN ResNet ResCNN TCN XceptionTime XResNet1d:xresnet1d18 RNN:GRU"
    sized = "OmniScaleCNN RNN_FCN:LSTM_FCN TST gMLP XCM TSSequencerPlus ConvTranPlus"
    for names, args in ((flat, (3, 5)), (sized, (3, 5, 48))):
        for entry in names.split():
            module, _, kind = entry.partition(":")
            add(f"tsai.{kind or module}", f"tsai.models.{module}", kind or module, normal(3, 48), *args)


class Decoder(nn.Module):
    """A language model of x-transformers."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        package = importlib.import_module("x_transformers")
        layers = package.Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, **options)
        self.net = package.TransformerWrapper(num_tokens=64, max_seq_len=32, attn_layers=layers)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.net(ids)
        return scores


DECODERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "gated": {"ff_glu": True, "ff_swish": True, "ff_no_bias": True},
    "rms": {"use_rmsnorm": True},
    "relative": {"rel_pos_bias": True},
    "grouped": {"attn_kv_heads": 2},
    "qk_norm": {"attn_qk_norm": True},
    "sandwich": {"sandwich_norm": True},
    "macaron": {"macaron": True},
    "gated_values": {"attn_gate_values": True},
    "memory": {"attn_num_mem_kv": 4},
    "talking": {"attn_pre_talking_heads": True},
    "gated_residual": {"gate_residual": True},
    "shifted": {"shift_tokens": 1},
}


EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 0, 2], [1, 2, 3, 4, 5, 6, 7, 0, 4, 6]])
CONVOLUTIONS = "GCNConv SAGEConv GATConv GATv2Conv TransformerConv GraphConv GINConv".split()
OF_HEADS = ("GATConv", "GATv2Conv", "TransformerConv")


class GraphNet(nn.Module):
    """Two convolutions of PyTorch Geometric over one graph of eight nodes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.head = self.make(kind, 8), self.make(kind, 32), nn.Linear(32, 4)

    def make(self, kind: str, width: int) -> nn.Module:
        build: Any = getattr(importlib.import_module("torch_geometric.nn"), kind)
        if kind == "GINConv":
            made: nn.Module = build(nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 32)))
            return made
        made = build(width, 8, heads=4) if kind in OF_HEADS else build(width, 32)
        return made

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        found = torch.relu(self.second(torch.relu(self.first(x, edges)), edges))
        scores: torch.Tensor = self.head(found)
        return scores


def draw_graph(batch: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Other features of the nodes; the graph has no batch."""
    return torch.randn(8, 8, generator=seeded(seed)), EDGES


def make_whisper() -> nn.Module:
    model = importlib.import_module("whisper.model")
    audio = {"n_mels": 16, "n_audio_ctx": 20, "n_audio_state": 32, "n_audio_head": 4, "n_audio_layer": 2}
    text = {"n_vocab": 64, "n_text_ctx": 16, "n_text_state": 32, "n_text_head": 4, "n_text_layer": 2}
    made: nn.Module = model.Whisper(model.ModelDimensions(**audio, **text))
    return made


def add_others() -> None:
    for name, options in DECODERS.items():
        NETWORKS[f"x_transformers.{name}"] = Entry(lambda o=options: Decoder(**o), tokens(16))
    for kind in CONVOLUTIONS:
        graph = lambda: draw_graph(2, 0)  # noqa: E731
        NETWORKS[f"torch_geometric.{kind}"] = Entry(lambda k=kind: GraphNet(k), graph, draw_graph)
    sound = lambda: (torch.randn(2, 16, 40, generator=seeded()), *tokens(8)())  # noqa: E731
    NETWORKS["whisper"] = Entry(make_whisper, sound)
    conformer = {"dim": 32, "depth": 2, "dim_head": 8, "heads": 4, "ff_mult": 2, "conv_expansion_factor": 2}
    add("conformer", "conformer", "Conformer", normal(12, 32), **conformer, conv_kernel_size=7)
    perceiver = {"input_channels": 3, "input_axis": 2, "num_freq_bands": 2, "max_freq": 4.0, "depth": 2}
    perceiver |= {"num_latents": 8, "latent_dim": 32, "num_classes": 10, "latent_heads": 4}
    heads = {"latent_dim_head": 8, "cross_dim_head": 8}
    add("perceiver_pytorch", "perceiver_pytorch", "Perceiver", normal(8, 8, 3), **perceiver, **heads)
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
    both = lambda: (*normal(3, 32, 32)(), *tokens(16)())  # noqa: E731
    add("open_clip", "open_clip.model", "CLIP", both, embed_dim=32, vision_cfg=vision, text_cfg=text)
    noisy = lambda: (*normal(3, 32, 32)(), torch.tensor([3, 7]))  # noqa: E731
    module = "denoising_diffusion_pytorch"
    add(f"{module}.Unet", module, "Unet", noisy, dim=16, dim_mults=(1, 2), flash_attn=False)
    image, feature = normal(3, 16, 16), {"num_feat": 16}
    blocks: dict[str, tuple[str, dict[str, Any]]] = {
        "RRDBNet": ("rrdbnet", {"num_in_ch": 3, "num_out_ch": 3, "num_block": 2, "num_grow_ch": 8}),
        "EDSR": ("edsr", {"num_in_ch": 3, "num_out_ch": 3, "num_block": 2, "upscale": 2}),
        "RCAN": (
            "rcan",
            {"num_in_ch": 3, "num_out_ch": 3, "num_group": 2, "num_block": 2, "squeeze_factor": 4},
        ),
        "SRVGGNetCompact": ("srvgg", {"num_conv": 3, "upscale": 2}),
    }
    for kind, (file, options) in blocks.items():
        add(f"basicsr.{kind}", f"basicsr.archs.{file}_arch", kind, image, **feature, **options)
    add("demucs", "demucs.demucs", "Demucs", normal(2, 2048), sources=["a", "b"], channels=8, depth=3)
    speech = "speechbrain.lobes.models"
    wide = {"channels": [32, 32, 32, 32, 96], "attention_channels": 16, "se_channels": 16}
    add(
        "speechbrain.ECAPA_TDNN",
        f"{speech}.ECAPA_TDNN",
        "ECAPA_TDNN",
        normal(30, 20),
        20,
        lin_neurons=24,
        **wide,
    )
    rows = {"cnn_blocks": 1, "cnn_channels": (8,), "rnn_layers": 1, "rnn_neurons": 24, "dnn_blocks": 1}
    add("speechbrain.CRDNN", f"{speech}.CRDNN", "CRDNN", normal(20, 16), 16, **rows, dnn_neurons=32)
    attention = torch.eye(12)
    tabular = {"n_d": 8, "n_a": 8, "virtual_batch_size": 2, "group_attention_matrix": attention}
    add("pytorch_tabnet", "pytorch_tabnet.tab_network", "TabNet", normal(12), 12, 3, **tabular)


def list_networks() -> dict[str, Entry]:
    for collect in (
        add_vits,
        add_segmenters,
        add_medical,
        add_diffusers,
        add_detectors,
        add_series,
        add_others,
    ):
        collect()
    return NETWORKS


# running


def judge_alone(name: str, mode: str, seconds: int) -> dict[str, Any]:
    """The row of one network, made in a process of its own."""
    command = [sys.executable, __file__, "--alone", name, "--modes", mode, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == 0 and last.startswith("{"):
        found: dict[str, Any] = json.loads(last)
        return found
    said = done.stderr.strip().rpartition("\n")[2][:200]
    return {"name": name, "mode": mode, "outcome": said or f"code {done.returncode}", "judged": "not run"}


def print_row(name: str, mode: str, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 10))
    entry = list_networks()[name]
    entry.build()  # a package that is missing, or a network that it cannot build, is no row of ours
    print("\n" + json.dumps(asdict(table.row(name, entry, mode)), default=dict))


def summarise(rows: Iterable[dict[str, Any]]) -> str:
    """A line for each package and mode: networks, what the reference says of them, how much left."""
    lines = [
        "| package | mode | networks | right | by its own verdict alone | wrong | refused or error | gone |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    parts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["judged"] != "not run":
            parts.setdefault((row["name"].partition(".")[0], row["mode"]), []).append(row)
    for (package, mode), own in sorted(parts.items()):
        counts = Counter(row["judged"] for row in own)
        right = counts["right"] + counts["loss told"]
        refused = len(own) - right - counts["own verdict only"] - counts["wrong"]
        gone = sum(row["gone"] for row in own) / len(own)
        figures = (len(own), right, counts["own verdict only"], counts["wrong"], refused)
        lines.append(f"| {package} | {mode} | {' | '.join(map(str, figures))} | {gone:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names")
    parser.add_argument("--modes", nargs="*", default=["random"], choices=table.MODES)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--json", type=Path, help="a line for each row is added; rows that it has are kept")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.alone is not None:
        print_row(options.alone, options.modes[0], options.seconds)
        return
    rows = []
    if options.json is not None and options.json.exists():
        rows = [json.loads(line) for line in options.json.read_text().splitlines()]
    there = {(row["name"], row["mode"]) for row in rows}
    for name in list_networks():
        for mode in options.modes if name.startswith(tuple(options.only)) else ():
            if (name, mode) in there:
                continue
            rows.append(judge_alone(name, mode, options.seconds))
            print(f"{name} {mode}: {rows[-1]['outcome']}, {rows[-1]['judged']}", flush=True)
            if options.json is not None:
                with options.json.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(summarise(rows))


if __name__ == "__main__":
    main()
