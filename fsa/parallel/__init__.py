"""Several devices and processes: meshes, sharding rules, joining, preemption."""
