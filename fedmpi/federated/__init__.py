"""Rounds of federated averaging: sampling, client training, the exact sum, evaluation."""
