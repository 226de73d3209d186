"""The torch examples, each beside a recomputation in plain torch."""

import importlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[torch]'")

import kvctl.torch

pytestmark = pytest.mark.torch

EXAMPLES = Path(__file__).parents[3] / "examples" / "torch"
PROMPT = [5, 17, 200, 31, 5, 17, 8, 99, 120, 31, 5, 17, 200, 42, 7, 64, 3, 3, 90, 11]
BOUND = 2e-5


@pytest.fixture
def example(monkeypatch):
    """Imports an example by name, as it is imported when another one runs."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in ("decoder", "tree", "h2o", "quest", "masks", "pages"):
        importlib.sys.modules.pop(name, None)


class Plain(torch.nn.Module):
    """Attention that keeps all K and V itself, under a boolean matrix or causal."""

    sees = None

    def __init__(self, layer):
        super().__init__()
        self.layer, self.k, self.v = layer, None, None

    def forward(self, q, k, v):
        self.k = k if self.k is None else torch.cat([self.k, k])
        self.v = v if self.v is None else torch.cat([self.v, v])
        n, m = len(q), len(self.k)
        sees = torch.ones(n, m).tril(m - n).bool() if self.sees is None else self.sees
        self.weights, out = self.attend(q, sees)
        return out

    def attend(self, q, sees):
        group = q.shape[1] // self.k.shape[1]
        k, v = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (self.k, self.v))
        scores = q.transpose(0, 1) @ k.transpose(1, 2) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
        return weights, (weights @ v).transpose(0, 1)


def pair(decoder, attend=Plain, seed=0):
    """The example's model, and the same on plain attention."""
    torch.manual_seed(seed)
    model = decoder.Decoder()
    plain = decoder.Decoder(attend)
    plain.load_state_dict(model.state_dict())
    return model, plain


@torch.inference_mode()
def recompute(plain, tokens, positions=None, sees=None):
    """Logits of tokens behind what the model's attention has kept; `sees` for each layer."""
    for layer in plain.layers:
        layer.attend.sees = None if sees is None else sees[layer.attend.layer]
    positions = torch.arange(len(tokens)) if positions is None else torch.tensor(positions)
    return plain(torch.tensor(tokens), positions)


def fresh(plain):
    for layer in plain.layers:
        layer.attend.k = layer.attend.v = None
    return plain


def greedy(plain, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(recompute(fresh(plain), tokens)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", [path.stem for path in sorted(EXAMPLES.glob("*.py"))])
def test_it_runs_as_a_program(name, capsys, monkeypatch):
    import runpy

    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    importlib.sys.modules.pop("decoder", None)
    assert capsys.readouterr().out


def test_decoding(example):
    decoder = example("decoder")
    model, plain = pair(decoder)
    assert decoder.generate(model, decoder.make_cache(), PROMPT, 20) == greedy(plain, PROMPT, 20)


@pytest.mark.parametrize("compiled", [False, True])
def test_every_node_of_a_tree_is_as_its_path(example, compiled):
    decoder, tree_example = example("decoder"), example("tree")
    model, plain = pair(decoder)
    cache = decoder.make_cache()
    cache.add_sequence(0)
    runs = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    decoder.run(runs, cache, PROMPT)
    tree = kvctl.TokenTree([7, 1, 2, 3, 4, 5, 6], [-1, 0, 0, 1, 2, 2, 5])
    logits = tree_example.score(runs, cache, tree)
    for node in range(len(tree)):
        path, at = [], node
        while at >= 0:
            path.insert(0, int(tree.tokens[at]))
            at = int(tree.parents[at])
        expected = recompute(fresh(plain), [*PROMPT, *path])[-1]
        assert (logits[node] - expected).abs().max() < BOUND
    cache.commit([0], [[0, 2, 5, 6]])
    logits = decoder.run(runs, cache, [9, 8])
    expected = recompute(fresh(plain), [*PROMPT, 7, 2, 5, 6, 9, 8])[-2:]
    assert (logits - expected).abs().max() < BOUND


def test_speculation_gives_the_greedy_text(example):
    decoder, tree = example("decoder"), example("tree")
    model, plain = pair(decoder)
    tokens, rate = tree.speculate(model, decoder.make_cache(), PROMPT, 40)
    assert tokens == greedy(plain, PROMPT, 40)
    assert rate >= 1


def test_h2o_is_as_a_plain_one(example):
    decoder, h2o = example("decoder"), example("h2o")
    model, plain = pair(decoder)
    ours = h2o.h2o_generate(model, decoder.make_cache(), PROMPT, 30, heavy=6, recent=5)

    tokens, new, position, scores = [], PROMPT, 0, torch.zeros(0)
    while len(tokens) < 30:
        positions = list(range(position, position + len(new)))
        tokens.append(int(recompute(plain, new, positions)[-1].argmax()))
        scores = torch.cat([scores, torch.zeros(len(new))])
        for layer in plain.layers:
            scores += layer.attend.weights.sum((0, 1))
        position, new = position + len(new), tokens[-1:]
        heavy = scores[:-5].argsort(descending=True)[:6].sort().values
        kept = torch.cat([heavy, torch.arange(len(scores) - 5, len(scores))])
        scores = scores[kept]
        for layer in plain.layers:
            layer.attend.k, layer.attend.v = layer.attend.k[kept], layer.attend.v[kept]
    assert ours == tokens
    assert ours != greedy(plain, PROMPT, 30)


class Recorded(Plain):
    """Keeps the queries too."""

    def forward(self, q, k, v):
        self.q = q
        return super().forward(q, k, v)


def test_quest_attends_to_its_pages(example, monkeypatch):
    decoder, quest_example = example("decoder"), example("quest")
    chosen, select = [], quest_example.Quest.select

    def record(self, layer, q):
        chosen.append(select(self, layer, q)[0])
        return [chosen[-1]]

    monkeypatch.setattr(quest_example.Quest, "select", record)
    prompt = [*range(100, 160)]
    tokens, quest, model = quest_example.quest_generate(0, prompt, 12, pages=3)
    plain = decoder.Decoder(Recorded)
    plain.load_state_dict(model.state_dict())
    steps = [prompt, *([token] for token in tokens[:-1])]
    length = 0
    for step, expected in zip(steps, tokens, strict=True):
        m = length + len(step)
        pages = torch.arange(m) // 8
        sees = []
        for _ in range(decoder.LAYERS):
            read = torch.isin(pages, torch.tensor(chosen.pop(0))) | (pages >= length // 8)
            sees.append(torch.ones(len(step), m).tril(length).bool() & read)
        logits = recompute(plain, step, range(length, m), sees)
        assert int(logits[-1].argmax()) == expected
        length = m
    assert not all(layer.all() for layer in sees)
    for layer in plain.layers:  # no score is above its page's bound
        keys, q = layer.attend.k, layer.attend.q[0].unflatten(0, (decoder.KV_HEADS, -1))
        least, largest = quest.bounds(layer.attend.layer)
        for page, (low, high) in enumerate(zip(least, largest, strict=True)):
            top = torch.maximum(q * low[:, None], q * high[:, None]).sum(-1)
            scores = torch.einsum("hgd,nhd->hgn", q, keys[page * 8 : page * 8 + 8])
            assert (scores <= top[..., None] + 1e-5).all()


def test_quest_with_all_pages_is_plain_decoding(example):
    decoder, quest = example("decoder"), example("quest")
    tokens, _, model = quest.quest_generate(1, PROMPT, 12, pages=100)
    plain = decoder.Decoder(Plain)
    plain.load_state_dict(model.state_dict())
    assert tokens == greedy(plain, PROMPT, 12)


def test_masks(example):
    decoder, masks = example("decoder"), example("masks")
    model, plain = pair(decoder)

    def cache():
        made = decoder.make_cache()
        made.add_sequence(0)
        return made

    n = len(PROMPT)
    causal = torch.ones(n, n).tril().bool()
    prefix = causal.clone()
    prefix[:7, :7] = True
    logits = masks.prefix_lm(model, cache(), PROMPT[:7], PROMPT[7:])
    expected = recompute(fresh(plain), PROMPT, sees=[prefix] * decoder.LAYERS)
    assert (logits - expected).abs().max() < BOUND
    near = causal & ~causal.tril(-4)
    logits = masks.near_and_far(model, cache(), PROMPT, 4)
    expected = recompute(fresh(plain), PROMPT, sees=[near, near, causal])
    assert (logits - expected).abs().max() < BOUND
    some = (torch.rand(n, n) < 0.5) | torch.eye(n, dtype=torch.bool)
    logits = masks.under(model, cache(), PROMPT, some)
    expected = recompute(fresh(plain), PROMPT, sees=[some] * decoder.LAYERS)
    assert (logits - expected).abs().max() < BOUND


def test_torch_attends_over_the_cache_s_pages(example):
    torch.manual_seed(0)
    distances = example("pages").compare()
    assert distances["torch"] < BOUND
