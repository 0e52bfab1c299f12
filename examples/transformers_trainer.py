"""A plan's penalties in Hugging Face's Trainer: one callback; its state goes into the Trainer's own
checkpoints.

python examples/transformers_trainer.py       # needs the extra: pip install -e '.[transformers]'
"""

import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import sparsify
from sparsify.adapters.transformers import SparsifyCallback

RECIPE = {
    "version": 1,
    "title": "Transformers",
    "budget": {"params": "95%"},
    "rules": [
        {
            "layers": "*.intermediate.dense",
            "group": "neuron",
            "penalty": {"kind": "group_lasso", "strength": {"kind": "linear", "from": 0, "to": 0.05}},
        }
    ],
}
IDS = torch.randint(3, 64, (64, 8), generator=torch.Generator().manual_seed(1))
DATA = [{"input_ids": ids, "labels": int(ids[0] > 32)} for ids in IDS]


def train(folder: Path, resume: Path | None = None) -> nn.Module:
    """Four epochs of two optimizer steps with a checkpoint after each epoch, or what is left of them after
    `resume`."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    model = BertForSequenceClassification(config)
    plan = sparsify.make_plan(RECIPE, model, {"input_ids": IDS[:2]})
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=4,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        learning_rate=5e-2,
        optim="adamw_torch",
        save_strategy="epoch",
        logging_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=DATA, callbacks=[SparsifyCallback(plan)])
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return model


def main() -> None:
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        whole = train(Path(folder))
        resumed = train(Path(folder), resume=Path(folder) / "checkpoint-4")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    print(sparsify.cut(sparsify.make_plan(RECIPE, resumed, {"input_ids": IDS[:2]}), resumed))


if __name__ == "__main__":
    main()
