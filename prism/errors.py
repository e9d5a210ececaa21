"""The one error of loading."""


class PrismWeightsError(ValueError):
    """The weights cannot be had or are not Prism's; the message is one line: what, why, what to do."""
