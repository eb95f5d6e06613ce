"""Training: exact resume, interruption, early stopping, bad losses, unsafe files, bad data."""

import math
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyro_causal.infer import History, TrainingInterrupted, fit, restore
from pyro_causal.infer._batches import TensorBatches
from pyro_causal.infer.checkpoint import load, rng_scope, rng_state, save, set_rng_state

ROWS, BATCH, EPOCHS = 10, 4, 4  # three steps an epoch, the last one smaller
STEPS = 3
positive = constraints.positive


# --- Programs: each factory gives a fresh (model, guide) ------------------------------------------


def plate(x: Tensor) -> pyro.plate:
    return pyro.plate("rows", ROWS, subsample_size=len(x))


def bare() -> tuple[Callable, Callable]:
    """Functions whose parameters live in the store, with constraints and random lazy values."""

    def model(x):
        loc = pyro.param("loc", lambda: torch.randn(()))
        scale = pyro.param("scale", torch.tensor(1.5), constraint=positive)
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        with plate(x):
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x):
        loc = pyro.param("z_loc", lambda: torch.randn(()))
        scale = pyro.param("z_scale", torch.tensor(0.7), constraint=constraints.interval(0.1, 2))
        pyro.sample("z", dist.Normal(loc, scale))

    return model, guide


class Module(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(()))
        self.scale = PyroParam(torch.tensor(1.5), constraint=positive)
        self.net = nn.Sequential(nn.Linear(1, 3), nn.Dropout(0.5), nn.Linear(3, 1))

    def forward(self, x):
        z = pyro.sample("z", dist.Normal(self.loc, 1.0))
        with plate(x):
            loc = self.net(z.expand(len(x))[:, None])[:, 0]
            pyro.sample("x", dist.Normal(loc, self.scale), obs=x)


def pyro_module() -> tuple[Callable, Callable]:
    """A PyroModule, and an automatic guide that makes its parameters at the first call."""
    model = Module()
    return model, AutoNormal(model)


def handled() -> tuple[Callable, Callable]:
    """The same behind handlers, which are plain callables."""
    model = poutine.scale(Module(), 0.5)
    return model, poutine.scale(AutoNormal(model), 0.5)


class Methods(nn.Module):
    """A plain module with a buffer that training moves; model and guide are methods."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        self.decoder = nn.Linear(1, 1)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.decoder(z[:, None])[:, 0], 1.0), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with plate(x):
            loc, scale = self.encoder(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, scale.exp()))


def methods() -> tuple[Callable, Callable]:
    both = Methods()
    return both.model, both.guide


def closure() -> tuple[Callable, Callable]:
    """The same modules, which only closures know."""
    both = Methods()
    return lambda x: both.model(x), lambda x: both.guide(x)


PROGRAMS = [bare, pyro_module, handled, methods, closure]
OPTIMS: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": lambda: {"lr": 0.05},
    "torch scheduled": lambda: {
        "optim": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
        "scheduler": lambda optim: torch.optim.lr_scheduler.MultiStepLR(optim, [1, 3], gamma=0.5),
    },
    "torch plateau": lambda: {
        "optim": lambda params: torch.optim.AdamW(params, lr=0.05),
        "scheduler": partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0),
        "clip_norm": 1.0,
    },
    "pyro": lambda: {"optim": pyro.optim.Adam({"lr": 0.05}), "clip_norm": 1.0},
    "pyro clipped": lambda: {"optim": pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9})},
    "pyro scheduled": lambda: {
        "optim": pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.5}
        )
    },
}


@pytest.fixture
def x() -> Tensor:
    return 3 + torch.randn(ROWS, generator=torch.Generator().manual_seed(1))


class At(Messenger):
    """Do something at the k-th call (from one) of the callable that this wraps."""

    def __init__(self, k: int, act: Callable[[], None]) -> None:
        super().__init__()
        self.calls = 0
        self.k = k
        self.act = act

    def __enter__(self):
        self.calls += 1
        if self.calls == self.k:
            self.act()
        return super().__enter__()


def ctrl_c() -> None:
    raise KeyboardInterrupt


def weights(model: Callable, guide: Callable) -> list[Tensor]:
    """Copy everything that training may move, wherever it lives."""
    found = dict(pyro.get_param_store().named_parameters())
    for role, fn in (("model", model), ("guide", guide)):
        owner = getattr(fn, "__self__", fn)
        if isinstance(owner, nn.Module):
            found |= {f"{role}.{name}": t for name, t in owner.state_dict().items()}
    return [found[name].detach().clone() for name in sorted(found)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def run(program: tuple[Callable, Callable], data: Any, epochs: int, **options: Any) -> History:
    return fit(*program, **{"loss": Trace_ELBO(), "data": data, "epochs": epochs, **options})


def nothing(*args: Any, **kwargs: Any) -> None:
    """A guide without latent sites."""


def of_model(model: Callable, guide: Callable, *args: Any) -> Tensor:
    """A loss that the model returns."""
    return model(*args)


# --- What training computes -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [bare, pyro_module, methods])
def test_pyro_optimiser_is_a_loop_of_svi_steps(make: Callable, x: Tensor) -> None:
    pyro.set_rng_seed(0)
    model, guide = make()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    expected = [svi.step(x) for _ in range(5)]
    final = weights(model, guide)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = make()
    history = run((model, guide), x, 5, optim=pyro.optim.Adam({"lr": 0.05}))
    assert history.losses == expected
    assert same(weights(model, guide), final)


def test_torch_optimiser_is_a_loop_on_the_elbo_module(x: Tensor) -> None:
    pyro.set_rng_seed(0)
    model, guide = pyro_module()
    elbo = Trace_ELBO()(model, guide)
    with rng_scope():
        guide(x)  # makes the guide's parameters
    optim = torch.optim.Adam(elbo.parameters(), lr=0.05)
    expected = []
    for _ in range(5):
        optim.zero_grad()
        loss = elbo(x)
        loss.backward()
        optim.step()
        expected.append(loss.item())
    final = weights(model, guide)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide = pyro_module()
    with rng_scope():
        guide(x)
    assert run((model, guide), x, 5, lr=0.05).losses == expected
    assert same(weights(model, guide), final)


@pytest.mark.parametrize("make", PROGRAMS)
@pytest.mark.parametrize("optim", OPTIMS)
def test_every_parameter_moves(make: Callable, optim: str, x: Tensor) -> None:
    model, guide = make()
    with torch.no_grad(), poutine.trace(param_only=True):
        guide(x), model(x)
    before = {k: p.detach().clone() for k, p in pyro.get_param_store().named_parameters()}
    run((model, guide), x, 3, batch_size=5, **OPTIMS[optim]())
    stuck = [k for k, p in pyro.get_param_store().named_parameters() if torch.equal(p, before[k])]
    assert before
    assert not stuck


def test_local_parameters_are_trained(x: Tensor) -> None:
    with pyro.settings.context(module_local_params=True):
        model, guide = pyro_module()
        guide(x)
        before = weights(model, guide)
        run((model, guide), x, 2, lr=0.1)
        assert not any(map(torch.equal, weights(model, guide), before))
        assert not len(pyro.get_param_store())


def test_plain_modules_are_trained_without_registration(x: Tensor) -> None:
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            with plate(x):
                pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)

    model = Plain()
    handled = poutine.scale(partial(model), 1.0)
    run((handled, nothing), x, 300, lr=0.05)
    torch.testing.assert_close(model.loc.detach(), x.mean(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("optim", ["torch", "pyro"])
@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(num_particles=2),
        Trace_ELBO(num_particles=2, vectorize_particles=True),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        TraceEnum_ELBO(strict_enumeration_warning=False),
        RenyiELBO(num_particles=2),
        ReweightedWakeSleep(num_particles=2),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_losses_of_all_kinds_train(loss: Any, optim: str, x: Tensor) -> None:
    model, guide = bare()
    options = OPTIMS[optim]()
    if optim == "torch" and not hasattr(loss, "differentiable_loss"):
        with pytest.raises(ValueError, match=r"no differentiable form.*Give one of pyro.optim"):
            run((model, guide), x, 1, loss=loss, **options)
        return
    history = run((model, guide), x, 60, loss=loss, validation=x, **options)
    assert history.losses[-1] < history.losses[0]
    assert len(history.validation_losses) == 60


@pytest.mark.parametrize("optim", ["torch", "pyro"])
def test_a_loss_may_be_a_function(optim: str, x: Tensor) -> None:
    def loss(model, guide, *args):
        trace = poutine.trace(model).get_trace(*args)
        return -trace.log_prob_sum()

    history = run(bare(), x, 30, loss=loss, validation=x, **OPTIMS[optim]())
    assert history.losses[-1] < history.losses[0]


def test_clipping_bounds_the_joint_norm(x: Tensor) -> None:
    for options in (
        {"optim": partial(torch.optim.SGD, lr=1.0)},
        {"optim": pyro.optim.SGD({"lr": 1.0})},
    ):
        pyro.clear_param_store()
        model, guide = bare()
        guide(x), model(x)
        before = {k: p.detach().clone() for k, p in pyro.get_param_store().named_parameters()}
        run((model, guide), x, 1, clip_norm=0.01, **options)
        store = pyro.get_param_store().named_parameters()
        moved = torch.stack([(p.detach() - before[k]).norm() for k, p in store]).norm()
        torch.testing.assert_close(moved, torch.tensor(0.01), rtol=1e-3, atol=0)


class Stream(IterableDataset):
    def __init__(self, item: Any) -> None:
        self.item = item

    def __iter__(self):
        return iter([self.item])


def test_data_may_be_keywords_tuples_datasets_loaders_or_nothing(x: Tensor) -> None:
    def model(a, b):
        loc = pyro.param("loc", torch.tensor(0.0))
        with plate(a):
            pyro.sample("y", dist.Normal(loc * a, 1.0), obs=b)

    losses = []
    for data in (
        (x, 2 * x),
        [x, 2 * x],
        {"b": 2 * x, "a": x},
        TensorDataset(x, 2 * x),
        DataLoader(TensorDataset(x, 2 * x), batch_size=ROWS),
        [(x, 2 * x)],
        [{"a": x, "b": 2 * x}],
        DataLoader(Stream((x, 2 * x)), batch_size=None),
    ):
        pyro.clear_param_store()
        losses.append(run((model, nothing), data, 3).losses)
    pyro.clear_param_store()
    losses.append(run((partial(model, x, 2 * x), nothing), None, 3).losses)
    assert all(other == losses[0] for other in losses)


def test_each_epoch_sees_each_row_once_in_a_new_order(x: Tensor) -> None:
    seen: list[float] = []

    def model(x):
        seen.extend(x.tolist())
        return pyro.param("w", torch.tensor(0.0)) ** 2

    orders = []
    for seed in (0, 0, 1):
        pyro.set_rng_seed(seed)
        seen = []
        run((model, nothing), x, 2, loss=of_model, batch_size=BATCH)
        orders.append(seen)
    first, second = orders[0][:ROWS], orders[0][ROWS:]
    assert sorted(first) == sorted(second) == sorted(x.tolist())
    assert first != second
    assert orders[0] == orders[1] != orders[2]


def test_tensor_batches_cut_all_tensors_alike() -> None:
    data = {"a": torch.arange(7), "b": torch.arange(14).reshape(7, 2)}
    batches = TensorBatches(data, batch_size=3)
    assert len(batches) == 3
    parts = list(batches)
    assert [len(part["a"]) for part in parts] == [3, 3, 1]
    assert all(torch.equal(part["b"][:, 0], 2 * part["a"]) for part in parts)
    ordered = TensorBatches(data, batch_size=30, training=False)
    assert torch.equal(next(iter(ordered))["a"], data["a"])


def test_a_keyword_may_be_a_dict_of_tensors() -> None:
    columns = {"a": torch.arange(7), "b": torch.arange(14).reshape(7, 2)}
    data = {"data": columns, "w": 10 * torch.arange(7)}
    batches = TensorBatches(data, batch_size=3)
    for _ in range(2):
        parts = list(batches)
        assert [{*part} for part in parts] == [{"data", "w"}] * 3
        assert [part["data"]["b"].shape for part in parts] == [(3, 2), (3, 2), (1, 2)]
        assert all(torch.equal(part["data"]["b"][:, 0], 2 * part["data"]["a"]) for part in parts)
        assert all(torch.equal(part["w"], 10 * part["data"]["a"]) for part in parts)
        assert sorted(torch.cat([part["w"] for part in parts]).tolist()) == data["w"].tolist()
    assert next(iter(TensorBatches(data, batch_size=None)))["data"] is columns
    assert batches.signature.keys() == {"['data']['a']", "['data']['b']", "['w']"}


def columns_program() -> tuple[Callable, Callable]:
    """What `closure` makes, with a dict as its one argument."""
    model, guide = closure()
    return (lambda data: model(data["x"])), (lambda data: guide(data["x"]))


@pytest.mark.parametrize("optim", ["torch", "pyro"])
def test_training_on_a_dict_is_training_on_its_tensors(
    optim: str, x: Tensor, tmp_path: Path
) -> None:
    wrapped = {"data": {"data": {"x": x}}, "validation": {"data": {"x": x[:4]}}}
    expected = train(closure, optim, 0, data=x, validation=x[:4])
    history, final, _ = train(columns_program, optim, 0, **wrapped)
    assert history == expected[0]
    assert same(final, expected[1])
    check_resume(tmp_path / "run.pt", 8, ctrl_c, columns_program, optim, **wrapped)


# --- Modes, validation, early stopping ------------------------------------------------------------


def test_validation_does_not_disturb_training(x: Tensor) -> None:
    runs = []
    for validation in (None, x[:3], DataLoader(x, batch_size=2, shuffle=True)):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        model, guide = pyro_module()

        def noisy(x, model=model):
            random.random(), np.random.rand()
            return model(x)

        history = run((noisy, guide), x, 5, batch_size=BATCH, validation=validation)
        runs.append((history.losses, torch.rand(()), random.random(), np.random.rand()))
    assert runs[0] == runs[1] == runs[2]


def test_validation_is_comparable_and_in_eval_mode(x: Tensor) -> None:
    """With no learning, the validation loss is the same number in every epoch: noise, dropout."""
    model, guide = pyro_module()
    history = run((model, guide), x, 4, validation=x, lr=1e-30)
    assert len(set(history.validation_losses)) == 1
    assert len(set(history.losses)) == 4


def test_modes_are_right_and_restored(x: Tensor) -> None:
    modes: list[tuple[bool, bool, bool]] = []

    class Watch(Methods):
        def guide(self, x):
            modes.append((self.encoder.training, self.decoder.training, torch.is_grad_enabled()))
            return super().guide(x)

    for make in (
        lambda w: (w.model, w.guide),
        lambda w: (lambda x: w.model(x), lambda x: w.guide(x)),
    ):
        pyro.clear_param_store()
        watch = Watch()
        watch.decoder.eval()
        modes.clear()
        run(make(watch), x, 2, validation=x)
        assert modes == [(True, False, True), (False, False, False)] * 2
        assert watch.encoder.training
        assert not watch.decoder.training
    pyro.clear_param_store()
    watch = Watch().eval()
    modes.clear()
    run((watch.model, watch.guide), x, 1)
    assert modes == [(True, True, True)]
    assert not watch.encoder.training


def drifting(path: Iterator[float]) -> tuple[Callable, Callable]:
    """A program whose loss is what `path` says; its parameter counts the steps."""

    def model(x):
        w = pyro.param("w", torch.tensor(0.0))
        if torch.is_grad_enabled():
            return w - w.detach()
        return torch.tensor(next(path))

    return model, nothing


def test_early_stopping_restores_the_best(x: Tensor) -> None:
    path = iter([5.0, 4.0, 3.0, math.nan, 3.0, 9.0])
    model, guide = drifting(path)
    history = run(
        (model, guide),
        x,
        50,
        loss=of_model,
        validation=x,
        patience=3,
        optim=partial(torch.optim.SGD, lr=1.0),
    )
    assert history.epochs == 6
    assert history.best_epoch == 3
    assert history.best_validation_loss == 3.0
    assert pyro.param("w").item() == -3.0
    assert list(path) == []


def test_without_patience_the_best_is_restored_at_the_end(x: Tensor) -> None:
    model, guide = drifting(iter([5.0, 4.0, 6.0, 7.0]))
    history = run(
        (model, guide), x, 4, loss=of_model, validation=x, optim=pyro.optim.SGD({"lr": 1.0})
    )
    assert (history.epochs, history.best_epoch) == (4, 2)
    assert pyro.param("w").item() == -2.0


@pytest.mark.parametrize(
    ("scheduler", "options", "moved"),
    [
        ("ExponentialLR", {"gamma": 0.5}, 1.875),
        ("ReduceLROnPlateau", {"factor": 0.5, "patience": 0}, 2.75),
    ],
)
def test_schedulers_step_once_an_epoch(
    scheduler: str, options: dict[str, float], moved: float, x: Tensor
) -> None:
    model, guide = drifting(iter([]))
    arguments = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1.0}, **options}
    run((model, guide), x, 4, loss=of_model, optim=getattr(pyro.optim, scheduler)(arguments))
    assert pyro.param("w").item() == -moved
    pyro.clear_param_store()
    run(
        (model, guide),
        x,
        4,
        loss=of_model,
        optim=partial(torch.optim.SGD, lr=1.0),
        scheduler=partial(getattr(torch.optim.lr_scheduler, scheduler), **options),
    )
    assert pyro.param("w").item() == -moved


def test_history_reads_well() -> None:
    assert repr(History()) == "History: 0 epochs"
    assert repr(History([2.0, 1.0])) == "History: 2 epochs, loss 2 -> 1"
    assert History().best_validation_loss == math.inf


def test_the_bar_is_off_unless_asked_for(x: Tensor, capsys: pytest.CaptureFixture) -> None:
    run(bare(), x, 2)
    run(bare(), x, 2, progress=False)
    assert capsys.readouterr() == ("", "")
    run(bare(), x, 2, validation=x, progress=True)
    assert "Training: 100%" in capsys.readouterr().err


# --- Exact resume ---------------------------------------------------------------------------------


def train(make: Callable, optim: str, seed: int, *, wrap: Callable = lambda fn: fn, **options: Any):
    """Train a fresh program as a fresh process would, with whatever random state."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, guide = make()
    history = fit(
        model=wrap(model),
        guide=guide,
        loss=Trace_ELBO(num_particles=2, vectorize_particles=True)
        if make is bare
        else Trace_ELBO(),
        epochs=EPOCHS,
        **{"batch_size": BATCH, **options},
        **OPTIMS[optim](),
    )
    return history, weights(model, guide), torch.rand(3)


def check_resume(path: Path, k: int, act: Callable[[], None], *args: Any, **options: Any) -> None:
    """Interrupt at the k-th call of the model, go on in a new program, compare with no stop."""
    expected, final, drawn = train(*args, 0, **options)
    with pytest.raises(TrainingInterrupted) as stop:
        train(*args, 0, wrap=lambda model: At(k, act)(model), checkpoint=path, **options)
    done = stop.value.history
    assert done.losses == expected.losses[: done.epochs]
    history, resumed, drawn_too = train(*args, 77, checkpoint=path, resume=True, **options)
    assert history == expected
    assert same(resumed, final)
    assert torch.equal(drawn, drawn_too)


# The model is called once a step and once for validation, and first of all to guess the plates.
CALLS = EPOCHS * (STEPS + 1) + 1


@pytest.mark.parametrize("make", PROGRAMS)
@pytest.mark.parametrize("optim", OPTIMS)
def test_resume_is_exact(make: Callable, optim: str, x: Tensor, tmp_path: Path) -> None:
    check_resume(
        tmp_path / "run.pt",
        8,
        lambda: signal.raise_signal(signal.SIGINT),
        make,
        optim,
        data=x,
        validation=x[:4],
    )


@pytest.mark.parametrize("optim", ["torch", "pyro"])
@pytest.mark.parametrize("k", range(3, CALLS + 1))
def test_resume_is_exact_from_any_step(k: int, optim: str, x: Tensor, tmp_path: Path) -> None:
    """An exception inside the model, in training or validation, loses the unfinished step only."""
    check_resume(tmp_path / "run.pt", k, ctrl_c, bare, optim, data=x, validation=x[:4])


def test_resume_is_exact_twice_and_after_the_end(x: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    expected, final, _ = train(pyro_module, "torch", 0, data=x, validation=x)
    for k, seed, resume in ((5, 0, False), (6, 5, True), (6, 6, True)):
        with pytest.raises(TrainingInterrupted):
            train(
                pyro_module,
                "torch",
                seed,
                data=x,
                validation=x,
                checkpoint=path,
                resume=resume,
                wrap=lambda model, k=k: At(k, ctrl_c)(model),
            )
    for _ in range(2):  # the second finds a finished run
        history, resumed, _ = train(
            pyro_module, "torch", 8, data=x, validation=x, checkpoint=path, resume=True
        )
        assert history == expected
        assert same(resumed, final)


def test_resume_keeps_what_only_a_closure_knows(x: Tensor, tmp_path: Path) -> None:
    def fixed() -> tuple[Callable, Callable]:
        """Two random nets that nobody registers, fixed: another process makes other ones."""
        nets = [nn.Linear(1, 1).requires_grad_(False) for _ in range(2)]

        def model(x):
            z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
            with plate(x):
                pyro.sample("x", dist.Normal(nets[0](nets[1](z.reshape(1))), 1.0), obs=x)

        def guide(x):
            pyro.sample("z", dist.Normal(pyro.param("z_loc", torch.tensor(0.5)), 1.0))

        return model, guide

    check_resume(tmp_path / "run.pt", 5, ctrl_c, fixed, "torch", data=x)


def test_resume_keeps_the_state_of_the_loss(x: Tensor, tmp_path: Path) -> None:
    class Annealed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.tensor(1.0))

        def forward(self, model, guide, *args):
            self.weight.mul_(0.9)
            return self.weight * Trace_ELBO().differentiable_loss(model, guide, *args)

    def once(seed: int, epochs: int, **options: Any) -> History:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        return run(bare(), x, epochs, loss=Annealed(), **options)

    once(0, 2, checkpoint=tmp_path / "run.pt")
    assert once(1, 4, checkpoint=tmp_path / "run.pt", resume=True) == once(0, 4)


def test_resume_adds_epochs(x: Tensor, tmp_path: Path) -> None:
    options = {"batch_size": BATCH}
    pyro.set_rng_seed(0)
    expected = run(bare(), x, 6, **options)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    run(bare(), x, 2, checkpoint=tmp_path / "run.pt", **options)
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    assert run(bare(), x, 6, checkpoint=tmp_path / "run.pt", resume=True, **options) == expected


@pytest.mark.filterwarnings("ignore:Encountered")
@pytest.mark.parametrize("optim", ["torch", "pyro"])
def test_resume_repairs_bad_parameters(optim: str, x: Tensor, tmp_path: Path) -> None:
    options = {"checkpoint": tmp_path / "run.pt", **OPTIMS[optim]()}
    run(bare(), x, 2, **options)
    final = weights(*bare())
    for param in dict(pyro.get_param_store().named_parameters()).values():
        param.data.fill_(math.nan)
    run(bare(), x, 2, resume=True, **options)
    assert same(weights(*bare()), final)


def test_resume_keeps_patience_and_best(x: Tensor, tmp_path: Path) -> None:
    losses = [5.0, 4.0, 6.0, 7.0, 8.0, 9.0]
    options = {
        "loss": of_model,
        "validation": x,
        "patience": 3,
        "checkpoint": tmp_path / "run.pt",
        "resume": True,
    }
    model, guide = drifting(iter(losses))
    run((model, guide), x, 3, optim=pyro.optim.SGD({"lr": 1.0}), **options)
    pyro.clear_param_store()
    model, guide = drifting(iter(losses[3:]))
    history = run((model, guide), x, 50, optim=pyro.optim.SGD({"lr": 1.0}), **options)
    assert (history.epochs, history.best_epoch) == (5, 2)
    assert pyro.param("w").item() == -2.0


class Jittered(Dataset):
    """Rows with noise from every global generator, as data augmentation has."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        return self.x[i] + 0.1 * torch.randn(()) + random.random() + np.random.rand()


@pytest.mark.parametrize("act", [ctrl_c, partial(signal.raise_signal, signal.SIGINT)])
@pytest.mark.parametrize("own", [False, True])
def test_resume_is_exact_with_a_loader(own: bool, act: Callable, x: Tensor, tmp_path: Path) -> None:
    def loader(seed: int) -> DataLoader:
        generator = torch.Generator().manual_seed(seed) if own else None
        return DataLoader(Jittered(x.double()), batch_size=BATCH, shuffle=True, generator=generator)

    def once(seed: int, **options: Any):
        return train(bare, "torch", seed, data=loader(seed), batch_size=None, **options)

    expected, final, drawn = once(0)
    with pytest.raises(TrainingInterrupted):
        once(0, checkpoint=tmp_path / "run.pt", wrap=lambda model: At(7, act)(model))
    history, resumed, drawn_too = once(5, checkpoint=tmp_path / "run.pt", resume=True)
    assert history == expected
    assert same(resumed, final)
    assert torch.equal(drawn, drawn_too)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*")
def test_resume_is_exact_with_compiled_code(x: Tensor, tmp_path: Path) -> None:
    def once(seed: int, epochs: int, **options: Any) -> History:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        return run(
            bare(),
            x,
            epochs,
            loss=JitTrace_ELBO(ignore_jit_warnings=True),
            optim=pyro.optim.Adam({"lr": 0.1}),
            **options,
        )

    expected = once(0, 6)
    once(0, 3, checkpoint=tmp_path / "run.pt")
    assert once(9, 6, checkpoint=tmp_path / "run.pt", resume=True) == expected


def test_restore_gives_the_best_parameters(x: Tensor, tmp_path: Path) -> None:
    for make in PROGRAMS:
        path = tmp_path / f"{make.__name__}.pt"
        _, final, _ = train(make, "torch", 0, data=x, validation=x, checkpoint=path)
        pyro.clear_param_store()
        model, guide = make()
        before = rng_state()["torch"]
        restore(model, guide, path=path, args=(x,))
        assert same(weights(model, guide), final)
        assert torch.equal(before, torch.get_rng_state())


def test_restore_takes_the_best_epoch_and_needs_one_row(x: Tensor, tmp_path: Path) -> None:
    model, guide = drifting(iter([5.0, 4.0, 6.0, 0.0]))
    path = tmp_path / "drifting.pt"
    run(
        (model, guide),
        x,
        3,
        loss=of_model,
        validation=x,
        checkpoint=path,
        optim=partial(torch.optim.SGD, lr=1.0),
    )
    pyro.param("w").data.fill_(7.0)
    restore(model, guide, path=path, args=(x,))
    assert pyro.param("w").item() == -2.0
    path = tmp_path / "methods.pt"
    run(methods(), x, 1, checkpoint=path)
    pyro.clear_param_store()
    restore(*methods(), path=path, args=(x[:1],))  # too few for BatchNorm in training mode


def test_constraints_survive_a_checkpoint(x: Tensor, tmp_path: Path) -> None:
    model, guide = bare()
    run((model, guide), x, 20, lr=0.1, checkpoint=tmp_path / "run.pt")
    values = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    restore(*bare(), path=tmp_path / "run.pt", args=(x,))
    assert {k: v.item() for k, v in pyro.get_param_store().items()} == {
        k: v.item() for k, v in values.items()
    }
    assert values["scale"] != 1.5
    run(bare(), x, 200, lr=1.0)
    assert 0.1 <= pyro.param("z_scale") <= 2


# --- Interruption ---------------------------------------------------------------------------------


def test_ctrl_c_finishes_the_step(x: Tensor) -> None:
    """A real signal is held back: the parameters are those after a whole number of steps."""
    model, guide = drifting(iter([]))
    wrapped = At(4, lambda: signal.raise_signal(signal.SIGINT))(model)
    with pytest.raises(TrainingInterrupted, match=r"in epoch 4 after step 1;") as stop:
        run((wrapped, guide), x, 9, loss=of_model, optim=pyro.optim.SGD({"lr": 1.0}))
    assert isinstance(stop.value, KeyboardInterrupt)
    assert stop.value.history.losses == [0.0] * 3
    assert pyro.param("w").item() == -4.0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_last_validation_is_not_lost(x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted) as stop:
        train(
            bare,
            "torch",
            0,
            data=x,
            validation=x[:4],
            checkpoint=tmp_path / "run.pt",
            wrap=lambda model: At(CALLS, lambda: signal.raise_signal(signal.SIGINT))(model),
        )
    assert stop.value.history.epochs == EPOCHS
    assert len(load(tmp_path / "run.pt")["history"]["losses"]) == EPOCHS


def test_an_interruption_within_the_first_step_saves_nothing(x: Tensor, tmp_path: Path) -> None:
    class Fragile(torch.optim.SGD):
        def step(self, closure=None):
            raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted, match="the parameters stay as they are"):
        run(bare(), x, 2, optim=partial(Fragile, lr=0.1), checkpoint=tmp_path / "run.pt")
    assert not list(tmp_path.iterdir())


def test_a_second_ctrl_c_stops_at_once(x: Tensor) -> None:
    reached = []

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append("after the first")
        signal.raise_signal(signal.SIGINT)
        reached.append("after the second")

    model, guide = drifting(iter([]))
    with pytest.raises(TrainingInterrupted):
        run((At(2, twice)(model), guide), x, 5, loss=of_model, optim=pyro.optim.SGD({"lr": 1.0}))
    assert reached == ["after the first"]
    assert pyro.param("w").item() == -1.0


def test_sigterm_writes_the_checkpoint_and_goes_on_to_the_old_handler(
    x: Tensor, tmp_path: Path
) -> None:
    written = []
    old = signal.signal(signal.SIGTERM, lambda *_: written.append((tmp_path / "run.pt").exists()))
    try:
        with pytest.raises(TrainingInterrupted, match=r"holds all of it.*resume=True"):
            train(
                bare,
                "torch",
                0,
                data=x,
                checkpoint=tmp_path / "run.pt",
                wrap=lambda m: At(5, lambda: signal.raise_signal(signal.SIGTERM))(m),
            )
    finally:
        signal.signal(signal.SIGTERM, old)
    assert written == [True]


def test_an_interruption_within_an_update_keeps_the_last_checkpoint(
    x: Tensor, tmp_path: Path
) -> None:
    class Fragile(torch.optim.SGD):
        calls = 0

        def step(self, closure=None):
            Fragile.calls += 1
            if Fragile.calls == 5:
                raise KeyboardInterrupt
            super().step()

    path = tmp_path / "run.pt"
    with pytest.raises(TrainingInterrupted, match="within an update"):
        run(bare(), x, 9, optim=lambda p: Fragile(p, lr=0.01), checkpoint=path, checkpoint_every=3)
    assert len(load(path)["history"]["losses"]) == 3


def test_before_the_first_step_there_is_nothing_to_save(x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted, match="the parameters stay as they are"):
        train(
            bare,
            "pyro",
            0,
            data=x,
            checkpoint=tmp_path / "run.pt",
            wrap=lambda model: At(1, ctrl_c)(model),
        )
    assert not list(tmp_path.iterdir())


def test_training_runs_outside_the_main_thread(x: Tensor) -> None:
    histories: list[History] = []
    thread = threading.Thread(target=lambda: histories.append(run(bare(), x, 2)))
    thread.start()
    thread.join()
    assert histories[0].epochs == 2


@pytest.mark.parametrize(
    ("every", "writes"), [(1, 4 + 1), (3, 1 + 1), (timedelta(days=1), 1), (timedelta(0, 1e-6), 12)]
)
def test_checkpoints_are_written_on_time(
    every: Any, writes: int, x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda a, b: calls.append(b) or replace(a, b))
    train(bare, "torch", 0, data=x, checkpoint=tmp_path / "run.pt", checkpoint_every=every)
    assert len(calls) >= writes if every == timedelta(0, 1e-6) else len(calls) == writes
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


SCRIPT = """
import os, signal, sys
import pyro, torch
import pyro.distributions as dist
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro_causal.infer import fit

class Model(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Linear(3, 1))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGTERM)
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 10, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(self.net(w.reshape(1, 1))[0, 0], 1.0), obs=x)

pyro.set_rng_seed(int(sys.argv[3]))
model = Model()
history = fit(model, AutoNormal(model), loss=Trace_ELBO(), data=torch.linspace(0.0, 1.0, 10),
              epochs=4, batch_size=4, optim=pyro.optim.Adam({"lr": 0.1}), clip_norm=1.0,
              checkpoint=sys.argv[1], resume=True)
print([loss.hex() for loss in history.losses], torch.rand(()).item())
"""


@pytest.mark.slow
def test_a_killed_process_is_resumed_by_another(tmp_path: Path) -> None:
    def process(file: str, kill_at: int, seed: int) -> subprocess.Popen:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / file), str(kill_at), str(seed)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with process("whole.pt", -1, 0) as whole, process("killed.pt", 8, 0) as killed:
        expected = whole.communicate()[0]
        killed.communicate()
    assert killed.returncode == -signal.SIGTERM
    with process("killed.pt", -1, 1) as resumed:
        assert resumed.communicate()[0] == expected
    assert expected


# --- Losses that are not finite -------------------------------------------------------------------

quiet = pytest.mark.filterwarnings("ignore:Encountered")


def bad_program(where: str) -> tuple[Callable, Callable]:
    def model(x):
        a = pyro.param("a", torch.tensor(1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        c = pyro.deterministic("c", b / 0 if where == "c" else b)
        scale = (a - a if where == "d" else a).abs()
        d = pyro.sample("d", dist.Normal(c, scale))
        with plate(x):
            high = torch.tensor(1e38 if where == "x" else 1.0)
            pyro.sample("x", dist.Normal(d, 1 / high), obs=x)

    def guide(x):
        w = pyro.param("w", torch.tensor(math.nan if where == "w" else 1.0))
        pyro.sample("b", dist.Normal(w * (math.inf if where == "b" else 1.0), 1.0))
        pyro.sample("d", dist.Normal(0.0, 1.0))

    return model, guide


@quiet
@pytest.mark.parametrize("optim", ["torch", "pyro"])
@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize(
    ("site", "fact"),
    [
        ("w", r"the parameter is not finite: expected numbers, got nan"),
        ("b", r"the value is not finite: expected numbers, got inf"),
        ("c", r"the value is not finite: expected numbers, got -?inf"),
        ("d", r"the log-density is not finite: expected numbers, got nan \(in 1 of 1 entries\)"),
        ("x", r"the log-density is not finite: expected numbers, got -inf \(in 10 of 10 entries\)"),
    ],
)
def test_the_first_bad_site_is_named(
    site: str, fact: str, validate: bool, optim: str, x: Tensor
) -> None:
    pyro.enable_validation(validate)
    try:
        with pytest.raises(ValueError, match=f"At site '{site}', {fact}.*in epoch 1, step 1"):
            run(bad_program(site), x, 3, **OPTIMS[optim]())
    finally:
        pyro.enable_validation(True)


@pytest.mark.parametrize("optim", ["torch", "pyro"])
def test_the_bad_site_is_named_where_warnings_are_errors(optim: str, x: Tensor) -> None:
    with pytest.raises(ValueError, match="At site 'x', the log-density"):
        run(bad_program("x"), x, 3, **OPTIMS[optim]())


@quiet
@pytest.mark.parametrize("optim", ["torch", "pyro"])
def test_a_bad_step_is_not_taken(optim: str, x: Tensor, tmp_path: Path) -> None:
    """Rare noise makes the loss infinite: the repetition finds the site, the parameters stay."""
    steps: list[float] = []

    def model(x):
        w = pyro.param("w", torch.tensor(0.0))
        if torch.is_grad_enabled():
            steps.append(w.item())
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        scale = torch.where(z > 2, torch.zeros(()), torch.ones(()))
        pyro.sample("y", dist.Normal(w, scale), obs=torch.tensor(2.0))

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pyro.validation_enabled(False), pytest.raises(ValueError, match="At site 'y'") as error:
        run(
            (model, guide),
            x,
            999,
            loss=Trace_ELBO(num_particles=3),
            checkpoint=tmp_path / "run.pt",
            checkpoint_every=1,
            **OPTIMS[optim](),
        )
    taken = load(tmp_path / "run.pt")["history"]["losses"]
    assert 0 < len(taken) < 999
    assert f"epoch {len(taken) + 1}, step 1" in str(error.value)
    param = pyro.param("w")
    assert param.item() == steps[-1]
    assert param.unconstrained().grad is None


@quiet
@pytest.mark.parametrize("optim", ["torch", "pyro"])
def test_a_bad_gradient_does_not_reach_the_checkpoint(
    optim: str, x: Tensor, tmp_path: Path
) -> None:
    def model(x):
        w = pyro.param("w", torch.tensor(1.0))
        steps.append(0)
        root = torch.sqrt(w - w.detach()) if len(steps) == 3 else 0.0  # its gradient is infinite
        pyro.sample("y", dist.Normal(w + root, 1.0), obs=torch.tensor(2.0))

    steps: list[int] = []
    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match="At site 'w', the parameter is not finite") as error:
        run((model, nothing), x, 3, checkpoint=path, checkpoint_every=1, **OPTIMS[optim]())
    assert "look for a root, logarithm or division at zero" in str(error.value)
    assert load(path)["tensors"]["w"].isfinite()
    pyro.clear_param_store()
    steps.clear()
    with pytest.raises(ValueError, match="At site 'w'.*Training stopped after 3 epochs"):
        run((model, nothing), x, 3, **OPTIMS[optim]())


@quiet
def test_a_loss_that_no_site_explains(x: Tensor) -> None:
    def loss(model, guide, x):
        model(x)
        return pyro.param("loc") * math.nan

    model, guide = bare()
    guide(x), model(x)
    for options in (OPTIMS["torch"](), OPTIMS["pyro"]()):
        with pytest.raises(ValueError, match="The loss is not finite.*No single site") as error:
            run((model, guide), x, 1, loss=loss, **options)
        assert error.value.__notes__ == ["Training stopped in epoch 1, step 1."]


def test_other_errors_of_the_program_pass(x: Tensor) -> None:
    def model(x):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run((model, nothing), x, 1)


# --- Parameters that training would miss ----------------------------------------------------------


def test_a_forgotten_registration_is_told(x: Tensor) -> None:
    net = nn.Linear(1, 1)

    def model(x):
        w = pyro.param("w", torch.tensor(0.0))
        with plate(x):
            pyro.sample("x", dist.Normal(w + net(torch.ones(len(x), 1))[:, 0], 1.0), obs=x)

    for options in (OPTIMS["torch"](), OPTIMS["pyro"]()):
        with pytest.warns(UserWarning, match=r"'Linear.weight', 'Linear.bias' receive gradients"):
            run((model, nothing), x, 1, **options)
    net.requires_grad_(False)
    run((model, nothing), x, 1)


def test_nothing_to_train_is_told(x: Tensor) -> None:
    def model(x):
        pyro.param("unused", torch.tensor(0.0))
        with plate(x):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    for options in (OPTIMS["torch"](), OPTIMS["pyro"]()):
        with pytest.warns(UserWarning, match="No parameter receives a gradient"):
            run((model, nothing), x, 1, **options)


def test_a_stale_name_in_the_store_is_told(x: Tensor) -> None:
    """Pyro would train the parameters of the first module for ever, and the second not at all."""
    run(methods(), x, 1, **OPTIMS["pyro"]())
    with pytest.warns(UserWarning, match=r"'model.encoder.0.weight'.*clear_param_store"):
        run(methods(), x, 1, **OPTIMS["pyro"]())


def test_an_optimiser_made_too_early_is_told(x: Tensor) -> None:
    model, guide = pyro_module()
    optim = torch.optim.Adam(Trace_ELBO()(model, guide).parameters())
    with pytest.warns(UserWarning, match=r"'guide.locs.z_unconstrained'.*receive gradients"):
        run((model, guide), x, 1, optim=optim)


@pytest.mark.parametrize("optim", ["torch", "pyro"])
def test_late_parameters_are_trained_and_saved(optim: str, x: Tensor, tmp_path: Path) -> None:
    calls = []

    def model(x):
        calls.append(0)
        w = pyro.param("w", torch.tensor(0.0))
        late = pyro.param("late", torch.tensor(0.0)) if len(calls) > 3 else 0.0
        pyro.sample("y", dist.Normal(w + late, 1.0), obs=torch.tensor(2.0))

    run((model, nothing), x, 6, checkpoint=tmp_path / "run.pt", **OPTIMS[optim]())
    assert pyro.param("late") > 0
    assert load(tmp_path / "run.pt")["tensors"].keys() == {"w", "late"}


# --- Files ----------------------------------------------------------------------------------------


class Payload:
    """Unpickles by creating a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture
def run_file(x: Tensor, tmp_path: Path) -> Path:
    train(bare, "torch", 0, data=x, checkpoint=tmp_path / "run.pt")
    return tmp_path / "run.pt"


def resume_fails(path: Path, x: Tensor, match: str, make: Callable = bare, optim: str = "torch"):
    before = path.read_bytes()
    calls = []
    with pytest.raises(ValueError, match=match) as error:
        train(
            make,
            optim,
            0,
            data=x,
            checkpoint=path,
            resume=True,
            wrap=lambda model: At(1, lambda: calls.append(0))(model),
        )
    assert path.read_bytes() == before
    return str(error.value), calls


def test_a_malicious_file_is_refused_and_not_executed(x: Tensor, run_file: Path) -> None:
    target = run_file.with_name("executed")
    for write in (
        lambda: torch.save(
            {**torch.load(run_file, weights_only=True), "history": Payload(target)}, run_file
        ),
        lambda: run_file.write_bytes(pickle.dumps(Payload(target))),
    ):
        write()
        message, calls = resume_fails(
            run_file, x, r"run.pt' cannot be read.*nothing in it was exec"
        )
        assert "Delete it and train again" in message
        assert "weights_only" not in message
        assert not calls
        with pytest.raises(ValueError, match="cannot be read"):
            restore(*bare(), path=run_file, args=(x,))
        assert not target.exists()
    # The payload does work where nobody guards against it.
    pickle.loads(pickle.dumps(Payload(target)))
    assert target.exists()


def test_a_malicious_file_is_refused_with_the_name_of_its_payload(
    x: Tensor, run_file: Path
) -> None:
    torch.save({"format": 1, "tensors": Payload(run_file.with_name("executed"))}, run_file)
    message, _ = resume_fails(run_file, x, "cannot be read")
    assert "posix.mkdir" in message or "nt.mkdir" in message


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_truncated_file_is_refused(keep: float, x: Tensor, run_file: Path) -> None:
    content = run_file.read_bytes()
    run_file.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else int(keep)])
    _, calls = resume_fails(run_file, x, r"run.pt' cannot be read.*damaged")
    assert not calls


def test_a_damaged_file_is_refused(x: Tensor, run_file: Path) -> None:
    content = bytearray(run_file.read_bytes())
    with zipfile.ZipFile(run_file) as archive:
        place = archive.infolist()[0].header_offset
    content[place + 60 : place + 400] = bytes(340)
    run_file.write_bytes(content)
    _, calls = resume_fails(run_file, x, r"run.pt' cannot be read")
    assert not calls


@pytest.mark.parametrize("content", [{"a": 1}, {"format": 99}, [1], torch.ones(3)])
def test_other_files_are_refused(content: Any, x: Tensor, run_file: Path) -> None:
    torch.save(content, run_file)
    resume_fails(run_file, x, r"run.pt' is of another kind: expected format 1")


def test_a_file_without_a_run_is_refused(x: Tensor, run_file: Path) -> None:
    save(run_file, {"tensors": {}, "best": 3})
    resume_fails(run_file, x, "does not hold a training run: best, optimiser.*missing or damaged")
    with pytest.raises(ValueError, match="does not hold a training run: best missing or damaged"):
        restore(*bare(), path=run_file, args=(x,))


def test_a_missing_file(x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.pt' cannot be opened: No such file"):
        restore(*bare(), path=tmp_path / "nowhere.pt", args=(x,))
    history, *_ = train(bare, "torch", 0, data=x, checkpoint=tmp_path / "new.pt", resume=True)
    assert history.epochs == EPOCHS


def test_another_program_is_told_apart(x: Tensor, run_file: Path) -> None:
    def renamed() -> tuple[Callable, Callable]:
        _, guide = bare()

        def other(x):
            pyro.param("scale", torch.ones(2), constraint=positive)
            pyro.param("extra", torch.zeros(1))
            pyro.param("loc", torch.zeros((), dtype=torch.float64))
            pyro.sample("z", dist.Normal(0.0, 1.0))

        return other, guide

    message, _ = resume_fails(
        run_file, x, "another program: 'extra' is missing; 'loc' is float32", make=renamed
    )
    assert "'loc' is float32 of shape () and not float64 of shape ()" in message
    assert "'scale' is float32 of shape () and not float32 of shape (2,)" in message
    content = load(run_file)
    content["tensors"]["loc"] = 3
    save(run_file, content)
    resume_fails(run_file, x, "'loc' is a int and not float32 of shape")
    message, _ = resume_fails(run_file, x, "another program", make=pyro_module)
    assert "'z_loc' is unexpected" in message
    assert "'model.loc' is missing" in message


def test_another_setting_is_told(x: Tensor, run_file: Path) -> None:
    resume_fails(
        run_file,
        x,
        r"another optimiser: expected pyro.optim Adam, got torch.optim Adam",
        optim="pyro",
    )
    resume_fails(run_file, x, "MultiStepLR of SGD, got", optim="torch scheduled")
    _, calls = resume_fails(run_file, x[:8], r"another data: expected .*'rows': 8.*'rows': 10")
    assert not calls
    with pytest.raises(ValueError, match=r"another data: expected .*'validation': {'rows': 10"):
        train(bare, "torch", 0, data=x, validation=x, checkpoint=run_file, resume=True)


def test_parameters_in_another_order_are_told(x: Tensor, tmp_path: Path) -> None:
    def once(flip: int, **options: Any) -> None:
        pyro.clear_param_store()
        run(
            bare(),
            x,
            2,
            checkpoint=tmp_path / "run.pt",
            optim=lambda params: torch.optim.Adam(params[::flip]),
            **options,
        )

    once(1)
    with pytest.raises(ValueError, match="another order of parameters: expected .*'scale', 'loc'"):
        once(-1, resume=True)


def test_saving_is_atomic_and_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pt"
    save(path, {"a": torch.ones(2), "b": [1, 2.5, None, ("x", True)]})
    before = path.read_bytes()
    for bad in (Payload(tmp_path / "executed"), lambda: 0, object()):
        with pytest.raises(ValueError, match=r"x.pt' was not written: expected tensors and plain"):
            save(path, {"a": bad})
        assert path.read_bytes() == before

    def cut_off(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(OSError, match="disk full"):
        save(path, {"a": 1})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]
    assert load(path)["b"] == [1, 2.5, None, ("x", True)]


def test_random_state_round_trips(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)

    def draw() -> tuple[float, ...]:
        drawn = torch.rand(()), torch.rand((), generator=generator)
        return (*map(float, drawn), random.random(), random.gauss(0, 1), np.random.randn())

    random.gauss(0, 1), np.random.randn()  # leaves half a pair behind
    save(tmp_path / "rng.pt", {"rng": rng_state(generators=[generator])})
    expected = draw()
    draw()
    set_rng_state(load(tmp_path / "rng.pt")["rng"], generators=[generator])
    assert draw() == expected


# --- Bad arguments, before training ---------------------------------------------------------------


def rows(n: int, *, bad: float | None = None) -> Tensor:
    x = torch.ones(n, 2)
    if bad is not None:
        x[1, 0] = bad
    return x


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"data": rows(3, bad=math.nan)}, ValueError, r"data is not finite.*1 NaN.*at \[1, 0\]"),
        ({"data": {"y": rows(3, bad=math.inf)}}, ValueError, r"data\['y'\] is not finite"),
        ({"data": (rows(3), rows(0))}, ValueError, r"data\[1\] has no rows"),
        ({"data": torch.tensor(1.0)}, ValueError, "data has no rows"),
        ({"data": (rows(3), rows(4))}, ValueError, r"data\[0\] has 3, data\[1\] has 4"),
        ({"data": (rows(3), [1])}, TypeError, r"data\[1\] is no tensor.*got list"),
        ({"data": {"y": np.ones(3)}}, TypeError, r"got ndarray. Convert it with torch.as_tensor"),
        (
            {"data": {"d": {"y": rows(3, bad=math.nan)}}},
            ValueError,
            r"data\['d'\]\['y'\] is not fin",
        ),
        (
            {"data": {"d": {"y": rows(3)}, "w": rows(4)}},
            ValueError,
            r"\['d'\]\['y'\] has 3, data\['w'",
        ),
        ({"data": {"d": {"y": rows(0)}}}, ValueError, r"data\['d'\]\['y'\] has no rows"),
        ({"data": {"d": {"y": [1, 2]}}}, TypeError, r"data\['d'\]\['y'\] is no tensor.*got list"),
        (
            {"data": {"d": {"y": {"z": rows(3)}}}},
            TypeError,
            r"\['d'\]\['y'\] is no tensor.*got dict",
        ),
        ({"data": {"d": {}}}, TypeError, r"data\['d'\] is no tensor.*got dict"),
        ({"data": rows(3), "batch_size": 4}, ValueError, "batch_size=4 does not fit data.*1 to 3"),
        ({"data": rows(3), "batch_size": 0}, ValueError, "batch_size=0 does not fit"),
        (
            {"data": TensorDataset(rows(3)), "batch_size": 4},
            ValueError,
            "batch_size=4 does not fit",
        ),
        ({"data": TensorDataset(rows(0))}, ValueError, "does not fit data: expected 1 to 0"),
        ({"data": [(rows(3),)], "batch_size": 2}, ValueError, "Leave batch_size out"),
        ({"data": []}, ValueError, "data is empty"),
        ({"data": {}}, ValueError, "data is empty"),
        ({"data": iter([rows(3)])}, TypeError, "does not yield batches in every epoch.*iterator"),
        ({"data": np.ones((3, 2))}, TypeError, "got ndarray. Convert arrays"),
        ({"data": Stream(rows(3))}, TypeError, "wrap an IterableDataset in a DataLoader"),
        ({"data": 3}, TypeError, "got int"),
        ({"validation": rows(3, bad=math.nan)}, ValueError, "validation is not finite"),
        ({"validation": rows(3).double()}, ValueError, "validation differs from data"),
        ({"validation": rows(3)[:, 0]}, ValueError, "validation differs from data"),
        ({"patience": 3}, ValueError, "patience=3 without validation"),
        ({"patience": 0, "validation": rows(3)}, ValueError, "patience=0: expected a whole number"),
        ({"epochs": 0}, ValueError, "epochs=0: expected a whole number from 1"),
        ({"epochs": 2.5}, ValueError, "epochs=2.5"),
        ({"lr": -1.0}, ValueError, "lr=-1.0: expected more than zero"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm=0.0"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every=0"),
        ({"checkpoint_every": timedelta(0)}, ValueError, "checkpoint_every=0.0"),
        ({"resume": True}, ValueError, "resume=True without checkpoint"),
        ({"checkpoint": "no/such/folder/x.pt"}, ValueError, "cannot be written: expected a folder"),
        ({"lr": 0.1, "optim": pyro.optim.Adam({})}, ValueError, "lr=0.1 beside optim"),
        (
            {"scheduler": lambda optim: optim, "optim": pyro.optim.Adam({})},
            ValueError,
            "scheduler beside a Pyro optimiser",
        ),
    ],
)
def test_bad_arguments_stop_before_training(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    def model(*args, **kwargs):
        raise AssertionError("training began")

    with pytest.raises(error, match=match):
        fit(model, model, **{"loss": Trace_ELBO(), "data": rows(3), "epochs": 1, **options})


def test_an_existing_checkpoint_is_not_overwritten(x: Tensor, run_file: Path) -> None:
    with pytest.raises(ValueError, match=r"run.pt' exists: expected a new path, or resume=True"):
        train(bare, "torch", 0, data=x, checkpoint=run_file)


def test_pyro_optimisers_need_the_store(x: Tensor) -> None:
    with (
        pyro.settings.context(module_local_params=True),
        pytest.raises(ValueError, match="module_local_params=False, got True. Give a torch optim"),
    ):
        run(pyro_module(), x, 1, optim=pyro.optim.Adam({}))


class Once:
    """An iterable that is empty when it is read again."""

    def __init__(self, x: Tensor) -> None:
        self.batches = [x]

    def __iter__(self) -> Iterator[Tensor]:
        while self.batches:
            yield self.batches.pop()


def test_data_that_runs_dry(x: Tensor) -> None:
    with pytest.raises(ValueError, match="data yielded nothing in epoch 2"):
        run(bare(), Once(x), 3)
    with pytest.raises(ValueError, match="validation yielded nothing"):
        run(bare(), x, 3, validation=Once(x))
