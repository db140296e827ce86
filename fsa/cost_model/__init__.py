"""What a compiled program costs, read from its text: no device and no profile needed.

`text` parses what `jax.stages.Compiled.as_text` gives, `loops` finds how often each
loop runs, `groups` which mesh axes a collective spans, `products` and `traffic` count
FLOPs and bytes of one instruction, `cost` those of a program, `chips` knows what chips
can do and which topologies are sold, `estimate` turns counts into seconds, `report`
puts it into words.
"""
