"""What reads files of strangers: of each kind a whole file, and the call that reads it damaged."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
from mutations import damage_bytes, damage_json

import kvctl
from checkpoint_files import NAMES, RANDOM, write_gguf
from gguf_files import byte_level_metadata, split
from huggingface_files import tokenizer_json, write_config, write_shards
from kvctl.bench import read_questions
from kvctl.draft import RoundCost, SuffixStore
from kvctl.engine import cost_file
from kvctl.models import compile_model
from kvctl.models.build import compile as compiling
from kvctl.models.graph import export as graph
from kvctl.text import ModelText
from kvctl.verification import Trace
from small_cache import make_cache, step
from tiny_model import compile_tiny_model

Take = Callable[[], object]


class Written:
    """Stands for a built library: what is checked here comes before and after it."""

    def export_library(self, path: str) -> None:
        """Write nothing."""
        Path(path).write_bytes(b"")


@cache
def _exported(*arguments: Any) -> Any:
    config, rest = arguments[0], dict(arguments[1:])
    return graph.export(config, **rest)


def _export(config: Any, **options: Any) -> Any:
    options["unused"] = tuple(options["unused"])
    return _exported(config, *(item for item in options.items() if item[0] != "target"))


def compile_it(source: Path, output: Path) -> list[str]:
    """Do all of a compilation but TVM's part of it; leave either a model or nothing.

    Returns the checksums of its parameters.
    """
    quick = {
        "export": _export,
        "build": lambda *arguments: Written(),
        "check_compiler": lambda: None,
    }
    with contextlib.ExitStack() as stack:
        for name, function in quick.items():
            stack.enter_context(mock.patch.object(compiling, name, function))
        try:
            compile_model(source, output)
            index = json.loads((output / "tensor-cache.json").read_text())
            return [shard["md5sum"] for shard in index["records"]]
        except Exception:
            assert not output.exists(), "a model where there was an error"
            raise
        finally:
            left = [entry.name for entry in output.parent.iterdir() if entry.name != output.name]
            shutil.rmtree(output, ignore_errors=True)
            assert not left, f"left beside the output: {left}"


class Targets:
    """The kinds of files; each damages one in `home` and returns the call that reads it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.output = home / "out" / "m"
        self.output.parent.mkdir(parents=True)
        self.source = home / "source"
        self.source.mkdir()
        write_config(self.source, eos_token_id=2, bos_token_id=1)
        weights = {name: RANDOM.tensor(name).astype(np.float16) for name in NAMES}
        shards = {"a.safetensors": dict(list(weights.items())[:9])}
        shards["b.safetensors"] = dict(list(weights.items())[9:])
        write_shards(self.source, shards)
        (self.source / "tokenizer.json").write_text(tokenizer_json(256))
        decoder = {"256": {"content": "<|x|>", "special": True}}
        config = {"added_tokens_decoder": decoder, "additional_special_tokens": ["<|x|>"]}
        config |= {"extra_special_tokens": {"y": "<|x|>"}, "bos_token": {"content": "<|x|>"}}
        config |= {"chat_template": "{{ messages[0].content }}"}
        (self.source / "tokenizer_config.json").write_text(json.dumps(config))
        self.gguf = home / "gguf"
        self.gguf.mkdir()
        metadata = byte_level_metadata(256)
        self.parts = [write_gguf(self.gguf / "m.gguf", tokenizer=metadata)]
        whole = write_gguf(self.gguf / "s.gguf", tokenizer=metadata)
        self.parts += split(whole, last=["output.weight"])
        self.model = compile_tiny_model(home / "model")
        (self.model / "tokenizer.json").write_text(tokenizer_json(256))
        self.saved = home / "saved"
        cache = make_cache()
        cache.add_sequence(0)
        step(cache, 0, range(30))
        cache.save_sequence(0, self.saved)
        self.trace = home / "trace.npz"
        trace, probs = Trace(), np.full((3, 4), 0.25, np.float32)
        tree = kvctl.TokenTree([0, 1, 2], [-1, 0, 0])
        trace.add(tree, target_probs=probs, draft_probs=probs, drawn="independent")
        trace.save(self.trace)
        self.questions = home / "questions.jsonl"
        lines = [{"question_id": i, "category": f"c{i % 2}", "turns": ["a", "b"]} for i in range(9)]
        lines += [{"task_id": f"HumanEval/{i}", "prompt": "def f():"} for i in range(3)]
        self.questions.write_text("\n".join(map(json.dumps, lines)))
        self.store = home / "suffixes"
        store = SuffixStore(500)
        store.extend([[1, 2, 3, 4] * 9, [1, 2, 3, 5], [2**31 - 1, 0]])
        store.save(self.store)
        self.costs = home / "costs" / "round_costs.json"
        with mock.patch.dict("os.environ", KVCTL_CACHE_DIR=str(self.costs.parent)):
            for name in ("a", "b"):
                assert cost_file.remember(name, [(2, 1.5), (3, 2.0)])
        self.checksums = compile_it(self.source, self.output)
        self.whole = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}

    def kinds(self) -> dict[str, Callable[[Random], tuple[Path, Take]]]:
        """Return the kinds by name."""
        return {
            "safetensors": self._safetensors,
            "index": lambda rng: self._compiled(rng, "model.safetensors.index.json"),
            "config.json": lambda rng: self._compiled(rng, "config.json"),
            "tokenizer.json": lambda rng: self._compiled(rng, "tokenizer.json"),
            "gguf": self._gguf,
            "mlc-chat-config.json": lambda rng: self._loaded(rng, "mlc-chat-config.json"),
            "tensor-cache.json": lambda rng: self._loaded(rng, "tensor-cache.json"),
            "text": self._text,
            "saved sequence": self._saved,
            "trace": self._trace,
            "tokenizer_config.json": self._added_tokens,
            "questions": self._questions,
            "suffix store": self._store,
            "round costs": self._costs,
        }

    def restore(self, path: Path) -> None:
        """Make a damaged file whole."""
        path.write_bytes(self.whole[path])

    def _safetensors(self, rng: Random) -> tuple[Path, Take]:
        path = self.source / rng.choice(["a.safetensors", "b.safetensors"])
        data = self.whole[path]
        size = int.from_bytes(data[:8], "little")
        if rng.random() < 0.5:
            header = damage_json(rng, data[8 : 8 + size])
            length = len(header) + rng.choice([0, 0, 0, 1, -1, 1 << 40])
            path.write_bytes(length.to_bytes(8, "little", signed=True) + header + data[8 + size :])
        else:
            path.write_bytes(damage_bytes(rng, data, header=rng.choice([8, 8 + size, None])))
        return path, lambda: compile_it(self.source, self.output)

    def _compiled(self, rng: Random, name: str) -> tuple[Path, Take]:
        path = self.source / name
        path.write_bytes(damage_json(rng, self.whole[path]))

        def take() -> None:
            assert compile_it(self.source, self.output) == self.checksums, "other weights"

        return path, take

    def _gguf(self, rng: Random) -> tuple[Path, Take]:
        path = rng.choice(self.parts)
        data = self.whole[path]
        header = rng.choice([24, 600, data.rfind(b".weight") + 40, None])
        path.write_bytes(damage_bytes(rng, data, header=header))
        return path, lambda: compile_it(path, self.output)

    def _loaded(self, rng: Random, name: str) -> tuple[Path, Take]:
        path = self.model / name
        path.write_bytes(damage_json(rng, self.whole[path]))

        def take() -> None:
            runner = kvctl.ModelRunner.load(self.model, max_total_tokens=64)
            runner.cache.add_sequence(0)
            with contextlib.suppress(RuntimeError, ValueError):  # another vocabulary than was said
                runner.prefill([0], [[1, 2, 3]])

        return path, take

    def _text(self, rng: Random) -> tuple[Path, Take]:
        path = self.model / rng.choice(["mlc-chat-config.json", "tokenizer.json"])
        path.write_bytes(damage_json(rng, self.whole[path]))

        def take() -> None:
            text = ModelText.load(self.model)
            text.tokenizer.decode(text.tokenizer.encode("Hello, world 123"))

        return path, take

    def _saved(self, rng: Random) -> tuple[Path, Take]:
        data = self.whole[self.saved]
        size = int.from_bytes(data[:8], "little")
        if rng.random() < 0.5:
            header = damage_json(rng, data[8 : 8 + size])
            self.saved.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
        else:
            self.saved.write_bytes(damage_bytes(rng, data, header=rng.choice([8 + size, None])))

        def take() -> None:
            cache = make_cache()
            cache.load_sequence(0, self.saved)
            assert cache.sequence_length(0) == 30, cache.sequence_length(0)
            step(cache, 0, range(30, 33))

        return self.saved, take

    def _trace(self, rng: Random) -> tuple[Path, Take]:
        self.trace.write_bytes(damage_bytes(rng, self.whole[self.trace]))
        return self.trace, lambda: Trace.load(self.trace)

    def _added_tokens(self, rng: Random) -> tuple[Path, Take]:
        path = self.source / "tokenizer_config.json"
        path.write_bytes(damage_json(rng, self.whole[path]))
        return path, lambda: compile_it(self.source, self.output)

    def _questions(self, rng: Random) -> tuple[Path, Take]:
        lines = self.whole[self.questions].split(b"\n")
        if rng.random() < 0.7:
            at = rng.randrange(len(lines))
            lines[at] = damage_json(rng, lines[at])
            data = b"\n".join(lines)
        else:
            data = damage_bytes(rng, b"\n".join(lines))
        if rng.random() < 0.3:
            data = damage_bytes(rng, gzip.compress(data, mtime=0))
        self.questions.write_bytes(data)
        return self.questions, lambda: read_questions(self.questions, limit=5)

    def _store(self, rng: Random) -> tuple[Path, Take]:
        self.store.write_bytes(damage_bytes(rng, self.whole[self.store]))

        def take() -> None:
            store = SuffixStore.load(self.store)
            store.add([1, 2, 3])
            store.continuations([1, 2, 3], max_nodes=8, max_depth=8)

        return self.store, take

    def _costs(self, rng: Random) -> tuple[Path, Take]:
        """What is wrong with this file never fails: it is ignored, and written anew."""
        self.costs.write_bytes(damage_json(rng, self.whole[self.costs]))

        def take() -> None:
            with mock.patch.dict("os.environ", KVCTL_CACHE_DIR=str(self.costs.parent)):
                try:
                    RoundCost().recall(cost_file.recall("a"))
                    assert cost_file.remember("a", [(2, 1.5)]), "not written"
                    assert cost_file.recall("a") == [(2, 1.5)], cost_file.recall("a")
                except AssertionError:
                    raise
                except Exception as error:
                    raise AssertionError(f"{type(error).__name__}: {error}") from error
            left = [entry.name for entry in self.costs.parent.iterdir() if entry != self.costs]
            assert not left, f"left beside the file: {left}"

        return self.costs, take
