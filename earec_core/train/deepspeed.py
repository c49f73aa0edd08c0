"""The engine DeepSpeed: ZeRO divides optimizer, gradients and weights among the processes.

The optimizer stays torch's AdamW, whose state DeepSpeed cuts into flat parts, one for each process and group of
parameters. Nothing is compiled.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, distributed, nn

from earec_core.artifacts import EngineRecord
from earec_core.train.processes import Processes
from earec_core.train.zero import Zero

_MOMENTS = ("exp_avg", "exp_avg_sq")
_WARNINGS: Mapping[str, type[Warning]] = {
    r"`torch\.distributed\.\w+` is deprecated": FutureWarning,
    r"`torch\.jit\.\w+` is deprecated": DeprecationWarning,
    "Full backward hook is firing when gradients are computed": UserWarning,
}
"""What torch says of the ways in which DeepSpeed calls it."""


class DeepSpeedEngine:
    """ZeRO over any number of processes, one among them.

    At stage 3 the frozen weights stay divided after a training, and the model is of no more use.

    Args:
        optimizer: AdamW over all trained parameters, which are float32.
        clip: largest gradient norm.
        processes: that train together.
        zero: what is asked for.
    """

    in_step = True

    def __init__(
        self, optimizer: torch.optim.AdamW, clip: float, processes: Processes, *, zero: Zero
    ) -> None:
        self._optimizer, self._clip, self._zero = optimizer, clip, zero
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        self._engine: Any = None
        settings = {"stage": zero.stage, "offload": zero.offload}
        self.record = EngineRecord(name="deepspeed", processes=processes.size, settings=settings)

    @contextmanager
    def around(self, model: nn.Module, parameters: Collection[nn.Parameter]) -> Iterator[nn.Module]:
        # DeepSpeed prints and logs to stdout, which is for results.
        with redirect_stdout(sys.stderr), warnings.catch_warnings(), _group():
            for message, kind in _WARNINGS.items():
                warnings.filterwarnings("ignore", message, kind)
            state: dict[Tensor, Any] = dict(self._optimizer.state)
            self._optimizer.state.clear()
            self._engine = self._begun(model)
            self._divide(state)
            try:
                yield self._engine
                whole = [(parameter, self.value(parameter)) for parameter in parameters]
            finally:
                self._engine.destroy()
                _forget_processes()
            for parameter, value in whole:
                parameter.data = value

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        # What ZeRO divides is exchanged after every part; the step is taken after the last.
        self._engine.set_gradient_accumulation_boundary(False)
        yield
        self._engine.set_gradient_accumulation_boundary(True)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self, held: Sequence[nn.Parameter] = ()) -> None:
        held_ones = {id(parameter) for parameter in held}
        for group, parameters in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["held"] = any(id(parameter) in held_ones for parameter in parameters)
        self._engine.step()

    def value(self, parameter: nn.Parameter) -> Tensor:
        if self._zero.stage < 3:
            return parameter.detach()
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()

    def state(self, parameter: nn.Parameter) -> Mapping[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        number = self._group_of(parameter)
        if number is None:
            return {}
        flat = next(flat for group, flat in self._flats() if group == number)
        moments = {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
        return {"step": self._optimizer.state[flat]["step"].clone(), **moments}

    def _begun(self, model: nn.Module) -> Any:
        """DeepSpeed's engine around the model, its parameters divided."""
        # Both are read where DeepSpeed is first imported and begun, in one process as well.
        device = next(model.parameters()).device
        os.environ.setdefault("DS_ACCELERATOR", device.type)
        os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
        import deepspeed

        # Wherever it was imported first, its own handler writes to stdout.
        logging.getLogger("DeepSpeed").handlers = [logging.StreamHandler(sys.stderr)]
        # Of its operations, which are compiled where they are first used, the plain ones of torch do.
        deepspeed.ops.__compatible_ops__ = {}
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=self._optimizer,
            config=self._zero.deepspeed(self._clip),
            dist_init_required=False,
        )
        if self._zero.stage == 3:
            for module in model.modules():
                if "forward" in vars(module):
                    # It reads the weights below it itself, unseen.
                    for parameter in module.parameters():
                        deepspeed.zero.register_external_parameter(module, parameter)
            _keep_whole(engine, (module for module in model.modules() if isinstance(module, nn.Embedding)))
        self._optimizer.register_step_pre_hook(_hold)
        self._optimizer.register_step_post_hook(_let_go)
        return engine

    def _divide(self, state: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
        """Give every process its part of AdamW's state, which is that of no step where there is none."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        for number, flat in self._flats():
            steps = [state[p]["step"] for p in self._groups[number] if p in state]
            self._optimizer.state[flat] = {
                "step": steps[0].clone() if steps else torch.tensor(0.0),
                **{key: torch.zeros_like(flat) for key in _MOMENTS},
            }
        if self._zero.stage < 3:
            # DeepSpeed does so after its first step, for groups that were part of it.
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        for parameter, known in state.items():
            for key in _MOMENTS:
                if self._zero.stage < 3:
                    safe_set_full_optimizer_state(parameter, known[key], key)
                else:
                    safe_set_local_optimizer_state(parameter, _part(known[key], parameter), key)

    def _flats(self) -> list[tuple[int, Tensor]]:
        """This process's flat parts of the trained parameters, each with its group's number."""
        zero = self._engine.optimizer
        if self._zero.stage < 3:
            return list(enumerate(zero.single_partition_of_fp32_groups))
        return [
            (zero.sub_group_to_group_id[i], flat) for i, flat in enumerate(zero.fp32_partitioned_groups_flat)
        ]

    def _group_of(self, parameter: nn.Parameter) -> int | None:
        """The number of a trained parameter's group."""
        groups = enumerate(self._groups)
        return next((i for i, group in groups if any(p is parameter for p in group)), None)


def _forget_processes() -> None:
    """Let DeepSpeed find the processes anew at the next training, whose groups are others."""
    from deepspeed.comm import comm
    from deepspeed.utils import groups

    groups._release_process_group_references()
    comm.cdb = None


def _keep_whole(engine: Any, tables: Iterable[Any]) -> None:
    """Leave tables with every process, unseen by DeepSpeed, whose processes must call the same layers.

    How often a table is read depends on the samples, which are not the same.
    """
    for table in tables:
        weight = table.weight
        if not weight.ds_persist:
            weight.ds_persist = True
            engine.optimizer.persistent_parameters.append(weight)
        # So no layer that shares it, as a tied head does, divides it again when it is done.
        weight.is_external_param = True
        weight.all_gather()
        table._forward_pre_hooks.clear()
        table._forward_hooks.clear()


def _part(value: Tensor, parameter: Any) -> Tensor:
    """This process's part of what is divided as a parameter is at stage 3, filled up with zeros."""
    size = parameter.ds_tensor.numel()
    start = size * distributed.get_rank()
    part = value.new_zeros(size)
    own = value.flatten()[start : start + size]
    part[: len(own)] = own
    return part


def _hold(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step: leave out the groups that are held."""
    for group in optimizer.param_groups:
        if group.get("held"):
            group["left_out"], group["params"] = group["params"], []


def _let_go(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """After a step: take them in again."""
    for group in optimizer.param_groups:
        if "left_out" in group:
            group["params"] = group.pop("left_out")


@contextmanager
def _group() -> Iterator[None]:
    """The processes that are connected already, or this one as a group of its own."""
    if distributed.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        distributed.destroy_process_group()
