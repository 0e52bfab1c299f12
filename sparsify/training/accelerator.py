"""Accelerate, set up so that processes share each batch."""

import os
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import GradientAccumulationPlugin
from torch.utils.data import DataLoader

from sparsify.errors import RunError, first_line


def make_accelerator() -> Accelerator:
    """An Accelerator whose processes share a batch,
    so that `batch` means examples per step on one process or many.

    Raises RunError when the launcher asks for something else than DDP, or set its variables wrongly.
    """
    asked = next(
        (
            engine
            for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
            if os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() in ("true", "1")
        ),
        None,
    )
    if asked is not None:
        raise RunError(
            f"the launcher asks for {asked}, and apply trains by DDP, or by FSDP 2 where a train stage of "
            "the recipe says 'shard: true'; "
            "launch it without, such as by torchrun"
        )
    # mixed precision is the recipe's to choose, stage by stage, whatever the launcher was told
    whole = GradientAccumulationPlugin(num_steps=1)  # accumulation likewise
    cpu = (
        not torch.accelerator.is_available()
    )  # unless told so, torchrun's processes would not find each other there
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision="no",
            gradient_accumulation_plugin=whole,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
    except Exception as error:  # of accelerate, and of torch.distributed, which read the environment
        raise RunError(
            f"the processes of the run cannot be set up: {first_line(error)}; the launcher sets RANK, "
            "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and ACCELERATE_*: set them all, or unset them"
        ) from error


def share_batches(loader: DataLoader[Any], accelerator: Accelerator) -> DataLoader[Any]:
    """The loader on the accelerator's device, each batch divided among its processes.

    Not `accelerator.prepare`, which would keep the loaders of all epochs alive until the stage ends.
    """
    shared: DataLoader[Any] = prepare_data_loader(
        loader,
        accelerator.device,
        accelerator.num_processes,
        accelerator.process_index,
        split_batches=True,
        put_on_device=True,
    )
    return shared
