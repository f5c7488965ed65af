"""A frozen encoder in, numbers with their intervals out.

`features` decodes every video once and embeds it with each encoder; `splits` says which videos are train and
which test; `recognition`, `retrieval`, `stability` and `forecasting` are pure functions over those features;
`intervals` says how far each number can be trusted; `evaluate` puts them together and writes results.json.
"""
