"""Fine-tunes a causal LM on recorded proofs: LoRA, by the Trainer of transformers.

    python fine_tune.py --model BASE --trajectories FILE... --output ADAPTER [--steps 120]

The model learns to go on behind the prompt of a state (`--template`) with a tactic that is on a
recorded proof, from the theorems that `ebm-encode train-head` learns from. The result is an adapter
of peft, and a policy: `ebm-prover search --policy hf --policy-template TEMPLATE`. The adapter is
there when the training has ended, never before. Interrupt it any time; the same command resumes.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from checkpoints import Completed, newest
from ebm_encode.digests import digest_files, digest_json
from ebm_encode.errors import EbmEncodeError, ModelError
from ebm_encode.loading.quantization import require_full_weights
from ebm_encode.prompts.templates import Template
from pairs import IGNORED, Completions, Pairs, read_pairs
from whole_folders import fresh_folder, publish

RECORD = "fine_tune.json"
JUDGED = 256
"""Pairs whose loss is computed at the end, of each part."""
PROMPT = Path(__file__).with_name("prompt.txt")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--trajectories", nargs="+", required=True, help="recorded searches")
    parser.add_argument("--output", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--template", default=str(PROMPT), help="as --policy-template of a search")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=32, help="pairs of a step")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate at its highest")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA; alpha is twice the rank")
    parser.add_argument("--dropout", type=float, default=0.05, help="of LoRA")
    parser.add_argument("--max-length", type=int, default=512, help="tokens; longer: skipped")
    parser.add_argument("--save-steps", type=int, default=40, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    return parser.parse_args(arguments)


def made_of(options: argparse.Namespace, template: Template, pairs: Pairs) -> dict[str, Any]:
    """What an adapter is the result of: with equal values there is nothing to do."""
    if not options.model.is_dir():
        raise ModelError(f"--model {options.model}: no such folder")
    files = sorted(file for file in options.model.iterdir() if file.is_file())
    learning = ("steps", "batch", "rate", "rank", "dropout", "max_length", "seed")
    return {
        "base": digest_files(files),
        "pairs": digest_json([pairs.train, pairs.validation]),
        "template": template.text,
    } | {name: getattr(options, name) for name in learning}


def with_adapter(options: argparse.Namespace) -> Any:
    """The base model in float32 with an adapter that changes nothing yet."""
    transformers.set_seed(options.seed)
    config = transformers.AutoConfig.from_pretrained(options.model)
    require_full_weights(f"--model {options.model}", config, "adapters are trained")
    base = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank,
        lora_dropout=options.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(base, config)


def make_trainer(
    options: argparse.Namespace, work: Path, model: Any, tokenizer: Any, pairs: Completions
) -> transformers.Trainer:
    """A Trainer whose checkpoints go to `work`."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(work),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            per_device_eval_batch_size=options.batch,
            learning_rate=options.rate,
            warmup_steps=max(1, options.steps // 20),
            lr_scheduler_type="cosine",
            train_sampling_strategy="group_by_length",
            length_column_name="length",
            save_steps=options.save_steps,
            save_total_limit=2,
            logging_steps=max(1, options.steps // 10),
            logging_first_step=True,
            seed=options.seed,
            report_to="none",
            use_cpu=options.device == "cpu",
            dataloader_pin_memory=False,
            disable_tqdm=not sys.stderr.isatty(),
        ),
        train_dataset=pairs,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
        callbacks=[Completed()],
    )


def judge(trainer: transformers.Trainer, pairs: Completions) -> dict[str, float]:
    """Mean loss on some pairs, in nats a token, without the adapter and with it."""
    some = torch.utils.data.Subset(pairs, range(min(JUDGED, len(pairs))))
    with trainer.model.disable_adapter():
        before = trainer.evaluate(some)["eval_loss"]
    return {"before": before, "after": trainer.evaluate(some)["eval_loss"]}


def fine_tune(options: argparse.Namespace) -> dict[str, Any]:
    """Makes the adapter, unless it is there; returns its record."""
    template, pairs = Template.load(options.template), read_pairs(options.trajectories)
    wanted = made_of(options, template, pairs)
    known = read_record(options.output)
    works = options.output.with_name(f"{options.output.name}.training")
    if known.get("made_of") == wanted:
        shutil.rmtree(works, ignore_errors=True)
        print(f"{options.output} is there, made of the same")
        return known
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"--model {options.model}: its tokenizer has no end-of-sequence token")
    train, validation = (
        Completions(tokenizer, template, part, options.max_length)
        for part in (pairs.train, pairs.validation)
    )
    skipped = f", {train.skipped:,} skipped as too long" if train.skipped else ""
    print(f"{len(train):,} pairs to learn from{skipped}; {len(validation):,} to compare with")
    work = works / digest_json(wanted).removeprefix("blake3:")[:16]
    trainer = make_trainer(options, work, with_adapter(options), tokenizer, train)
    last = newest(work)
    if last is not None:
        print(f"resumes from {last}")
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    record = {
        "made_of": wanted,
        "pairs": len(train),
        "loss": {"train": judge(trainer, train), "validation": judge(trainer, validation)},
        # The Trainer's later ones are means over steps since the last kill.
        "first_step": next(e["loss"] for e in trainer.state.log_history if "loss" in e),
    }
    save(trainer.model, options.output, record)
    shutil.rmtree(works)
    return record


def read_record(adapter: Path) -> dict[str, Any]:
    """What an adapter was made of, and its losses; empty where there is no adapter."""
    try:
        found: dict[str, Any] = json.loads((adapter / RECORD).read_text())
    except FileNotFoundError:
        return {}
    return found


def save(model: Any, output: Path, record: dict[str, Any]) -> None:
    """Writes the adapter; equal trainings write equal bytes."""
    folder = fresh_folder(output)
    model.save_pretrained(folder)
    config = folder / "adapter_config.json"
    values = json.loads(config.read_text())
    values["target_modules"].sort()  # peft writes a set, in any order
    config.write_text(json.dumps(values, indent=2, sort_keys=True))
    (folder / RECORD).write_text(json.dumps(record, indent=2))
    publish(folder, output)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    started = time.monotonic()
    try:
        record = fine_tune(options)
    except EbmEncodeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    for part, loss in record["loss"].items():
        print(f"loss on {part} theorems: {loss['before']:.3f} -> {loss['after']:.3f} nats a token")
    print(f"{options.steps} steps, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
