"""The table of secure operators: ATen's, each made of the protocols and of others."""
