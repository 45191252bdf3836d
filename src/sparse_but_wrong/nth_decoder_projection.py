"""Published path of `sparse_but_wrong.metrics.projections.nth_decoder_projection`."""

from sparse_but_wrong.metrics.projections import nth_decoder_projection

# The package has the function under the name of this module: also ask it for what is in here.
nth_decoder_projection.nth_decoder_projection = nth_decoder_projection  # pyright: ignore[reportFunctionMemberAccess]
