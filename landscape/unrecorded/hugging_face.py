"""Loss of a causal language model of Hugging Face on a text, from files on disk: nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.training.user_code import error_summary
from lossscope.landscape.unrecorded.ready_loss import ReadyLoss, evenly, require_counts
from lossscope.probes.objective.hugging_face import HuggingFaceLoss
from lossscope.probes.objective.objective import Objective

__all__ = ["causal_lm"]

_OFFLINE: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_LONGEST_TEXT: Final = 2**28  # bytes


def causal_lm(folder: Path, text: Path, *, sequence: int = 128, samples: int = 64, batch: int = 8) -> ReadyLoss:
    """Return the mean loss of the next token over blocks of a text, in float32 and eval mode.

    The blocks follow each other without gaps in the tokens of the text, without special tokens; where there are more
    than `samples`, they are spread evenly. Attention is computed by plain matrix products, which have second
    derivatives. No code of the folder is run.

    Args:
        folder: Folder with `config.json` and the files of the tokenizer.
        text: File of UTF-8 text.
        sequence: Tokens in a block, at least 2.
        samples: Blocks at most.
        batch: Blocks in a forward pass.

    Raises:
        ConfigError: transformers is not installed, a file is missing or damaged, the tokenizer is of another model, or
            the text is shorter than a block.
    """
    require_counts(sequence=sequence, samples=samples, batch=batch)
    if sequence < 2:
        raise ConfigError("--sequence must be at least 2: the first token of a block is not predicted")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--hf {folder}: there is no {folder / 'config.json'}; name the folder of a model on disk")
    words = _read(text)
    with _offline():
        model = _model(folder)
        tokens = _tokens(folder, words, model.get_input_embeddings().weight.shape[0])
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and sequence > longest:
        raise ConfigError(f"--sequence {sequence} is longer than the {longest} positions of the model in {folder}")
    if len(tokens) < sequence:
        raise ConfigError(f"{text} has {len(tokens)} tokens, fewer than a block of {sequence}: lower --sequence")
    blocks = torch.stack(evenly(torch.split(tokens[: len(tokens) // sequence * sequence], sequence), samples))
    batches = [{"input_ids": part, "labels": part.clone()} for part in torch.split(blocks, batch)]
    details = {"text": text.name, "sequence": sequence, "samples": len(blocks), "batch": batch}
    return ReadyLoss(Objective(model, HuggingFaceLoss(), batches), f"--hf {folder}", details)


def _read(text: Path) -> str:
    """Return the text of a file."""
    try:
        if text.stat().st_size > _LONGEST_TEXT:
            raise ConfigError(f"--text {text} is longer than {_LONGEST_TEXT // 2**20} MiB: give a part of it")
        return text.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--text {text} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--text {text} is no UTF-8 text (byte {error.start}): convert it") from error


@contextmanager
def _offline() -> Iterator[None]:
    """Forbid downloads within the context."""
    before = {name: os.environ.get(name) for name in _OFFLINE}
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _model(folder: Path) -> Any:
    """Return the model of a configuration with random weights, in float32."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise ConfigError("--hf needs transformers: pip install 'lossscope[transformers]'") from error
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        config.use_cache = False
        found = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
        )
    except ImportError as error:
        raise ConfigError(f"transformers cannot load the model in {folder}: {error_summary(error)}") from error
    except Exception as error:  # of transformers, whose classes of errors vary by version
        raise ConfigError(f"{folder} is no causal language model that can be built: {error_summary(error)}") from error
    return found.float().eval()


def _tokens(folder: Path, text: str, size: int) -> Tensor:
    """Return the tokens of a text.

    Raises:
        ConfigError: There is no tokenizer, it is damaged, or it has tokens that the model lacks.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    except Exception as error:  # the tokenizers raise plain Exception
        raise ConfigError(
            f"{folder} has no tokenizer that can be read: {error_summary(error)}; copy the files of the model's "
            "tokenizer into it"
        ) from error
    if found and max(found) >= size:
        raise ConfigError(
            f"the tokenizer in {folder} is of another model: the text has token {max(found)}, the model {size} tokens"
        )
    return torch.tensor(found, dtype=torch.long)
