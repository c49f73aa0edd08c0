"""What every training shares: the learning rate's schedule, the engine that takes the steps, checkpoints."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from earec_core.errors import EarecError, IntegrityError
from earec_core.train import checkpoint
from earec_core.train.engine import Engine, TorchEngine
from earec_core.train.schedule import factor


@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_the_schedules_equal_those_of_torch(warmup: float) -> None:
    steps, warm = 200, round(200 * warmup)
    peers = {
        "constant": lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
        "linear": lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, steps - warm),
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps - warm),
    }
    for name, peer in peers.items():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = peer(optimizer)
        for step in range(warm, steps):
            found = factor(name, step / steps, steps=steps, warmup=warmup)  # type: ignore[arg-type]
            assert found == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
            optimizer.step()
            scheduler.step()
        assert factor(name, 1.0, steps=steps, warmup=warmup) == pytest.approx(  # type: ignore[arg-type]
            1.0 if name == "constant" else 0.0
        )


def test_the_warm_up_is_a_line_that_starts_above_0() -> None:
    rising = [factor("cosine", step / 100, steps=100, warmup=0.1) for step in range(11)]
    assert rising[0] == pytest.approx(1 / 11)
    assert rising[10] == 1.0
    assert [b - a for a, b in pairwise(rising)] == pytest.approx([1 / 11] * 10)


def test_an_engines_step_clips_over_all_and_moves_what_is_not_held() -> None:
    """Against SGD by hand: the norm counts the held parameter's gradient, which then moves nothing."""
    free, held = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))
    engine: Engine = TorchEngine(torch.optim.SGD([free, held], lr=0.1), 1.0)
    for _ in range(2):  # two parts of one batch
        engine.backward((torch.tensor([1.5, 2.0]) * free).sum() + 6 * held.sum())
    norm = (3.0**2 + 4.0**2 + 12.0**2) ** 0.5
    engine.step(held=[held])
    torch.testing.assert_close(
        free.detach(), torch.tensor([1.0 - 0.1 * 3 / norm, 2.0 - 0.1 * 4 / norm]), rtol=1e-5, atol=0
    )
    assert held.item() == 3.0
    assert free.grad is None
    assert held.grad is None


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("where", ["now", "best", "optimizer"])
def test_a_checkpoint_holds_finite_numbers_or_stays_as_it_was(
    value: float, where: str, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoint.safetensors"
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    best, states = {"weight": torch.ones(3)}, {"weight": optimizer.state[weight]}
    checkpoint.save(file, {"weight": weight}, states, {"step": 1}, best)
    before = file.read_bytes()
    spoilt = {"now": weight.data, "best": best["weight"], "optimizer": optimizer.state[weight]["exp_avg"]}
    spoilt[where][1] = value
    with pytest.raises(EarecError, match=rf"{where}/weight\S* holds NaN or infinity after step 2"):
        checkpoint.save(file, {"weight": weight}, states, {"step": 2}, best)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    # One that an earlier version wrote is not gone on from, and nothing is restored of it.
    tensors = load_file(file)
    next(tensor for name, tensor in tensors.items() if name.startswith(f"{where}/weight"))[...] = value
    save_file(tensors, file, metadata={"progress": '{"step": 1}'})
    weight.data.fill_(7.0)
    with pytest.raises(IntegrityError, match=r"holds NaN or infinity\. Delete it"):
        checkpoint.load(file, {"weight": weight}, optimizer)
    assert weight.tolist() == [7.0] * 3
