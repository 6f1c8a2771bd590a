"""Keys, values and states of the tokens that were computed: their bookkeeping and their tensors."""
