"""FedNova: clients that take more steps do not pull the model further."""

from __future__ import annotations

from fedmpi.federated.strategy import Cohort, Mean, Strategy


class FedNova(Strategy):
    """w = w + tau_eff sum_k p_k delta_k / tau_k, where tau_eff = sum_k p_k tau_k.

    Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
    Optimization", section 4, with plain SGD on the clients: |a_k| is then the number of local steps
    tau_k. p_k is the share of the cohort's rows.

    The sum is a weighted mean times a factor of at least 1, which running statistics of batch norm
    could not bear: they follow the mean.
    """

    def weights(self, cohort: Cohort) -> list[float]:
        """p_k / tau_k, made to add up to 1."""
        rates = [n / steps for n, steps in zip(cohort.rows, cohort.steps, strict=True)]
        total = sum(rates)
        return [rate / total for rate in rates]

    def apply(self, mean: Mean) -> None:
        """The factor is that of the clients in the mean, whoever has been left out."""
        pairs = list(zip(mean.cohort.rows, mean.cohort.steps, strict=True))
        rows = sum(mean.cohort.rows)
        factor = sum(n * steps for n, steps in pairs) * sum(n / steps for n, steps in pairs)
        for place in self.state.trained:
            mean.update[place].mul_(factor / rows**2)
        super().apply(mean)
