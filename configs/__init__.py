"""YAML files of the configuration: pretrain, evaluate, submit, and groups of keys in folders."""
