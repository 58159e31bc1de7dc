"""The encoder on the installed default model and on a small local one; nothing goes over the network."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from stream_app.content.encoder import TextEncoder
from stream_app.content.model import DEFAULT_ID, model_id
from stream_app.errors import ConfigurationError, ModelError
from stream_app.settings import build

TEXTS = [
    "A man is eating food.",
    "",
    "Um homem está comendo.",
    "🎉🎉",
    "股市今天下跌了",
    "الطقس جميل اليوم",
    "compost " * 400,
    "A man eats something.",
    " ",
    "x" * 100_000,
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    """The default model, loaded where no connection can be made."""

    def refuse(*_: object) -> None:
        raise AssertionError("the default model must not be looked for elsewhere")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return TextEncoder(build({}))


def test_every_text_has_a_unit_vector_in_its_place(encoder: TextEncoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    assert vectors.dtype == np.float32
    says_something = [bool(text.strip()) and text[0] not in "🎉x" for text in TEXTS]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), says_something, atol=1e-5)
    likeness = vectors @ vectors.T
    assert likeness[0, 7] > 0.8, "a paraphrase"
    assert likeness[0, 6] < 0.3, "another subject"


def test_a_vector_does_not_depend_on_its_companions(encoder: TextEncoder) -> None:
    together = encoder.encode(TEXTS)
    np.testing.assert_allclose(together, np.concatenate([encoder.encode([t]) for t in TEXTS]), atol=1e-5)
    np.testing.assert_allclose(together, encoder.encode(TEXTS[::-1])[::-1], atol=1e-5)


def test_texts_are_cut_after_max_tokens(encoder: TextEncoder) -> None:
    long = "compost " * 255
    a, b = encoder.encode([long + "and then the stock market fell", long + "or a cat sat on the mat"])
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    ["", " \n", "\u200b\u200d\ufeff", "\U0001f600\U0001f389", "\U0001f4a9", "ሰላም ለዓለም", "\u0001", "x" * 200],
    ids=["none", "blank", "zero-width", "emoji", "another emoji", "Amharic", "control", "no word"],
)
def test_a_text_in_which_no_token_is_known_has_no_vector(encoder: TextEncoder, text: str) -> None:
    """All of them would be [UNK]: one vector, cosine 1."""
    assert not encoder.encode([text]).any()
    alone = encoder.encode(["a bicycle"])
    np.testing.assert_allclose(encoder.encode([text, "a bicycle", text])[1], alone[0], atol=1e-5)


def test_no_texts_give_no_vectors(encoder: TextEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_the_default_is_stored_under_its_own_name(encoder: TextEncoder) -> None:
    assert encoder.model == model_id(build({})) == DEFAULT_ID
    assert model_id(build({"content": {"model": "some/other"}})) == "some/other"


def test_a_local_directory_is_a_model(tiny: Path) -> None:
    encoder = TextEncoder(build({"content": {"model": str(tiny), "dimensions": 16}}))
    assert encoder.model.startswith("sha256:")
    # its 64 positions are fewer than content.max_tokens
    assert encoder.encode(["compost " * 200]).shape == (1, 16)


def test_wrong_dimensions_name_the_setting(tiny: Path) -> None:
    with pytest.raises(ModelError, match=r"content\.dimensions = 384: .* of 16 dimensions"):
        TextEncoder(build({"content": {"model": str(tiny)}}))


def test_pickled_weights_are_not_loaded(tokenizer_only: Path, untrained: transformers.BertModel) -> None:
    untrained.config.save_pretrained(tokenizer_only)
    torch.save(untrained.state_dict(), tokenizer_only / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"content\.model"):
        TextEncoder(build({"content": {"model": str(tokenizer_only), "dimensions": 16}}))


def test_a_model_without_direction_is_an_error(
    tokenizer_only: Path, untrained: transformers.BertModel
) -> None:
    for parameter in untrained.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    untrained.save_pretrained(tokenizer_only)
    with pytest.raises(ModelError, match="no direction"):
        TextEncoder(build({"content": {"model": str(tokenizer_only), "dimensions": 16}}))


def test_a_missing_directory_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"content\.model = .*nothing here': no such directory"):
        TextEncoder(build({"content": {"model": str(tmp_path / "nothing here")}}))


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_an_impossible_device_names_the_setting(device: str) -> None:
    with pytest.raises(ConfigurationError, match=r"content\.device"):
        TextEncoder(build({"content": {"device": device}}))
