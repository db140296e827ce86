"""The cost of a compiled program, read from its text: without a device or a profile.

`hlo_text` parses what `jax.stages.Compiled.as_text` returns. `trip_counts` finds how
often each loop runs, `device_groups` which mesh axes a collective spans. `matmul_flops`
and `traffic` count the FLOPs and the bytes of one instruction, `cost` those of a
program. `chips` holds the speed, memory and topologies of each chip; `estimate` turns
counts into seconds. `compile_step` compiles a training step and returns a `DryRun` of
`dry_run_result`, as JSON and as text. `flops` counts the FLOPs of a traced function,
before it is compiled.
"""
