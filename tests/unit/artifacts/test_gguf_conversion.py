from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from peftkit.artifacts import clear_entries, list_entries, locate_model, locate_tokenizer
from peftkit.artifacts.gguf import weight_type
from peftkit.errors import ArtifactError

WIDTH, LAYERS, HEADS = 64, 2, 4
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TOKENS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "Ġa"]


def write_gguf(path: Path, *, quantized: bool) -> dict[str, np.ndarray]:
    """A tiny random LLaMA; returns the weights as they were before they were stored."""
    import gguf

    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(TOKENS), WIDTH),
        "output.weight": (len(TOKENS), WIDTH),
    }
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            shapes[f"blk.{layer}.{name}.weight"] = (WIDTH, WIDTH)
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    norms = ["output_norm", *(f"blk.{layer}.{part}_norm" for layer in range(LAYERS) for part in ("attn", "ffn"))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    stored = gguf.GGMLQuantizationType.Q4_1 if quantized else gguf.GGMLQuantizationType.F32
    for name, weight in weights.items():
        writer.add_tensor(name, gguf.quants.quantize(weight, stored) if quantized else weight, raw_dtype=stored)
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def q4_1(weight: np.ndarray) -> np.ndarray:
    """What 4-bit codes with a float16 step and minimum per 32 values leave of a weight (type Q4_1 of ggml)."""
    blocks = weight.reshape(-1, 32)
    low, high = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
    step = (high - low) / 15
    codes = np.clip(np.trunc((blocks - low) / step + 0.5), 0, 15)
    return (codes * step.astype(np.float16).astype(np.float32) + low.astype(np.float16).astype(np.float32)).reshape(
        weight.shape
    )


def loaded_weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def test_plain_gguf_keeps_its_weights_tokenizer_and_chat_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = tmp_path / "tiny.F32.gguf"
    original = write_gguf(path, quantized=False)
    found = locate_model(str(path))

    converted = loaded_weights(found.path)
    np.testing.assert_array_equal(converted["model.embed_tokens.weight"], original["token_embd.weight"])
    np.testing.assert_array_equal(converted["model.layers.1.mlp.down_proj.weight"], original["blk.1.ffn_down.weight"])
    tokenizer = AutoTokenizer.from_pretrained(found.path)
    # The first merge comes first: " ab" is a space and "ab", while " a" is the second merge's token.
    assert tokenizer.tokenize("ab ab a") == ["ab", "Ġ", "ab", "Ġa"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "abba"}], tokenize=False) == "abba"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.record.origin == "local"
    assert found.record.note == f"F32 GGUF file (SHA-256 {digest[:12]}...), converted to float32"


def test_quantized_gguf_becomes_the_float32_it_stands_for_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "tiny.Q4_1.gguf"
    original = write_gguf(path, quantized=True)
    assert weight_type(path) == "Q4_1"
    found = locate_model(str(path))
    value = loaded_weights(found.path)["model.layers.0.mlp.up_proj.weight"]
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, q4_1(original["blk.0.ffn_up.weight"]), atol=1e-6)
    assert "Q4_1 GGUF file" in str(found.record.note)
    assert "its quantization has changed the weights" in str(found.record.note)


def test_gguf_is_converted_once_per_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, quantized=False)
    first = locate_model(str(path))
    assert locate_tokenizer(str(path)) == first
    moved = path.rename(tmp_path / "sub.gguf").rename(tmp_path / "tiny.gguf")
    assert locate_model(str(moved)).path == first.path
    assert capsys.readouterr().err.count("converting 'tiny.gguf'") == 1
    write_gguf(path, quantized=True)
    assert locate_model(str(path)).path != first.path
    assert [entry.kind for entry in list_entries()] == ["gguf", "gguf"]


def test_conversion_gives_the_same_bytes_on_line_and_off_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    path = tmp_path / "tiny.gguf"
    write_gguf(path, quantized=False)
    digests = set()
    for offline in (True, False):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        digests.add(locate_model(str(path)).record.sha256)
        clear_entries()
    assert len(digests) == 1


@pytest.mark.parametrize("keep", [0, 3, 40, 5000])
def test_cut_gguf_is_refused_and_leaves_nothing(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, quantized=False)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"tiny\.gguf' is no whole GGUF file"):
        locate_model(str(path))
    assert list_entries() == []


def test_foreign_architecture_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "alien.gguf"
    writer = gguf.GGUFWriter(path, "alien")
    writer.add_tensor("a", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ArtifactError, match=r"transformers cannot convert '.*alien\.gguf' \(ValueError: .*alien"):
        locate_model(str(path))
    assert list_entries() == []
