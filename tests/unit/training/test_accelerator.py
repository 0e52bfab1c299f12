"""What a launcher may ask for."""

import pytest

from sparsify.errors import RunError
from sparsify.training.accelerator import make_accelerator


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_launchers_that_ask_for_more_than_ddp_are_refused(monkeypatch: pytest.MonkeyPatch, engine: str):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(RunError) as caught:
        make_accelerator()
    assert str(caught.value) == (
        f"the launcher asks for {engine}, and apply trains by DDP, "
        "or by FSDP 2 where a train stage of the recipe says 'shard: true'; "
        "launch it without, such as by torchrun"
    )
