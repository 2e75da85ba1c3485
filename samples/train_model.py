"""Trains a small causal LM on the states and tactics of recorded searches, with Hugging Face tools.

    python samples/train_model.py FOLDER --trajectories FILE... [--steps 600]

Each text is a state and a tactic that was applied to it, so that the model learns what can be done
about a state. Interrupt it any time; the same command resumes from the last checkpoint.
"""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import transformers
from transformers.trainer_utils import get_last_checkpoint

from tiny_model import make_model, train_tokenizer

VOCABULARY = 1024
LONGEST = 256  # tokens; longer texts are cut
SAVE_STEPS = 100
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 8192,  # a search may print states longer than any recorded one
}


def training_texts(files: list[str], skip: frozenset[str] = frozenset()) -> list[str]:
    """The states with each tactic that was applied to them, of all theorems but those to skip."""
    texts: dict[str, None] = {}
    columns = ["theorem_name", "state_id", "state_pp", "parent_state_id", "tactic_applied"]
    for file in files:
        rows = pq.read_table(file, columns=columns).to_pylist()
        states = {(r["theorem_name"], r["state_id"]): r["state_pp"] for r in rows if r["state_pp"]}
        for row in rows:
            parent = states.get((row["theorem_name"], row["parent_state_id"]))
            if parent and row["theorem_name"] not in skip:
                texts[f"{parent}\n:: {row['tactic_applied']}"] = None
    return [*texts]


class Texts(torch.utils.data.Dataset):  # type: ignore[misc]
    """Token ids of texts; with `ends`, the end-of-sequence token behind each."""

    def __init__(self, tokenizer: Any, texts: list[str], *, ends: bool) -> None:
        self.ids = tokenizer(texts, truncation=True, max_length=LONGEST - ends)["input_ids"]
        if ends:
            self.ids = [[*ids, tokenizer.eos_token_id] for ids in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.ids[index]
        return {"input_ids": ids, "labels": ids, "length": len(ids)}


def record_of(
    texts: list[str],
    steps: int,
    seed: int = 0,
    *,
    batch: int = 64,
    rate: float = 2e-3,
    ends: bool = False,
) -> dict[str, str | float]:
    """What `trained.json` of a model says that was trained so."""
    digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()
    return {
        "texts": digest,
        "steps": steps,
        "seed": seed,
        "batch": batch,
        "rate": rate,
        "ends": ends,
    }


def train(
    folder: Path,
    texts: list[str],
    steps: int,
    seed: int = 0,
    callbacks: list[transformers.TrainerCallback] | None = None,
    *,
    batch: int = 64,
    rate: float = 2e-3,
    ends: bool = False,
) -> Path:
    """Trains the model; does nothing if the folder has one of the same texts and options.

    With `ends` it learns where a text ends, as a model must that generates tactics.
    """
    done = folder / "trained.json"
    wanted = record_of(texts, steps, seed, batch=batch, rate=rate, ends=ends)
    if done.exists() and json.loads(done.read_text()) == wanted:
        return folder
    tokenizer = train_tokenizer(texts[:: max(1, len(texts) // 20_000)], VOCABULARY)
    tokenizer.pad_token = tokenizer.eos_token
    make_model(folder, tokenizer, seed=seed, std=0.02, **SHAPE)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    work = folder.with_name(f"{folder.name}.training") / "-".join(map(str, wanted.values()))
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(work),
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=rate,
            warmup_steps=50,
            lr_scheduler_type="cosine",
            weight_decay=0.01,
            adam_beta2=0.98,
            train_sampling_strategy="group_by_length",
            length_column_name="length",
            save_steps=SAVE_STEPS,
            save_total_limit=2,
            logging_steps=50,
            seed=seed,
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=not sys.stderr.isatty(),
        ),
        train_dataset=Texts(tokenizer, texts, ends=ends),
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
        callbacks=callbacks,
    )
    last = get_last_checkpoint(str(work)) if work.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    done.write_text(json.dumps(wanted))
    shutil.rmtree(work.parent)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trajectories", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    train(arguments.folder, training_texts(arguments.trajectories), arguments.steps)


if __name__ == "__main__":
    main()
