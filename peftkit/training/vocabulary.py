"""Tokenizers that are trained on the texts of a run; the same texts give the same tokenizer in every process."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Tokenizer

from peftkit.recipe import TokenizerSpec

_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_T5 = ("<pad>", "</s>", "<unk>")
_SENTINELS = 100
_CHARACTERS = 1000
"""Most frequent characters that get a token; others are unknown."""
_DIGITS = 4
"""Of log probabilities; beyond, sums in another order differ."""


def train_tokenizer(
    spec: TokenizerSpec, texts: Sequence[str], *, writes_on: bool, max_length: int
) -> PreTrainedTokenizerBase:
    """A tokenizer of the recipe's kind, trained on `texts`.

    Args:
        writes_on: for a model that continues texts, so that texts are not closed by the end token.
        max_length: longest input, noted in the tokenizer.
    """
    trained = _TRAINERS[spec.type](spec, texts, writes_on)
    trained.model_max_length = max_length
    return trained


def _wordpiece(spec: TokenizerSpec, texts: Sequence[str], writes_on: bool) -> PreTrainedTokenizerBase:
    normalizer = normalizers.BertNormalizer(lowercase=spec.lowercase)
    counts = Counter(character for text in texts for character in normalizer.normalize_str(text))
    ranked = sorted((character for character in counts if not character.isspace()), key=lambda c: (-counts[c], c))
    characters = sorted(ranked[:_CHARACTERS])
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # a token of texts
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=spec.vocab_size,
        # The trainer would number the pieces inside words as a hash map yields them, and break ties by number.
        special_tokens=[*_BERT, *(f"##{character}" for character in characters)],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=backend.get_vocab(), do_lower_case=spec.lowercase)


def _bpe(spec: TokenizerSpec, texts: Sequence[str], writes_on: bool) -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A" if writes_on else "<s> $A </s>",
        pair="<s> $A </s> $B" if writes_on else "<s> $A </s> </s> $B </s>",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _unigram(spec: TokenizerSpec, texts: Sequence[str], writes_on: bool) -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=spec.vocab_size - _SENTINELS,
        special_tokens=list(_T5),
        unk_token="<unk>",  # a token of texts
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    pieces = [(piece, round(score, _DIGITS)) for piece, score in json.loads(backend.to_str())["model"]["vocab"]]
    found = sorted((pair for pair in pieces if pair[0] not in _T5), key=lambda pair: (-pair[1], pair[0]))
    return T5Tokenizer(vocab=[*((token, 0.0) for token in _T5), *found], extra_ids=_SENTINELS)


_TRAINERS: Mapping[str, Callable[[TokenizerSpec, Sequence[str], bool], PreTrainedTokenizerBase]] = {
    "wordpiece": _wordpiece,
    "bpe": _bpe,
    "unigram": _unigram,
}
