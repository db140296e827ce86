"""Several devices and several processes: meshes, sharding rules, joining, preemption."""
