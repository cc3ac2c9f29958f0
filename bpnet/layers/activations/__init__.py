"""The catalogue of activations, each with its derivative beside it; where f' can be written with y, that is saved."""
