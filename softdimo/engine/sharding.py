"""FSDP2: a network in pieces, one per rank, and the way between pieces and whole tensors."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from softdimo.kinds import Teacher

_METHODS = ("embed", "soften", "table_rms", "null", "encode", "decode", "decode_soft", "loss")


def methods(net: nn.Module) -> list[str]:
    """What is called on this network beside `forward` and may use its weights."""
    return [name for name in _METHODS if isinstance(getattr(net, name, None), MethodType)]


def strategy(world: int) -> ModelParallelStrategy:
    """Lightning's strategy that cuts every network it sets up into `world` pieces."""
    return ModelParallelStrategy(_shard, data_parallel_size=world, tensor_parallel_size=1)


def shard(net: nn.Module, fabric: Fabric) -> None:
    """Cut a network that nobody trains; nothing where the strategy does not shard. It cannot be copied afterwards."""
    if isinstance(fabric.strategy, ModelParallelStrategy):
        _shard(net, fabric.strategy.device_mesh)


def _shard(net: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Layer by layer, so that one layer at a time is whole; what no layer holds is whole while the network runs."""
    ranks, inside = mesh["data_parallel"], set(net.modules())
    for layer in net.layers() if isinstance(net, Teacher) else ():
        if layer in inside:  # a network may run layers of another one
            fully_shard(layer, mesh=ranks)
    fully_shard(net, mesh=ranks)
    for name in methods(net):
        register_fsdp_forward_method(net, name)
    return net


def fold(net: nn.Module) -> None:
    """Drop the whole weights that a pass may have left, so that the next one sees the pieces as they are now."""
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(value: Any, keep: bool = True) -> Any:
    """The same nested state with sharded tensors put together, on the CPU; None in their place unless `keep`.

    All ranks enter; only those that write need to keep.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if keep else None
    if isinstance(value, dict):
        return {k: whole(v, keep) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(v, keep) for v in value)
    return value


def piece(full: Tensor, of: Tensor) -> Tensor:
    """A new tensor with the values of `full`, held as `of` is: in pieces or not, its device and precision.

    All ranks enter, and rank 0's values count where `of` is sharded.
    """
    values = torch.empty(of.shape, dtype=of.dtype, device=of.device).copy_(full)
    return distribute_tensor(values, of.device_mesh, of.placements) if isinstance(of, DTensor) else values
