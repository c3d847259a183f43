"""What parties and dealer do together: the operators of `fedmpi::`, their formulas and kernels."""
