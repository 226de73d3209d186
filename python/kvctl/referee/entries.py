"""Every rule of the referee's table, with its source."""

from __future__ import annotations

from dataclasses import dataclass

from ..verification.enumeration import Rule
from .rules import coupling, hsd, optimal_transport, specinfer, spectr


@dataclass(frozen=True)
class Entry:
    """A rule in the table.

    Attributes
    ----------
    name, source
        What it is called, and where it was published.
    rule
        A name of `kvctl.verify`, or a function.
    how
        How siblings are drawn.
    chains_only
        Whether it takes no siblings.
    note
        What a reader must know.
    """

    name: str
    source: str
    rule: str | Rule
    how: str = "independent"
    chains_only: bool = False
    note: str = ""


_SPECINFER = "arXiv 2305.09781, algorithm 2"

ENTRIES = [
    Entry("naive (`target_only`)", "arXiv 2305.09781, as its baseline", "target_only"),
    Entry(
        "token-wise (`token_wise`)", "arXiv 2211.17192, 2302.01318", "token_wise", chains_only=True
    ),
    Entry("block (`block`)", "arXiv 2403.10444", "block", chains_only=True),
    Entry(
        "HSD, last ratio capped",
        "arXiv 2601.05724",
        hsd.last_ratio_capped,
        chains_only=True,
        note="It emits as much as block verification.",
    ),
    Entry(
        "HSD, as in its code",
        "the authors' repository at b8575e2",
        hsd.last_ratio_whole,
        chains_only=True,
        note="The whole chain is accepted by the ratio of all its probabilities, which is not "
        "capped by the largest one of a prefix.",
    ),
    Entry("recursive (`recursive`)", "arXiv 2402.14160", "recursive"),
    Entry("SpecInfer", _SPECINFER, specinfer.multi_step),
    Entry(
        "SpecInfer on top-k siblings",
        _SPECINFER,
        specinfer.multi_step,
        how="deterministic",
        note="Its trees of the k most probable tokens are no samples of the draft's distribution, "
        "which the rule takes them for.",
    ),
    Entry("SpecTr, k-sequential", "arXiv 2310.15141", spectr.k_sequential),
    Entry(
        "optimal transport by token",
        "arXiv 2310.15141; 2410.18234; 2502.18779; 2511.15898",
        optimal_transport.optimal_transport,
        note="A linear program, the bound of every rule that decides token by token. "
        "Khisti et al., Hu et al. and Thomas and Pal solve the same problem in other ways.",
    ),
    Entry(
        "drafter-invariant, Gumbel",
        "arXiv 2408.07978",
        coupling.gumbel,
        chains_only=True,
        note="Its text depends on the seed alone, whoever drafts; that costs acceptance. As "
        '`how="coupled"` in kvctl.',
    ),
    Entry(
        "drafter-invariant, weighted MinHash",
        "arXiv 2408.07978",
        coupling.min_hash,
        chains_only=True,
    ),
    Entry("GBV (`best_of_k`)", "arXiv 2602.16961", "best_of_k"),
    Entry("traversal (`traversal`)", "arXiv 2505.12398", "traversal"),
    Entry(
        "recursive, without replacement",
        "arXiv 2402.14160",
        "recursive",
        how="without_replacement",
    ),
    Entry(
        "traversal, without replacement",
        "arXiv 2505.12398",
        "traversal",
        how="without_replacement",
    ),
    Entry(
        "typical (`typical`)", "Medusa, arXiv 2401.10774", "typical", note="It is lossy on purpose."
    ),
]

#: Rules that were looked for, and why they are not in the table.
ABSENT = {
    "UniVer, arXiv 2605.04543": "only its abstract could be had, which does not define it. Its "
    "page on arXiv, summaries of it and public repositories were searched for its algorithm in "
    "November 2026; no code was found",
    "SpecHub, arXiv 2411.05289": "it is for pairs of siblings that are drawn together, one of them "
    "the most probable token, neither independently nor without replacement",
    "greedy draft sampling, arXiv 2502.18779": "it is for siblings of which all but one are the "
    "most probable tokens, neither drawn independently nor without replacement",
    "list-level Gumbel sampling, openreview GJbrk55Bt8": "given several drafts, the distribution "
    "of its token is an integral over as many variables, which is not enumerated",
}
