"""Devices and processes: meshes, what is divided over them, hosts that act as one."""
