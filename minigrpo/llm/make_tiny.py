"""Make the model `tiny` again: python -m minigrpo.llm.make_tiny --out DIR --seed 0 (a few minutes on one CPU core).

It is pretrained on the worked problems of a pupil who can add and subtract but mostly forgets to carry and to borrow:
7+18 becomes 15, 18-9 becomes 19. So the model is right about half the time, errs in single steps that can be read off,
and writes the right step often enough for reinforcement to find it. Problems come from the train split only. One
thread, so that the same seed gives the same weights on the same machine.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from minigrpo.files import check_writable, write_bytes
from minigrpo.llm.arithmetic import Problem, all_problems
from minigrpo.llm.rewards import PASS

SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>")
CHARACTERS = "0123456789+-×= \n"
CONTEXT = 128  # tokens; a problem with its worked answer takes at most 22
# One token before the question and one after it. The template knows no other roles, so it refuses them.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '<user>' + message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- '<assistant>' + message['content'] + '<eos>' -}}"
    "{%- else -%}{{- raise_exception('the model tiny knows the roles user and assistant, got ' + message['role']) -}}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}"
)
FORGETS = 0.8  # the pupil's chance of forgetting, for each operation that carries or borrows
VERSIONS = 4  # of every problem, with the pupil's slips drawn anew
PEAK_LEARNING_RATE = 1.5e-3  # AdamW, after WARMUP updates; then it falls linearly to 0
WARMUP = 50
BATCH = 128  # problems of an update
IGNORED = -100  # the label of a token that is not learned


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: one token a character, a few special ones, prompts padded on the left."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(seed: int) -> LlamaForCausalLM:
    """Build the untrained model of about 0.8 million parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(CHARACTERS),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=344,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<eos>"),
    )
    return LlamaForCausalLM(config)


def operate(left: int, sign: str, right: int, *, forgets: bool) -> int:
    """Add or subtract; who forgets loses the ten that is carried, or keeps the ten that is borrowed.

    Args:
        left: the first number.
        sign: "+" or "-".
        right: the second number.
        forgets: whether the pupil forgets a carry or borrow.
    """
    right = right if sign == "+" else -right
    result = left + right
    big, small = sorted((abs(left), abs(right)), reverse=True)
    if (left < 0) == (right < 0):
        slip = -10 if big % 10 + small % 10 >= 10 else 0  # a carry
    else:
        slip = 10 if big % 10 < small % 10 else 0  # a borrow
    return result + (slip if result >= 0 else -slip) * forgets


def pupils_work(problem: Problem, random_numbers: random.Random) -> Problem:
    """Write a problem as the pupil works it, forgetting with chance FORGETS in either operation."""
    a, first, b, second, c = re.findall(r"\d+|[+-]", problem.prompt)
    between = operate(int(a), first, int(b), forgets=random_numbers.random() < FORGETS)
    answer = operate(between, second, int(c), forgets=random_numbers.random() < FORGETS)
    return Problem(problem.prompt, str(answer), f"{between}{second}{c}={answer}")


def encode(tokenizer: PreTrainedTokenizerFast, lessons: Sequence[Problem]) -> tuple[Tensor, Tensor]:
    """Encode worked problems: ids (B, T), padded on the right, and labels (B, T) that hold only the answer's tokens."""
    prompts = [[*tokenizer.encode(f"<user>{x.prompt}<assistant>")] for x in lessons]
    answers = [[*tokenizer.encode(x.worked), tokenizer.eos_token_id] for x in lessons]
    length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(lessons), length), tokenizer.pad_token_id)
    labels = torch.full_like(ids, IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


@torch.no_grad()
def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Problem],
    *,
    sampled: bool,
    seed: int = 0,
) -> float:
    """Measure the share of problems whose completion ends in "=answer", greedy or sampled at temperature 1.

    Args:
        model: the policy.
        tokenizer: its own.
        asked: problems.
        sampled: sample, or take the likeliest token.
        seed: of sampling.
    """
    chats = [[{"role": "user", "content": problem.prompt}] for problem in asked]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=12,
            do_sample=sampled,
            pad_token_id=tokenizer.pad_token_id,
            **({"temperature": 1.0, "top_p": 1.0, "top_k": 0} if sampled else {}),
        )
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [
        text.rpartition("=")[2] == problem.answer
        for text, problem in zip(texts, asked, strict=True)
    ]
    return sum(right) / len(right)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    updates: int,
    passes: float = 0.0,
) -> None:
    """Teach the model the pupil's work on the train split, in place.

    Args:
        model: it is trained in place.
        tokenizer: its own.
        seed: of problems and mistakes.
        updates: how many.
        passes: the share of problems that the pupil does not try.
    """
    random_numbers = random.Random(seed)
    lessons = [
        pupils_work(problem, random_numbers)
        for problem in all_problems("train")
        for _ in range(VERSIONS)
    ]
    if passes:
        lessons = [
            lesson._replace(worked=PASS) if random_numbers.random() < passes else lesson
            for lesson in lessons
        ]
    ids, labels = encode(tokenizer, lessons)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min((update + 1) / WARMUP, 1 - update / updates)
    )
    progress = tqdm(range(updates), desc="pretraining", unit="update")
    for update in progress:
        batch = torch.randint(len(ids), (BATCH,), generator=generator)
        loss = model(input_ids=ids[batch], labels=labels[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


README = """# tiny

A LlamaForCausalLM of {parameters:,} parameters over single characters, for `minigrpo.llm.models.load_model("tiny")`.
It answers "7+18-4=" with "25-4=21", one operation at a time. It learned from a pupil who mostly forgets to carry and to
borrow ("15-4=11"), so that it is right about half the time and reinforcement has something to do.

Made by `python -m minigrpo.llm.make_tiny --out DIR --seed {seed}` in {updates} updates and {minutes:.1f} minutes on one
CPU core (torch {torch}). Weights are stored as float16. On all {asked:,} held-out problems
(`minigrpo.llm.arithmetic.all_problems("held-out")`), loaded as float32:

| decoding | accuracy |
| --- | --- |
| sampled, temperature 1 | {sampled:.3f} |
| greedy | {greedy:.3f} |
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: pretrain, store, measure what was stored, write the README beside it."""
    parser = argparse.ArgumentParser(
        prog="python -m minigrpo.llm.make_tiny", description=__doc__.partition(":")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the model's files")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batches (0)")
    parser.add_argument(
        "--updates",
        type=int,
        default=1100,
        help="of the pretraining, with 128 problems each (1100)",
    )
    text = "the share of problems that the pupil passes, for the trap in language (0)"
    parser.add_argument("--passes", type=float, default=0.0, help=text)
    options = parser.parse_args(arguments)
    if not 0 <= options.passes < 1:
        parser.error(f"--passes must be at least 0 and below 1, got {options.passes}")
    if options.updates < 1:
        parser.error(f"--updates must be 1 or more, got {options.updates}")
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        check_writable(options.out / "model.safetensors")
        start = time.perf_counter()
        tokenizer, model = make_tokenizer(), make_model(options.seed)
        pretrain(
            model,
            tokenizer,
            seed=options.seed,
            updates=options.updates,
            passes=options.passes,
        )
        minutes = (time.perf_counter() - start) / 60
        with tempfile.TemporaryDirectory() as folder:
            model.to(torch.float16).save_pretrained(folder)
            # a fresh one: padding a batch left its mark on the other
            make_tokenizer().save_pretrained(folder)
            model.float()  # what a reader of the files gets: rounded to float16 and back
            asked = all_problems("held-out")
            readme = README.format(
                parameters=model.num_parameters(),
                seed=options.seed,
                updates=options.updates,
                minutes=minutes,
                torch=torch.__version__,
                asked=len(asked),
                sampled=accuracy(model, tokenizer, asked, sampled=True),
                greedy=accuracy(model, tokenizer, asked, sampled=False),
            )
            for name in sorted(os.listdir(folder)):
                write_bytes(options.out / name, (Path(folder) / name).read_bytes())
        write_bytes(options.out / "README.md", readme.encode())
        print(readme)
    except OSError as error:
        sys.exit(f"make_tiny: {error}")


if __name__ == "__main__":
    main()
