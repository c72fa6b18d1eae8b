"""Evaluation of a policy's answers and zooms: metrics, controls, tables and plots."""
