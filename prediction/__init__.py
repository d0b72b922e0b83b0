"""Learned TTFT as data: rows, models, their figures. Shared by who trains and who serves.

outcomes -> dataset (Parquet) -> trainer's zoo -> bundle (manifest + files) -> predictor.load -> predict(rows)
                                                      |
                               booster, linear, tree, network, zones: what a kind of model is made of, as data
few: a handful of rows, where a call of numpy costs more than what it computes
scores: how far predictions are from the truth, per zone
"""
