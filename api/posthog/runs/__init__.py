"""Runs in this dialect: created, started, told of, talked to and cancelled."""
