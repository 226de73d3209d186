"""The shape of a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..models.checkpoints.config import DecoderConfig

KINDS = ("eagle", "eagle3", "medusa", "mtp")


@dataclass(frozen=True)
class HeadConfig:
    """What a head is made of.

    Attributes
    ----------
    kind : str
        "eagle" (EAGLE-1 and 2), "eagle3", "medusa" or "mtp" (a module for multi-token prediction).
    target : DecoderConfig
        The model whose hidden states it reads.
    layer : DecoderConfig
        Of EAGLE's heads and MTP modules, the one decoder layer; of Medusa's, the target once more.
    hidden_layers : tuple of int
        The target's layers whose outputs are read, counted from 0.
    vocab_size : int
        Length of a row of logits.
    token_ids : tuple of int
        The target's token of each of the head's, where it has fewer; else empty.
    fc_bias : bool
        Of EAGLE-1, whether the layer that joins feature and token has a bias.
    norm_before_residual : bool
        Of EAGLE-3, whether the residual stream begins behind the norm of the feature.
    norm_before_fc : bool
        Of EAGLE-3, whether the joined hidden states have a norm before they become a feature.
    gives_normed : bool
        Of MTP, whether the feature that the module gives is behind its last norm, as MiMo's is;
        else only the output layer reads what is behind it, as in DeepSeek-V3.
    num_heads, num_blocks : int
        Of Medusa, how many heads there are, and residual blocks in each.

    Raises
    ------
    ValueError
        If the parts do not fit together.
    """

    kind: str
    target: DecoderConfig
    layer: DecoderConfig
    hidden_layers: tuple[int, ...]
    vocab_size: int
    token_ids: tuple[int, ...] = ()
    fc_bias: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    gives_normed: bool = False
    num_heads: int = 0
    num_blocks: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a head is one of {', '.join(KINDS)}, not {self.kind!r}")
        check_read_layers(self.kind, self.hidden_layers, self.target.num_hidden_layers)
        if self.token_ids and len(self.token_ids) != self.vocab_size:
            raise ValueError(
                f"the head's vocabulary has {self.vocab_size} tokens, and the map names "
                f"{len(self.token_ids)}"
            )
        if not self.token_ids and self.vocab_size != self.target.vocab_size:
            raise ValueError(
                f"the head has logits of {self.vocab_size} tokens, the target has "
                f"{self.target.vocab_size}, and no map says which they are"
            )
        if self.kind != "eagle3" and self.layer.hidden_size != self.target.hidden_size:
            raise ValueError(
                f"the head is {self.layer.hidden_size} wide, the target {self.target.hidden_size}: "
                "it was trained for another model"
            )
        if self.kind == "medusa" and not 1 <= self.num_heads <= 64:
            raise ValueError(f"Medusa has from 1 to 64 heads, not {self.num_heads}")
        if self.kind == "medusa" and not 0 <= self.num_blocks <= 16:
            raise ValueError(f"a head has from 0 to 16 blocks, not {self.num_blocks}")

    @property
    def reads_normed(self) -> bool:
        """Whether features are what the target's output layer reads, behind its last norm."""
        return self.kind != "eagle3"

    def describe(self) -> dict[str, Any]:
        """Return what a compiled head says of itself, for JSON."""
        return {
            "kind": self.kind,
            "hidden_layers": list(self.hidden_layers),
            "token_ids": list(self.token_ids),
            "vocab_size": self.vocab_size,
            "num_heads": self.num_heads,
            "feature_size": self.layer.hidden_size,
            "target": {
                "hidden_size": self.target.hidden_size,
                "num_hidden_layers": self.target.num_hidden_layers,
                "vocab_size": self.target.vocab_size,
            },
        }


def check_read_layers(kind: str, layers: tuple[int, ...], num_layers: int) -> None:
    """Make sure that a head of a kind may read these of the target's layers.

    Raises
    ------
    ValueError
        If there is another number of them, or they do not ascend within the target's.
    """
    last, wanted = num_layers - 1, 3 if kind == "eagle3" else 1
    inside = all(type(one) is int and 0 <= one <= last for one in layers)
    if len(layers) != wanted or not inside or list(layers) != sorted(set(layers)):
        raise ValueError(
            f"an {kind} head reads {wanted} layers that ascend from 0 to {last}, not {list(layers)}"
        )


def default_layers(num_layers: int) -> tuple[int, int, int]:
    """Return the layers whose outputs EAGLE-3 reads: an early, the middle and a late one.

    Published heads count what *enters* layers 2, n // 2 and n - 3.

    Raises
    ------
    ValueError
        If the target has too few layers to tell them apart.
    """
    layers = (1, num_layers // 2 - 1, num_layers - 4)
    if not layers[0] < layers[1] < layers[2]:
        raise ValueError(f"a target of {num_layers} layers has too few for EAGLE-3's three")
    return layers
