"""Mean tokens per round of every acceptance rule on a real model.

    python bench_rules.py MODEL_DIR [--json out.json] [--rounds 8] [--prompts 3]

The drafter is the same model seeing only the last few tokens of the text. Like a draft model it is
weaker than the target and has a distribution to draw from. Each round drafts K i.i.d. paths. Target
and draft distributions are recorded (`kvctl.verification.Trace`), and every rule runs exactly over
the same drafts, on the first path alone (a chain) and on all of them (a tree). `coupled` draws its
drafts with other noise, so its figure is counted from its own rounds.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import kvctl
from kvctl.draft import sample as draft_sample
from kvctl.text import ModelText

PROMPTS = Path(__file__).resolve().parents[2] / "examples" / "prompts"
KINDS = ("chat", "code", "copy")
SEED = 1
CHAIN = {"width": 1}
TABLE: list[tuple[str, str, dict[str, Any]]] = [
    ("greedy", "chain", CHAIN),
    ("target_only", "chain", CHAIN),
    ("token_wise", "chain", CHAIN),
    ("block", "chain", CHAIN),
    ("traversal", "chain", CHAIN),
    ("typical (lossy)", "chain", CHAIN),
    ("target_only", "tree", {}),
    ("recursive", "tree", {}),
    ("traversal", "tree", {}),
    ("best_of_k", "tree", {}),
]


class Session:
    """One text, its target cache, and a drafter that sees only the last tokens."""

    def __init__(self, runner: kvctl.ModelRunner, window: int, sampling: kvctl.Sampling) -> None:
        self.runner, self.window, self.sampling = runner, window, sampling
        self.text: list[int] = []

    def start(self, prompt: list[int]) -> None:
        self.text = list(prompt)
        self.runner.cache.add_sequence(0)
        self.runner.prefill([0], [self.text[:-1]])

    def stop(self) -> None:
        self.runner.cache.remove_sequence(0)

    def logits(self, seq_id: int, tree: kvctl.TokenTree) -> np.ndarray[Any, Any]:
        rows: np.ndarray[Any, Any] = np.from_dlpack(self.runner.verify([seq_id], [tree]))
        return rows.copy()

    def draft(self, paths: int, depth: int, how: str) -> tuple[kvctl.TokenTree, Any]:
        """Draw paths level by level; return the tree and the distributions of the children."""
        cache, root = self.runner.cache, len(self.text) - 1
        cache.add_sequence(1)
        context = self.text[-self.window : -1]
        if context:
            self.runner.prefill([1], [context])
        tokens, parents, leaves = [self.text[-1]], [-1], [0]
        distributions = None
        for level in range(1, depth + 1):
            tree = kvctl.TokenTree(tokens, parents)
            rows = self.logits(1, tree)[leaves]
            cache.abort([1])
            first = len(tokens)
            draw = draft_sample(
                rows,
                how=how,
                n=paths if level == 1 else 1,
                sampling=self.sampling,
                seed=SEED,
                request_ids=[0] * len(leaves),
                root_positions=[root] * len(leaves),
                first_nodes=first + np.arange(len(leaves)),
                depths=level,
            )
            if distributions is None:
                distributions = np.zeros((1 + paths * depth, rows.shape[1]), np.float32)
            distributions[leaves] = draw.probs
            parents += [p for p in leaves for _ in range(draw.tokens.shape[1])]
            tokens += draw.tokens.ravel().tolist()
            leaves = list(range(first, len(tokens)))
        cache.remove_sequence(1)
        return kvctl.TokenTree(tokens, parents), distributions

    def verify(self, tree: kvctl.TokenTree, logits: Any, **call: Any) -> kvctl.Verification:
        return kvctl.verify(
            logits,
            tree,
            sampling=self.sampling,
            seed=SEED,
            root_positions=[len(self.text) - 1],
            request_ids=[0],
            **call,
        )

    def round(self, trace: kvctl.verification.Trace, paths: int, depth: int) -> int:
        """Record one round and append what it emitted; return what a coupled round would emit."""
        chain, _ = self.draft(1, depth, "coupled")
        coupled = self.verify(chain, self.logits(0, chain), rule="coupled", drawn="coupled")
        self.runner.cache.abort([0])
        tree, distributions = self.draft(paths, depth, "independent")
        logits = self.logits(0, tree)
        # The draw itself is not used: this gives the processed distribution of each row.
        target = draft_sample(logits, how="deterministic", sampling=self.sampling).probs
        trace.add(tree, target_probs=target, draft_probs=distributions, drawn="independent")
        result = self.verify(
            tree, logits, rule="traversal", drawn="independent", draft_probs=distributions
        )
        self.runner.cache.commit([0], result.kept)
        self.text += result.tokens[0]
        return int(coupled.num_emitted[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=8, help="per prompt")
    parser.add_argument("--prompts", type=int, default=3, help="of each kind")
    parser.add_argument("--paths", type=int, default=2)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--window", type=int, default=16, help="tokens that the drafter sees")
    parser.add_argument("--temperature", type=float, default=0.8)
    arguments = parser.parse_args()
    runner = kvctl.ModelRunner.load(arguments.model)
    text = ModelText.load(arguments.model)
    sampling = kvctl.Sampling(temperature=arguments.temperature)
    traces = {kind: kvctl.verification.Trace() for kind in KINDS}
    coupled: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for path in sorted(PROMPTS.glob(f"{kind}_*.txt"))[: arguments.prompts]:
            session = Session(runner, arguments.window, sampling)
            session.start(text.encode_chat(path.read_text(encoding="utf-8")))
            for _ in range(arguments.rounds):
                emitted = session.round(traces[kind], arguments.paths, arguments.depth)
                coupled[kind].append(emitted)
            session.stop()
    rows = []
    for name, shape, limits in TABLE:
        emitted = {k: traces[k].replay(name.split()[0], **limits).emitted for k in KINDS}
        rows.append((name, shape, emitted))
    rows.append(("coupled", "chain", {k: np.array(v, float) for k, v in coupled.items()}))
    print(
        f"{arguments.paths} paths of {arguments.depth}, temperature {arguments.temperature}, "
        f"drafter sees {arguments.window} tokens, {sum(map(len, traces.values()))} rounds"
    )
    print(f"{'rule':<17}{'drafts':<8}" + "".join(f"{k:>8}" for k in (*KINDS, "all")) + "    +-")
    report = []
    for name, shape, emitted in rows:
        together = np.concatenate(list(emitted.values()))
        means = {k: float(v.mean()) for k, v in emitted.items()} | {"all": float(together.mean())}
        error = float(together.std(ddof=1) / np.sqrt(len(together)))
        print(f"{name:<17}{shape:<8}" + "".join(f"{m:8.3f}" for m in means.values()), end="")
        print(f"{error:6.3f}")
        report.append({"rule": name, "drafts": shape, "mean": means, "standard_error": error})
    if arguments.json:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("json", "model")}
        machine = {"cpus": len(os.sched_getaffinity(0))}
        content = {"settings": settings, "machine": machine, "rules": report}
        arguments.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
