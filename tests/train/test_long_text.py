"""Numbers hidden in texts, perplexity through a cache, and measurements that go on where they stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, text_config
from torch import Tensor
from transformers import AutoModelForCausalLM

from train import conversion
from train.long_text import Document, calibrate, documents, score
from train.results import Results
from videollm.budgets import Budgets
from videollm.configuration import DepthConfig
from videollm.depth_lm import DepthLM, DepthLMConfig
from videollm.eviction import WindowPolicy
from videollm.layer_budget import LayerBudgetCache

TEXT = torch.randint(97, 120, (5000,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> DepthLM:
    torch.manual_seed(0)
    config = DepthLMConfig(text_config=text_config(), depth_config=DepthConfig(router="full"))
    return DepthLM(config).eval()


@pytest.fixture(scope="module")
def made() -> list[Document]:
    return documents(byte_tokenizer(), TEXT, length=1024, count=2, scored=128)


def test_every_number_is_hidden_once_before_the_scored_tokens(made: list[Document]) -> None:
    tokenizer = byte_tokenizer()
    for document in made:
        assert len(document.ids) == 1024
        text = tokenizer.decode(document.ids[:-128])
        depths = []
        for question in document.questions:
            needle = tokenizer.decode(question.ids + question.answer)
            assert text.count(needle) == 1
            assert len(question.answer) == 6
            depths.append((text.index(needle) / len(text), question.depth))
        assert depths == sorted(depths)
        assert all(abs(place - depth) < 0.1 for place, depth in depths)
        assert "magic" not in tokenizer.decode(document.ids[-128:])
    assert made[0].ids != made[1].ids
    assert made == documents(tokenizer, TEXT, length=1024, count=2, scored=128)


def test_too_little_text_is_told() -> None:
    with pytest.raises(ValueError, match="too few for 9 documents of 1024: give more"):
        documents(byte_tokenizer(), TEXT, length=1024, count=9, scored=128)
    with pytest.raises(ValueError, match="too short for what is hidden"):
        documents(byte_tokenizer(), TEXT, length=256, count=1, scored=64)


def logits_of(model: DepthLM, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def test_through_a_full_cache_the_score_is_that_of_one_pass(model: DepthLM, made: list[Document]) -> None:
    got, _ = score(model, made, lambda: LayerBudgetCache(model), 64)
    losses, likelihoods, digits, exact = [], [], [], []
    for document in made:
        whole = logits_of(model, document.ids)
        losses += [-float(whole[at - 1, document.ids[at]]) for at in range(1024 - 128, 1024)]
        for question in document.questions:
            said = logits_of(model, document.ids + question.ids + question.answer)[-7:-1]
            likelihoods += [float(row[token]) for row, token in zip(said, question.answer, strict=True)]
            right = [int(row.argmax()) == t for row, t in zip(said, question.answer, strict=True)]
            digits += right
            exact.append(all(right))
    assert got.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert got.log_probability == pytest.approx(sum(likelihoods) / len(likelihoods), abs=1e-4)
    assert got.digits == pytest.approx(sum(digits) / len(digits))
    assert got.exact == pytest.approx(sum(exact) / len(exact))
    assert list(got.by_depth) == ["6%", "19%", "31%", "44%", "56%", "69%", "81%", "94%"]


def test_evicting_once_is_evicting_where_the_scored_tokens_begin(
    model: DepthLM, made: list[Document]
) -> None:
    seen = []

    class Watched(LayerBudgetCache):
        def evict(self, slot: int) -> None:
            super().evict(slot)
            seen.append((self.seen[slot], self.lengths[:, slot].tolist()))

    def cache() -> LayerBudgetCache:
        return Watched(model, 1, Budgets((100, 60, 80, 40), headroom=1024), WindowPolicy())

    once, last = score(model, made, cache, 64, evict_once=True)
    assert seen == [(896, [100, 60, 80, 40])] * 2
    assert last.lengths[:, 0].tolist() == [100 + 128, 60 + 128, 80 + 128, 40 + 128], "questions are forgotten"
    always, _ = score(model, made, lambda: LayerBudgetCache(model), 64)
    assert once.perplexity != pytest.approx(always.perplexity, rel=1e-4)


def test_a_text_calibrates(model: DepthLM) -> None:
    told: list[int] = []
    made = calibrate(model, "tiny", "a text", TEXT[:1300].tolist(), 1024, told.append)
    assert made.measurements == 3 and told[-1] == made.tokens == 1300
    made.check(model)
    # Random weights attend to all alike: nine tenths of what was held at 512, 1024 and 276 tokens.
    assert all(need == pytest.approx(0.9 * (512 + 1024 + 276) / 3, rel=0.1) for need in made.attention)


def test_results_go_on_and_refuse_other_settings(tmp_path: Path) -> None:
    path, settings = tmp_path / "figures.json", {"model": "tiny", "lengths": (1, 2)}
    Results(path, settings, {"date": "today"}).add("full", {"perplexity": 3.5})
    again = Results(path, settings, {"date": "tomorrow"})
    assert again.rows == {"full": {"perplexity": 3.5}}
    again.add("window", {"perplexity": 4.5})
    assert json.loads(path.read_text())["machine"] == {"date": "tomorrow"}
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]
    elsewhere = Results(path, settings, {"date": "later", "cpu": "another"})
    elsewhere.add("h2o", {"perplexity": 5.5})
    assert json.loads(path.read_text())["machine"] == {"date": "tomorrow"}
    assert elsewhere.rows["h2o"]["machine"] == {"date": "later", "cpu": "another"}
    assert "machine" not in elsewhere.rows["window"]
    with pytest.raises(ValueError, match="with another lengths; name another file"):
        Results(path, settings | {"lengths": (1,)}, {})
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds no such figures"):
        Results(path, settings, {})


@pytest.mark.parametrize("converted", [False, True])
def test_any_language_model_reads_through_the_cache(converted: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_config(text_config()).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    if converted:
        made, _, tokenizer = conversion.convert(str(folder), DepthConfig(router="threshold", routes="all"))
        folder = tmp_path / "converted"
        made.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    loaded, _ = conversion.load(str(folder))
    assert loaded.config.depth_config.router == ("threshold" if converted else "full")
    ids = TEXT[None, :40]
    with torch.inference_mode():
        out = loaded(input_ids=ids, past_key_values=LayerBudgetCache(loaded)).logits
        torch.testing.assert_close(out, loaded(input_ids=ids).logits, atol=1e-4, rtol=0)
