"""The YAML that hydra composes; found through this package, so that an installed MoFore has it too."""
