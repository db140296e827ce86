"""The result of a dry run, as JSON and as text."""

import dataclasses
from typing import Any

from fsa.cost_model.chips import Chip
from fsa.cost_model.cost import Costs
from fsa.cost_model.estimate import Seconds, seconds

_GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory that a step needs, in bytes of one chip.

    Attributes:
      arguments: arguments of the step: state, constants, examples.
      temporary: memory in use beside the arguments; None if it is not known.
      peak: most memory that is in use at a time; None if it is not known.
      hbm: memory that a program may use; None if it is not known.
    """

    arguments: float
    temporary: float | None
    peak: float | None
    hbm: float | None


@dataclasses.dataclass(frozen=True)
class DryRun:
    """The memory, work and communication of one training step on one chip.

    Attributes:
      chips: number of chips that share the step.
      fits: whether the chip has enough memory; None if that is not known.
      memory: the memory that the step needs.
      costs: costs of one device; None if the step was not compiled.
      useful_flops: FLOPs that the step needs without recomputation.
      chip: the kind of chip, if it is known.
      advice: lines that say what to change if the step does not fit.
    """

    chips: int
    fits: bool | None
    memory: Memory
    costs: Costs | None
    useful_flops: float
    chip: Chip | None
    advice: tuple[str, ...] = ()

    @property
    def seconds(self) -> Seconds | None:
        """Shortest time of a step; None if the chip or the program is not known."""
        known = self.costs is not None and self.chip is not None
        return seconds(self.costs, self.chip) if known else None

    def mfu(self, step_seconds: float) -> float:
        """Returns useful FLOPs a second as a share of the chip's peak."""
        return self.useful_flops / (step_seconds * self.chip.peak)

    @property
    def _devices(self) -> int:
        return self.chip.devices if self.chip else 1

    def collectives(self) -> list[dict[str, Any]]:
        """Returns an entry for each kind and axis; those that send most come first."""
        entries = {}
        for each in self.costs.collectives if self.costs else ():
            axis = "+".join(each.axes) or "none"
            entry = entries.setdefault(
                (each.kind, axis),
                {"kind": each.kind, "axis": axis, "count": 0, "bytes": 0, "largest": 0},
            )
            entry["count"] += each.count
            entry["bytes"] += each.sent * each.count * self._devices
            entry["largest"] = max(entry["largest"], each.payload)
        return sorted(entries.values(), key=lambda entry: -entry["bytes"])

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as JSON."""
        spent = self.seconds
        costs = self.costs
        return {
            "chips": self.chips,
            "fits": self.fits,
            "memory": dataclasses.asdict(self.memory),
            "flops": costs and costs.flops * self._devices,
            "bytes": costs and costs.bytes * self._devices,
            "collectives": self.collectives(),
            "step_seconds": spent and spent.overlapped,
            "mfu": spent and self.mfu(spent.overlapped),
            "step_seconds_serial": spent and spent.serial,
            "mfu_serial": spent and self.mfu(spent.serial),
            "useful_flops": self.useful_flops,
            "unknown_loops": list(costs.unknown_loops) if costs else [],
            "kernels": list(costs.kernels) if costs else [],
            "advice": list(self.advice),
        }

    def to_text(self) -> str:
        """Returns the figures as text for people."""
        return "\n".join([*self._memory(), *self._work(), *self._verdict()])

    def _memory(self):
        def gib(value):
            return "unknown" if value is None else f"{value / _GIB:.2f} GiB"

        memory = self.memory
        yield f"Per chip, of {self.chips}:"
        yield (
            f"  memory      peak {gib(memory.peak)} of {gib(memory.hbm)}: arguments "
            f"{gib(memory.arguments)}, temporary {gib(memory.temporary)}"
        )

    def _work(self):
        if self.costs is None:
            return
        costs = self.costs
        flops, moved = costs.flops * self._devices, costs.bytes * self._devices
        yield f"  FLOPs       per step: {flops:.4g}; {self._repeated(flops)}"
        yield f"  memory moved {moved / 1e9:,.1f} GB"
        for entry in self.collectives():
            yield (
                f"  {entry['kind']} over {entry['axis']}: {entry['bytes'] / 1e6:,.1f} "
                f"MB sent in {entry['count']:,}, arrays to "
                f"{entry['largest'] / 1e6:,.1f} MB"
            )
        for name in costs.unknown_loops:
            yield f"  loop {name} has no constant length; its body is counted once"
        if costs.kernels:
            yield f"  {len(costs.kernels)} kernels, whose products are not counted"
        spent = self.seconds
        if spent:
            yield (
                f"  roofline    compute and memory {spent.compute:.3g} s, links "
                f"{spent.links:.3g} s, between slices {spent.network:.3g} s"
            )
            yield (
                f"  step        {spent.overlapped:.3g} s, MFU "
                f"{self.mfu(spent.overlapped):.0%} if communication hides behind "
                f"computation; {spent.serial:.3g} s, {self.mfu(spent.serial):.0%} if "
                "it does not"
            )
            yield (
                f"  assumed     {self.chip.peak / 1e12:.0f} bf16 TFLOP/s, HBM "
                f"{self.chip.hbm_bandwidth / 1e9:,.0f} GB/s, links "
                f"{self.chip.links / 1e9:,.0f} GB/s each way, all at their peak"
            )

    def _repeated(self, flops: float) -> str:
        """Returns how the work of a step compares with what it needs at least."""
        # Not "so many are computed twice": what is needed at least neglects the
        # gradients of few trained weights, see `fsa.recipes.dry_run`.
        if flops - self.useful_flops < 0.005 * flops:
            return "nothing is computed twice"
        return f"computing nothing twice takes about {self.useful_flops:.4g}"

    def _verdict(self):
        if self.fits is None:
            yield (
                "Whether it fits is not known: this device does not say how much "
                "memory it has."
            )
        else:
            yield "It fits." if self.fits else "It does not fit."
        yield from (f"  {line}" for line in self.advice)
