"""How well a policy reads faces, and how it looks at them: metrics, controls, tables and plots."""
