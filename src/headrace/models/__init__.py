"""transformers as the model zoo: skeletons, weights, and what Headrace takes over in them."""
