"""Devices and processes: meshes, sharded arrays, hosts that act as one."""
