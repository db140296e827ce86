"""Throughput of a run, by a clock that the tests set."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fsa.parallel.sharding import make_mesh
from fsa.training.monitor import throughput
from fsa.training.monitor.throughput import Throughput
from fsa.training.runner import MeshRunner, PmapRunner
from fsa.training.step import init_state


@pytest.fixture
def clock(monkeypatch):
    """The clock, a list with the time."""
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


def test_rates_are_of_the_whole_batch(clock):
    measured = Throughput(batch_size=4)
    clock[0] += 2
    counts = {"choices": np.array([3, 5]), "tokens": np.array([10.0, 20.0])}
    found = measured.of_call(2, counts, None)
    assert found["steps_per_second"] == 1
    assert found["choices_per_second"] == 4 * 8 / 2
    assert found["tokens_per_second"] == 4 * 30 / 2
    assert found["peak_memory_bytes"] > 50e6
    assert "mfu" not in found


def test_percentiles_leave_out_the_call_that_compiles(clock):
    measured = Throughput(batch_size=1, window=10)
    clock[0] += 1000
    assert "step_seconds_max" not in measured.of_call(2, {}, None)
    for tenth in range(1, 21):
        clock[0] += tenth / 5
        found = measured.of_call(2, {}, None)
    # Of the last ten calls, 1.1 to 2.0 seconds a step.
    assert found["step_seconds_p50"] == pytest.approx(1.55)
    assert found["step_seconds_p90"] == pytest.approx(1.91)
    assert found["step_seconds_max"] == pytest.approx(2.0)


def test_the_wait_for_examples_is_a_share_of_all_time(clock):
    measured = Throughput(batch_size=1)

    def examples():
        for seconds in (1, 2, 0):
            clock[0] += seconds
            yield seconds

    shares = []
    for example in measured.waiting_for(examples()):
        clock[0] += 3
        if example == 2:
            # As after validation, whose time does not count.
            measured.restart()
            clock[0] += 5
        shares.append(measured.of_call(1, {}, None)["host_wait"])
    assert shares == [1 / 4, 0, 0]


class Product:
    """A loss with one matrix product per example, and its runner."""

    def __init__(self, make, batch_size):
        self.optimizer = optax.sgd(0.1)
        self.runner = make(self.loss, self.optimizer, batch_size=batch_size)
        self.batch_size = batch_size

    @staticmethod
    def loss(variables, batch, key):
        _, examples = batch
        return jnp.mean(
            jax.vmap(lambda x: (x @ variables["params"]).sum())(examples)
        ), {}

    def arguments(self, count):
        state = init_state({"params": jnp.ones((3, 5))}, self.optimizer)
        examples = self.runner.batch(
            lambda step, own: np.ones((len(own), 2, 3), np.float32), 0, count
        )
        return self.runner.place(state), (), examples, jax.random.key(0)


def mesh_runner(*arguments, **keywords):
    return MeshRunner(*arguments, mesh=make_mesh(devices=jax.devices()[:1]), **keywords)


def pmap_runner(*arguments, **keywords):
    return PmapRunner(*arguments, devices=jax.devices()[:1], **keywords)


@pytest.mark.parametrize("make", [mesh_runner, pmap_runner])
def test_mfu_is_of_all_steps_and_devices(clock, monkeypatch, make):
    monkeypatch.setattr(throughput, "peak_flops", lambda kind: 1e4)
    monkeypatch.setattr(throughput.jax, "device_count", lambda: 2)
    product = Product(make, batch_size=4)
    measured = Throughput(batch_size=4)
    operations = measured.flops(product.runner, *product.arguments(count=3))
    # Forward, and backward for the parameters.
    assert operations == 3 * 4 * (2 * 2 * 3 * 5) * 2
    clock[0] += 0.5
    found = measured.of_call(3, {}, operations)
    assert found["mfu"] == pytest.approx(operations / 0.5 / 2e4)


def test_a_call_is_traced_once_per_shape_of_examples(monkeypatch):
    monkeypatch.setattr(throughput, "peak_flops", lambda kind: 1e4)
    traced = []
    measured = Throughput(batch_size=1)

    def call(state, constants, examples, key):
        traced.append(examples.shape)
        return examples @ examples.T

    for examples in (np.ones((2, 3)), np.ones((2, 3)), np.ones((4, 3))):
        measured.flops(call, None, (), examples, None)
    assert traced == [(2, 3), (4, 3)]


def test_operations_that_cannot_be_counted_are_none(monkeypatch):
    monkeypatch.setattr(throughput, "peak_flops", lambda kind: 1e4)

    def call(state, constants, examples, key):
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, examples)

    assert Throughput(1).flops(call, None, (), np.ones((2, 2)), None) is None
    monkeypatch.setattr(throughput, "peak_flops", lambda kind: None)
    assert Throughput(1).flops(None, None, (), np.ones(2), None) is None


def test_memory_is_that_of_the_device_if_it_reports_it(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"peak_bytes_in_use": 123, "bytes_in_use": 7}

    monkeypatch.setattr(throughput.jax, "local_devices", lambda: [Device()])
    assert Throughput(1).of_call(1, {}, None)["peak_memory_bytes"] == 123
