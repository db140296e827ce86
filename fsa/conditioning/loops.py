"""Loops over conditioned parameters: what a body need not do, and what a carry is."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core

from . import hoisting, products
from .dependence import dependent_carries
from .values import Value, of_examples


class Hoisted:
    """What the body of a scan need not compute in each step (`hoisting.py`).

    Attributes:
      body: the body without what is computed before the loop.
      early: arrays with an axis of steps in front, as `lax.scan` slices them.
      joined: products that are computed at once: {id of an equation: (the joined
        weight, pairs of each equation and its own weight)}.
    """

    def __init__(self, evaluator, body, consts, num_carry, xs):
        """Splits a body: what is constant, what all steps do at once, and the rest."""
        eqns, variables = body.jaxpr.eqns, body.jaxpr.invars
        self._evaluator, self._body = evaluator, body
        self._env = evaluator.constants(body)
        self._env |= dict(zip(variables, consts, strict=False))
        lazy = [var for var, value in self._env.items() if value.is_lazy]
        constant = hoisting.following_from(eqns, self._env)
        wanted = hoisting.touched(constant, lazy)
        evaluator.evaluate(body, hoisting.slice_of(constant, wanted), self._env)

        slices = variables[len(consts) + num_carry :]
        arrays = {v: x for v, x in zip(slices, xs, strict=True) if not x.is_lazy}
        once = {id(eqn) for eqn in constant}
        mapped = [e for e in eqns if id(e) in once or hoisting.acts_alike_mapped(e)]
        free = hoisting.following_from(mapped, [*self._env, *arrays])
        found = hoisting.products(free, self._is_weight)
        # What is constant is known already.
        outs = [e.outvars[0] for e, *_ in found if e.outvars[0] not in self._env]
        wanted = hoisting.frontier(eqns, free, outs, body.jaxpr.outvars)
        streamed = [*slices, *body.jaxpr.outvars[num_carry:]]
        moving = [eqn for eqn in free if id(eqn) not in once]
        self._names = hoisting.affordable(wanted, moving, streamed)
        needed = hoisting.slice_of(free, self._names)
        self.early = self._run_early(needed, arrays) if self._names else []
        left = hoisting.left(eqns, [*self._env, *self._names], body.jaxpr.outvars)
        self.body = core.ClosedJaxpr(body.jaxpr.replace(eqns=left), body.consts)
        self.joined = self._join(left)

    def _is_weight(self, var) -> bool:
        return var in self._env and self._env[var].is_lazy

    def _run_early(self, eqns, arrays: dict) -> list[jax.Array]:
        """Computes what no step's state is needed for, for all steps at once."""

        def one(data):
            pairs = zip(arrays.items(), data, strict=True)
            env = self._env | {var: value.replace(x) for (var, value), x in pairs}
            self._evaluator.evaluate(self._body, eqns, env)
            return [env[var].data for var in self._names]

        return jax.vmap(one)([value.data for value in arrays.values()])

    def _join(self, eqns) -> dict[int, tuple]:
        """Joins the weights of products of one array."""
        joined = {}
        for group in hoisting.alike(hoisting.products(eqns, self._is_weight)):
            weights = [self._env[weight] for _, _, weight in group]
            first, _, weight = group[0]
            numbers = first.params["dimension_numbers"]
            data, on_left = [w.data for w in weights], first.invars[0] is weight
            one = products.joined_outputs(data, numbers, on_left)
            if one is not None:
                own = [eqn for eqn, _, _ in group]
                parts = list(zip(own, weights, strict=True))
                joined |= {id(eqn): (one, parts) for eqn in own}
        return joined

    def known(self, early: Sequence[Any]) -> dict[core.Var, Value]:
        """Returns the values that one step is given."""
        values = of_examples(early)
        return self._env | dict(zip(self._names, values, strict=True))


class Loop:
    """The carry of a loop, split into what changes and parameters that do not.

    A parameter that each iteration passes on unchanged stays conditioned; one that
    changes is materialised.
    """

    def __init__(self, evaluator, eqn, body, num_consts, num_carry, inputs):
        """Builds the parameters that change in the loop of an equation."""
        self.consts = inputs[:num_consts]
        carry = inputs[num_consts : num_consts + num_carry]
        variables = body.jaxpr.invars[num_consts : num_consts + num_carry]
        outs = body.jaxpr.outvars[:num_carry]
        self._kept = [
            value.is_lazy and out is variable
            for value, out, variable in zip(carry, outs, variables, strict=True)
        ]
        flags = [value.per_example or value.is_lazy for value in inputs]
        flags = dependent_carries(body, num_consts, num_carry, flags)
        reason = "it changes in a loop"
        self.carry = [
            value if kept else Value(*evaluator.plain([value], eqn, reason), flag)
            for value, kept, flag in zip(carry, self._kept, flags, strict=True)
        ]
        self.start = self.moving([value.data for value in self.carry])

    def moving(self, carry: Sequence[Any]) -> list:
        """Selects the elements of a carry that change."""
        return [x for x, kept in zip(carry, self._kept, strict=True) if not kept]

    def inputs(self, moving: Sequence[Any]) -> list:
        """Returns the constants and the complete carry."""
        rest = iter(moving)
        pairs = zip(self.carry, self._kept, strict=True)
        carry = [value.data if kept else next(rest) for value, kept in pairs]
        return [value.data for value in self.consts] + carry

    def outputs(self, moving: Sequence[Any]) -> list[Value]:
        """Returns the complete carry after the loop."""
        rest = iter(moving)
        return [
            value if kept else Value(next(rest), per_example=True)
            for value, kept in zip(self.carry, self._kept, strict=True)
        ]
