"""Isolation of an evaluation: model state, random state and torch switches are restored afterwards."""

from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.autograd_guards import no_reentrant_checkpoint, parameters_by_name, refuse_backward
from lossscope.probes.objective.module_state import ModuleState
from lossscope.probes.objective.reached import Reached

__all__ = ["Mode", "isolated", "random_modules", "random_state", "without_statistics"]

Mode = Literal["eval", "frozen", "train"]
_ONE_THREAD: Final = threading.RLock()  # the switches and random states are those of the process


@contextmanager
def isolated(
    model: nn.Module,
    *,
    training: bool,
    devices: Iterable[torch.device],
    reached: Reached | None = None,
    inputs: Iterable[Tensor] = (),
) -> Iterator[None]:
    """Allow the model to be differentiated twice inside this context, and restore all state at its end.

    One thread at a time is inside; others wait, as each would restore what it has found of the other's switches.
    Attention uses its math kernel (the fused ones have no second derivative); autocast and inference mode are off;
    no gradient is synchronized between processes; a reentrant checkpoint raises. At exit these switches, the random
    states of torch (CPU and the devices), numpy and Python, and of the model and of what the loss reaches beside it
    the following are restored: modes and other attributes, with the lists and dictionaries among them; `.grad` and
    `requires_grad` of parameters and inputs; generators of random numbers. (Parameters and buffers are never written
    inside: losses are evaluated on substitutes, see `Objective`.)

    Args:
        model: The model.
        training: The training mode of its modules inside.
        devices: The devices in use.
        reached: What the loss reaches beside the model; its networks keep their modes.
        inputs: The tensors of the data.

    Yields:
        Nothing.
    """
    beside = reached or Reached()
    used = list(devices)
    if any(device.type == "meta" for device in used):
        raise ProbeError("tensors of the model are on the device meta and have no values: load its weights first")
    modules = list(dict.fromkeys(part for root in (model, *beside.modules) for part in root.modules()))
    with _ONE_THREAD, ExitStack() as stack:
        stack.enter_context(_state_kept(modules, beside, used))
        stack.enter_context(_gradients_apart(modules, inputs))
        stack.enter_context(_twice_differentiable({"cpu", *(device.type for device in used)}))
        model.train(training)
        for module in modules:
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):  # a sparse gradient has no second derivative
                vars(module).update(sparse=False)
            if hasattr(module, "require_backward_grad_sync"):  # DistributedDataParallel would wait for other processes
                vars(module).update(require_backward_grad_sync=False, require_forward_param_sync=False)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def _state_kept(modules: Iterable[nn.Module], beside: Reached, devices: Iterable[torch.device]) -> Iterator[None]:
    """Put back the state of modules and of objects beside them, and all random states, at the end of this context."""
    state = ModuleState(modules, beside.objects)
    with ExitStack() as stack:
        stack.callback(np.random.set_state, np.random.get_state(legacy=False))
        stack.callback(random.setstate, random.getstate())
        stack.callback(state.restore)
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):  # whose mode is no attribute of Python's
                stack.callback(setattr, module, "training", module.training)
        for put_back in [_generator_state(generator) for generator in beside.generators]:
            stack.callback(put_back)
        cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        yield


@contextmanager
def _twice_differentiable(kinds: Iterable[str]) -> Iterator[None]:
    """Switch off inside this context what has no second derivative, on some types of devices."""
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        for kind in sorted(kinds):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(no_reentrant_checkpoint())
        stack.enter_context(parameters_by_name())
        torch.backends.mha.set_fastpath_enabled(False)
        yield


@contextmanager
def _gradients_apart(modules: Iterable[nn.Module], inputs: Iterable[Tensor]) -> Iterator[None]:
    """Take `.grad` off all parameters and inputs inside this context; at its end put it back, as it was.

    Raises:
        ProbeError: a parameter has got a gradient inside.
    """
    named = {id(p): (name, p) for m in modules for name, p in m.named_parameters(recurse=False) if p.is_leaf}.values()
    leaves = [*(p for _, p in named), *(tensor for tensor in inputs if tensor.is_leaf)]
    kept = [(leaf, leaf.grad, leaf.requires_grad) for leaf in leaves]
    _set_gradients((leaf, None) for leaf, _, _ in kept)
    written = ""
    try:
        yield
        written = next((name for name, p in named if p.grad is not None), "")
    finally:
        _set_gradients((leaf, grad) for leaf, grad, _ in kept)
        for leaf, _, needed in kept:
            if leaf.requires_grad != needed:
                leaf.requires_grad_(needed)
    if written:
        refuse_backward(written)


def _set_gradients(pairs: Iterable[tuple[Tensor, Tensor | None]]) -> None:
    """Set `.grad` of leaves where it is another."""
    for leaf, grad in pairs:
        if leaf.grad is not grad:
            leaf.grad = grad


def _generator_state(generator: Any) -> Callable[[], Any]:
    """Return a function that sets a generator of random numbers back to its present state."""
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state(legacy=False))
    return partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)


def random_state(devices: Iterable[torch.device]) -> bytes:
    """Return the states of the global generators: torch's (CPU and CUDA devices), numpy's and Python's.

    Args:
        devices: The devices in use.

    Returns:
        Bytes that change when one of them is used. Generators owned by a model are not included.
    """
    torchs = [torch.get_rng_state()]
    torchs += [torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"]
    words = [state.numpy().tobytes() for state in torchs]
    return b"".join([*words, pickle.dumps((np.random.get_state(), random.getstate()))])


def without_statistics(model: nn.Module) -> list[str]:
    """Return the batch norms without running statistics, which use those of the batch in eval mode too.

    Args:
        model: The model.

    Returns:
        Their names.
    """
    return [
        name or "the model"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_mean is None
        and module.running_var is None
    ]


def random_modules(model: nn.Module) -> list[str]:
    """Return the modules that draw random numbers in their current mode, judged by their class names.

    Args:
        model: The model.

    Returns:
        Their names as `name (Class)`.
    """
    signs = ("drop", "rrelu", "noise", "stochastic")
    return [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module.training and any(sign in type(module).__name__.lower() for sign in signs)
    ]
