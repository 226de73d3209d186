"""A draft model of another vocabulary: what is shared and spelled, and that rules stay exact."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from fake_runner import VOCABULARY, FakeRunner
from kvctl import generate
from kvctl.draft import ModelDrafter, VocabularyMap
from kvctl.text import Tokenizer
from table_world import DRAFT, LIMIT, TARGET, TableRunner, joint, statistic

TEXT = "the cat sat on the mat, the caf\u00e9 of the cats \u00e9t\u00e9 \u6c34 " * 3

TRIALS = 1500


class Letters:
    """A tokenizer whose tokens stand for given bytes."""

    def __init__(self, contents):
        self.contents = contents
        self.vocab_size = len(contents)

    def token_bytes(self, id):
        return self.contents[id]

    def encode(self, text, *, special, bos):
        return [self.contents.index(char.encode()) for char in text]


def byte_level(size):
    """Return a tokenizer like GPT-2's, trained on a few words."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    library.train_from_iterator([TEXT], trainer)
    return Tokenizer(library.to_str())


def word_pieces(tokens):
    """Return a tokenizer like SentencePiece's, with bytes to fall back to."""
    vocab = {"<unk>": 0, **{f"<0x{n:02X}>": 1 + n for n in range(256)}}
    for token in tokens:
        vocab.setdefault(token, len(vocab))
    model = models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True)
    library = Library(model)
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    library.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    description = json.loads(library.to_str())
    return Tokenizer(json.dumps(description))


def test_shared_tokens_stand_for_the_same_bytes():
    draft, target = byte_level(280), byte_level(300)
    shared = VocabularyMap(draft, target)
    assert len(shared.draft_ids) == 279  # all but <s>
    for one, other in zip(shared.draft_ids.tolist(), shared.target_ids.tolist(), strict=True):
        assert draft.token_bytes(one) == target.token_bytes(other)
    assert shared.share == 279 / target.vocab_size


def test_the_space_of_one_family_is_that_of_the_other():
    draft, target = word_pieces(["\u2581", "\u2581the", "the", "\u00e9"]), byte_level(300)
    shared = VocabularyMap(draft, target)
    pairs = dict(zip(shared.target_ids.tolist(), shared.draft_ids.tolist(), strict=True))
    assert draft.token(pairs[target.token_id("\u0120the")]) == "\u2581the"
    assert draft.token(pairs[target.token_id("\u0120")]) == "<0x20>"


def test_what_only_the_target_has_is_spelled():
    draft, target = byte_level(258), byte_level(300)
    shared = VocabularyMap(draft, target)
    for id in range(target.vocab_size):
        content = target.token_bytes(id)
        spelled = shared.spell(id)
        assert spelled and all(0 <= one < 258 for one in spelled)
        if content is not None:
            assert b"".join(draft.token_bytes(one) for one in spelled) == content


def test_special_tokens_are_not_shared():
    tokenizer = byte_level(280)
    shared = VocabularyMap(tokenizer, tokenizer)
    assert tokenizer.token_id("<s>") not in shared.target_ids


RULES = [
    ("token_wise", {"how": "independent", "length": 3}),
    ("recursive", {"how": "without_replacement", "branching": (2, 2), "length": 2}),
    ("traversal", {"how": "without_replacement", "branching": (2, 1), "length": 2}),
    ("auto", {"how": "deterministic", "branching": (2, 2), "length": 2}),
]


@pytest.mark.parametrize(("rule", "options"), RULES)
def test_rules_are_exact_with_a_part_of_the_vocabulary(rule, options):
    """The draft model has tokens 0 and 1 of three, in another order, and one of its own."""
    shared = VocabularyMap(Letters([b"x", b"b", b"a"]), Letters([b"a", b"b", b"c"]))
    model = TableRunner(DRAFT[np.ix_([2, 1, 0], [2, 1, 0])])
    counts, expected, drafted = joint(
        rule, ModelDrafter(model, vocabulary=shared, **options), trials=TRIALS
    )
    assert drafted > TRIALS / 4
    assert statistic(counts, expected) < LIMIT


def test_a_distribution_that_was_not_restricted_is_seen():
    """The negative control: what is handed over is the draft model's whole distribution."""

    class Whole(ModelDrafter):
        def propose(self, requests, budget):
            drafts = super().propose(requests, budget)
            for draft in drafts:
                if draft.probs is not None:
                    draft.probs[:] = 0.5 * draft.probs + 0.5 * np.eye(3)[2]
            return drafts

    shared = VocabularyMap(Letters([b"x", b"b", b"a"]), Letters([b"a", b"b", b"c"]))
    model = TableRunner(DRAFT[np.ix_([2, 1, 0], [2, 1, 0])])
    drafter = Whole(model, vocabulary=shared, how="independent", length=2)
    counts, expected, _ = joint("token_wise", drafter, trials=TRIALS)
    assert len(TARGET) == 3 and statistic(counts, expected) > 5 * LIMIT


def test_texts_are_plain_where_tokens_are_spelled():
    """Every third token of the target is two of the draft model's."""
    own = [chr(97 + id).encode() for id in range(30)]
    wide = [
        own[i % 30] + own[(i + 1) % 30] if i % 3 == 0 else own[i % 30] for i in range(VOCABULARY)
    ]
    shared = VocabularyMap(Letters(own), Letters(wide), draft_size=VOCABULARY)
    prompts = [[1, 2, 3], [4, 3, 6, 9], [5]]
    expected = [text.tokens for text in generate(FakeRunner(), prompts, max_new_tokens=40)]
    draft_model = FakeRunner()
    draft_model.context_window_size = 60
    drafter = ModelDrafter(draft_model, vocabulary=shared, length=3)
    got = generate(FakeRunner(), prompts, max_new_tokens=40, drafter=drafter)
    assert [text.tokens for text in got] == expected
    assert sum(text.statistics.speculative_rounds for text in got) > 0
    assert not draft_model.cache.committed


@pytest.mark.parametrize(
    ("draft", "sizes", "message"),
    [
        ([b"z"] * 3, {}, "share 0 of the target's 3 tokens, less than a twentieth"),
        ([b"a"], {"draft_size": 0}, "draft_size must be at least the tokenizer's 1 tokens, got 0"),
    ],
)
def test_what_cannot_be_is_refused(draft, sizes, message):
    with pytest.raises(ValueError, match=message):
        VocabularyMap(Letters(draft), Letters([b"a", b"b", b"c"]), **sizes)


def test_another_models_map_is_refused():
    shared = VocabularyMap(Letters([b"%d" % i for i in range(50)]), Letters([b"49", b"3"]))
    with pytest.raises(ValueError, match="draft model's token 49, but the model has 40 tokens"):
        ModelDrafter(FakeRunner(), vocabulary=shared)
