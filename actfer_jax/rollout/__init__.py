"""Jitted sampling of multi-turn episodes with tools that return images."""
