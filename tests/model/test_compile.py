"""Compiled layers: equal losses and gradients, dropout by the seed, and when a run compiles."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from bert_pipeline.errors import UsageError
from bert_pipeline.model.compile import should_compile
from bert_pipeline.model.pretraining_model import PretrainingModel
from tests.helpers.model_rows import flatten, losses_and_gradients, make_rows

CPU = torch.device("cpu")
GPU = torch.device("cuda")
GLOBAL = "full_attention"
LOCAL = "sliding_attention"
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def build(dropout: float, layers: int = 1) -> BertForPreTraining:
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    sizes = SIZES | {"num_hidden_layers": layers}
    return BertForPreTraining(BertConfig(vocab_size=97, **sizes, **rates))


def build_modernbert(dropout: float, layer_types: Sequence[str]) -> ModernBertForMaskedLM:
    """Windows of local layers are narrower than the rows."""
    torch.manual_seed(0)
    fields = {"local_attention": 12, "pad_token_id": 0, "num_hidden_layers": len(layer_types)}
    rates = dict.fromkeys(("embedding_dropout", "attention_dropout", "mlp_dropout"), dropout)
    options: dict[str, Any] = {"vocab_size": 97} | SIZES | fields | rates
    return ModernBertForMaskedLM(ModernBertConfig(**options, layer_types=list(layer_types)))


def count_graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that are compiled from now on; they run as they are."""
    graphs = []

    def note(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile
    monkeypatch.setattr(
        "torch.compile", lambda call, dynamic: compiled(call, dynamic=dynamic, backend=note)
    )
    return graphs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
)
@torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True)
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_compiled_layers_equal_plain_layers(kind: str) -> None:
    """One compilation for several shapes; one layer, because compilation takes seconds.

    With dropout too for BERT, which is one more compilation.
    """
    torch._dynamo.reset()
    network = build(0.3) if kind == "bert" else build_modernbert(0.0, [LOCAL])
    compiled = PretrainingModel(network, compiled=True)
    plain = PretrainingModel(network)
    for number, lengths in enumerate([[12, 25, 7], [30, 9], [40, 3, 17, 22]]):
        batch = flatten(make_rows(lengths, number), kind == "bert")
        losses, gradients = losses_and_gradients(compiled, batch)
        again, same = losses_and_gradients(compiled, batch)
        assert torch.equal(losses, again)
        assert all(torch.equal(gradients[name], same[name]) for name in gradients)
    if kind == "bert":
        torch.manual_seed(8)
        assert not torch.equal(torch.stack(compiled(batch)), losses)
        torch._dynamo.reset()
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    torch.testing.assert_close(compiled.eval()(batch), plain.eval()(batch))
    losses, gradients = losses_and_gradients(plain.train(), batch)
    again, found = losses_and_gradients(compiled.train(), batch)
    torch.testing.assert_close(again, losses)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "expected"),
    # The last layer differs; ModernBERT's first does too, and local ones.
    [("bert", 2), ("modernbert", 4)],
)
def test_equal_layers_share_their_compilation_for_all_lengths(
    kind: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = count_graphs(monkeypatch)
    torch._dynamo.reset()
    types = [GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL, GLOBAL]
    network = build(0.1, 6) if kind == "bert" else build_modernbert(0.1, types)
    model = PretrainingModel(network, compiled=True)
    for number, lengths in enumerate([[12, 25, 7], [30, 9], [40, 3, 17, 22], [11, 8]]):
        losses = model(flatten(make_rows(lengths, number), kind == "bert"))
        torch.stack(losses).sum().backward()
    torch._dynamo.reset()
    assert len(graphs) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ddp_does_not_split_the_graph_of_a_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The boundaries of DDP's gradient buckets must not split a layer."""
    graphs = count_graphs(monkeypatch)
    torch._dynamo.reset()
    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/meeting"
    )
    try:
        model = PretrainingModel(build(0.0), compiled=True)
        # A bucket of a few bytes ends after each parameter.
        shared = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1e-4)
        torch.stack(shared(flatten(make_rows([12, 25, 7], 0), True))).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
        torch._dynamo.reset()
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("choice", "device", "length", "expected"),
    [
        ("auto", CPU, {"steps": 10**6}, False),
        ("auto", GPU, {"steps": 100}, False),
        ("auto", GPU, {"steps": 10**4}, True),
        ("auto", GPU, {"minutes": 1.0}, False),
        ("auto", GPU, {"minutes": 60.0}, True),
        ("off", GPU, {"minutes": 60.0}, False),
        ("on", CPU, {"steps": 1}, True),
        ("on", GPU, {"steps": 1}, True),
    ],
)
def test_when_a_run_compiles(
    choice: Any,
    device: torch.device,
    length: dict[str, Any],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {
        "choice": choice,
        "device": device,
        "steps": None,
        "minutes": None,
    } | length
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert should_compile(**given) == expected
    monkeypatch.setattr("shutil.which", lambda name: None)
    if choice == "on":
        with pytest.raises(UsageError, match="compiler"):
            should_compile(**given)
    else:
        assert not should_compile(**given)
