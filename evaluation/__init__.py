"""Evaluation of a frozen encoder.

`extraction` decodes each video once and embeds it with every encoder. `splits` assigns videos to
train and test. `recognition`, `retrieval`, `stability` and `forecasting` are pure functions of
these features. `intervals` computes confidence intervals. `evaluate` combines them and writes
results.json; `console` and `report` show the results.
"""
