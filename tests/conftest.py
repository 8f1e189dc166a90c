"""Tiny random checkpoints, a small labelled data set, and the isolation that every test runs in.

Three tiers: unmarked tests are fast; `training` and `recipes` train for real; `gpu` needs a CUDA
device. See CONTRIBUTING.md.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from string import ascii_letters, ascii_lowercase, digits, punctuation
from typing import TYPE_CHECKING, Any

import pytest
from application import Application

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HOME = Path(tempfile.mkdtemp(prefix="peftkit-tests-"))
# huggingface_hub, datasets and matplotlib read these when they are first imported, so they are set before any test.
os.environ.update(
    HF_HOME=str(_HOME / "huggingface"),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    MPLCONFIGDIR=str(_HOME / "matplotlib"),
    OMP_NUM_THREADS="1",  # tiny tensors: a second thread costs more than it computes
)

DATA = Path(__file__).parent / "data"
_HIDDEN = 32
_LAYERS = 2
_POSITIONS = 64
_SPREAD = 0.2
"""Standard deviation of new weights. With the usual 0.02 a model of width 32 passes on next to nothing of its input."""
_DROPOUT = 0.05
"""In attention only, so that training still draws random numbers; elsewhere it would keep width 32 from learning."""


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is no GPU, with a reason that is printed and counted."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device; run  pytest -m gpu  on a machine that has one")
        for item in on_gpu:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def application() -> Iterator[Application]:
    """Another process, which answers as `application(run_folder, inputs)`."""
    running = Application()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def _isolated(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every test has an empty artifact cache; `recipes` keep the user's, so that mirrors are downloaded once."""
    if request.node.get_closest_marker("recipes") is None:
        monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def _read(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="session")
def sentiment_rows() -> dict[str, list[dict[str, str]]]:
    """48 training and 16 validation rows, text and label (positive, negative), learnable by a tiny model."""
    return {split: _read(f"sentiment_{split}.csv") for split in ("train", "validation")}


@pytest.fixture(scope="session")
def sentiment_files() -> dict[str, Path]:
    """The CSV files behind `sentiment_rows`, by split."""
    return {split: DATA / f"sentiment_{split}.csv" for split in ("train", "validation")}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function from an architecture's name to its tiny checkpoint folder; each is built once per session."""
    built: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in built:
            built[name] = _save(name, tmp_path_factory.mktemp("checkpoints") / f"tiny-{name}")
        return built[name]

    return folder


@pytest.fixture(scope="session")
def tiny_bert(checkpoint: Callable[[str], Path]) -> Path:
    """BertForPreTraining (pooler included), WordPiece."""
    return checkpoint("bert")


@pytest.fixture(scope="session")
def tiny_distilbert(checkpoint: Callable[[str], Path]) -> Path:
    """DistilBertForMaskedLM, WordPiece."""
    return checkpoint("distilbert")


@pytest.fixture(scope="session")
def tiny_roberta(checkpoint: Callable[[str], Path]) -> Path:
    """RobertaForMaskedLM, byte-level BPE."""
    return checkpoint("roberta")


@pytest.fixture(scope="session")
def tiny_gpt2(checkpoint: Callable[[str], Path]) -> Path:
    """GPT2LMHeadModel (Conv1D layers), byte-level BPE without padding token."""
    return checkpoint("gpt2")


@pytest.fixture(scope="session")
def tiny_llama(checkpoint: Callable[[str], Path]) -> Path:
    """LlamaForCausalLM (grouped-query attention), byte-level BPE without padding token."""
    return checkpoint("llama")


@pytest.fixture(scope="session")
def tiny_t5(checkpoint: Callable[[str], Path]) -> Path:
    """T5ForConditionalGeneration, Unigram."""
    return checkpoint("t5")


def _save(name: str, folder: Path) -> Path:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # would be mixed with the output that a test captures
    lines = [row["text"] for row in _read("sentiment_train.csv")]
    tokenizer, make = _BUILDERS[name]
    words = tokenizer(lines)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(words)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _wordpiece(lines: list[str]) -> PreTrainedTokenizerBase:
    """Every word of `lines`, and letters for other words; the library's WordPiece trainer breaks ties at random."""
    from transformers import BertTokenizer

    words = sorted({word for line in lines for word in re.findall(r"\w+|[^\w\s]", line.lower())})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *ascii_lowercase, *digits]
    pieces += [f"##{character}" for character in ascii_lowercase + digits]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return BertTokenizer(vocab=vocab, model_max_length=_POSITIONS)


def _byte_level_bpe(lines: list[str], special: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(lines, trainer)
    return trained


def _with_merges(cls: Any, trained: Any, **options: Any) -> PreTrainedTokenizerBase:
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return cls(vocab=model["vocab"], merges=merges, model_max_length=_POSITIONS, **options)


def _roberta_bpe(lines: list[str]) -> PreTrainedTokenizerBase:
    from transformers import RobertaTokenizer

    return _with_merges(RobertaTokenizer, _byte_level_bpe(lines, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]))


def _gpt2_bpe(lines: list[str]) -> PreTrainedTokenizerBase:
    from transformers import GPT2Tokenizer

    return _with_merges(GPT2Tokenizer, _byte_level_bpe(lines, ["<|endoftext|>"]))


def _llama_bpe(lines: list[str]) -> PreTrainedTokenizerBase:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    trained = _byte_level_bpe(lines, ["<|begin_of_text|>", "<|end_of_text|>"])
    trained.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", 0)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=_POSITIONS,
    )


def _unigram(lines: list[str]) -> PreTrainedTokenizerBase:
    """Every word of `lines` with its log frequency, and characters; the trainer differs in last digits."""
    from transformers import T5Tokenizer

    words = Counter(f"▁{word}" for line in lines for word in re.findall(r"\w+", line))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(word, math.log(count / words.total())) for word, count in sorted(words.items())]
    pieces += [(piece, -12.0) for piece in ("▁", *ascii_letters, *digits, *punctuation) if piece not in words]
    return T5Tokenizer(vocab=pieces, extra_ids=10, model_max_length=_POSITIONS)


def _bert(words: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import BertConfig, BertForPreTraining

    return BertForPreTraining(
        BertConfig(
            vocab_size=len(words),
            hidden_size=_HIDDEN,
            num_hidden_layers=_LAYERS,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=_POSITIONS,
            initializer_range=_SPREAD,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=_DROPOUT,
        )
    )


def _distilbert(words: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    return DistilBertForMaskedLM(
        DistilBertConfig(
            vocab_size=len(words),
            dim=_HIDDEN,
            n_layers=_LAYERS,
            n_heads=2,
            hidden_dim=64,
            max_position_embeddings=_POSITIONS,
            initializer_range=_SPREAD,
            dropout=0.0,
            attention_dropout=_DROPOUT,
            seq_classif_dropout=0.0,
        )
    )


def _roberta(words: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import RobertaConfig, RobertaForMaskedLM

    return RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=len(words),
            hidden_size=_HIDDEN,
            num_hidden_layers=_LAYERS,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=_POSITIONS + 2,  # positions start behind the padding index 1
            type_vocab_size=1,
            initializer_range=_SPREAD,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=_DROPOUT,
        )
    )


def _gpt2(words: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(words),
            n_embd=_HIDDEN,
            n_layer=_LAYERS,
            n_head=2,
            n_inner=64,
            n_positions=_POSITIONS,
            initializer_range=_SPREAD,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            attn_pdrop=_DROPOUT,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
        )
    )


def _llama(words: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=_HIDDEN,
            num_hidden_layers=_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=_POSITIONS,
            initializer_range=_SPREAD,
            attention_dropout=_DROPOUT,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
        )
    )


def _t5(words: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(words),
            d_model=_HIDDEN,
            d_kv=16,
            d_ff=64,
            num_layers=_LAYERS,
            num_decoder_layers=_LAYERS,
            num_heads=2,
            dropout_rate=_DROPOUT,
            decoder_start_token_id=words.pad_token_id,
        )
    )


_BUILDERS: dict[str, tuple[Callable[[list[str]], Any], Callable[[Any], Any]]] = {
    "bert": (_wordpiece, _bert),
    "distilbert": (_wordpiece, _distilbert),
    "roberta": (_roberta_bpe, _roberta),
    "gpt2": (_gpt2_bpe, _gpt2),
    "llama": (_llama_bpe, _llama),
    "t5": (_unigram, _t5),
}
ARCHITECTURES = tuple(_BUILDERS)
