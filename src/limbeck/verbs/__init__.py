"""The verbs: each a plain, typed function that is also a command and a YAML file. Heavy imports happen inside them."""
