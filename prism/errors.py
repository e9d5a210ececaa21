"""The one error of loading."""


class PrismWeightsError(ValueError):
    """The weights are not available or are not Prism's; the message is one line: what, why, what to do."""
