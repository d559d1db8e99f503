"""A fleet of agents that share subscriptions, and the backend that switches them: ``python -m examples.fleet``."""
